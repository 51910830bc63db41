"""The shards of an init bank under Snakemake: what is missing or damaged is made again, and nothing else; who waits."""

import os
import shutil
import signal
import subprocess
import time

import pytest
import yaml
from workflow_tools import Workflow, jobs_in

from dfkd.bank.reader import BankReader

BANK = "results/banks/bars_wrn101/init.lmdb"
SHARDS = "results/banks/bars_wrn101/shards"
SETTINGS = {"precision": "reference", "batches": 5, "batch_size": 12, "steps": 2, "latent_size": 8, "width": 4}
CONFIG = {"scatter": 4, "init_bank": {"defaults": SETTINGS}}


class WarmWorkflow(Workflow):
    """Snakemake and the stages with their imports behind them."""

    def __init__(self, folder, commands, entry):
        super().__init__(folder, commands, entry)
        self.program = commands / "snakemake"
        self.program.write_text(entry)
        self.program.chmod(0o755)

    def start(self, *words):
        """Snakemake in a process that is not waited for."""
        options = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        return subprocess.Popen([self.program, *self.place(), *words], cwd=self.folder, env=self.environment, **options)

    def __call__(self, *words):
        process = self.start(*words)
        output, _ = process.communicate(timeout=self.timeout)
        return subprocess.CompletedProcess(words, process.returncode, output)


@pytest.fixture(scope="module")
def made(tmp_path_factory, warm, tiny_teacher, tiny_data):
    """A working directory with a teacher, in which the bank was made from four shards."""
    folder = tmp_path_factory.mktemp("shards") / "work"
    (folder / "config").mkdir(parents=True)
    entry = {"source": "hdf5:bars.h5", "image_size": 8, "channels": 1, "crop_padding": 1}
    for name, content in (("config", CONFIG), ("datasets", {"bars": entry})):
        (folder / "config" / f"{name}.yaml").write_text(yaml.safe_dump(content))
    teacher = folder / "results" / "teachers" / "bars_wrn101"
    teacher.mkdir(parents=True)
    for suffix in (".safetensors", ".json"):
        shutil.copy(tiny_teacher.with_suffix(suffix), teacher)
    workflow = WarmWorkflow(folder, folder.parent / "bin", warm.program)
    assert workflow.run(BANK) == {"init_shard": 4, "init_bank": 1}
    return workflow


def test_a_shard_that_is_missing_is_made_again_and_no_other(made):
    whole = (made.folder / BANK).read_bytes()
    before = {path: path.stat().st_mtime_ns for path in (made.folder / SHARDS).glob("*.lmdb")}
    (made.folder / SHARDS / "2-of-4.lmdb").unlink()
    (made.folder / BANK).unlink()
    assert made.run(BANK) == {"init_shard": 1, "init_bank": 1}
    changed = [path.name for path, stamp in before.items() if path.stat().st_mtime_ns != stamp]
    assert changed == ["2-of-4.lmdb"]
    assert (made.folder / BANK).read_bytes() == whole


def test_a_damaged_shard_is_named_and_what_its_sentence_says_mends_it(made):
    whole, shard = (made.folder / BANK).read_bytes(), made.folder / SHARDS / "3-of-4.lmdb"
    pixels, stamp = BankReader(shard).block(0).images.numpy().tobytes(), shard.stat()
    assert shard.read_bytes().count(pixels) == 1
    shard.write_bytes(shard.read_bytes().replace(pixels, bytes([pixels[0] ^ 1]) + pixels[1:]))
    os.utime(shard, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))  # a disk's fault, which changes no time
    (made.folder / BANK).unlink()
    done = made("--cores", "1", BANK)
    assert done.returncode == 1
    (sentence,) = {line for line in done.stdout.splitlines() if line.startswith("dfkd: ")}
    assert f"{SHARDS}/3-of-4.lmdb: block 0 fails its checksum" in sentence
    assert "remove this file and make it again: the other shards stay as they are" in sentence
    assert not (made.folder / BANK).exists()
    shard.unlink()
    assert made.run(BANK) == {"init_shard": 1, "init_bank": 1}
    assert (made.folder / BANK).read_bytes() == whole


def test_a_clock_that_jumped_makes_nothing_run_again(made):
    """Content decides for files of up to a megabyte, not the time that a clock gave them."""
    year = 365 * 86400
    paths = [made.folder / BANK, made.folder / SHARDS / "1-of-4.lmdb", *(made.folder / "results" / "teachers").rglob("w*")]
    stamps = {path: path.stat() for path in paths}
    try:
        for path, jump in zip(paths, (-year, year, year, year), strict=True):
            moved = stamps[path].st_mtime_ns + jump * 10**9
            os.utime(path, ns=(moved, moved))
        done = made("--cores", "1", "--dry-run", BANK)
    finally:
        for path, stamp in stamps.items():
            os.utime(path, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    assert done.returncode == 0, done.stdout
    assert jobs_in(done.stdout) == {}, done.stdout


def test_a_second_snakemake_says_who_is_there_and_a_second_stage_waits(made, tmp_path):
    """The first one's stage is halted meanwhile, so that nothing depends on speed."""
    whole = (made.folder / BANK).read_bytes()
    (made.folder / BANK).unlink()
    (made.folder / SHARDS / "4-of-4.lmdb").unlink()
    lock = made.folder / "results" / "checkpoints" / "init_shard" / "bars_wrn101_4-of-4" / "lock"
    first = made.start("--cores", "1", BANK)
    holder = _holder(lock, first)
    second = made("--cores", "1", BANK)
    assert second.returncode == 1
    assert "Directory cannot be locked" in second.stdout
    words = ["init-bank", "--teacher", "results/teachers/bars_wrn101/weights.safetensors", "--shard", "4/4"]
    words += [word for key, value in SETTINGS.items() for word in ("--set", f"{key}={value}")]
    words += ["--checkpoints", str(lock.parent), "-o", f"{SHARDS}/4-of-4.lmdb"]
    log = tmp_path / "log"
    with log.open("w") as file:
        by_hand = subprocess.Popen([made.program.parent / "dfkd", *words], cwd=made.folder, env=made.environment, stderr=file)
    try:
        while "waiting" not in log.read_text():
            assert by_hand.poll() is None, log.read_text()
            time.sleep(0.05)
        assert f"in use by process {holder} on {os.uname().nodename}; waiting for its end" in log.read_text()
    finally:
        os.kill(holder, signal.SIGCONT)
    assert by_hand.wait(made.timeout) == 0, log.read_text()
    output, _ = first.communicate(timeout=made.timeout)
    assert first.returncode == 0, output
    assert (made.folder / BANK).read_bytes() == whole
    assert not lock.exists()


def _holder(lock, process):
    """The process that holds a checkpoint's folder, halted."""
    while process.poll() is None:
        try:
            holder = int(lock.read_text().split()[1])
        except (OSError, IndexError):
            time.sleep(0.001)
            continue
        os.kill(holder, signal.SIGSTOP)
        if lock.exists():
            return holder
        os.kill(holder, signal.SIGCONT)
    raise AssertionError(process.communicate()[0])
