"""One process at a time in a folder, on every file system that has `flock`: also after a kill, which frees the lock."""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import shutil
import socket
import time
from pathlib import Path
from typing import IO

from dfkd.errors import UserError

logger = logging.getLogger(__name__)

NAME = "lock"  # of the file within the folder; its content says who holds it
_held: dict[Path, IO[str]] = {}  # by this process, which does not wait for itself


def hold(folder: str | Path) -> None:
    """Make the folder and hold it until `release` or the end of the process; wait for another process that holds it.

    Raises:
        UserError: the folder cannot be made or written.
    """
    place = Path(folder).absolute()
    if place in _held and _same(_held[place], place / NAME):
        return
    told = False
    while True:
        try:
            place.mkdir(parents=True, exist_ok=True)
            file = open(place / NAME, "a+")  # noqa: SIM115 - held on
        except OSError as error:
            raise UserError(f"{folder}: cannot be made or written ({error.strerror}); free the path or the disk.") from error
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if not told:
                logger.warning("%s: in use by %s; waiting for its end", folder, _holder(file))
                told = True
            file.close()
            time.sleep(0.5)
            continue
        except OSError as error:
            logger.warning("%s: this file system has no locks (%s); make sure that one process works here", folder, error)
        if not _same(file, place / NAME):  # who held it before has removed it meanwhile
            file.close()
            continue
        with contextlib.suppress(OSError):  # on a full disk the lock is as good without the name
            file.truncate(0)
            file.write(f"process {os.getpid()} on {socket.gethostname()}")
            file.flush()
        _held[place] = file
        return


def release(folder: str | Path) -> None:
    """Remove the lock and the folder if nothing else is in it."""
    place = Path(folder).absolute()
    file = _held.pop(place, None)
    if file is not None:
        (place / NAME).unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            place.rmdir()
        file.close()


def clear(folder: str | Path) -> None:
    """Remove everything in a folder but its lock."""
    for path in Path(folder).iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        elif path.name != NAME:
            path.unlink(missing_ok=True)


def _same(file: IO[str], path: Path) -> bool:
    """Whether the open file is the one that has the name now."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except OSError:
        return False


def _holder(file: IO[str]) -> str:
    with contextlib.suppress(OSError):
        file.seek(0)
        return file.read().strip() or "another process"
    return "another process"
