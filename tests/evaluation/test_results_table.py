"""`dfkd results`: what is found, how it is grouped, what is called noise, and the five forms of the table."""

import csv
import io
import json
import math
import re
import shutil

import pytest
from made_results import TARGET, make, stage_cost
from rich.console import Console
from typer.testing import CliRunner

from dfkd.cli import app
from dfkd.errors import UserError
from dfkd.evaluation import results_table
from dfkd.evaluation.compare import read_correct, read_results, table
from dfkd.evaluation.gather import Fault, find_results, group_results, select
from dfkd.evaluation.gather import test_images as images_of
from dfkd.evaluation.noise import DEVIATIONS
from dfkd.files import read_json, write_json

PAIR = "wrn402_wrn161"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Three seeds of three methods and a control, one seed of another, all with their runs, and the default's short name."""
    root = tmp_path_factory.mktemp("made")
    seeds = {"dda": [90.0, 89.0, 91.0], "cmi": [90.0, 89.0, 90.5], "dafl": [70.0, 71.0, 72.0], "real": [94.0] * 3}
    for method, values in seeds.items():
        make(root, method, values)
    make(root, "csd", [88.0])
    make(root, "dfq", [80.0])
    results = root / "results"
    shutil.copy(results / "dda" / f"{TARGET}.json", results / f"{TARGET}.json")
    (results / "teachers" / "x").mkdir(parents=True)
    (results / "teachers" / "x" / "weights.json").write_text("{}")
    return results


def groups_of(*places):
    return group_results(find_results(places)[0])


def run(*words):
    done = CliRunner().invoke(app, ["results", *map(str, words)])
    assert done.exit_code == 0, done.output
    return done


def test_what_is_found(folder):
    found, faults = find_results([folder])
    assert faults == []  # cards, metrics and costs of the workflow's own folders are not looked at
    assert sorted((item.result.method, item.path.parent.name) for item in found) == [
        (method, method) for method in ("cmi", "csd", "dafl", "dda", "dfq", "real")
    ]
    assert len(find_results([folder, folder / "dda", folder / f"{TARGET}.json"])[0]) == 6
    (alone,) = find_results([folder / f"{TARGET}.json"])[0]
    assert alone.result.method == "dda"


def test_a_short_name_that_is_no_copy_is_shown(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "results", ignore=shutil.ignore_patterns("runs"))
    stale = tmp_path / "results" / f"{TARGET}.json"
    write_json(stale, read_json(stale) | {"notes": {"of": "yesterday"}})
    (group,) = groups_of(tmp_path / "results")
    labels = [results_table.COLUMNS[0].text(entry) for entry in group.entries]
    assert f"dda [{stale}]" in labels
    assert f"dda [{tmp_path / 'results' / 'dda' / f'{TARGET}.json'}]" in labels
    assert "cmi" in labels


def test_one_group_with_the_rows_of_compare(folder):
    (group,) = groups_of(folder)
    assert (group.dataset, group.pair, group.images, group.note, group.one_of_several) == ("cifar10", PAIR, 1000, "", False)
    assert [entry.row.method for entry in group.entries] == ["real", "dda", "cmi", "csd", "dfq", "dafl"]
    assert [entry.best for entry in group.entries] == [False, True, False, False, False, False]
    three = read_results([folder / method / f"{TARGET}.json" for method in ("dda", "cmi", "dafl", "real")])
    expected = {row.method: row for row in table(three, read_correct(three, folder / "runs"))}
    mine = {entry.row.method: entry.row for entry in group.entries}
    assert {method: mine[method] for method in expected} == expected


def test_three_seeds_with_predictions_are_bootstrapped_and_the_rest_is_binomial(folder):
    (group,) = groups_of(folder)
    rows = {entry.row.method: entry.row for entry in group.entries}
    assert {name: (row.noise, row.exceeds_noise) for name, row in rows.items()} == {
        "real": ("bootstrap", True),
        "dda": ("", None),
        "cmi": ("bootstrap", False),
        "dafl": ("bootstrap", True),
        "csd": ("binomial", False),  # -2 points, the half-width is 2.74 and the seeds of `dda`
        "dfq": ("binomial", None),  # far away: but nothing is known of its seeds
    }
    spread = DEVIATIONS * math.sqrt(100**2 * (0.9 * 0.1 + 0.88 * 0.12) / 1000 + 1 / 3)
    assert (rows["csd"].to_best_low, rows["csd"].to_best_high) == pytest.approx((-2 - spread, -2 + spread))


def test_without_the_runs_everything_is_binomial(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "results", ignore=shutil.ignore_patterns("runs"))
    (group,) = groups_of(tmp_path / "results")
    assert {entry.row.noise for entry in group.entries if not entry.best} == {"binomial"}


def test_predictions_of_another_run_are_not_believed(folder, tmp_path):
    """The runs were made again since: their accuracies are not the result's."""
    copy = tmp_path / "results"
    shutil.copytree(folder, copy)
    runs = copy / "runs" / "cmi" / TARGET
    shutil.copy(copy / "runs" / "dafl" / TARGET / "seed0" / "predictions.h5", runs / "seed1" / "predictions.h5")
    (group,) = groups_of(copy)
    rules = {entry.row.method: entry.row.noise for entry in group.entries}
    assert (rules["cmi"], rules["dafl"]) == ("binomial", "bootstrap")


def test_of_an_unknown_test_split_nothing_is_said(tmp_path):
    cost = {"distill": stage_cost(10.0, 1, 1, 1)}
    for method, value in (("dda", 90.0), ("cmi", 89.9)):
        make(tmp_path, method, [value], cost=cost)
    (group,) = groups_of(tmp_path / "results")
    assert group.images is None
    assert [(entry.row.noise, entry.row.exceeds_noise) for entry in group.entries] == [("", None)] * 2
    assert "nothing is said of noise" in results_table.as_text([group])
    assert "○" not in results_table.as_text([group])


def test_the_size_of_the_test_split(tmp_path):
    path = make(tmp_path, "dda", [90.0, 91.0])
    (item,) = find_results([path])[0]
    assert images_of(item.result) == 1000  # older files: what the teacher classified to evaluate one student
    assert images_of(item.result.model_copy(update={"test_images": 7})) == 7
    make(tmp_path, "cmi", [90.0], test_images=500)
    (group,) = groups_of(tmp_path / "results")
    assert group.images is None
    assert group.note == "measured on test splits of different sizes (500, 1000): not comparable"
    assert group.note in results_table.as_markdown([group])


def test_other_weights_of_the_teacher_are_another_group(tmp_path):
    make(tmp_path, "dda", [90.0])
    provenance = read_results([make(tmp_path, "cmi", [80.0])])[0].provenance
    make(tmp_path, "cmi", [80.0], provenance=provenance.model_copy(update={"artefacts": {"teacher": "u" * 64}}))
    one, other = groups_of(tmp_path / "results")
    assert [[entry.row.method for entry in group.entries] for group in (one, other)] == [["dda"], ["cmi"]]
    assert results_table.title_of(other) == "cifar10: wrn402 → wrn161, teacher 94.87 % (weights uuuuuuuu), 1,000 test images"


def test_a_student_from_scratch_stands_beside_its_kind(tmp_path):
    make(tmp_path, "dda", [90.0])
    alone = {"teacher": None, "agree1": None, "lp": None, "one_minus_js_distance": None, "data_free": False}
    make(tmp_path, "scratch", [95.0], **alone, cost={"scratch": stage_cost(9.0, 0, 0, 1)})
    (group,) = groups_of(tmp_path / "results")
    assert group.pair == PAIR
    assert group.first.teacher.name == "wrn402"
    scratch, dda = (entry.row for entry in group.entries)
    assert (scratch.method, scratch.agree1, scratch.lp, scratch.seconds, scratch.to_best) == ("scratch", None, None, 9.0, 5.0)
    assert dda.to_best == 0
    (only,) = group_results(select(find_results([tmp_path / "results"])[0], methods=["scratch"]))
    assert results_table.title_of(only) == "cifar10: wrn161 from scratch"
    with_pair = select(find_results([tmp_path / "results"])[0], pairs=[PAIR])
    assert sorted(item.result.method for item in with_pair) == ["dda", "scratch"]


def test_filters(folder):
    found = find_results([folder])[0]
    assert {item.result.method for item in select(found, methods=["dda", "cmi"])} == {"dda", "cmi"}
    assert len(select(found, ["cifar10"], ["dda"], [PAIR])) == 1
    for words, sentence in (
        ({"datasets": ["cifar"]}, "no result of data set 'cifar'; the nearest known: cifar10"),
        ({"methods": ["daf"]}, "no result of method 'daf'; the nearest known: dafl"),
        ({"pairs": ["wrn402_wrn162"]}, "no result of pair 'wrn402_wrn162'; the nearest known: wrn402_wrn161"),
    ):
        with pytest.raises(UserError, match=sentence):
            select(found, **words)


def test_damaged_and_foreign_files_are_listed_and_stop_nothing(folder, tmp_path):
    copy = tmp_path / "results"
    shutil.copytree(folder, copy, ignore=shutil.ignore_patterns("runs"))
    (copy / "broken.json").write_text('{"format_version": 1,')
    (copy / "package.json").write_text('{"name": "a thing of others"}')
    (copy / "list.json").write_text("[1, 2]")
    done = run(copy)
    assert "dda" in done.stdout
    lines = done.stderr.splitlines()
    assert [line.split(": ")[1].rsplit("/")[-1] for line in lines] == ["broken.json", "list.json", "package.json"]
    assert "not valid JSON" in lines[0]
    assert "not a result file of this version" in lines[2]
    listed = json.loads(run(copy, "--format", "json").stdout)["unreadable"]
    assert [item["file"] for item in listed] == [str(copy / name) for name in ("broken.json", "list.json", "package.json")]
    many = results_table.fault_lines([Fault(copy / f"{number}.json", "no") for number in range(30)])
    assert len(many) == 9
    assert many[-1] == "left out: 22 more JSON files that are no results"


def test_nothing_to_read_is_refused(tmp_path):
    for words, sentence in (
        ([tmp_path / "absent"], "absent: no such file or folder"),
        ([tmp_path], "no result file that can be read; make one with snakemake"),
        ([tmp_path, "--format", "exel"], "--format exel: no such format; known: csv, json, latex, markdown, table"),
    ):
        done = CliRunner().invoke(app, ["results", *map(str, words)])
        assert isinstance(done.exception, UserError)
        assert sentence in str(done.exception)
    (tmp_path / "broken.json").write_text("{")
    with pytest.raises(UserError, match=r"no result file that can be read; .*broken\.json: not valid JSON"):
        find_results([tmp_path])
    assert [path.name for path in tmp_path.iterdir()] == ["broken.json"]


def printed(groups, width, **options):
    console = Console(file=io.StringIO(), width=width, **options)
    results_table.print_table(groups, console)
    return console.file.getvalue()


def test_the_table_on_a_terminal(folder):
    groups = groups_of(folder)
    plain = printed(groups, 200, color_system=None)
    lines = {line.split()[0]: line.split() for line in plain.splitlines() if line.strip()}
    assert lines["method"][:3] == ["method", "seeds", "Acc@1"]
    assert lines["real"][:8] == ["real", "(control)", "0–2", "94.00", "±", "0.00", "●", "+4.00"]
    assert lines["dda"][:6] == ["dda", "0–2", "90.00", "±", "1.00", "best"]
    assert lines["csd"][:5] == ["csd", "0", "88.00", "○", "−2.00"]
    assert lines["dfq"][:4] == ["dfq", "0", "80.00", "−10.00"]
    assert "88.82" in lines["cmi"]  # published
    assert "energy" not in plain
    assert "binomial" in plain
    assert "paired bootstrap" in plain
    styled = printed(groups, 200, force_terminal=True, color_system="standard", no_color=False)
    assert re.search(r"\x1b\[1m *90\.00 ± 1\.00", styled)
    assert re.search(r"\x1b\[90m *○ −2\.00", styled)
    assert not re.search(r"\x1b\[\d+m *−10\.00", styled)


def test_a_narrow_terminal_loses_columns_and_says_which(folder):
    groups = groups_of(folder)
    for width in (110, 80):
        text = printed(groups, width, color_system=None)
        assert max(map(len, text.splitlines())) <= width
        left = next(line for line in text.splitlines() if line.startswith("Too narrow for "))
        assert "L_p" in left
        assert "Acc@1" in text
    assert "Too narrow" not in printed(groups, 200, color_system=None)


def test_csv(folder, tmp_path):
    run(folder, "-o", tmp_path / "all.csv")
    rows = list(csv.DictReader((tmp_path / "all.csv").open()))
    assert [row["method"] for row in rows] == ["real", "dda", "cmi", "csd", "dfq", "dafl"]
    own = rows[2]
    assert (own["dataset"], own["pair"], own["seeds"], own["acc1"]) == ("cifar10", PAIR, "0 1 2", str((90 + 89 + 90.5) / 3))
    assert (own["published"], own["data_free"], own["noise"], own["exceeds_noise"]) == ("88.82", "true", "bootstrap", "false")
    assert (own["energy"], own["test_images"], own["file"]) == ("", "1000", str(folder / "cmi" / f"{TARGET}.json"))


def test_json(folder):
    (group,) = json.loads(run(folder, "--format", "json").stdout)["groups"]
    assert (group["dataset"], group["pair"], group["test_images"]) == ("cifar10", PAIR, 1000)
    assert group["teacher"] == {"name": "wrn402", "params": 2243546, "acc1": 94.87}
    row = group["rows"][1]
    assert (row["method"], row["seeds"], row["acc1"], row["to_best"], row["seconds"]) == ("dda", [0, 1, 2], 90.0, 0.0, 50.0)


def test_markdown(folder):
    text = run(folder, "--format", "markdown", "--method", "dda", "--method", "csd").stdout
    head, rule, dda, csd = text.splitlines()[2:6]
    assert head.startswith("| method | seeds | Acc@1 | to best |")
    assert rule.startswith("| --- | ---: |")
    assert dda.startswith("| **dda** | 0–2 | **90.00 ± 1.00** | **best** |")
    assert csd.startswith("| csd | 0 | 88.00 | ○ −2.00 |")
    assert len({line.count("|") for line in (head, rule, dda, csd)}) == 1


def test_latex(folder, tmp_path):
    text = run(folder, "-o", tmp_path / "x.tex", "--method", "dda", "--method", "csd")
    assert text.stdout == ""
    text = (tmp_path / "x.tex").read_text()
    assert r"\textbf{dda} & 0--2 & \textbf{90.00 $\pm$ 1.00} & \textbf{best} &" in text
    assert r"\textcolor{gray}{$\circ$ $-$2.00}" in text
    assert "$L_p$" in text
    columns = text.split(r"\begin{tabular}{")[1].split("}")[0]
    body = [line for line in text.splitlines() if line.endswith(r"\\")]
    assert {line.replace(r"\&", "").count("&") for line in body} == {len(columns) - 1}
    assert results_table._escaped("50 % of a_b & {c}") == r"50 \% of a\_b \& \{c\}"


def test_the_form_is_that_of_the_file_unless_it_is_named(tmp_path):
    assert results_table.format_of(None, None) == "table"
    names = ("a.csv", "a.md", "a.tex", "a.json", "a.txt")
    assert [results_table.format_of(None, tmp_path / name) for name in names] == ["csv", "markdown", "latex", "json", "table"]
    assert results_table.format_of("json", tmp_path / "a.md") == "json"


def test_text_in_a_file_has_no_colours(folder, tmp_path):
    run(folder, "-o", tmp_path / "all.txt")
    text = (tmp_path / "all.txt").read_text()
    assert "\x1b" not in text
    assert text.splitlines()[0] == "cifar10: wrn402 → wrn161, teacher 94.87 %, 1,000 test images"
