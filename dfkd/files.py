"""Files: the write-then-rename that every artefact goes through, JSON, checksums."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextvars import ContextVar
from pathlib import Path
from typing import Any, NamedTuple

from dfkd.errors import UserError


class _Written(NamedTuple):
    """A whole file that waits for its name."""

    temporary: Path
    target: Path
    lock: contextlib.ExitStack  # closing it lets others take the temporary file for abandoned


_waiting: ContextVar[list[_Written] | None] = ContextVar("waiting", default=None)


@contextlib.contextmanager
def together() -> Iterator[None]:
    """What is published within the block takes its names at the end of it, all in one moment; nothing does if it fails.

    So a stage publishes its outputs. Snakemake removes those of a job whose shell was killed: if the stage has outlived its
    shell, it finds all of them or none.

    Raises:
        UserError: a file cannot take its name; those that have theirs keep them.
    """
    if _waiting.get() is not None:  # the block around this one publishes
        yield
        return
    written: list[_Written] = []
    token = _waiting.set(written)
    try:
        yield
        for one in written:
            try:
                os.replace(one.temporary, one.target)
            except OSError as error:
                raise _unwritten(one.target, error) from error
    finally:
        _waiting.reset(token)
        for one in written:
            one.temporary.unlink(missing_ok=True)  # those that have no name yet
            one.lock.close()


@contextlib.contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """A temporary path beside `path` that takes its name only when the block ends without an error, or that of `together`.

    The partial files of processes that were killed while they wrote `path` are removed before: what is still written is locked.

    Raises:
        UserError: the disk is full or the folder cannot be written; the partial file is removed.
    """
    target = Path(path)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        remove_abandoned(target)
        handle, name = _locked_file(target)
    except OSError as error:
        raise UserError(f"{target}: cannot be written ({error.strerror}); make space or choose another folder.") from error
    with contextlib.ExitStack() as lock:
        lock.enter_context(os.fdopen(handle, "rb"))
        os.chmod(name, 0o666 & ~_umask())
        yield from _named(Path(name), target, lock)


def _locked_file(target: Path) -> tuple[int, str]:
    """A partial file of `target` whose lock this process holds: handle and name."""
    while True:
        handle, name = tempfile.mkstemp(prefix=f".{target.name}.", suffix=".partial", dir=target.parent)
        with contextlib.suppress(OSError):  # a file system without locks: nothing is removed there either
            fcntl.flock(handle, fcntl.LOCK_EX)
        if os.fstat(handle).st_nlink:
            return handle, name
        os.close(handle)  # another process took it for abandoned before it was locked


def _named(temporary: Path, target: Path, lock: contextlib.ExitStack) -> Iterator[Path]:
    try:
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        written = _waiting.get()
        if written is None:
            os.replace(temporary, target)
        else:
            written.append(_Written(temporary, target, lock.pop_all()))
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise _unwritten(target, error) from error
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def remove_abandoned(target: Path) -> None:
    """Remove the partial files of `target` that no living process writes: those whose lock is free."""
    for path in target.parent.iterdir():
        if not (path.name.startswith(f".{target.name}.") and path.name.endswith(".partial")):
            continue
        with contextlib.suppress(OSError), path.open("rb") as file:  # a folder, or gone meanwhile
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            path.unlink()


@contextlib.contextmanager
def atomic_folder(path: str | Path) -> Iterator[Path]:
    """A temporary folder beside `path` that takes its name only when the block ends without an error.

    Raises:
        UserError: `path` is there and not an empty folder, the disk is full or the folder cannot be written; what was written
            is removed.
    """
    target = Path(path)
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise UserError(f"{target}: is not empty; name a new folder.")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=".partial", dir=target.parent))
        os.chmod(temporary, 0o777 & ~_umask())
    except OSError as error:
        raise UserError(f"{target}: cannot be written ({error.strerror}); make space or choose another folder.") from error
    try:
        yield temporary
        os.replace(temporary, target)
    except OSError as error:
        shutil.rmtree(temporary, ignore_errors=True)
        raise _unwritten(target, error) from error
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def _unwritten(target: Path, error: OSError) -> UserError:
    return UserError(
        f"{target}: could not be written ({error.strerror or error}); make space, then run the same command again."
    )


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def unreadable(path: str | Path, error: OSError) -> UserError:
    """What to tell the user of a file that cannot be opened or read."""
    if isinstance(error, FileNotFoundError):
        return UserError(f"{path}: no such file.")
    return UserError(f"{path}: cannot be read ({(error.strerror or str(error)).lower()}); give a file that can.")


def write_json(path: str | Path, content: Any) -> None:
    """Write `content` as indented JSON, whole or not at all."""
    text = json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def read_json(path: str | Path) -> Any:
    """Read JSON. A missing or broken file is a `UserError` that names it."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise unreadable(path, error) from None
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise UserError(f"{path}: not valid JSON ({error}); make it again.") from error


def file_sha256(path: str | Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal. A missing file is a `UserError`."""
    try:
        with Path(path).open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise unreadable(path, error) from None
