"""Runs that synthesise nothing: the fixed bank of CMI's variant, noise, the real images."""

import json

import pytest
import torch

from dfkd.bank.reader import BankReader
from dfkd.distillation.distill import distill
from dfkd.distillation.run import Run
from dfkd.errors import UserError
from dfkd.files import file_sha256
from dfkd.methods import METHODS
from dfkd.synthesis.controls import Noise
from dfkd.synthesis.synthesizer import FreshSynthesizer

SMALL = {"precision": "reference", "epochs": 2, "kd_steps": 3, "batch_size": 12, "milestones": [1]}


def run(tiny_teacher, tiny_data, runtime, folder, method, banks=(), data=None, **changes):
    settings = METHODS[method].settings(**(SMALL | changes))
    output = folder / "student.safetensors"
    distill(tiny_teacher, list(banks), "wrn101", tiny_data.test, settings, 0, output, folder / "state", runtime, method, data)
    return json.loads((folder / "cost.json").read_text()), BankReader(folder / "bank.lmdb")


@pytest.fixture
def seen(monkeypatch):
    """What the student's side sees: the store's size and the batches."""
    found = {"stores": [], "batches": []}
    plain = Run.distill

    def watch(self, turn):
        found["stores"].append(self.store.count)
        step = self.objective.step
        self.objective.step = lambda batch: found["batches"].append(batch.images) or step(batch)
        plain(self, turn)
        self.objective.step = step

    monkeypatch.setattr(Run, "distill", watch)
    return found


def test_a_fixed_bank_is_distilled_on_as_it_is(tiny_teacher, tiny_data, tiny_bank, reference, tmp_path, seen):
    cost, bank = run(tiny_teacher, tiny_data, reference, tmp_path, "cmi-nonadversarial", [tiny_bank])
    assert seen["stores"] == [len(BankReader(tiny_bank))] * 6
    assert len(bank) == 0
    assert (cost["images"], cost["optimiser_steps"], cost["teacher_queries"]) == (0, 6, 72)


def test_without_a_bank_there_is_nothing_to_distil_on(tiny_teacher, tiny_data, reference, tmp_path):
    with pytest.raises(UserError, match="no image to distil on"):
        run(tiny_teacher, tiny_data, reference, tmp_path, "cmi-nonadversarial")


def test_noise_is_fresh_and_uniform_and_some_is_kept_to_be_looked_at(tiny_teacher, tiny_data, reference, tmp_path, seen):
    cost, bank = run(tiny_teacher, tiny_data, reference, tmp_path, "noise", sample_images=40)
    batches = torch.stack(seen["batches"])
    assert len({batch.sum().item() for batch in batches}) == 6
    assert batches.min() >= -1.0001  # (0 - 0.3) / 0.3
    assert batches.max() <= 0.7 / 0.3 + 1e-4
    assert batches.mean().item() == pytest.approx(0.2 / 0.3, abs=0.05)
    assert batches.var().item() == pytest.approx(1 / 12 / 0.09, rel=0.05)
    assert len(bank) == 40  # of the last epoch alone
    assert set(bank.load().scores) == {"confidence", "label_probability", "entropy"}
    assert cost["images"] == 72


def test_noise_keeps_nothing_for_the_student():
    assert issubclass(Noise, FreshSynthesizer)
    assert not METHODS["noise"].banks
    assert not METHODS["noise"].real


def test_the_real_images_are_in_the_store_and_never_in_the_bank(tiny_teacher, tiny_data, reference, tmp_path, seen):
    cost, bank = run(tiny_teacher, tiny_data, reference, tmp_path, "real", data=tiny_data.data)
    assert seen["stores"] == [120] * 6
    assert len(bank) == 0
    assert cost["images"] == 0
    assert [name for name, method in METHODS.items() if method.real] == ["real"]
    lineage = json.loads((tmp_path / "student.json").read_text())["lineage"]
    assert lineage["data"] == file_sha256(tiny_data.data)


def test_the_noise_of_a_run_has_no_real_images_in_its_lineage(tiny_teacher, tiny_data, reference, tmp_path):
    run(tiny_teacher, tiny_data, reference, tmp_path, "noise")
    assert set(json.loads((tmp_path / "student.json").read_text())["lineage"]) == {"teacher"}


@pytest.mark.parametrize(("method", "given"), [("real", False), ("noise", True)])
def test_real_images_are_for_the_control_alone(tiny_teacher, tiny_data, reference, tmp_path, method, given):
    with pytest.raises(UserError, match="for the control 'real'"):
        run(tiny_teacher, tiny_data, reference, tmp_path, method, data=tiny_data.data if given else None)
