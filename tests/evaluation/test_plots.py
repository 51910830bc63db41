import json
import shutil
import time

import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from dfkd.cli import app
from dfkd.errors import UserError
from dfkd.evaluation import plots
from dfkd.evaluation.formats import read_metrics
from dfkd.evaluation.plots import plot_confusion, plot_history, read_history

HEADER = "epoch,lr,loss,kd,ce,feature,head,g_loss,g_bn,g_oh,g_csd,acc1,agree1,images"


def write_history(path, epochs=5):
    rows = [
        f"{n},{0.1 / n},{3 / n},{2 / n},{1 / n},,1.0,{9 - n},1,2,-3,{90 + n},{91 + n},{400 * n}" for n in range(1, epochs + 1)
    ]
    path.write_text("\n".join([HEADER, *rows]) + "\n")
    return path


def write_random(path, classes):
    generator = torch.Generator().manual_seed(0)
    matrices = [
        (9 * torch.eye(classes) + torch.rand(classes, classes, generator=generator)).round().int().tolist() for _ in range(2)
    ]
    measured = {"epoch": 3, "acc1": 91.0, "acc5": 99.0, "agree1": 92.0, "lp": 0.7, "one_minus_js_distance": 0.8, "nll": 0.3}
    measured |= {"ece": 0.02, "per_class": [90.0] * classes, "confusion": matrices[1]}
    content = {
        "dataset": "toy",
        "method": "dda",
        "data_free": True,
        "notes": {},
        "seed": 0,
        "classes": [str(number) for number in range(classes)],
        "images": 10 * classes,
        "teacher": {"name": "wrn162", "params": 1, "sha256": "0" * 64, "acc1": 95.0, "confusion": matrices[0]},
        "student": {"name": "wrn161", "params": 1, "sha256": "1" * 64},
        "last": measured,
        "best": None,
    }
    path.write_text(json.dumps(content))
    return path


def ink(path):
    """Share of pixels that are not white."""
    counts = Image.open(path).convert("L").histogram()
    return 1 - counts[255] / sum(counts)


def test_history_is_read_with_empty_cells(tmp_path):
    columns = read_history(write_history(tmp_path / "history.csv"))
    assert columns["acc1"] == [91.0, 92.0, 93.0, 94.0, 95.0]
    assert all(value != value for value in columns["feature"])


def test_a_panel_for_each_group_that_is_there(tmp_path):
    plot_history(write_history(tmp_path / "full.csv"), tmp_path / "full.png", "dda")
    (tmp_path / "teacher.csv").write_text("epoch,lr,loss,acc1\n1,0.1,2.0,50\n2,0.1,1.0,60\n")
    plot_history(tmp_path / "teacher.csv", tmp_path / "teacher.png")
    full, teacher = (Image.open(tmp_path / f"{name}.png").size for name in ("full", "teacher"))
    assert full[0] == teacher[0]
    assert full[1] > 1.8 * teacher[1]  # five panels in two rows against three in one
    assert ink(tmp_path / "full.png") > 0.02


def test_terms_of_any_method_are_drawn_under_their_own_names(tmp_path, monkeypatch):
    drawn = {}
    monkeypatch.setattr(plots, "_draw_panel", lambda axes, columns, panel, labels: drawn.update({panel.title: labels}))
    (tmp_path / "dafl.csv").write_text("epoch,lr,loss,g_loss,g_oh,g_balance,acc1\n1,0.1,2,5,1,-2,50\n2,0.1,1,4,1,-2,60\n")
    plot_history(tmp_path / "dafl.csv", tmp_path / "dafl.png")
    assert drawn["Generator's loss"] == {"g_loss": "total", "g_oh": "one-hot", "g_balance": "balance"}
    assert drawn["Training loss"] == {"loss": "total"}
    (tmp_path / "real.csv").write_text("epoch,lr,loss,images,acc1\n1,0.1,2,60,50\n")  # a method that makes nothing
    drawn.clear()
    plot_history(tmp_path / "real.csv", tmp_path / "real.png")
    assert "Generator's loss" not in drawn


def test_png_bytes_depend_on_the_figures_alone(tmp_path, monkeypatch):
    history = tmp_path / "history.csv"
    history.write_text("epoch,acc1\n1,50\n2,60\n")
    metrics = write_random(tmp_path / "metrics.json", 2)
    plot_history(history, tmp_path / "a.png")
    plot_confusion(read_metrics(metrics), tmp_path / "b.png")
    monkeypatch.setattr(time, "time", lambda: 0.0)
    plot_history(history, tmp_path / "c.png")
    plot_confusion(read_metrics(metrics), tmp_path / "d.png")
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "c.png").read_bytes()
    assert (tmp_path / "b.png").read_bytes() == (tmp_path / "d.png").read_bytes()
    for name in "ab":
        assert not {"Software", "Creation Time", "date"} & set(Image.open(tmp_path / f"{name}.png").info)


@pytest.mark.parametrize("classes", [2, 10, 100])
def test_confusion_of_few_and_many_classes(tmp_path, classes):
    plot_confusion(read_metrics(write_random(tmp_path / "metrics.json", classes)), tmp_path / "confusion.png")
    assert Image.open(tmp_path / "confusion.png").size[0] > Image.open(tmp_path / "confusion.png").size[1]
    assert ink(tmp_path / "confusion.png") > 0.02


def test_histories_of_batches_and_steps_are_drawn_and_one_without_rows_says_so(tmp_path):
    (tmp_path / "batches.csv").write_text("batch,lr,g_loss,g_bn\n1,0.1,5,1\n2,0.1,4,1\n")
    (tmp_path / "none.csv").write_text("step,lr,loss\n")
    for name in ("batches", "none"):
        plot_history(tmp_path / f"{name}.csv", tmp_path / f"{name}.png")
    assert ink(tmp_path / "batches.png") > 0.02
    assert 0 < ink(tmp_path / "none.png") < 0.4


def test_a_file_that_is_no_history_is_refused_and_nothing_drawn(tmp_path):
    (tmp_path / "history.csv").write_text("a,b\n1,2\n")
    with pytest.raises(UserError, match="its first column is none of"):
        plot_history(tmp_path / "history.csv", tmp_path / "history.png")
    assert not (tmp_path / "history.png").exists()


def test_the_training_of_a_run_is_drawn_into_its_folder(tiny_bank, tmp_path):
    write_history(tmp_path / "history.csv")
    for names in ({"curves.png"}, {"curves.png", "bank.png"}):
        if "bank.png" in names:  # a student from scratch has no bank
            shutil.copy(tiny_bank, tmp_path / "bank.lmdb")
        result = CliRunner().invoke(app, ["plot", "run", str(tmp_path)])
        assert result.exit_code == 0, result.output
        assert {path.name for path in tmp_path.glob("*.png")} == names
    assert all(ink(tmp_path / name) > 0.02 for name in names)
