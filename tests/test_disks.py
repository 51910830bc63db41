"""A disk that fills up at any kind of write, one that is read-only, one without locks: nothing is lost or half taken for whole.

A stage is started on a disk with room for next to nothing, and again and again with a little more, until it is done.
"""

import errno
import fcntl
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest
import sklearn.datasets  # noqa: F401 - what the forks would each import
from namespace import apart, dfkd, mount

from dfkd.bank.reader import BankReader
from dfkd.bank.writer import BankWriter
from dfkd.checkpoint import Checkpoint
from dfkd.files import atomic_path, remove_abandoned

ROOT = Path(__file__).resolve().parents[1]
DISK = 24  # megabytes
REFERENCE = ["--set", "precision=reference"]
SENTENCE = ("make space", "free the path or the disk")


# By the kinds of files that a stage writes: its words, its settings.
STAGES = {
    "hdf5": ("prepare digits --config {root}/config -o {out}/d.h5 --test-output {out}/t.h5", ""),
    "checkpoint, safetensors, json, csv": ("teacher train --data {data} --model wrn101 -o {out}/w.safetensors", "epochs=2"),
    "lmdb": (
        "init-bank --teacher {teacher} -o {out}/init.lmdb",
        "batches=3 batch_size=24 steps=2 latent_size=16 width=8",
    ),
    "lmdb, plot": (
        "augment --teacher {teacher} --bank {bank} -o {out}/v.lmdb --rejected {out}/r.lmdb --plot {out}/f.png",
        "backend=bank-diffusion threshold=0 bank_diffusion.channels=[8,16] bank_diffusion.train_steps=3 "
        "bank_diffusion.batch_size=16 bank_diffusion.sampling_steps=2",
    ),
    "everything of a run": (
        "distill --teacher {teacher} --bank {bank} --student wrn101 --test {test} -o {out}/student.safetensors",
        "epochs=2 kd_steps=2 batch_size=24 synthesis_batch_size=24 g_steps=2 latent_size=16 width=4",
    ),
    "page, png, scores": ("bank page {bank} --teacher {teacher} -o {out}/p.html --grid {out}/p.png", ""),
}


def artefacts(folder):
    """Bytes of everything but costs, times and TensorBoard's files."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in files
        if not any(word in path.name for word in ("cost.json", "timing")) and "tensorboard" not in path.parts
    }


@pytest.fixture
def words_of(tiny_data, tiny_teacher, tiny_bank):
    """The words of a stage that writes below a folder, by its kind."""
    places = {"root": ROOT, "data": tiny_data.data, "test": tiny_data.test, "teacher": tiny_teacher, "bank": tiny_bank}

    def words(kind, folder):
        start, settings = STAGES[kind]
        found = start.format(out=f"{folder}/out", **places).split()
        if settings:
            found += [*REFERENCE, *(word for setting in settings.split() for word in ("--set", setting))]
            found += ["--checkpoints", f"{folder}/state"]
        return found

    return words


def fill_up(disk, words, whole, made):
    """Run a stage on a disk with more and more room until it is done: what it said each time."""
    mount("-t", "tmpfs", "-o", f"size={DISK}m", "tmpfs", disk)
    filler, wanted, said = Path(disk, "filler"), artefacts(Path(whole)), []
    for step in range(14):
        free = 4 << step  # kilobytes
        used = sum(path.stat().st_blocks // 2 for path in Path(disk).rglob("*") if path.is_file() and path != filler)
        filler.unlink(missing_ok=True)
        subprocess.run(["fallocate", "-l", str(max(0, 1024 * (DISK * 1024 - used - free)) or 1), filler], check=True)
        status, text = dfkd(*words)
        found = artefacts(Path(disk, "out")) if Path(disk, "out").exists() else {}
        half = [name for name, content in found.items() if name in wanted and content != wanted[name]]
        said.append([status, text, half])
        if status == 0:
            shutil.copytree(Path(disk, "out"), made)
            return said
    return said


@pytest.mark.parametrize("kind", STAGES)
def test_a_full_disk_is_told_and_what_is_done_is_not_lost(kind, words_of, tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    assert dfkd(*words_of(kind, tmp_path / "whole"))[0] == 0
    said = apart(fill_up, str(disk), words_of(kind, disk), str(tmp_path / "whole" / "out"), str(tmp_path / "made"))
    *failed, (status, text, _) = said
    assert status == 0, text
    assert len(failed) >= 3
    for status, text, half in failed:
        assert status == 2, text
        assert "Traceback" not in text, text
        sentences = [line for line in text.splitlines() if line.startswith("dfkd: ")]
        assert len(sentences) == 1, text
        assert any(word in sentences[0] for word in SENTENCE), sentences
        assert not half
    assert artefacts(tmp_path / "made") == artefacts(tmp_path / "whole" / "out")
    assert not list((tmp_path / "made").rglob("*.partial*"))


def on_a_read_only_disk(disk, words):
    """Status and words of a stage, and what is on the disk then."""
    mount("-t", "tmpfs", "-o", f"size={DISK}m", "tmpfs", disk)
    Path(disk, "before").write_text("kept")
    mount("-o", "remount,ro", disk)
    return [*dfkd(*words), sorted(str(path) for path in Path(disk).iterdir())]


@pytest.mark.parametrize("kind", ["hdf5", "lmdb", "page, png, scores"])
def test_a_folder_that_cannot_be_written_is_told(kind, words_of, tmp_path):
    status, text, left = apart(on_a_read_only_disk, str(tmp_path), words_of(kind, tmp_path))
    assert status == 2, text
    (sentence,) = [line for line in text.splitlines() if line.startswith("dfkd: ")]
    assert "Read-only file system" in sentence
    assert "Traceback" not in text
    assert left == [str(tmp_path / "before")]


@pytest.fixture
def no_locks(monkeypatch):
    """A file system on which `flock` fails, as NFS without a lock daemon does."""

    def refuse(file, kind):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)


def test_a_bank_is_written_and_read_without_locks(no_locks, tiny_bank, tmp_path):
    reader = BankReader(tiny_bank)
    with BankWriter(tmp_path / "w.lmdb", reader.meta) as writer:
        for block in reader.blocks():
            writer.append(block)
            assert len(writer.reader()) == writer.images
        writer.publish(tmp_path / "bank.lmdb")
    assert (tmp_path / "bank.lmdb").read_bytes() == tiny_bank.read_bytes()


def test_a_checkpoint_without_locks_says_so_and_goes_on(no_locks, caplog, tmp_path):
    checkpoint = Checkpoint(tmp_path / "c", {"lr": 0.1})
    assert "this file system has no locks (" in caplog.text
    checkpoint.save({"step": 3})
    assert checkpoint.load() == {"step": 3}
    checkpoint.remove()
    assert not (tmp_path / "c").exists()


def test_partial_files_of_the_killed_are_removed_and_those_of_the_living_are_not(tmp_path, monkeypatch):
    dead, other = tmp_path / ".a.json.dead.partial", tmp_path / ".ab.json.dead.partial"
    dead.write_text("half")
    other.write_text("another file's")
    with atomic_path(tmp_path / "a.json") as first:
        assert not dead.exists()
        with atomic_path(tmp_path / "a.json") as second:
            assert first.exists()
            second.write_text("second")
        first.write_text("first")
    assert (tmp_path / "a.json").read_text() == "first"
    assert other.exists()
    dead.write_text("half")
    monkeypatch.setattr(fcntl, "flock", lambda *_: (_ for _ in ()).throw(OSError(errno.ENOLCK, "No locks available")))
    with atomic_path(tmp_path / "a.json") as third:
        third.write_text("third")
    assert dead.exists()  # who can tell?
    assert (tmp_path / "a.json").read_text() == "third"


def test_a_file_that_another_takes_for_abandoned_before_it_is_locked_is_begun_again(tmp_path, monkeypatch):
    target, own, made = tmp_path / "a.json", tempfile.mkstemp, []

    def interfered(**place):
        made.append(own(**place))
        if len(made) == 1:
            remove_abandoned(target)
            assert list(tmp_path.iterdir()) == []
        return made[-1]

    monkeypatch.setattr(tempfile, "mkstemp", interfered)
    with atomic_path(target) as temporary:
        temporary.write_text("whole")
    assert len(made) == 2
    assert target.read_text() == "whole"
    assert list(tmp_path.iterdir()) == [target]
