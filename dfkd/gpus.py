"""GPUs of its own for each job on a machine: a stage takes free ones and sees no others. Imports no torch.

Snakemake counts the GPUs of a machine (`--resources gpu=4`) but tells no job which of them is its own, and another Snakemake
counts for itself. So each GPU has a lock file, and a stage holds the locks (`flock`) of those it computes on until its
process ends, however it ends. The workflow asks for this where it runs jobs itself; batch systems hand GPUs out on their own.
"""

from __future__ import annotations

import fcntl
import logging
import os
import time
from pathlib import Path

from dfkd.errors import UserError

FOLDER = "DFKD_GPU_LOCKS"  # environment variable: folder of the lock files; unset or empty: no GPU is anybody's own
COUNT = "DFKD_GPUS"  # environment variable: how many GPUs this job takes; 0: it sees none, locks or not
VISIBLE = "CUDA_VISIBLE_DEVICES"

logger = logging.getLogger(__name__)
_held: dict[str, int] = {}  # GPU → the file descriptor that holds its lock until this process ends


def take_gpus() -> None:
    """Take as many free GPUs as `DFKD_GPUS` says (1 if it says nothing), and leave no others visible to CUDA.

    Waits while too few are free. None are left to a job that takes none. Otherwise nothing is done without `DFKD_GPU_LOCKS`,
    where there is no GPU, and in a process that has taken its GPUs. Call it before anything asks CUDA what there is.

    Raises:
        UserError: more GPUs are asked for than are visible here; the folder cannot be written.
    """
    if _held:
        return
    folder, count = os.environ.get(FOLDER), wanted_gpus()
    if count == 0:
        os.environ[VISIBLE] = ""
        return
    there = visible_gpus() if folder else []
    if not folder or not there:
        return
    if count > len(there):
        raise UserError(f"{count} GPUs are asked for and {len(there)} visible here; ask for fewer (resource gpu of the rule).")
    _lock(Path(folder), there, count)
    os.environ[VISIBLE] = ",".join(_held)


def keep_one(number: int) -> None:
    """Leave of the visible GPUs one to this process, the one with this number, counted from 0. Nothing where there are none.

    Raises:
        UserError: there are fewer.
    """
    there = visible_gpus()
    if not there:
        return
    if number >= len(there):
        raise UserError(f"process {number + 1} of this machine has no GPU: {len(there)} are visible; start as many (--ranks).")
    os.environ[VISIBLE] = there[number]


def wanted_gpus() -> int:
    """How many GPUs this job is to take.

    Raises:
        UserError: `DFKD_GPUS` is no number.
    """
    text = os.environ.get(COUNT, "1")
    if not text.isdecimal():
        raise UserError(f"{COUNT}={text}: expected a number of GPUs.")
    return int(text)


def visible_gpus() -> list[str]:
    """The GPUs that this process may use, by UUID where the driver names them; empty without a GPU.

    Numbers in `CUDA_VISIBLE_DEVICES` count in the order of `nvidia-smi`.
    """
    installed, chosen = installed_gpus(), os.environ.get(VISIBLE)
    if chosen is None:
        return installed
    found: list[str] = []
    for entry in chosen.split(","):
        entry = entry.strip()
        if not entry or entry == "-1":  # CUDA ends the list here
            break
        numbered = installed[int(entry) : int(entry) + 1] if entry.isdecimal() else []
        begun = [gpu for gpu in installed if gpu.startswith(entry)]  # a UUID may be shortened
        found += [gpu for gpu in (numbered or begun)[:1] or [entry] if gpu not in found]
    return found


def installed_gpus() -> list[str]:
    """UUIDs of the machine's NVIDIA GPUs, in the order of `nvidia-smi`; empty without their driver."""
    import pynvml

    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return []
    try:
        handles = [pynvml.nvmlDeviceGetHandleByIndex(index) for index in range(pynvml.nvmlDeviceGetCount())]
        return [pynvml.nvmlDeviceGetUUID(handle) for handle in handles]
    finally:
        pynvml.nvmlShutdown()


def _lock(folder: Path, gpus: list[str], count: int) -> None:
    """Hold the locks of `count` of the GPUs.

    Only the holder of the queue's lock gathers GPUs. So a job that has one and waits for another blocks nobody who has the
    other, and jobs that want one GPU each cannot keep a job that wants two waiting for ever.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        queue = _open(folder / "queue")
        files = {gpu: _open(folder / f"{gpu.replace('/', '-')}.lock") for gpu in gpus}
    except OSError as error:
        raise UserError(f"{FOLDER}={folder}: cannot be used ({error.strerror}); name a folder that you can write.") from error
    told = False
    if not _try(queue):
        logger.info("waiting behind another job for %d of the %d GPUs", count, len(gpus))
        told = True
        fcntl.flock(queue, fcntl.LOCK_EX)
    while True:
        for gpu, file in files.items():
            if len(_held) < count and gpu not in _held and _try(file):
                _held[gpu] = file
        if len(_held) == count:
            break
        if not told:
            logger.info("waiting for %d of the %d GPUs: other jobs hold them", count, len(gpus))
            told = True
        time.sleep(0.2)
    for file in (queue, *(file for gpu, file in files.items() if gpu not in _held)):
        os.close(file)
    logger.info("computing on %s", ", ".join(_held))


def _open(path: Path) -> int:
    try:
        return os.open(path, os.O_RDONLY)  # another user's file: readable is enough
    except FileNotFoundError:
        return os.open(path, os.O_RDONLY | os.O_CREAT, 0o666)


def _try(file: int) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
