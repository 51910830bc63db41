"""A disk that fills up in a stage: one sentence, nothing half taken for whole, the same bytes once there is room.

The stages run on a tmpfs of a few hundred kilobytes, in a mount namespace of their own, so that it goes with them.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SMALL = ["--set", "precision=reference"]
# Fills the disk but for `free`, runs the command, makes room, runs it again; artefacts are copied out.
SCRIPT = """
set -u
disk=$1 free=$2 out=$3; shift 3
mount -t tmpfs -o size=60m tmpfs "$disk" || exit 99
head -c $((60 * 1024 * 1024 - free * 1024)) /dev/zero > "$disk/filler" || exit 98
"$@"; echo "first $?" >&2
ls -A "$disk/out" 2> /dev/null | tr '\\n' ' ' >&2; echo >&2
rm "$disk/filler"
"$@"; echo "second $?" >&2
cp -r "$disk/out" "$out"
"""


def stages(data, teacher, bank):
    tiny = ["epochs=2", "kd_steps=2", "batch_size=24", "synthesis_batch_size=24", "g_steps=2", "latent_size=16", "width=4"]
    return {
        "prepare": (
            ["prepare", "digits", "--config", ROOT / "config", "-o", "{disk}/out/d.h5", "--test-output", "{disk}/out/t.h5"],
            [],
        ),
        "teacher": (
            ["teacher", "train", "--data", data.data, "--model", "wrn101", "-o", "{disk}/out/w.safetensors"],
            ["epochs=3"],
        ),
        "init-bank": (
            ["init-bank", "--teacher", teacher, "-o", "{disk}/out/init.lmdb"],
            ["batches=3", "batch_size=24", "steps=2", "latent_size=16", "width=8"],
        ),
        "augment": (
            ["augment", "--teacher", teacher, "--bank", bank, "-o", "{disk}/out/v.lmdb", "--rejected", "{disk}/out/r.lmdb",
             "--plot", "{disk}/out/f.png"],
            ["backend=bank-diffusion", "threshold=0", "bank_diffusion.channels=[16,16]", "bank_diffusion.train_steps=3",
             "bank_diffusion.batch_size=16", "bank_diffusion.sampling_steps=2"],
        ),
        "distill": (
            ["distill", "--teacher", teacher, "--bank", bank, "--student", "wrn101", "--test", data.test,
             "-o", "{disk}/out/student.safetensors"],
            tiny,
        ),
    }  # fmt: skip


def artefacts(folder):
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in files
        if "cost.json" not in path.name and "tensorboard" not in path.parts
    }


@pytest.mark.parametrize("free", [4, 90, 400])  # kilobytes: before the first file, among the checkpoints, near the end
@pytest.mark.parametrize("stage", ["prepare", "teacher", "init-bank", "augment", "distill"])
def test_a_full_disk_is_told_and_what_is_done_is_not_lost(stage, free, tiny_data, tiny_teacher, tiny_bank, tmp_path):
    start, settings = stages(tiny_data, tiny_teacher, tiny_bank)[stage]
    disk = tmp_path / "disk"
    disk.mkdir()

    def words(place):
        found = [str(word).replace("{disk}", str(place)) for word in start]
        if stage != "prepare":
            changes = [word for setting in settings for word in ("--set", setting)]
            found += [*SMALL, *changes, "--checkpoints", str(place / "state")]
        return [sys.executable, "-m", "dfkd.cli", *found]

    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    namespace = ["unshare", "--mount", *([] if os.geteuid() == 0 else ["--map-root-user"])]
    done = subprocess.run(
        [*namespace, "bash", "-c", SCRIPT, "bash", disk, str(free), tmp_path / "made", *words(disk)],
        capture_output=True, text=True, env=environment, check=False,
    )  # fmt: skip
    lines = done.stderr.splitlines()
    assert lines[-1] == "second 0", done.stderr
    assert "Traceback" not in done.stderr
    first = next(line for line in lines if line.startswith("first "))
    if first != "first 0":  # there was too little room
        assert first == "first 2", done.stderr
        sentences = [line for line in lines if line.startswith("dfkd: ")]
        assert len(sentences) == 1, done.stderr
        assert any(word in sentences[0] for word in ("No space left", "space")), sentences
        left = lines[lines.index(first) + 1].split()
        assert not [name for name in left if name.endswith((".safetensors", ".lmdb")) and f"{name}" in _finals(stage)], left
    else:
        assert free > 4
    whole = tmp_path / "whole"
    subprocess.run(words(whole), env=environment, capture_output=True, check=True)
    assert artefacts(tmp_path / "made") == artefacts(whole / "out")


def _finals(stage):
    """What a stage publishes last: there only if it is done."""
    return {
        "teacher": ["w.safetensors"],
        "init-bank": ["init.lmdb"],
        "augment": ["v.lmdb"],
        "distill": ["best.safetensors"],
    }.get(stage, [])
