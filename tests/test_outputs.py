"""The outputs of a stage take their names in one moment: nothing that removes some of them comes between."""

import os
import shutil
from pathlib import Path

import pytest
import torch

from dfkd.cli import main
from dfkd.errors import UserError
from dfkd.files import atomic_path, together

ROOT = Path(__file__).resolve().parents[1]
TINY = "precision=reference batch_size=24"

# The words of each stage, its settings, and some of what it publishes.
STAGES = {
    "prepare": ("prepare digits --config {root}/config -o {out}/d.h5 --test-output {out}/t.h5", "", "d.h5 t.h5"),
    "teacher": (
        "teacher train --data {data} --model wrn101 -o {out}/weights.safetensors",
        f"{TINY} epochs=2",
        "weights.safetensors weights.json history.csv timing.csv cost.json",
    ),
    "import": (
        "teacher import {pth} --model wrn101 --dataset digits --config {root}/config --test {test} -o {out}/w.safetensors",
        "",
        "w.safetensors w.json history.csv timing.csv cost.json",
    ),
    "init-bank": (
        "init-bank --teacher {teacher} -o {out}/init.lmdb",
        f"{TINY} batches=2 steps=2 latent_size=16 width=8",
        "init.lmdb init.history.csv init.timing.csv init.cost.json",
    ),
    "merge": ("bank merge {shard} -o {out}/init.lmdb", "", "init.lmdb init.history.csv init.timing.csv"),
    "augment": (
        "augment --teacher {teacher} --bank {bank} -o {out}/v.lmdb --rejected {out}/r.lmdb --plot {out}/f.png",
        "precision=reference backend=none",
        "v.lmdb r.lmdb f.png v.history.csv v.timing.csv v.cost.json",
    ),
    "distill": (
        "distill --teacher {teacher} --bank {bank} --student wrn101 --test {test} --method fast -o {out}/student.safetensors",
        f"{TINY} epochs=2 kd_steps=2 synthesis_batch_size=24 g_steps=2 latent_size=16 width=4",
        "student.safetensors student.json best.safetensors best.json bank.lmdb history.csv timing.csv cost.json",
    ),
    "first-stage": (
        "first-stage --teacher {teacher} --bank {bank} --student wrn101 --method kd-ab -o {out}/first.safetensors",
        f"{TINY} transfer_set=bank:init first_epochs=1",
        "first.safetensors first.json first.history.csv first.timing.csv first.cost.json",
    ),
    "evaluate": (
        "evaluate {teacher} --teacher {teacher} --test {test} -o {out}",
        "",
        "metrics.json metrics.cost.json predictions.h5 confusion.png",
    ),
}


@pytest.fixture
def places(tiny_data, tiny_teacher, tiny_bank, tmp_path):
    """What the stages read."""
    from dfkd.models.weights import load_state

    shard = tmp_path / "1-of-1.lmdb"
    shutil.copy(tiny_bank, shard)
    for suffix in (".history.csv", ".timing.csv"):
        shutil.copy(tiny_bank.with_suffix(suffix), shard.with_suffix(suffix))
    torch.save(load_state(tiny_teacher), tmp_path / "teacher.pth")
    found = {"root": ROOT, "data": tiny_data.data, "test": tiny_data.test, "teacher": tiny_teacher, "bank": tiny_bank}
    return found | {"shard": shard, "pth": tmp_path / "teacher.pth", "out": tmp_path / "out"}


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_publishes_all_of_its_outputs_in_one_moment(stage, places, tmp_path, monkeypatch):
    words, settings, outputs = STAGES[stage]
    words = words.format(**places).split() + [word for setting in settings.split() for word in ("--set", setting)]
    if settings and stage != "prepare":
        words += ["--checkpoints", str(tmp_path / "state")]
    events, fsync, replace = [], os.fsync, os.replace

    def written(file):
        events.append("written")
        fsync(file)

    def named(source, target):
        events.append(Path(target).name)
        replace(source, target)

    monkeypatch.setattr("os.fsync", written)
    monkeypatch.setattr("os.replace", named)
    monkeypatch.setattr("sys.argv", ["dfkd", *words])
    with pytest.raises(SystemExit) as ended:
        main()
    assert not ended.value.code
    first = min(events.index(name) for name in outputs.split())
    assert {*outputs.split()} <= {*events[first:]}
    assert "written" not in events[first:]
    assert not list(tmp_path.rglob("*.partial*"))


def write(path, text):
    with atomic_path(path) as temporary:
        temporary.write_text(text)


def test_files_wait_for_the_end_of_the_block(tmp_path):
    write(tmp_path / "b", "former")
    with together():
        write(tmp_path / "a", "1")
        with together():
            write(tmp_path / "b", "2")
        assert not (tmp_path / "a").exists()
        assert (tmp_path / "b").read_text() == "former"
        write(tmp_path / "a", "3")  # takes the one that waits for abandoned no more than for its own
    assert (tmp_path / "a").read_text() == "3"
    assert (tmp_path / "b").read_text() == "2"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"]
    write(tmp_path / "a", "4")
    assert (tmp_path / "a").read_text() == "4"


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_of_a_block_that_fails_nothing_is_published(error, tmp_path):
    def fail():
        with together():
            write(tmp_path / "a", "1")
            raise error

    with pytest.raises(error):
        fail()
    assert list(tmp_path.iterdir()) == []


def test_a_name_that_cannot_be_taken_is_told(tmp_path):
    (tmp_path / "b" / "full").mkdir(parents=True)

    def publish():
        with together():
            for name in "abc":
                write(tmp_path / name, name)

    with pytest.raises(UserError, match="b: could not be written"):
        publish()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"]
