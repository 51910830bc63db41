"""SIGTERM and Ctrl-C: a stage looks for them between any two steps, and leaves at once where nothing is to be saved."""

import os
import signal
import time
from contextlib import contextmanager

import pytest
import torch
from torch.optim.optimizer import register_optimizer_step_post_hook

from dfkd.checkpoint import Checkpoint
from dfkd.cli import main
from dfkd.diffusion.augment import augment
from dfkd.distillation.distill import distill
from dfkd.distillation.first_stage import train_first_stage
from dfkd.distillation.teacher import train_teacher
from dfkd.files import atomic_path
from dfkd.methods import METHODS
from dfkd.models.classifier import Classifier
from dfkd.progress import Stopped, StopRequest, leave_on_signals, stop_request
from dfkd.settings import AugmentSettings, InitBankSettings, TeacherSettings
from dfkd.synthesis.init_bank import init_bank

TEACHER = TeacherSettings(precision="reference", epochs=3, batch_size=30, milestones=[])
STUDENT = {"epochs": 2, "kd_steps": 3, "batch_size": 12}
SMALL = STUDENT | {"synthesis_batch_size": 12, "g_steps": 3, "latent_size": 8, "width": 4, "bank_size": 48}


@pytest.fixture(autouse=True)
def handlers():
    """What the tests do with signals is undone."""
    former = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    yield
    for number, handler in former.items():
        signal.signal(number, handler)


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_outside_of_a_loop_it_leaves_at_once_and_says_its_line(number, status, tmp_path, monkeypatch, capsys):
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it

    def halfway(*_):
        with atomic_path(tmp_path / "d.h5") as temporary:
            temporary.write_text("half")
            signal.raise_signal(number)
            time.sleep(60)

    monkeypatch.setattr("dfkd.datasets.prepare.prepare", halfway)
    words = ["prepare", "digits", "--set", "source=sklearn:digits", "-o", "d.h5", "--test-output", "t.h5"]
    monkeypatch.setattr("sys.argv", ["dfkd", *words])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == status
    line = capsys.readouterr().err.splitlines()[-1]
    assert line == f"dfkd: stopped by signal {int(number)}; run the same command again to continue"
    assert os.listdir(tmp_path) == []


def test_a_signal_that_the_caller_has_ignored_stays_ignored():
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    leave_on_signals()
    signal.raise_signal(signal.SIGINT)
    with pytest.raises(Stopped) as stopped:
        signal.raise_signal(signal.SIGTERM)
    assert stopped.value.status == 143


def test_in_a_loop_it_is_noted_and_in_a_block_that_changes_nothing_it_leaves():
    leave_on_signals()
    with stop_request() as stop:
        with stop.at_once():
            assert not stop
        signal.raise_signal(signal.SIGTERM)
        assert stop
        reached = []
        with pytest.raises(Stopped), stop.at_once():
            reached.append("a block that came after the signal")
        assert reached == []
    with stop_request() as stop, pytest.raises(Stopped), stop.at_once():
        signal.raise_signal(signal.SIGTERM)
    with pytest.raises(Stopped):  # the former handler is back
        signal.raise_signal(signal.SIGTERM)


class Stretches:
    """Between two looks for a signal: optimiser steps, and passes through a classifier."""

    def __init__(self):
        self.found = [[0, 0]]
        self.apart = 0  # blocks that a signal leaves at once

    def look(self):
        self.found.append([0, 0])

    def count(self, place):
        if not self.apart:
            self.found[-1][place] += 1

    @property
    def longest(self):
        return tuple(max(column) for column in zip(*self.found, strict=True))


@pytest.fixture
def stretches(monkeypatch):
    seen = Stretches()
    own_bool, own_block = StopRequest.__bool__, StopRequest.at_once

    def looked(self):
        seen.look()
        return own_bool(self)

    @contextmanager
    def block(self):
        with own_block(self):
            seen.apart += 1
            try:
                yield
            finally:
                seen.apart -= 1

    monkeypatch.setattr(StopRequest, "__bool__", looked)
    monkeypatch.setattr(StopRequest, "at_once", block)
    steps = register_optimizer_step_post_hook(lambda *_: seen.count(0))
    passes = torch.nn.modules.module.register_module_forward_pre_hook(
        lambda module, _: seen.count(1) if isinstance(module, Classifier) else None
    )
    yield seen
    steps.remove()
    passes.remove()


def test_a_teacher_looks_between_two_steps(stretches, tiny_data, reference, tmp_path):
    train_teacher(tiny_data.data, "wrn101", TEACHER, tmp_path / "w.safetensors", tmp_path / "c", reference)
    assert len(stretches.found) > 12
    assert stretches.longest == (1, 1)


def test_an_inversion_looks_between_two_steps(stretches, tiny_teacher, reference, tmp_path):
    settings = InitBankSettings(precision="reference", batches=2, batch_size=12, steps=4, latent_size=8, width=4)
    init_bank(tiny_teacher, settings, tmp_path / "b.lmdb", tmp_path / "c", reference)
    assert stretches.longest == (1, 2)  # with the last step, what the teacher says of the images that are kept


def test_diffusion_looks_between_two_steps_and_leaves_a_block_at_once(stretches, tiny_teacher, tiny_bank, reference, tmp_path):
    own = {"channels": [8, 16], "train_steps": 4, "batch_size": 12, "sampling_steps": 2}
    settings = AugmentSettings(precision="reference", backend="bank-diffusion", threshold=0.0, bank_diffusion=own)
    paths = (tmp_path / "v.lmdb", tmp_path / "r.lmdb", tmp_path / "f.png", tmp_path / "c")
    augment(tiny_teacher, tiny_bank, settings, *paths, reference)
    assert stretches.longest == (1, 1)


# Optimiser steps and passes of a method's longest step; before the first look the teacher answers to the test images.
METHODS_SEEN = {"dda": (2, 3), "cmi": (2, 4), "deepinv": (1, 3), "fast": (1, 3), "dafl": (3, 6), "kd": (1, 3)}


def _small(method):
    known = METHODS[method].settings.model_fields
    return METHODS[method].settings(precision="reference", **{key: value for key, value in SMALL.items() if key in known})


@pytest.mark.parametrize("method", METHODS_SEEN)
def test_a_run_looks_between_two_steps(method, stretches, tiny_data, tiny_teacher, tiny_bank, reference, tmp_path):
    """DAFL's kind makes its few generator steps, here 3, in one go."""
    settings = _small(method)
    banks = [tiny_bank] * len(METHODS[method].banks)
    data = tiny_data.data if method == "kd" else None
    arguments = (tiny_data.test, settings, 0, tmp_path / "out" / "s.safetensors", tmp_path / "c", reference, method, data)
    distill(tiny_teacher, banks[:1], "wrn101", *arguments)
    assert len(stretches.found) > SMALL["epochs"] * SMALL["kd_steps"]
    assert all(most <= limit for most, limit in zip(stretches.longest, METHODS_SEEN[method], strict=True)), stretches.longest


def test_a_first_stage_looks_between_two_steps(stretches, tiny_data, tiny_teacher, reference, tmp_path):
    settings = METHODS["kd-fsp"].settings(precision="reference", epochs=1, kd_steps=3, first_epochs=2, batch_size=12)
    output, checkpoints = tmp_path / "f.safetensors", tmp_path / "c"
    train_first_stage(tiny_teacher, [], "wrn161", settings, 0, output, checkpoints, reference, "kd-fsp", tiny_data.data)
    assert stretches.longest == (1, 4)  # before the first look its networks are fitted to the shapes of the features


@pytest.mark.parametrize("stage", ["teacher", "distill"])
def test_stopped_while_an_epoch_is_measured_it_goes_on_with_that(
    stage, tiny_data, tiny_teacher, tiny_bank, reference, tmp_path, monkeypatch
):
    """The steps of the epoch are not made again, and every byte is that of an uninterrupted stage."""
    settings = _small("dda")
    module = f"dfkd.distillation.{stage}"
    steps = []

    def run(folder):
        output, checkpoints = folder / "out" / "w.safetensors", folder / "c"
        if stage == "teacher":
            train_teacher(tiny_data.data, "wrn101", TEACHER, output, checkpoints, reference)
        else:
            distill(tiny_teacher, [tiny_bank], "wrn101", tiny_data.test, settings, 0, output, checkpoints, reference)

    own = __import__(module, fromlist=["predict"]).predict
    calls = []

    def interrupted(*arguments):
        calls.append(1)
        if len(calls) in moments:
            signal.raise_signal(signal.SIGTERM)
        return own(*arguments)

    monkeypatch.setattr(f"{module}.predict", interrupted)
    counter = register_optimizer_step_post_hook(lambda *_: steps.append(1))
    try:
        moments = set()
        run(tmp_path / "whole")
        made = len(steps)
        calls.clear()
        steps.clear()
        moments = {2, 3} if stage == "teacher" else {2, 4}  # the second time while it goes on with it
        for _ in moments:
            with pytest.raises(Stopped):
                run(tmp_path / "stopped")
        run(tmp_path / "stopped")
        assert len(steps) == made
    finally:
        counter.remove()
    for path in (tmp_path / "whole" / "out").iterdir():
        if path.is_file() and path.name not in ("cost.json", "timing.csv"):
            assert (tmp_path / "stopped" / "out" / path.name).read_bytes() == path.read_bytes(), path.name


def test_a_clock_that_jumps_changes_nothing(tiny_data, reference, tmp_path, monkeypatch):
    """Back and forth by a year at every look, and files that come from the future and from the last century."""

    def run(folder):
        train_teacher(tiny_data.data, "wrn101", TEACHER, folder / "out" / "w.safetensors", folder / "c", reference)

    run(tmp_path / "whole")
    real, looks = time.time, []

    def jumping():
        looks.append(1)
        return real() + (-1) ** len(looks) * 365 * 86400

    monkeypatch.setattr(time, "time", jumping)
    own, saves = Checkpoint.save, []

    def interrupted(self, state):
        own(self, state)
        saves.append(1)
        if len(saves) < 3:
            for path in self.folder.iterdir():
                os.utime(path, (9e8, 9e8) if len(saves) == 1 else (4e9, 4e9))
            raise KeyboardInterrupt

    monkeypatch.setattr(Checkpoint, "save", interrupted)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path / "jumped")
    run(tmp_path / "jumped")
    assert looks  # TensorBoard's files hold it
    for name in ("w.safetensors", "w.json", "history.csv"):
        assert (tmp_path / "jumped" / "out" / name).read_bytes() == (tmp_path / "whole" / "out" / name).read_bytes()
