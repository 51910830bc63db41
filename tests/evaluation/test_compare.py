import csv
import re
from html.parser import HTMLParser

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from dfkd.bank.format import BankMeta
from dfkd.bank.writer import BankWriter
from dfkd.cli import app
from dfkd.datasets.info import DatasetInfo
from dfkd.errors import UserError
from dfkd.evaluation.compare import bootstrap_differences, read_correct, read_results, table
from dfkd.evaluation.compare_page import read_curve, write_comparison
from dfkd.evaluation.formats import ResultFile, write_result
from dfkd.evaluation.predict import write_predictions
from dfkd.evaluation.published import matching
from dfkd.evaluation.result import summarise
from dfkd.evaluation.show import write_result_page

TARGET = "cifar10_wrn402_wrn161"
IMAGES = 1000
LABELS = torch.arange(IMAGES) % 2
COST = {"images": 0, "teacher_queries": 0, "optimiser_steps": 0, "peak_memory": 1}


def stage_cost(seconds, images, queries, seeds=0):
    amounts = COST | {"seconds": seconds, "images": images, "teacher_queries": queries}
    if not seeds:
        return amounts | {"jobs": 1, "per_seed": None}
    return {key: seeds * value for key, value in amounts.items()} | {"jobs": seeds, "per_seed": amounts}


def make(root, method, accuracies, **changes):
    """A result with its runs, whose students have the first `accuracies` % of the test images right."""
    runs = root / "results" / "runs" / method / TARGET
    info = DatasetInfo(
        name="cifar10", classes=["a", "b"], image_size=8, channels=3, mean=[0.0] * 3, std=[1.0] * 3, crop_padding=0, flip=False
    )
    for seed, accuracy in enumerate(accuracies):
        folder = runs / f"seed{seed}"
        answers = torch.where(torch.arange(IMAGES) < round(IMAGES * accuracy / 100), LABELS, 1 - LABELS)
        logits = torch.nn.functional.one_hot(answers, 2)
        write_predictions(folder / "predictions.h5", {"teacher": logits, "student": logits}, LABELS, {})
        (folder / "history.csv").write_text(f"epoch,acc1,agree1\n1,50.0,50.0\n2,{accuracy},60.0\n")
        meta = BankMeta(kind="run", dataset=info, teacher_sha256="t" * 64, stage="distill", stage_version=1)
        with BankWriter(root / "writing.lmdb", meta, resume=False) as bank:
            if method != "real":
                bank.append_images(torch.full((3, 3, 8, 8), 200, dtype=torch.uint8), torch.zeros(3, dtype=torch.long))
            bank.publish(folder / "bank.lmdb")
    metric = summarise(accuracies).model_dump()
    half = summarise([0.5] * len(accuracies)).model_dump()
    content = {
        "dataset": "cifar10",
        "method": method,
        "data_free": method != "real",
        "notes": {},
        "teacher": {"name": "wrn402", "params": 2243546, "acc1": 94.87},
        "student": {"name": "wrn161", "params": 175066},
        "seeds": list(range(len(accuracies))),
        "acc1": metric,
        "best_acc1": summarise([value + 1 for value in accuracies]).model_dump(),
        "augmentation": None,
        "published": [figure.model_dump() for figure in matching("cifar10", "wrn402", "wrn161")],
        "cost": {
            "teacher": stage_cost(1000.0, 0, 0),
            "init-bank": stage_cost(40.0, 800, 7),
            "distill": stage_cost(10.0, 200, 30, len(accuracies)),
            "evaluate": stage_cost(5.0, 0, 1000, len(accuracies)),
        },
        "provenance": {
            "date": "2026-01-01T00:00:00+00:00", "config_hash": "c", "versions": {}, "revision": "r", "hardware": {},
            "artefacts": {"teacher": "t" * 64},
        },
    }  # fmt: skip
    content |= dict.fromkeys(("acc5", "agree1", "lp", "one_minus_js_distance", "nll", "ece"), half)
    path = root / "results" / method / f"{TARGET}.json"
    write_result(path, ResultFile.model_validate(content | changes))
    return path


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


def test_bootstrap_of_images_alone_has_the_binomial_spread():
    """Two students that differ on 100 of 1,000 images, the one right and the other wrong there; seeds are all alike. The
    difference is the share of drawn images among the 100, with standard deviation sqrt(0.1 · 0.9 / 1000)."""
    right = np.ones((3, 1000), dtype=bool)
    wrong = right.copy()
    wrong[:, :100] = False
    reference, other = bootstrap_differences([right, wrong], 0)
    assert (reference.difference, reference.low, reference.high) == (0.0, 0.0, 0.0)
    spread = 100 * np.sqrt(0.1 * 0.9 / 1000)
    assert other.difference == pytest.approx(-10)
    assert other.low == pytest.approx(-10 - 1.96 * spread, abs=0.12)
    assert other.high == pytest.approx(-10 + 1.96 * spread, abs=0.12)
    assert other.exceeds_noise
    assert not reference.exceeds_noise


def test_bootstrap_is_paired_over_images():
    """Two students that are right on the same half of the images do not differ, however the images are drawn."""
    half = np.tile(np.arange(200) % 2 == 0, (3, 1))
    assert [(item.low, item.high) for item in bootstrap_differences([half, half.copy()], 0, samples=500)] == [(0.0, 0.0)] * 2


def test_bootstrap_draws_seeds():
    """Every image alike, so that only the seeds differ: the mean of 3 draws from {0, 0, 1} is 0, 1/3, 2/3 or 1, with shares
    8/27, 12/27, 6/27 and 1/27; the 5 % quantile is 0 and that of 95 % is 2/3."""
    one = np.ones((1, 20), dtype=bool)
    unstable = np.zeros((3, 20), dtype=bool)
    unstable[2] = True
    never, mixed = bootstrap_differences([one & False, unstable], 0, level=0.9)
    assert never.difference == 0
    assert mixed.difference == pytest.approx(100 / 3)
    assert (mixed.low, mixed.high) == pytest.approx((0, 200 / 3))
    assert not mixed.exceeds_noise


def test_bootstrap_depends_on_its_seed_alone():
    flags = [np.random.default_rng(index).random((3, 300)) < 0.5 for index in range(3)]
    assert bootstrap_differences(flags, 1, 300) == bootstrap_differences(flags, 1, 300)
    assert bootstrap_differences(flags, 1, 300) != bootstrap_differences(flags, 1, 300, seed=1)


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
        if self.rows and "tr" in self.open:
            self.rows[-1] += data + "|"


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
    assert len(sources) == 2
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
    other = make(tmp_path / "other", "dfq", [50.0], student={"name": "wrn162", "params": 1})
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
