import csv
import re
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest
from made_results import TARGET, make, stage_cost
from PIL import Image
from typer.testing import CliRunner

from dfkd.cli import app
from dfkd.errors import UserError
from dfkd.evaluation import compare_figure
from dfkd.evaluation.compare import own_cost, published_figure, read_correct, read_results, table
from dfkd.evaluation.compare_figure import draw_images, read_curve
from dfkd.evaluation.compare_page import write_comparison
from dfkd.evaluation.formats import read_result
from dfkd.evaluation.published import matching
from dfkd.evaluation.show import write_result_page


@pytest.fixture
def three(tmp_path):
    """Three seeds each of two methods, far apart, and both controls."""
    accuracies = {
        "noise": [50.0, 50.0, 50.0],
        "dafl": [70.0, 71.0, 72.0],
        "cmi": [90.0, 88.0, 89.0],
        "real": [93.0, 94.0, 95.0],
    }
    return [make(tmp_path, method, values) for method, values in accuracies.items()], tmp_path / "results" / "runs"


def rows_of(paths, runs):
    results = read_results(paths)
    return table(results, read_correct(results, runs))


def test_rows(three):
    rows = rows_of(*three)
    assert [row.method for row in rows] == ["real", "cmi", "dafl", "noise"]
    assert [row.control for row in rows] == [True, False, False, True]
    assert [row.data_free for row in rows] == [False, True, True, True]
    assert [row.acc1 for row in rows] == [94.0, 89.0, 71.0, 50.0]
    assert [row.acc1_std for row in rows] == [1.0, 1.0, 1.0, 0.0]
    assert (rows[1].best_acc1, rows[1].agree1, rows[1].lp, rows[1].lp_std, rows[1].seeds) == (90.0, 0.5, 0.5, 0.0, 3)
    # its own stages: the bank once, the mean of the distillations; neither the teacher nor the evaluation
    assert (rows[1].seconds, rows[1].images, rows[1].teacher_queries) == (50.0, 1000.0, 37.0)
    # the best is no control
    assert [row.to_best for row in rows] == [5.0, 0.0, -18.0, -39.0]
    assert [row.exceeds_noise for row in rows] == [True, None, True, True]


def test_published_figures_are_those_of_the_settings(three):
    rows = {row.method: row for row in rows_of(*three)}
    assert (rows["cmi"].published, rows["cmi"].published_source) == (88.82, "CMI-scratch, CMI README text")
    assert rows["cmi"].last_minus_published == pytest.approx(89 - 88.82)
    assert rows["cmi"].best_minus_published == pytest.approx(90 - 88.82)
    assert rows["dafl"].published == 72.15  # the highest of 65.71 and 72.15
    assert (rows["noise"].published, rows["noise"].published_source, rows["noise"].last_minus_published) == (None, "", None)


def test_a_student_from_scratch_has_nobody_to_be_compared_with(tmp_path):
    alone = make(tmp_path, "dda", [90.0], teacher=None)
    with pytest.raises(UserError, match="wrn161 of method dda has no teacher"):
        read_results([alone])


def test_too_few_seeds_leave_the_noise_unknown(tmp_path):
    paths = [make(tmp_path, "cmi", [90.0, 89.0]), make(tmp_path, "dafl", [50.0, 50.0])]
    assert [(row.to_best_low, row.exceeds_noise) for row in rows_of(paths, tmp_path / "results" / "runs")] == [(None, None)] * 2


def test_a_method_with_fewer_seeds_is_left_out_of_the_noise(tmp_path):
    paths = [make(tmp_path, "cmi", [90.0] * 3), make(tmp_path, "dafl", [50.0]), make(tmp_path, "dfq", [89.9] * 3)]
    found = {row.method: row.exceeds_noise for row in rows_of(paths, tmp_path / "results" / "runs")}
    assert found == {"cmi": None, "dfq": False, "dafl": None}


class Page(HTMLParser):
    """Open elements, all attributes, and the text of the table's rows."""

    def __init__(self, text):
        super().__init__()
        self.open, self.attributes, self.rows = [], [], []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        if tag not in ("meta", "img", "br"):
            self.open.append(tag)
        self.attributes += [(tag, key, value) for key, value in attrs]
        if tag == "tr":
            self.rows.append("")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.rows and "tr" in self.open and data.strip():
            self.rows[-1] += data.strip() + "|"


def test_page(three):
    paths, runs = three
    output = runs.parent / "compare" / f"{TARGET}.html"
    write_comparison(paths, runs, output)
    text = output.read_text(encoding="utf-8")
    page = Page(text)
    assert page.open == []
    assert [row.split("|")[0].strip() for row in page.rows[1:]] == ["real", "cmi", "dafl", "noise"]
    assert "not data-free" in page.rows[1]
    assert "not data-free" not in "".join(page.rows[2:])
    assert "94.00 ± 1.00" in page.rows[1]
    assert "● -18.00" in page.rows[3]
    sources = [value for _, key, value in page.attributes if key in ("src", "href", "srcset", "action", "data")]
    assert len(sources) == 3
    assert "published" in text
    assert all(value.startswith("data:image/png;base64,") for value in sources)
    assert not re.search(r"https?:|@import|url\(|fetch\(|<link", re.sub(r"base64,[^\"]+", "", text))
    with Image.open(output.with_suffix(".png")) as picture:
        assert picture.format == "PNG"
        assert picture.width > 1000
    with output.with_suffix(".csv").open() as file:
        lines = {line["method"]: line for line in csv.DictReader(file)}
    assert list(lines) == ["real", "cmi", "dafl", "noise"]
    assert (lines["cmi"]["acc1"], lines["cmi"]["published"], lines["cmi"]["exceeds_noise"]) == ("89.0", "88.82", "")
    assert (lines["real"]["data_free"], lines["real"]["control"], lines["noise"]["data_free"]) == ("false", "true", "true")
    assert sorted(path.name for path in output.parent.iterdir()) == [f"{TARGET}.{kind}" for kind in ("csv", "html", "png")]


def test_images_are_shown_of_methods_that_make_some(three, tmp_path):
    paths, runs = three
    real, *others = read_results(paths[::-1])
    assert real.method == "real"
    assert draw_images([real], runs) is None
    assert np.array_equal(draw_images([real, *others], runs), draw_images(others, runs))
    output = tmp_path / "out" / "x.html"
    write_comparison(paths[-1:], runs, output)
    assert "synthesise<" not in output.read_text(encoding="utf-8")


def test_columns_without_a_figure_are_left_out(tmp_path):
    paths = [make(tmp_path, "cmi", [90.0], published=[]), make(tmp_path, "dafl", [70.0], published=[])]
    output = tmp_path / "out" / "x.html"
    write_comparison(paths, tmp_path / "results" / "runs", output)
    text = re.sub(r"base64,[^\"]+", "", output.read_text(encoding="utf-8"))
    assert "published" not in text
    assert "<th title=" in text
    assert ">Wh<" not in text
    assert Page(text).rows[1].count("|") == Page(text).rows[0].count("|") == 9


def test_the_first_stage_of_a_student_is_a_part_of_its_own_cost(tmp_path):
    cost = {"teacher": stage_cost(1000.0, 0, 0), "distill": stage_cost(10.0, 200, 30, 2)}
    alone = own_cost(read_result(make(tmp_path / "a", "cmi", [90.0, 91.0], cost=cost)), "seconds")
    cost["first-stage"] = stage_cost(6.0, 0, 40, 2)
    whole = read_result(make(tmp_path / "b", "cmi", [90.0, 91.0], cost=cost))
    assert own_cost(whole, "seconds") == alone + whole.cost["first-stage"].per_seed.seconds


def test_energy_is_that_of_one_student(tmp_path):
    """The bank's 7,200 J and the mean of the distillations, 1,800 J: 2.5 Wh."""
    cost = {
        "teacher": stage_cost(1000.0, 0, 0) | {"energy": 5e6},
        "init-bank": stage_cost(40.0, 800, 7) | {"energy": 7200.0},
        "distill": stage_cost(10.0, 200, 30, 2) | {"energy": 3600.0},
    }
    cost["distill"]["per_seed"] = cost["distill"]["per_seed"] | {"energy": 1800.0}
    unmetered = cost | {"init-bank": cost["init-bank"] | {"energy": None}}
    paths = [make(tmp_path, "cmi", [90.0, 91.0], cost=cost), make(tmp_path, "dafl", [70.0, 70.0], cost=unmetered)]
    output = tmp_path / "out" / "x.html"
    rows = write_comparison(paths, tmp_path / "results" / "runs", output)
    assert [row.energy for row in rows] == [9000.0, None]
    page = Page(output.read_text(encoding="utf-8"))
    assert page.rows[0].split("|")[9] == "Wh"
    assert "2.5" in page.rows[1].split("|")


def test_the_best_is_data_free(tmp_path):
    paths = [make(tmp_path, "kd", [95.0], data_free=False), make(tmp_path, "cmi", [90.0]), make(tmp_path, "dafl", [80.0])]
    assert [row.to_best for row in rows_of(paths, tmp_path / "results" / "runs")] == [5.0, 0.0, -10.0]
    assert [row.to_best for row in rows_of(paths[:1], tmp_path / "results" / "runs")] == [0.0]


def test_a_student_from_scratch_costs_what_one_seed_costs(tmp_path):
    """Results of before the mean per seed hold the sum over the jobs alone."""
    cost = {"scratch": stage_cost(30.0, 0, 0) | {"jobs": 3}, "evaluate": stage_cost(5.0, 0, 0)}
    path = make(tmp_path, "scratch", [90.0] * 3, teacher=None, cost=cost)
    assert own_cost(read_result(path), "seconds") == 10.0
    assert own_cost(read_result(path), "energy") is None


def test_kd_has_published_figures_on_the_training_images_alone(tmp_path):
    figures = [figure.model_dump() for figure in matching("cifar100", "wrn402", "wrn161")]
    path = make(tmp_path, "kd", [60.0], published=figures, notes={"transfer_set": "train"}, data_free=False)
    assert published_figure(read_result(path))[0] == 64.06
    for method, wanted in (("kd", "dataset:svhn"), ("kd-at", "bank:init")):
        path = make(tmp_path, method, [60.0], published=figures, notes={"transfer_set": wanted}, data_free=False)
        assert published_figure(read_result(path)) == (None, "")


@pytest.mark.parametrize(("method", "value"), [("kd", 70.79), ("kd-vanilla", 74.92), ("kd-vid", 74.11), ("kdrefine", 75.97)])
def test_what_two_recipes_call_kd_is_told_apart(tmp_path, method, value):
    figures = [figure.model_dump() for figure in matching("cifar100", "wrn402", "wrn162")]
    path = make(tmp_path, method, [60.0], published=figures, notes={"transfer_set": "train"}, data_free=False)
    assert published_figure(read_result(path))[0] == value


def test_a_control_far_below_stands_at_the_edge(three):
    rows = rows_of(*three)
    low, high = compare_figure.accuracy_range(rows)
    assert low < 71 < 94 < high
    assert low > 50  # the control `noise`
    close = [row for row in rows if row.method != "noise"]
    assert compare_figure.accuracy_range(close) == (low, high)


def test_nothing_measured_is_no_figure_of_costs(three):
    rows = [replace(row, seconds=0.0, images=0.0, teacher_queries=0.0) for row in rows_of(*three)]
    assert compare_figure.draw_costs(rows) is None
    one = [replace(rows[0], seconds=3.0), *rows[1:]]
    assert compare_figure.draw_costs(one).size == compare_figure.draw_costs(rows_of(*three)).size


def test_curve_is_the_mean_over_the_seeds(three):
    paths, runs = three
    (result,) = read_results(paths[1:2])
    curve = read_curve(result, runs)
    assert (curve.epochs, curve.acc1, curve.spread, curve.seconds) == ([1.0, 2.0], [50.0, 71.0], [0.0, 1.0], 10.0)


def test_command(three):
    paths, runs = three
    output = runs.parent / "compare" / "x.html"
    done = CliRunner().invoke(app, ["compare", *map(str, paths), "--runs", str(runs), "-o", str(output)])
    assert done.exit_code == 0, done.output
    assert [line.split()[0] for line in done.output.splitlines()] == ["real", "cmi", "dafl", "noise"]
    assert output.exists()


def test_what_does_not_fit_is_refused_and_nothing_is_written(three, tmp_path):
    paths, runs = three
    output = tmp_path / "out" / "x.html"

    def refusal(given=paths, to=output):
        with pytest.raises(UserError) as caught:
            write_comparison(given, runs, to)
        assert not output.parent.exists()
        return str(caught.value)

    assert "no result file given" in refusal([])
    assert "method cmi is already in" in refusal([paths[2], paths[2]])
    assert "ends in .html" in refusal(to=tmp_path / "out" / "x.csv")
    other = make(tmp_path / "other", "dfq", [50.0], student="wrn162")
    assert "of cifar10_wrn402_wrn162, not of cifar10_wrn402_wrn161" in refusal([*paths, other])
    provenance = read_results(paths)[0].provenance.model_copy(update={"artefacts": {"teacher": "u"}})
    other = make(tmp_path / "other", "dfq", [50.0], provenance=provenance.model_dump())
    assert "its teacher has other weights" in refusal([*paths, other])
    (runs / "cmi" / TARGET / "seed1" / "predictions.h5").write_bytes(
        (runs / "dafl" / TARGET / "seed1" / "predictions.h5").read_bytes()
    )
    assert "its Acc@1 is 71.00 %, the result's 88.00 %" in refusal()
    (runs / "cmi" / TARGET / "seed1" / "predictions.h5").unlink()
    assert "predictions.h5: no such file" in refusal()


def test_a_result_as_a_page_has_the_tables_that_are_printed(tmp_path):
    path = make(tmp_path, "cmi", [90.0, 88.0, 89.0], notes={"label_embedding": "<clip>"})
    output = tmp_path / "page.html"
    result = CliRunner().invoke(app, ["show", str(path), "-o", str(output)])
    assert result.exit_code == 0, result.output
    text = output.read_text(encoding="utf-8")
    page = Page(text)
    assert page.open == []
    rows = [[cell.strip() for cell in row.split("|")[:-1]] for row in page.rows]
    assert ["Acc@1", "89.00 ± 1.00 %", "90.00  88.00  89.00"] in rows
    assert any(row[:2] == ["cmi (ours, last epoch)", "89.00 ± 1.00"] for row in rows)
    assert any(row[0] == "DAFL" and row[1] == "72.15" for row in rows)
    assert [row[1] for row in rows if row[0] == "all"] == ["8"]  # jobs of all stages: 1 + 1 + 3 + 3
    assert "label embedding: &lt;clip&gt;" in text
    assert "seeds 0, 1, 2" in text
    assert "not data-free" not in text
    write_result_page(make(tmp_path, "real", [90.0]), output)
    assert "not data-free" in output.read_text(encoding="utf-8")
