"""A run of a method whose generator lives for the whole run: what it writes, and that a stop loses nothing."""

import csv
import signal

import pytest
import torch

from dfkd.bank.grid import contact_sheet
from dfkd.bank.reader import BankReader
from dfkd.bank.stats import summarise
from dfkd.bank.verify import verify_bank
from dfkd.datasets.views import normalise, to_unit
from dfkd.distillation.distill import distill
from dfkd.distillation.kd import KD
from dfkd.errors import UserError
from dfkd.files import read_json
from dfkd.methods import METHODS, DAFLSettings
from dfkd.models.generators import LargeGenerator
from dfkd.models.weights import load_model, load_state, read_card
from dfkd.progress import Stopped
from dfkd.synthesis.dafl import DAFL

SETTINGS = DAFLSettings(
    precision="reference", epochs=4, rounds=2, kd_steps=3, batch_size=12, synthesis_batch_size=10, latent_size=8, width=4,
    sample_every=3, sample_images=20, lr=0.02,
)  # fmt: skip
STEPS = 4 * 2 * 3


@pytest.fixture(scope="module")
def run(tiny_teacher, tiny_data, reference):
    """Call it with a folder: runs, or goes on."""

    def call(folder, **options):
        output = folder / "out" / "student.safetensors"
        arguments = (tiny_teacher, [], "wrn101", tiny_data.test, SETTINGS, 0, output, folder / "checkpoint", reference, "dafl")
        return distill(*arguments, **options)

    return call


@pytest.fixture(scope="module")
def finished(run, tmp_path_factory):
    folder = tmp_path_factory.mktemp("dafl")
    run(folder)
    return folder / "out"


def test_what_the_run_writes(finished, tiny_teacher):
    names = {path.name for path in finished.iterdir() if path.is_file()}
    assert names == {
        "student.safetensors", "student.json", "best.safetensors", "best.json", "bank.lmdb",
        "history.csv", "timing.csv", "cost.json", "generator.safetensors", "generator.json",
    }  # fmt: skip
    student, card = load_model(finished / "student.safetensors")
    assert card.stage == "distill dafl"
    assert student(torch.zeros(1, 1, 8, 8)).shape == (1, 3)
    rows = list(csv.DictReader((finished / "history.csv").open()))
    assert list(rows[0]) == ["epoch", "lr", "lr_g", "loss", "g_loss", "g_oh", "g_act", "g_balance", "images", "acc1", "agree1"]
    assert [int(row["epoch"]) for row in rows] == [1, 2, 3, 4]
    assert float(rows[-1]["acc1"]) == card.metrics["acc1"]
    cost = read_json(finished / "cost.json")
    assert cost["images"] == cost["teacher_queries"] == 8 * 10 + STEPS * 12
    assert cost["optimiser_steps"] == 8 + STEPS


def test_the_bank_holds_samples_with_the_teachers_answers(finished, tiny_teacher, reference):
    bank = BankReader(finished / "bank.lmdb", teacher_sha256=read_card(tiny_teacher).sha256)
    assert bank.meta.blocks == 2  # after epochs 3 and 4, the last
    arrays = bank.load()
    teacher, card = load_model(tiny_teacher, reference)
    p = teacher(normalise(to_unit(arrays.images), card.dataset)).softmax(1)
    assert torch.equal(arrays.labels, p.argmax(1))
    assert torch.allclose(arrays.scores["confidence"], p.max(1).values, atol=1e-5)
    assert len(arrays.images) == 2 * 20


def test_the_generator_is_that_of_the_last_epoch(finished):
    """On average it makes what the last block of the bank holds; a fresh one does not."""
    card = read_card(finished / "generator.safetensors")
    assert (card.role, card.architecture, card.stage) == ("generator", "dafl generator", "distill dafl")
    generator = LargeGenerator(8, 1, 8, 4)
    generator.load_state_dict(load_state(finished / "generator.safetensors"))
    fresh = LargeGenerator(8, 1, 8, 4)
    z = torch.randn(200, 8, generator=torch.Generator().manual_seed(0))
    kept = BankReader(finished / "bank.lmdb").load().images[20:].float().mean(0) / 255
    with torch.no_grad():
        distances = [(network.eval()(z).mean(0) - kept).abs().mean() for network in (generator, fresh)]
    assert distances[0] < 0.5 * distances[1]


@pytest.mark.parametrize(("where", "moments"), [((KD, "step"), {2, 9, 12, STEPS}), ((DAFL, "synthesize"), {1, 4, 7})])
def test_stopped_and_resumed_it_ends_with_the_same_bytes(run, finished, monkeypatch, tmp_path, where, moments):
    """SIGTERM in the middle of a round, at an epoch's last step, at the run's last: nothing is done twice."""
    owner, name = where
    own, calls = getattr(owner, name), 0

    def interrupted(*arguments):
        nonlocal calls
        calls += 1
        if calls in moments:
            signal.raise_signal(signal.SIGTERM)
        return own(*arguments)

    monkeypatch.setattr(owner, name, interrupted)
    for _ in moments:
        with pytest.raises(Stopped) as stopped:
            run(tmp_path)
        assert stopped.value.status == 143
        assert not (tmp_path / "out" / "student.safetensors").exists()
    run(tmp_path)
    assert calls == (STEPS if owner is KD else 8)
    for path in finished.iterdir():
        if path.is_file() and path.name not in ("cost.json", "timing.csv"):
            assert (tmp_path / "out" / path.name).read_bytes() == path.read_bytes(), path.name
    costs = [read_json(folder / "cost.json") for folder in (finished, tmp_path / "out")]
    for key in ("images", "teacher_queries", "optimiser_steps"):
        assert costs[0][key] == costs[1][key]
    assert not (tmp_path / "checkpoint").exists()


def test_a_bank_that_would_not_be_read_is_refused(tiny_teacher, tiny_bank, tiny_data, reference, tmp_path):
    output = tmp_path / "out" / "student.safetensors"
    arguments = (tiny_data.test, SETTINGS, 0, output, tmp_path / "c", reference, "dafl")
    with pytest.raises(UserError, match="method dafl: makes every batch afresh and reads no bank; leave --bank away"):
        distill(tiny_teacher, [tiny_bank], "wrn101", *arguments)
    assert not output.exists()


@pytest.mark.parametrize("method", ["noise", "real"])
def test_the_bank_of_a_control_is_taken_by_every_tool_empty_or_not(method, tiny_teacher, tiny_data, reference, tmp_path):
    settings = METHODS[method].settings(precision="reference", epochs=1, kd_steps=2, batch_size=12)
    data = tiny_data.data if method == "real" else None
    output = tmp_path / "student.safetensors"
    arguments = (tiny_data.test, settings, 0, output, tmp_path / "c", reference, method, data)
    distill(tiny_teacher, [], "wrn101", *arguments)
    assert len(BankReader(tmp_path / "bank.lmdb")) == getattr(settings, "sample_images", 0)
    assert summarise(tmp_path / "bank.lmdb")["images"] == getattr(settings, "sample_images", 0)
    assert verify_bank(tmp_path / "bank.lmdb") == []
    contact_sheet(tmp_path / "bank.lmdb", tmp_path / "bank.png")
    assert (tmp_path / "bank.png").stat().st_size > 0
    assert read_json(tmp_path / "cost.json")["teacher_queries"] == 2 * 12
    assert not (tmp_path / "generator.safetensors").exists()
    rows = list(csv.DictReader((tmp_path / "history.csv").open()))
    assert int(rows[0]["images"]) == (120 if method == "real" else 0)
