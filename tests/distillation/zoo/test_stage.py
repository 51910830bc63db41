"""A distillation with heads, on real images and on a bank: what it writes, and that a stop loses nothing."""

import signal

import pytest

from dfkd.distillation.distill import distill
from dfkd.distillation.zoo.vid import VID
from dfkd.errors import UserError
from dfkd.files import read_json
from dfkd.history import read_history
from dfkd.methods import METHODS
from dfkd.progress import Stopped

SMALL = {"precision": "reference", "epochs": 2, "kd_steps": 6, "batch_size": 20, "milestones": [1]}


@pytest.fixture
def run(tiny_teacher, tiny_data, tiny_bank, reference):
    """Distil by a method into a folder."""

    def into(folder, transfer_set, method="kd-vid", **changes):
        settings = METHODS[method].settings(**(SMALL | changes), transfer_set=transfer_set)
        banks, data = ([tiny_bank], None) if transfer_set.startswith("bank") else ([], tiny_data.data)
        output = folder / "out" / "student.safetensors"
        distill(tiny_teacher, banks, "wrn101", tiny_data.test, settings, 0, output, folder / "state", reference, method, data)
        return folder / "out"

    return into


@pytest.mark.parametrize("transfer_set", ["train", "bank:init"])
def test_stopped_and_resumed_it_ends_with_the_same_bytes(run, monkeypatch, tmp_path, transfer_set):
    whole = run(tmp_path / "whole", transfer_set)
    own, calls = VID.step, 0

    def interrupted(*arguments):
        nonlocal calls
        calls += 1
        if calls in (2, 6, 9):
            signal.raise_signal(signal.SIGTERM)
        return own(*arguments)

    monkeypatch.setattr(VID, "step", interrupted)
    for _ in range(3):
        with pytest.raises(Stopped):
            run(tmp_path / "parts", transfer_set)
    resumed = run(tmp_path / "parts", transfer_set)
    assert calls == 12
    for path in whole.iterdir():
        if path.is_file() and path.name not in ("cost.json", "timing.csv"):
            assert (resumed / path.name).read_bytes() == path.read_bytes(), path.name
    card = read_json(whole / "student.json")
    assert card["notes"]["transfer_set"] == transfer_set
    assert card["notes"]["heads"].endswith(" parameters trained with the student")
    assert "data" in card["lineage"] if transfer_set == "train" else "bank init" in card["lineage"]
    assert list(read_history(whole / "history.csv")) == ["epoch", "lr", "loss", "ce", "vid", "images", "acc1", "agree1"]


def test_a_pair_that_cannot_be_taken_leaves_nothing_behind(run, tmp_path):
    with pytest.raises(UserError, match="there is one alone"):
        run(tmp_path, "train", "kd-svd", student_layers=["block3"], teacher_layers=["block3"])
    assert not (tmp_path / "out").exists()
    assert not list(tmp_path.rglob("*.safetensors"))
