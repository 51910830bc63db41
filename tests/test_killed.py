"""Every stage killed with SIGKILL at random moments and started again ends with the bytes of an uninterrupted run."""

import random
import signal
import subprocess
import sys
import time

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

REFERENCE = ["--set", "precision=reference"]


def artefacts(folder):
    """Bytes of every file but costs and timing (they hold seconds) and TensorBoard's (they hold dates)."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in files
        if "cost.json" not in path.name and "timing.csv" not in path.name and "tensorboard" not in path.parts
    }


def points(folder):
    """What TensorBoard shows of a folder: the steps of every tag, and the values of all but the speeds."""
    found = {}
    for place in sorted({path.parent for path in folder.rglob("events.out.tfevents.*")}):
        events = EventAccumulator(str(place), size_guidance={"scalars": 0, "images": 0}).Reload()
        for tag in events.Tags()["scalars"]:
            shown = [(event.step, None if tag.startswith("speed/") else event.value) for event in events.Scalars(tag)]
            found[place.relative_to(folder), tag] = shown
        for tag in events.Tags()["images"]:
            found[place.relative_to(folder), tag] = [(event.step, event.encoded_image_string) for event in events.Images(tag)]
    return found


def run_killed(words, mark, delays):
    """Start the stage again and again; kill it a while after it has written `mark` to its log. Returns how often."""
    killed = 0
    for delay in [*delays, None]:
        process = subprocess.Popen(words, stderr=subprocess.PIPE, text=True)
        log = ""
        for line in process.stderr:
            log += line
            if delay is not None and mark in line:
                time.sleep(delay)
                process.send_signal(signal.SIGKILL)
                break
        process.communicate()
        if process.returncode == -signal.SIGKILL:
            killed += 1
        else:
            assert process.returncode == 0, log
    return killed


@pytest.mark.parametrize("stage", ["teacher", "init-bank", "augment", "distill"])
def test_kill_and_restart_ends_with_the_same_bytes(stage, program, tiny_data, tiny_teacher, tiny_bank, tmp_path):
    def words(folder):
        options = {
            "teacher": (
                ["teacher", "train", "--data", tiny_data.data, "--model", "wrn101"],
                "weights.safetensors",
                ["epochs=40", "batch_size=30", "milestones=[20]"],
            ),
            "init-bank": (
                ["init-bank", "--teacher", tiny_teacher],
                "init.lmdb",
                ["batches=12", "batch_size=24", "steps=15", "latent_size=16", "width=8"],
            ),
            "augment": (
                [
                    *("augment", "--teacher", tiny_teacher, "--bank", tiny_bank),
                    *("--rejected", folder / "out" / "rejected.lmdb", "--plot", folder / "out" / "filter.png"),
                ],
                "variations.lmdb",
                [
                    "backend=bank-diffusion",
                    "bank_diffusion.channels=[8,16]",
                    "bank_diffusion.train_steps=40",
                    "bank_diffusion.batch_size=16",
                    "bank_diffusion.sampling_steps=4",
                ],
            ),
            "distill": (
                ["distill", "--teacher", tiny_teacher, "--bank", tiny_bank, "--student", "wrn101", "--test", tiny_data.test],
                "student.safetensors",
                [
                    "epochs=8",
                    "kd_steps=6",
                    "batch_size=24",
                    "synthesis_batch_size=24",
                    "g_steps=6",
                    "latent_size=16",
                    "width=4",
                ],
            ),
        }
        start, name, settings = options[stage]
        changes = [word for setting in settings for word in ("--set", setting)]
        output = ["--checkpoints", folder / "checkpoint", "-o", folder / "out" / name]
        return [program, *start, *REFERENCE, *changes, *output]

    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert run_killed(words(whole), "", []) == 0
    moments = random.Random(stage)
    delays = [moments.uniform(0, 0.3) for _ in range(2)]
    assert run_killed(words(broken), "steps/s", delays) >= 1
    assert artefacts(broken / "out") == artefacts(whole / "out")
    assert any(name.endswith("history.csv") for name in artefacts(whole / "out"))
    assert points(broken / "out") == points(whole / "out") != {}
    assert not (broken / "checkpoint").exists()


def test_sigterm_saves_and_says_how_to_go_on(tiny_data, tmp_path):
    words = [
        sys.executable,
        "-m",
        "dfkd.cli",
        "teacher",
        "train",
        "--data",
        tiny_data.data,
        "--model",
        "wrn101",
        *REFERENCE,
        "--set",
        "epochs=100000",
    ]
    words += ["--checkpoints", str(tmp_path / "c"), "-o", str(tmp_path / "out" / "weights.safetensors")]
    process = subprocess.Popen(words, stderr=subprocess.PIPE, text=True)
    for line in process.stderr:
        if "epoch 1 " in line:
            process.terminate()
            break
    _, log = process.communicate()
    assert process.returncode == 143
    assert "run the same command again to continue" in log
    assert (tmp_path / "c" / "state.pt").exists()
    assert not (tmp_path / "out" / "weights.safetensors").exists()
