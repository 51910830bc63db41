import base64
import dataclasses
import json
import re
import shutil

import pytest
from typer.testing import CliRunner

from dfkd.bank.format import BankMeta
from dfkd.bank.writer import BankWriter
from dfkd.cli import app
from dfkd.errors import UserError
from dfkd.evaluation.commands import place_of, weights_command
from dfkd.evaluation.curves import find_histories
from dfkd.evaluation.run_report import write_report
from dfkd.methods import METHODS

HISTORY = "epoch,lr,lr_g,loss,kd,g_loss,g_bn,images,acc1,agree1\n1,0.1,0.01,3,2,,,10,50,60\n2,0.05,0.01,1,0.5,-3,4,20,92.5,80\n"
HISTORY += "3,0.0,0.01,0.9,0.4,-4,5,30,91.25,95\n"
TIMING = "epoch,seconds,images,images_per_second\n1,2.0,100,50.0\n2,2.0,100,50.0\n3,4.0,100,25.0\n"
CARD = {
    "architecture": "wrn161",
    "dataset": {"name": "digits"},
    "role": "student",
    "stage": "distill dda",
    "stage_version": 2,
    "settings": {"epochs": 3, "lr": 0.1},
    "seed": 1,
    "params": 174778,
    "metrics": {},
    "versions": {"torch": "9.9"},
    "revision": "abc<def",
    "sha256": "0" * 64,
    "lineage": {"teacher": "1" * 64, "bank init": "2" * 64, "bank variations": "3" * 64},
    "notes": {},
}


@pytest.fixture
def run(tmp_path):
    """The folder of a finished run, in the workflow's layout."""
    folder = tmp_path / "results" / "runs" / "dda" / "digits_wrn162_wrn161" / "seed1"
    folder.mkdir(parents=True)
    (folder / "history.csv").write_text(HISTORY)
    (folder / "timing.csv").write_text(TIMING)
    (folder / "student.json").write_text(json.dumps(CARD))
    cost = {"seconds": 125.0, "images": 30, "teacher_queries": 4000, "optimiser_steps": 7, "peak_memory": 2**30}
    (folder / "cost.json").write_text(json.dumps({**cost, "hardware": {"name": "toy CPU"}}))
    return folder


def charts(page):
    """Title → name of a line → its values, as the page gives them to plotly."""
    figures = [json.loads(text) for text in re.findall(r'<script type="application/json">(.*?)</script>', page)]
    lines = {figure["layout"]["title"]["text"]: figure for figure in figures}
    return {title[3:-4]: {line["name"]: (line["x"], line["y"]) for line in figure["data"]} for title, figure in lines.items()}


def headline(page):
    """Name → value and note of the large figures."""
    found = re.findall(r"<div><span>(.*?)</span><b>(.*?)</b><small>(.*?)</small></div>", page)
    return {name: (value, note) for name, value, note in found}


def test_the_page_shows_the_history_term_by_term(run):
    assert [path.name for path in write_report(run)] == ["report.html", "summary.html", "curves.png"]
    page = (run / "report.html").read_text()
    found = charts(page)
    epochs = [1.0, 2.0, 3.0]
    assert found["On the test split, %"] == {"Acc@1": (epochs, [50, 92.5, 91.25]), "Agree@1": (epochs, [60, 80, 95])}
    assert found["Training loss"] == {"total": (epochs, [3, 1, 0.9]), "KL to teacher": (epochs, [2, 0.5, 0.4])}
    assert found["Generator's loss"] == {"total": (epochs, [None, -3, -4]), "BN statistics": (epochs, [None, 4, 5])}
    assert found["Learning rate"] == {"network": (epochs, [0.1, 0.05, 0]), "generator": (epochs, [0.01] * 3)}
    assert found["Images per second"] == {"images/s": (epochs, [50, 50, 25])}
    assert headline(page) == {
        "Acc@1": ("91.25 %", "last epoch, 3"),
        "Acc@1, best": ("92.50 %", "epoch 2"),
        "Agree@1": ("95.00 %", "last epoch, 3"),
        "Agree@1, best": ("95.00 %", "epoch 3"),
        "time": ("2 min 05 s", "peak memory 1.00 GiB"),
        "images synthesised": ("30", ""),
        "teacher queries": ("4,000", ""),
        "optimiser steps": ("7", ""),
        "images/s": ("38", "mean; trained on, syntheses included"),  # 300 in 8 s
    }
    assert "<h1>digits: wrn162 → wrn161 by dda, seed 1</h1>" in page
    assert "abc&lt;def" in page
    assert "in progress" not in page


def test_the_loss_has_a_logarithmic_axis_and_one_that_falls_below_zero_has_none(run):
    write_report(run)
    text = (run / "report.html").read_text()
    axes = {
        figure["layout"]["title"]["text"][3:-4]: figure["layout"]["yaxis"].get("type", "linear")
        for figure in map(json.loads, re.findall(r'<script type="application/json">(.*?)</script>', text))
    }
    assert (axes["Training loss"], axes["Generator's loss"]) == ("log", "linear")


def test_the_summary_has_pictures_in_place_of_charts_and_stays_small(run):
    (run / "bank.png").write_bytes(b"bank")
    (run / "confusion.png").write_bytes(b"confusion")
    write_report(run)
    page, summary = ((run / name).read_text() for name in ("report.html", "summary.html"))
    curves, bank, confusion = (
        base64.b64encode((run / name).read_bytes()).decode() for name in ("curves.png", "bank.png", "confusion.png")
    )
    assert (curves in page, bank in page, confusion in page, 'id="plotly"' in page) == (False, True, True, True)
    assert (curves in summary, bank in summary, confusion in summary, 'id="plotly"' in summary) == (True, False, False, False)
    assert headline(summary) == headline(page)
    assert len(summary) < 1_500_000  # what a browser shows of a page within Snakemake's report


def test_equal_runs_give_equal_pages_wherever_they_lie(run, tmp_path):
    write_report(run)
    other = tmp_path / "elsewhere" / run.relative_to(tmp_path)
    shutil.copytree(run, other, ignore=shutil.ignore_patterns("*.html", "*.png"))
    write_report(other)
    for name in ("report.html", "summary.html", "curves.png"):
        assert (other / name).read_bytes() == (run / name).read_bytes()
        assert str(tmp_path).encode() not in (run / name).read_bytes()
    out = tmp_path / "out"
    assert {path.parent for path in write_report(run, out)} == {out}
    assert (out / "report.html").read_bytes() == (run / "report.html").read_bytes()


def test_a_run_in_progress_is_shown_as_far_as_it_is(run, tiny_bank):
    for name in ("history", "timing"):
        (run / f"{name}.csv").rename(run / f"{name}.partial.csv")
    for name in ("student.json", "cost.json"):
        (run / name).unlink()
    state = run.parents[3] / "checkpoints" / "distill" / "dda" / "digits_wrn162_wrn161_seed1"
    state.mkdir(parents=True)
    shutil.copy(tiny_bank, state / "bank.lmdb")
    write_report(run)
    page = (run / "report.html").read_text()
    assert "in progress: epoch 3" in page
    assert headline(page)["Acc@1"] == ("91.25 %", "epoch 3, so far")
    assert headline(page)["time"] == ("8.0 s", "so far")
    assert "digits: wrn162 → wrn161 by dda, seed 1" in page
    assert "What the run has synthesised so far" in page
    assert "snakemake --cores all results/runs/dda/digits_wrn162_wrn161/seed1/student.safetensors" in page
    assert charts(page)["On the test split, %"]["Acc@1"][1] == [50, 92.5, 91.25]


def test_a_run_that_starts_anew_is_shown_in_place_of_the_former_one(run):
    (run / "history.partial.csv").write_text("epoch,acc1\n1,12.5\n")
    (curves,) = find_histories(run)
    assert (curves.columns, curves.finished) == ({"epoch": [1], "acc1": [12.5]}, False)
    (run / "history.partial.csv").write_text("epoch,acc1\n")
    assert find_histories(run)[0].finished


def test_banks_are_reported_from_their_histories_shards_in_the_order_of_their_batches(tmp_path):
    folder = tmp_path / "banks"
    (folder / "shards").mkdir(parents=True)
    header = "batch,lr,g_loss\n"
    (folder / "shards" / "2-of-2.history.csv").write_text(header + "11,0.1,5\n12,0.1,6\n")
    (folder / "shards" / "1-of-2.history.partial.csv").write_text(header + "1,0.1,9\n2,0.1,8\n")
    (curves,) = find_histories(folder)
    assert curves.columns == {"batch": [1, 2, 11, 12], "lr": [0.1] * 4, "g_loss": [9, 8, 5, 6]}
    assert not curves.finished
    (folder / "init.history.csv").write_text(header + "1,0.1,4\n")
    (folder / "variations.history.csv").write_text("step,lr,loss\n")
    assert [(curves.name, curves.rows, curves.finished) for curves in find_histories(folder)] == [
        ("init", 1, True), ("variations", 0, True),
    ]  # fmt: skip
    assert [path.name for path in write_report(folder)][2:] == ["init.curves.png", "variations.curves.png"]
    page = (folder / "report.html").read_text()
    assert charts(page)["Generator's loss"] == {"total": ([1], [4])}
    assert "nothing was trained" in page


def test_banks_say_what_they_hold_and_how_they_are_made(tiny_data, tmp_path):
    folder = tmp_path / "results" / "banks" / "bars_wrn101"
    folder.mkdir(parents=True)
    (folder / "init.history.csv").write_text("batch,lr,g_loss\n1,0.1,4\n")
    meta = BankMeta(
        kind="init", dataset=tiny_data.info, teacher_sha256="a" * 64, stage="init-bank", stage_version=1, settings={"steps": 3}
    )
    with BankWriter(tmp_path / "working.lmdb", meta) as bank:
        bank.publish(folder / "init.lmdb")
    result = CliRunner().invoke(app, ["report", str(folder)])
    assert result.exit_code == 0, result.output
    assert result.output.split()[0].endswith("report.html")
    page = (folder / "report.html").read_text().replace("&#34;", '"').replace("&#39;", "'")
    assert headline(page)["init bank"] == ("0", "images")
    words = "dfkd init-bank --teacher results/teachers/bars_wrn101/weights.safetensors --settings '{\"steps\":3}' "
    assert words + "-o results/banks/bars_wrn101/init.lmdb" in page


def test_the_command_of_a_run_has_the_workflows_paths_and_placeholders_elsewhere(run, tmp_path):
    place = place_of(run)
    assert (place.pair, place.method, place.seed) == ("digits_wrn162_wrn161", "dda", 1)
    assert weights_command(place, CARD, "wrn162", "student.safetensors") == (
        "dfkd distill --teacher results/teachers/digits_wrn162/weights.safetensors "
        "--bank results/banks/digits_wrn162/init.lmdb --bank results/banks/digits_wrn162/variations.lmdb --method dda "
        '--student wrn161 --seed 1 --test data/digits.test.h5 --settings \'{"epochs":3,"lr":0.1}\' '
        "--checkpoints results/checkpoints/distill/dda/digits_wrn162_wrn161_seed1 "
        "-o results/runs/dda/digits_wrn162_wrn161/seed1/student.safetensors"
    )
    assert place_of(tmp_path) is None
    assert weights_command(None, CARD, "", "student.safetensors") == (
        "dfkd distill --teacher TEACHER.safetensors --bank init.lmdb --bank variations.lmdb --method dda --student wrn161 "
        '--seed 1 --test TEST.h5 --settings \'{"epochs":3,"lr":0.1}\' -o student.safetensors'
    )
    settings = METHODS["kd-ab"].settings().model_dump(mode="json")
    two = CARD | {"stage": "distill kd-ab", "settings": settings, "lineage": {"teacher": "a", "data": "b", "first stage": "c"}}
    begun = dataclasses.replace(place, method="kd-ab")
    assert f"--data data/digits.h5 --first-stage {begun.folder}/first_stage.safetensors --method kd-ab " in weights_command(
        begun, two, "wrn162", "student.safetensors"
    )
    assert "--first-stage FIRST_STAGE.safetensors" in weights_command(None, two, "", "student.safetensors")
    assert weights_command(place, CARD | {"stage": "distill mine"}, "wrn162", "student.safetensors") is None


@pytest.mark.parametrize(
    ("transfer", "lineage", "words"),
    [
        ("train", "data", "--data data/digits.h5"),
        ("dataset:mnist", "data", "--data data/mnist.h5"),
        ("folder:my images", "data", "--data 'my images'"),
        ("bank:init", "bank init", "--bank results/banks/digits_wrn162/init.lmdb"),
        ("bank:own/b.lmdb", "bank b", "--bank own/b.lmdb"),
    ],
)
def test_the_command_of_a_distillation_names_its_transfer_set(run, transfer, lineage, words):
    card = CARD | {"stage": "distill kd", "settings": {"transfer_set": transfer}, "lineage": {"teacher": "", lineage: ""}}
    command = weights_command(place_of(run), card, "wrn162", "student.safetensors")
    assert f"weights.safetensors {words} --method kd" in command


def test_the_commands_of_teachers_and_students_from_scratch(tmp_path):
    teacher = place_of(tmp_path / "results/teachers/digits_wrn162")
    scratch = place_of(tmp_path / "results/runs/scratch/digits_wrn161/seed2")
    card = CARD | {"stage": "teacher"}
    assert weights_command(teacher, card, "", "weights.safetensors") == (
        'dfkd teacher train --data data/digits.h5 --model wrn161 --settings \'{"epochs":3,"lr":0.1}\' '
        "--checkpoints results/checkpoints/teacher/digits_wrn162 -o results/teachers/digits_wrn162/weights.safetensors"
    )
    assert weights_command(scratch, card, "", "student.safetensors").endswith(
        "--checkpoints results/checkpoints/scratch/digits_wrn161_seed2 "
        "-o results/runs/scratch/digits_wrn161/seed2/student.safetensors"
    )
    imported = weights_command(teacher, card | {"settings": {"imported": "zoo.pth"}}, "", "weights.safetensors")
    assert imported.startswith("dfkd teacher import zoo.pth --model wrn161 --dataset digits --test data/digits.test.h5 -o ")


def test_a_folder_without_a_history_is_refused_in_a_sentence(run, tmp_path):
    result = CliRunner().invoke(app, ["report", str(tmp_path)])
    assert isinstance(result.exception, UserError)
    assert "name the folder of a run, a teacher or a teacher's banks" in str(result.exception)
    (run / "student.json").write_text('{"architecture": "wrn161"}')
    with pytest.raises(UserError, match=r"student\.json: not a card of this project's weights"):
        write_report(run)
    assert not (run / "report.html").exists()
    assert list(tmp_path.rglob("*.html")) == []
