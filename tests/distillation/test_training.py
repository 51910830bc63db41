"""Teacher and student stages: schedules, what they write, and that they learn."""

import csv
import shutil

import h5py
import pytest
import torch

from dfkd.bank.reader import BankReader
from dfkd.datasets.info import DatasetInfo
from dfkd.datasets.prepared import write_prepared
from dfkd.distillation import distill as student_stage
from dfkd.distillation import teacher as teacher_stage
from dfkd.errors import UserError
from dfkd.files import read_json
from dfkd.methods import DDASettings
from dfkd.models import build_model
from dfkd.models.weights import load_model, read_card, save_weights
from dfkd.settings import TeacherSettings

STUDENT = DDASettings(
    precision="reference",
    epochs=4,
    kd_steps=25,
    batch_size=24,
    synthesis_batch_size=24,
    g_steps=20,
    lr_g=1e-2,
    latent_size=16,
    width=8,
    lr=0.05,
)


def test_teacher_schedules():
    settings = TeacherSettings()
    rates = [teacher_stage.rate_at(settings, epoch) for epoch in (0, 119, 120, 149, 150, 179, 180, 199)]
    assert rates == pytest.approx([0.1, 0.1, 0.01, 0.01, 1e-3, 1e-3, 1e-4, 1e-4])
    cosine = settings.model_copy(update={"schedule": "cosine"})
    assert [teacher_stage.rate_at(cosine, epoch) for epoch in (0, 100)] == pytest.approx([0.1, 0.05])


def test_teacher_learns_and_says_what_it_is(tiny_teacher, tiny_data):
    card = read_card(tiny_teacher)
    assert card.metrics["acc1"] > 95
    assert card.dataset == tiny_data.info
    assert card.role == "teacher"
    rows = list(csv.DictReader((tiny_teacher.parent / "history.csv").open()))
    assert [int(row["epoch"]) for row in rows] == list(range(1, 9))
    assert float(rows[-1]["acc1"]) == card.metrics["acc1"]
    assert [float(row["lr"]) for row in rows] == pytest.approx([0.1] * 6 + [0.01] * 2)
    assert read_json(tiny_teacher.parent / "cost.json")["optimiser_steps"] == 8 * 4
    assert not (tiny_teacher.parent / "checkpoint").exists()


@pytest.fixture(scope="module")
def student(tiny_teacher, tiny_bank, tiny_data, reference, tmp_path_factory):
    folder = tmp_path_factory.mktemp("student")
    student_stage.distill(
        tiny_teacher, [tiny_bank], "wrn101", tiny_data.test, STUDENT, 0, folder / "student.safetensors", folder / "c", reference
    )
    return folder


def test_student_learns_from_the_banks_alone(student):
    rows = list(csv.DictReader((student / "history.csv").open()))
    assert float(rows[-1]["loss"]) < 0.7 * float(rows[0]["loss"])
    assert float(rows[-1]["acc1"]) > 60
    assert [int(row["images"]) for row in rows] == [96 + 24 * epoch for epoch in range(1, 5)]
    card = read_card(student / "student.safetensors")
    assert card.metrics["acc1"] == float(rows[-1]["acc1"])
    assert card.stage == "distill dda"
    best = read_card(student / "best.safetensors")
    assert best.metrics["acc1"] == max(float(row["acc1"]) for row in rows)
    assert best.metrics["epoch"] == 1 + [float(row["acc1"]) for row in rows].index(best.metrics["acc1"])


def test_the_runs_own_bank_holds_every_image_that_was_made(student, tiny_teacher):
    bank = BankReader(student / "bank.lmdb", teacher_sha256=read_card(tiny_teacher).sha256)
    assert len(bank) == 4 * 24
    assert bank.meta.kind == "run"
    assert [step["stage"] for step in bank.meta.lineage] == ["teacher", "init-bank"]
    cost = read_json(student / "cost.json")
    assert (cost["images"], cost["optimiser_steps"]) == (4 * 24, 4 * (20 + 2 * 25))
    assert cost["teacher_queries"] == 4 * (24 * 21 + 25 * 24)


def test_best_and_last_weights_load(student, tiny_teacher):
    last, card = load_model(student / "student.safetensors")
    assert card.lineage["teacher"] == read_card(tiny_teacher).sha256
    assert not last.training
    assert "bank init" in card.lineage


def test_the_training_split_is_not_read(tiny_teacher, tiny_bank, tiny_data, reference, student, tmp_path):
    """The same run where no file with a training split exists gives the same weights."""
    with h5py.File(tiny_data.test) as file:
        assert set(file) == {"test"}
    for path in (tiny_teacher, tiny_teacher.with_suffix(".json"), tiny_bank, tiny_data.test):
        shutil.copy(path, tmp_path)
    output = tmp_path / "run" / "student.safetensors"
    student_stage.distill(
        tmp_path / tiny_teacher.name,
        [tmp_path / tiny_bank.name],
        "wrn101",
        tmp_path / tiny_data.test.name,
        STUDENT,
        0,
        output,
        tmp_path / "c",
        reference,
    )
    assert output.read_bytes() == (student / "student.safetensors").read_bytes()
    assert (output.parent / "bank.lmdb").read_bytes() == (student / "bank.lmdb").read_bytes()


def test_another_seed_is_another_student(tiny_teacher, tiny_bank, tiny_data, reference, student, tmp_path):
    short = STUDENT.model_copy(update={"epochs": 1, "kd_steps": 1})
    for seed in (0, 1):
        folder = tmp_path / str(seed)
        student_stage.distill(
            tiny_teacher, [tiny_bank], "wrn101", tiny_data.test, short, seed, folder / "s.safetensors", folder / "c", reference
        )
    assert (tmp_path / "0" / "s.safetensors").read_bytes() != (tmp_path / "1" / "s.safetensors").read_bytes()


def test_refusals(tiny_teacher, tiny_bank, tiny_data, reference, tmp_path):
    def run(bank=tiny_bank, test=tiny_data.test, method="dda", weights=tiny_teacher, data=None):
        output = tmp_path / "run" / "student.safetensors"
        with pytest.raises(UserError) as caught:
            student_stage.distill(weights, [bank], "wrn101", test, STUDENT, 0, output, tmp_path / "c", reference, method, data)
        assert not output.exists()
        return str(caught.value)

    assert "unknown method 'dad'; the nearest known: " in run(method="dad")
    assert "leave --data away (it is for the control 'real' and for the 'kd' methods)" in run(data=tiny_data.data)
    assert "give the images with --data (it is for the control 'real'" in run(method="real")
    other_info = DatasetInfo(**{**tiny_data.info.model_dump(), "classes": ["a", "b", "c"]})
    images = torch.zeros(3, 1, 8, 8, dtype=torch.uint8)
    write_prepared(tmp_path / "o.test.h5", other_info, {"test": (images, torch.arange(3))}, {})
    assert "classes are not those of the teacher" in run(test=tmp_path / "o.test.h5")
    torch.manual_seed(9)
    card = read_card(tiny_teacher)
    save_weights(tmp_path / "other.safetensors", build_model("wrn101", 3, 1, 8), card)
    assert "teacher" in run(weights=tmp_path / "other.safetensors")  # the bank is another teacher's


def test_import_measures_an_outside_checkpoint(tiny_teacher, tiny_data, reference, tmp_path):
    model, card = load_model(tiny_teacher)
    torch.save({"state_dict": {f"module.{name}": value for name, value in model.state_dict().items()}}, tmp_path / "zoo.pth")
    output = tmp_path / "t" / "weights.safetensors"
    imported = teacher_stage.import_teacher(tmp_path / "zoo.pth", "wrn101", tiny_data.info, output, tiny_data.test, reference)
    assert imported.metrics["acc1"] == card.metrics["acc1"]
    assert imported.sha256 == card.sha256  # same tensors, same bytes
    assert {path.name for path in output.parent.iterdir()} >= {
        "weights.safetensors",
        "weights.json",
        "history.csv",
        "cost.json",
    }
