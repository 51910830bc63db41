import json
import os
import signal
import subprocess
import sys
import textwrap

import pytest
import torch
from tiny_pipeline import save_tiny_pipeline

from dfkd.bank.format import BankMeta
from dfkd.bank.reader import BankReader
from dfkd.bank.writer import BankWriter
from dfkd.datasets.info import DatasetInfo
from dfkd.diffusion import augment as stage
from dfkd.diffusion.augment import augment, choose_parents
from dfkd.errors import UserError
from dfkd.models import build_model
from dfkd.models.weights import WeightsCard, load_model, save_weights
from dfkd.progress import Stopped
from dfkd.runtime import Runtime
from dfkd.settings import AugmentSettings

INFO = DatasetInfo(
    name="tiny", classes=["a", "b", "c"], image_size=16, channels=1, mean=[0.5], std=[0.5], crop_padding=0, flip=False
)
TINY = {"channels": [4, 8], "patch": 2, "train_steps": 3, "batch_size": 8, "sampling_steps": 4, "strength": 0.5}
COUNT = 24


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    """(teacher, bank): a random teacher and 24 images 'inverted' from it."""
    folder = tmp_path_factory.mktemp("inputs")
    torch.manual_seed(0)
    model = build_model("resnet8", 3, 1, 16)
    card = WeightsCard(
        architecture="resnet8", dataset=INFO, role="teacher", stage="teacher", stage_version=1, settings={}, seed=0
    )
    card = save_weights(folder / "weights.safetensors", model, card)
    images = torch.randint(0, 256, (COUNT, *INFO.shape), generator=torch.Generator().manual_seed(1)).to(torch.uint8)
    meta = BankMeta(
        kind="init",
        dataset=INFO,
        teacher_sha256=card.sha256,
        stage="init-bank",
        stage_version=1,
        lineage=[{"stage": "teacher"}],
    )
    with BankWriter(folder / "working.lmdb", meta) as writer:
        writer.append_images(images, torch.arange(COUNT) % 3)
        writer.publish(folder / "init.lmdb")
    return folder / "weights.safetensors", folder / "init.lmdb"


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    monkeypatch.setattr(stage, "PARENTS", 10)


def run(inputs, folder, **changes):
    settings = AugmentSettings.model_validate(
        {"backend": "bank-diffusion", "precision": "reference", "variations": 2, "threshold": 0.97, "bank_diffusion": TINY}
        | changes
    )
    runtime = Runtime.create("reference", "cpu")
    paths = folder / "variations.lmdb", folder / "rejected.lmdb", folder / "filter.png", folder / "checkpoint"
    return augment(*inputs, settings, *paths, runtime)


def outputs(folder):
    names = ("variations.lmdb", "rejected.lmdb", "filter.png", "variations.history.csv")
    return {name: (folder / name).read_bytes() for name in names}


@pytest.fixture(scope="module")
def whole(inputs, tmp_path_factory):
    """An uninterrupted run with blocks of 10 parents, and a threshold that splits its variations."""
    folder = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stage, "PARENTS", 10)
        run(inputs, folder, threshold=-1)
        cosines = BankReader(folder / "variations.lmdb").load().scores["cosine"]
        threshold = float(cosines.quantile(0.6))
        cost = run(inputs, folder, threshold=threshold)
    return folder, threshold, cost


def test_every_variation_is_in_one_bank_and_obeys_the_threshold(inputs, whole):
    folder, threshold, _ = whole
    kept, dropped = (BankReader(folder / f"{name}.lmdb") for name in ("variations", "rejected"))
    a, b = kept.load(), dropped.load()
    made = a.scores["variation"] >= 0
    assert 0 < int(made.sum()) < 2 * COUNT
    assert bool((a.scores["cosine"] >= threshold - 1e-5).all())
    assert bool((b.scores["cosine"] < threshold + 1e-5).all())
    pairs = [
        *zip(a.parents[made].tolist(), a.scores["variation"][made].tolist(), strict=True),
        *zip(b.parents.tolist(), b.scores["variation"].tolist(), strict=True),
    ]
    assert sorted(pairs) == [(parent, variation) for parent in range(COUNT) for variation in (0.0, 1.0)]
    parents = BankReader(inputs[1]).load()
    assert torch.equal(a.labels, parents.labels[a.parents])
    assert torch.equal(b.labels, parents.labels[b.parents])
    assert kept.meta.kind == "variations"
    assert dropped.meta.kind == "rejected"
    assert kept.meta.blocks == 3


def test_a_parent_without_survivors_is_there_itself(inputs, whole):
    folder, _, _ = whole
    bank = BankReader(folder / "variations.lmdb").load()
    itself = bank.scores["variation"] == -1
    assert int(itself.sum()) > 0
    assert torch.equal(bank.images[itself], BankReader(inputs[1]).images(bank.parents[itself]))
    assert bool((bank.scores["cosine"][itself] == 1).all())
    assert set(bank.parents.tolist()) == set(range(COUNT))
    assert not set(bank.parents[itself].tolist()) & set(bank.parents[~itself].tolist())


def test_scores_are_those_of_the_stored_images(inputs, whole):
    """The confidence and the cosine of a record can be had again from its images alone."""
    folder, _, _ = whole
    model, _ = load_model(inputs[0])
    bank, parents = BankReader(folder / "variations.lmdb").load(), BankReader(inputs[1]).load()

    def look(images):
        return model((images.float() / 255 - 0.5) / 0.5, return_features=True)

    (logits, features), (_, own) = look(bank.images), look(parents.images[bank.parents])
    torch.testing.assert_close(bank.scores["confidence"], logits.softmax(1).max(1).values, atol=1e-5, rtol=1e-4)
    cosine = torch.nn.functional.cosine_similarity(features[-1], own[-1])
    torch.testing.assert_close(bank.scores["cosine"], cosine, atol=1e-5, rtol=1e-4)


def test_report_lineage_and_cost(inputs, whole):
    folder, threshold, cost = whole
    meta = BankReader(folder / "variations.lmdb").meta
    dropped = BankReader(folder / "rejected.lmdb")
    extra = meta.extra
    assert extra["backend"] == "bank-diffusion"
    assert extra["threshold"] == threshold
    assert extra["made"] == 2 * COUNT
    assert extra["accept_rate"] == (2 * COUNT - len(dropped)) / (2 * COUNT)
    assert len(extra["dropped"]) == len(dropped)
    assert set(extra["accept_rate_per_class"]) == {"a", "b", "c"}
    assert extra["generator"]["train_steps"] == 3
    assert [entry["stage"] for entry in meta.lineage] == ["teacher", "init-bank"]
    written = json.loads((folder / "variations.cost.json").read_text())
    assert written.pop("hardware")["device"] == "cpu"
    assert written == cost.as_dict()
    assert (cost.images, cost.teacher_queries, cost.optimiser_steps) == (2 * COUNT, 3 * COUNT, 3)
    assert cost.seconds > 0
    assert not (folder / "checkpoint").exists()


KILLED = """
    import os, signal, sys
    from pathlib import Path
    import torch
    from dfkd.config import AugmentSettings
    from dfkd.diffusion import augment as stage, bank_diffusion
    from dfkd.bank.writer import BankWriter
    from dfkd.runtime import Runtime
    teacher, bank, folder, settings, event, number = sys.argv[1:]
    stage.PARENTS = 10
    bank_diffusion.SAVE_SECONDS = -1
    left = int(number)
    def hit():
        global left
        left -= 1
        if left < 0:
            os.kill(os.getpid(), signal.SIGKILL)
    if event == "train":
        average = bank_diffusion.BankDiffusion._average
        bank_diffusion.BankDiffusion._average = lambda self, step: (hit(), average(self, step))
    else:
        append = BankWriter.append
        BankWriter.append = lambda self, block: (hit(), append(self, block))
    folder = Path(folder)
    stage.augment(Path(teacher), Path(bank), AugmentSettings.model_validate_json(settings), folder / "variations.lmdb",
        folder / "rejected.lmdb", folder / "filter.png", folder / "checkpoint", Runtime.create("reference", "cpu"))
"""


@pytest.mark.parametrize(("event", "number"), [("train", 2), ("append", 3)])
def test_killed_and_started_again_gives_the_same_bytes(inputs, whole, tmp_path, event, number):
    """`train` 2: in the third step; `append` 3: between the second rejected and the second accepted record."""
    folder, threshold, _ = whole
    changes = {"threshold": threshold}
    settings = AugmentSettings(
        backend="bank-diffusion", precision="reference", variations=2, bank_diffusion=TINY, **changes
    ).model_dump_json()
    command = [sys.executable, "-c", textwrap.dedent(KILLED), *map(str, inputs), str(tmp_path), settings, event, str(number)]
    environment = os.environ | {"OMP_NUM_THREADS": str(torch.get_num_threads())}
    killed = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert not (tmp_path / "variations.lmdb").exists()
    assert (tmp_path / "checkpoint" / "state.pt").exists()
    run(inputs, tmp_path, **changes)
    assert outputs(tmp_path) == outputs(folder)


def test_signal_within_a_block_leaves_at_once_and_the_next_run_goes_on(inputs, whole, tmp_path, monkeypatch):
    folder, threshold, _ = whole
    judged = []
    block = stage.vary_block

    def once(*arguments):
        judged.append(arguments[2].tolist())
        if len(judged) == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return block(*arguments)

    monkeypatch.setattr(stage, "vary_block", once)
    with pytest.raises(Stopped) as stopped:
        run(inputs, tmp_path, threshold=threshold)
    assert stopped.value.status == 143
    assert not (tmp_path / "variations.lmdb").exists()
    run(inputs, tmp_path, threshold=threshold)
    assert [ids[0] for ids in judged] == [0, 10, 10, 20]  # the block in hand was lost
    assert outputs(tmp_path) == outputs(folder)


def test_other_settings_do_not_resume(inputs, whole, tmp_path, monkeypatch):
    _, threshold, _ = whole
    monkeypatch.setattr(stage.fidelity, "plot", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        run(inputs, tmp_path, threshold=threshold)
    monkeypatch.undo()
    cost = run(inputs, tmp_path, threshold=threshold, seed=5, variations=1)
    assert BankReader(tmp_path / "variations.lmdb").meta.seed == 5
    assert cost.images == COUNT


def test_none_is_an_empty_complete_bank(inputs, tmp_path):
    cost = run(inputs, tmp_path, backend="none")
    for name in ("variations", "rejected"):
        bank = BankReader(tmp_path / f"{name}.lmdb")
        assert len(bank) == 0
        assert bank.meta.status == "complete"
        assert bank.meta.extra["backend"] == "none"
    assert BankReader(tmp_path / "variations.lmdb").meta.extra["accept_rate"] is None
    assert (cost.images, cost.teacher_queries, cost.optimiser_steps) == (0, 0, 0)
    assert (tmp_path / "filter.png").stat().st_size > 0


def test_share_draws_parents_by_the_seed(inputs, tmp_path):
    run(inputs, tmp_path, share=0.25, variations=1, threshold=-1)
    drawn = BankReader(tmp_path / "variations.lmdb").load().parents
    assert drawn.tolist() == choose_parents(COUNT, AugmentSettings(share=0.25)).tolist()
    assert len(set(drawn.tolist())) == 6
    assert choose_parents(COUNT, AugmentSettings(share=0.25, seed=1)).tolist() != drawn.tolist()
    assert choose_parents(5, AugmentSettings()).tolist() == [0, 1, 2, 3, 4]
    assert len(choose_parents(100, AugmentSettings(share=1e-9))) == 1


def test_all_that_a_block_of_parents_gives_fits_one_record(inputs, tmp_path, monkeypatch):
    monkeypatch.setattr(stage, "BLOCK_IMAGES", 7)
    run(inputs, tmp_path, share=0.2, variations=3, threshold=-1)
    bank = BankReader(tmp_path / "variations.lmdb")
    assert [len(block) for block in bank.blocks()] == [6, 6, 3]


def test_image_variations_through_the_stage(inputs, tmp_path):
    folder = save_tiny_pipeline(tmp_path / "sd")
    own = {"model": str(folder), "decoder": "full", "steps": 1, "height": 16}
    run(inputs, tmp_path, backend="image-variations", image_variations=own, variations=1, share=0.2, threshold=-1)
    bank = BankReader(tmp_path / "variations.lmdb")
    assert len(bank) == 5
    assert bank.meta.extra["generator"]["dtype"] == "float32"
    assert bank.meta.extra["backend"] == "image-variations"


def test_bank_of_another_teacher_is_refused(inputs, tmp_path):
    _, card = load_model(inputs[0])
    torch.manual_seed(9)
    other = build_model("resnet8", 3, 1, 16)
    save_weights(tmp_path / "other.safetensors", other, card)
    with pytest.raises(UserError, match="made with teacher"):
        run((tmp_path / "other.safetensors", inputs[1]), tmp_path)
    assert not (tmp_path / "checkpoint").exists()


def test_absent_weights_leave_nothing_behind(inputs, tmp_path):
    with pytest.raises(UserError, match="bank-diffusion"):
        run(inputs, tmp_path, backend="image-variations")
    assert not list(tmp_path.iterdir())
