"""Jobs that share a machine never share a GPU: real processes on made-up GPUs."""

import os
import signal
import subprocess
import sys
from itertools import combinations

import pytest

from dfkd import gpus
from dfkd.errors import UserError

INSTALLED = ["GPU-aaaa-1111", "GPU-bbbb-2222", "GPU-cccc-3333"]

# A job: takes its GPUs, says which and when, and holds them until it is told to end (its stdin is closed).
JOB = """
import logging, os, sys, time
from dfkd import gpus
logging.basicConfig(level=logging.INFO, stream=sys.stdout, format="%(message)s")
gpus.installed_gpus = lambda: []
gpus.take_gpus()
print("took", time.monotonic(), os.environ["CUDA_VISIBLE_DEVICES"], flush=True)
time.sleep(float(sys.argv[1])) if len(sys.argv) > 1 else sys.stdin.read()
print("left", time.monotonic(), flush=True)
"""


@pytest.fixture
def start(tmp_path):
    """Start a job in a process of its own; all of them are ended with the test."""
    jobs = []

    def job(*words, visible="0,1", count=None):
        environment = {**os.environ, gpus.FOLDER: str(tmp_path / "locks"), gpus.VISIBLE: visible}
        environment |= {gpus.COUNT: str(count)} if count is not None else {}
        process = subprocess.Popen(
            [sys.executable, "-c", JOB, *words],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        jobs.append(process)
        return process

    yield job
    for process in jobs:
        process.kill()
        process.communicate()


def line(process, start):
    """The words of the next line that begins so."""
    return next(line.split() for line in process.stdout if line.startswith(start))


def end(process):
    process.communicate()
    assert process.returncode == 0


def test_jobs_at_once_never_share_a_gpu_and_use_all(start):
    stays = []
    for process in [start("0.1") for _ in range(8)]:
        lines = process.communicate()[0].splitlines()
        (_, took, gpu), (_, left) = (line.split() for line in lines if line.startswith(("took", "left")))
        stays.append((gpu, float(took), float(left)))
    assert len(stays) == 8
    assert {gpu for gpu, _, _ in stays} == {"0", "1"}
    for (one, took, left), (other, took_, left_) in combinations(stays, 2):
        assert one != other or left <= took_ or left_ <= took


def test_a_job_waits_until_a_gpu_is_free(start):
    first, second = start(), start()
    assert sorted(line(process, "took")[2] for process in (first, second)) == ["0", "1"]
    third, fourth = start(), start()
    said = {next(third.stdout).rstrip(), next(fourth.stdout).rstrip()}
    assert said == {"waiting for 1 of the 2 GPUs: other jobs hold them", "waiting behind another job for 1 of the 2 GPUs"}
    end(first)
    end(second)
    assert sorted(line(process, "took")[2] for process in (third, fourth)) == ["0", "1"]


def test_a_killed_job_leaves_its_gpu(start):
    first = start(visible="0")
    assert line(first, "took")[2] == "0"
    second = start(visible="0")
    line(second, "waiting")
    first.send_signal(signal.SIGKILL)
    first.wait()
    assert line(second, "took")[2] == "0"


def test_a_killed_job_leaves_the_queue(start):
    first = start(visible="0")
    line(first, "took")
    second = start(visible="0")
    line(second, "waiting for")  # it has the queue
    third = start(visible="0")
    line(third, "waiting behind")
    second.send_signal(signal.SIGKILL)
    second.wait()
    end(first)
    assert line(third, "took")[2] == "0"


def test_a_job_of_two_gpus_has_both_and_is_not_passed_by(start):
    one = start()
    assert line(one, "took")[2] in ("0", "1")
    both = start(count=2)
    line(both, "waiting for 2 of the 2")
    late = start()
    line(late, "waiting behind")
    end(one)
    assert sorted(line(both, "took")[2].split(",")) == ["0", "1"]
    end(both)
    line(late, "took")


def test_no_gpu_for_a_job_that_asks_for_none(start):
    holder = start(visible="0")
    line(holder, "took")
    none = start(visible="0", count=0)
    assert next(none.stdout).split()[2:] == []  # at once, and CUDA sees nothing


@pytest.fixture
def machine(monkeypatch, tmp_path):
    """This process on a machine of three GPUs, none taken."""
    monkeypatch.setattr(gpus, "installed_gpus", lambda: INSTALLED)
    monkeypatch.setattr(gpus, "_held", {})
    monkeypatch.setenv(gpus.FOLDER, str(tmp_path / "locks"))
    for name in (gpus.VISIBLE, gpus.COUNT):
        monkeypatch.setenv(name, "")  # so that it is restored, absent or not
        monkeypatch.delenv(name)
    yield monkeypatch
    for file in gpus._held.values():
        os.close(file)


@pytest.mark.parametrize(
    ("chosen", "visible"),
    [
        (None, INSTALLED),
        ("", []),
        ("-1", []),
        ("2,0", [INSTALLED[2], INSTALLED[0]]),
        ("1,-1,0", [INSTALLED[1]]),
        ("1,1", [INSTALLED[1]]),
        ("GPU-cccc, GPU-aaaa-1111", [INSTALLED[2], INSTALLED[0]]),
        ("MIG-dddd/1/0", ["MIG-dddd/1/0"]),
    ],
)
def test_the_outer_choice_of_gpus_is_respected(machine, chosen, visible):
    if chosen is not None:
        machine.setenv(gpus.VISIBLE, chosen)
    assert gpus.visible_gpus() == visible


def test_a_gpu_has_one_lock_however_it_is_called(machine, start):
    machine.setenv(gpus.VISIBLE, "1,2")
    gpus.take_gpus()
    assert os.environ[gpus.VISIBLE] == INSTALLED[1]
    gpus.take_gpus()  # again: it has one
    assert os.environ[gpus.VISIBLE] == INSTALLED[1]
    other = start(visible=f"{INSTALLED[1]},{INSTALLED[0]}")
    assert line(other, "took")[2] == INSTALLED[0]


def test_a_job_of_no_gpu_sees_none_without_locks_too(machine, tmp_path):
    machine.setenv(gpus.FOLDER, "")
    machine.setenv(gpus.COUNT, "0")
    gpus.take_gpus()
    assert os.environ[gpus.VISIBLE] == ""
    assert not (tmp_path / "locks").exists()


def test_nothing_is_taken_where_nobody_asks_for_it(machine, tmp_path):
    machine.setenv(gpus.FOLDER, "")
    gpus.take_gpus()
    machine.setenv(gpus.FOLDER, str(tmp_path / "locks"))
    machine.setattr(gpus, "installed_gpus", list)
    gpus.take_gpus()
    assert gpus.VISIBLE not in os.environ
    assert not (tmp_path / "locks").exists()


def test_the_device_that_the_user_names_wins(machine, tmp_path):
    from dfkd.runtime import Runtime

    Runtime.create("reference", "cpu")
    assert gpus.VISIBLE not in os.environ
    assert not (tmp_path / "locks").exists()
    machine.setattr("torch.cuda.is_available", lambda: True)
    machine.setattr("dfkd.runtime.multiplies_bf16", lambda device: True)
    assert str(Runtime.create("fast", "cuda:1").device) == "cuda:1"
    assert gpus.VISIBLE not in os.environ
    assert str(Runtime.create("fast", "auto").device) == "cuda"
    assert os.environ[gpus.VISIBLE] == INSTALLED[0]


def test_mistakes_are_sentences(machine, tmp_path):
    machine.setenv(gpus.COUNT, "4")
    with pytest.raises(UserError, match="4 GPUs are asked for and 3 visible here"):
        gpus.take_gpus()
    machine.setenv(gpus.COUNT, "many")
    with pytest.raises(UserError, match="DFKD_GPUS=many: expected a number"):
        gpus.take_gpus()
    machine.setenv(gpus.COUNT, "1")
    (tmp_path / "file").touch()
    machine.setenv(gpus.FOLDER, str(tmp_path / "file"))
    with pytest.raises(UserError, match="cannot be used"):
        gpus.take_gpus()
    assert gpus.VISIBLE not in os.environ


def test_a_machine_without_a_driver_has_no_gpus(monkeypatch):
    import pynvml

    def refuse():
        raise pynvml.NVMLError(pynvml.NVML_ERROR_LIBRARY_NOT_FOUND)

    monkeypatch.setattr(pynvml, "nvmlInit", refuse)
    assert gpus.installed_gpus() == []
