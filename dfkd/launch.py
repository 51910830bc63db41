"""One command as several processes, one for each GPU: started, watched and ended here. Imports no torch.

`launch` forks before anything is computed: its copies go on with the command, each with the environment variables that torchrun
and accelerate set too, while the process that was started waits for them. It passes SIGTERM and SIGINT on, says in one sentence
what went wrong, and ends with the status that one process would have ended with.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import select
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple, NoReturn

from dfkd.errors import ProcessLost, UserError
from dfkd.gpus import COUNT, keep_one, take_gpus, visible_gpus, wanted_gpus

FOLDER = "DFKD_RANKS"  # environment variable: the folder that the processes of a launch have in common
THREADS = "OMP_NUM_THREADS"
GRACE = 10.0  # seconds that processes are given to notice that one of them has failed
PASSED_ON = (signal.SIGTERM, signal.SIGINT)
DEATH_SIGNAL = 1  # PR_SET_PDEATHSIG of prctl(2)


class Place(NamedTuple):
    """Which of several processes this is."""

    rank: int
    world: int
    local: int  # its number on this node
    folder: str  # of `launch`; empty in a process of torchrun or accelerate


def place() -> Place | None:
    """What the environment says; None in a process that is alone."""
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
    values = [os.environ.get(name, "") for name in names]
    if not all(value.isdecimal() for value in values) or int(values[1]) < 2:
        return None
    return Place(int(values[0]), int(values[1]), int(values[2]), os.environ.get(FOLDER, ""))


def folder() -> str | None:
    """Where processes may leave things that end with the command; None: where the system has such a place."""
    return os.environ.get(FOLDER) or None


def launch(asked: int | None, device: str) -> None:
    """Go on as so many processes: returns in each of them. The one that calls waits for them and exits as they do.

    Returns at once where one process is enough, and in a process that torchrun or accelerate has started.

    Args:
        asked: how many; None: as many as the GPUs that `DFKD_GPUS` asks for and that are there.
        device: where the command was told to compute.

    Raises:
        UserError: the numbers do not fit.
    """
    already = place()
    if already is not None:
        if asked not in (None, already.world):
            raise UserError(f"--ranks {asked}: {already.world} processes have been started already; leave it away.")
        return
    anywhere = device in ("auto", "cuda")
    count = asked if asked is not None else _gpus_of_the_job() if anywhere else 1
    if count == 1:
        return
    if anywhere:
        os.environ.setdefault(COUNT, str(count))
        take_gpus()  # for all of them: a lock is held until the last process that has it is gone
    elif device != "cpu":
        raise UserError(f"--device {device}: is one GPU, and --ranks {count} takes as many; use --device cuda.")
    if threads := os.environ.get(THREADS, ""):
        if threads.isdecimal():
            os.environ[THREADS] = str(max(1, int(threads) // count))
    else:
        os.environ[THREADS] = str(max(1, len(os.sched_getaffinity(0)) // count))
    status = _run(count)
    if status is not None:
        sys.exit(status)


def _gpus_of_the_job() -> int:
    if COUNT not in os.environ or wanted_gpus() < 2:
        return 1
    return max(1, min(wanted_gpus(), len(visible_gpus())))


def see_own_gpu() -> bool:
    """Leave to one of several processes the GPU with its number, if there are any; whether it is one of several.

    Call it before anything asks CUDA what there is.
    """
    own = place()
    if own is not None:
        keep_one(own.local)
    return own is not None


def leave_word(error: BaseException, status: int) -> NoReturn:
    """End with a status and the one sentence of an error: told here, or by the process that has launched this one."""
    own, text = place(), f"{error}"
    if own is None or not own.folder:
        print(f"dfkd: {text}", file=sys.stderr)
    else:
        word = {"text": text, "lost": isinstance(error, ProcessLost)}
        with contextlib.suppress(OSError):
            Path(own.folder, f"word{own.rank}").write_text(json.dumps(word))
    sys.exit(status)


def _run(count: int) -> int | None:
    """Fork; None in the new processes, the status to end with in the old one."""
    common, parent = tempfile.mkdtemp(prefix="dfkd-ranks-"), os.getpid()
    os.environ[FOLDER] = common
    signal.pthread_sigmask(signal.SIG_BLOCK, PASSED_ON)  # none is lost while there are no processes to pass it on to
    sys.stdout.flush()
    sys.stderr.flush()
    processes: dict[int, int] = {}  # process id → its rank
    for rank in range(count):
        child = os.fork()
        if child == 0:
            _begin(rank, count, parent)
            return None
        processes[child] = rank
    try:
        return _conclude(_watch(processes), Path(common))
    finally:
        shutil.rmtree(common, ignore_errors=True)


def _begin(rank: int, count: int, parent: int) -> None:
    with contextlib.suppress(OSError, AttributeError):  # where the system can: a launcher that is killed takes them along
        ctypes.CDLL(None).prctl(DEATH_SIGNAL, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)
    own = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count}
    os.environ.update({name: str(value) for name, value in own.items()})
    signal.pthread_sigmask(signal.SIG_UNBLOCK, PASSED_ON)


def _watch(processes: dict[int, int]) -> dict[int, int]:
    """Wait for the processes, and end those that hang when one has failed; rank → status, in the order of their ends."""

    def pass_on(number: int, _frame: object) -> None:
        for process in list(alive.values()):
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, number)

    alive = {os.pidfd_open(process): process for process in processes}
    for number in PASSED_ON:
        signal.signal(number, pass_on)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, PASSED_ON)
    ended: dict[int, int] = {}
    deadline: float | None = None
    while alive:
        wait = None if deadline is None else max(0.0, deadline - time.monotonic())
        for handle in select.select(list(alive), [], [], wait)[0]:
            process = alive.pop(handle)
            ended[processes[process]] = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
            os.close(handle)
        failed = any(status not in (0, 130, 143) for status in ended.values())  # those who stop may still be saving
        if failed and deadline is None:
            deadline = time.monotonic() + GRACE
        if deadline is not None and time.monotonic() >= deadline:
            pass_on(signal.SIGKILL, None)
    return ended


def _conclude(ended: dict[int, int], common: Path) -> int:
    """Say the one sentence that matters, and choose the status."""
    failed = {rank: status for rank, status in ended.items() if status != 0}
    if not failed:
        return 0
    words = {}
    for rank in sorted(failed):
        with contextlib.suppress(OSError, ValueError):
            words[rank] = json.loads((common / f"word{rank}").read_text())
    causes = [rank for rank, word in words.items() if not word["lost"]]
    if causes:
        print(f"dfkd: {words[causes[0]]['text']}", file=sys.stderr)
        return failed[causes[0]]
    rank, status = next(iter(failed.items()))  # what ended first is the cause; it has said why, or was killed
    if status > 0:
        return status
    if -status not in PASSED_ON:  # which one process would not mention either
        print(
            f"dfkd: process {rank + 1} of {len(ended)} was ended by signal {-status}, for want of memory perhaps; "
            "run the same command again to continue.",
            file=sys.stderr,
        )
    return 128 - status
