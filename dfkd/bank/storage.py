"""The file of a bank: LMDB transactions and the digest at the end. Imports no torch.

LMDB environments are opened for one operation and closed again (0.1 ms), never held: nothing crosses a fork, two readers
of one process do not meet, and the resident memory does not keep the pages of a bank that was read through. LMDB's own
lock file is not used (on a full disk its mapping would kill the process); whoever touches a file that may still grow holds
`flock` on it for the length of the transaction.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import struct
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO, TypeVar

import lmdb

from dfkd.bank.records import DamagedRecord, block_key
from dfkd.errors import UserError

FOOTER_MAGIC = b"DFKDHASH"
LMDB_MAGIC = 0xBEEFC0DE
GROUP_BYTES = 32 << 20  # records that one opening of the environment reads, at most

_FOOTER = struct.Struct("<8sQ32s16x")  # magic, length and BLAKE2b-256 of all that precedes it in the file
_LMDB_META = struct.Struct("<16xII8xQI92xQQ")  # of a meta page: magic, version, map size, page size, last page, transaction

# LMDB allows one environment per file and process, and none across a fork: this lock is held while one is open, and a
# fork waits for it.
_open_lock = threading.Lock()
os.register_at_fork(before=_open_lock.acquire, after_in_parent=_open_lock.release, after_in_child=_open_lock.release)

Result = TypeVar("Result")


def check_structure(path: str | Path) -> int:
    """Bytes of the LMDB part of the file, according to LMDB's own header.

    Touching a page that a truncated file lacks would kill the process, so this comes before every opening.

    Raises:
        UserError: no such file, not an LMDB file, or truncated.
    """
    with open_file(path) as file:
        pages = []
        head = file.read(_LMDB_META.size)
        if len(head) == _LMDB_META.size:
            pages.append(_LMDB_META.unpack(head))
            page_size = pages[0][3]
            file.seek(page_size if 512 <= page_size <= 65536 else 0)
            head = file.read(_LMDB_META.size)
            if len(head) == _LMDB_META.size:
                pages.append(_LMDB_META.unpack(head))
        if len(pages) < 2 or any(page[:2] != (LMDB_MAGIC, 1) for page in pages):
            raise UserError(f"{path}: not an image bank, or its first pages are damaged; give a .lmdb file that dfkd made.")
        last = max(pages, key=lambda page: page[5])
        needed, found = (last[4] + 1) * last[3], os.fstat(file.fileno()).st_size
    if found < needed:
        raise UserError(f"{path}: truncated, {found} of at least {needed} bytes are there; copy or make the bank again.")
    return needed


def open_file(path: str | Path, mode: str = "rb") -> IO[bytes]:
    """Open an existing file; a `UserError` says why it cannot be."""
    try:
        return open(path, mode)
    except FileNotFoundError:
        raise UserError(f"{path}: no such bank; check the path, or make the bank first.") from None
    except IsADirectoryError:
        raise UserError(f"{path}: a folder, not an image bank; give a .lmdb file.") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be opened ({error.strerror}); check its permissions.") from None


@contextlib.contextmanager
def reading(path: str | Path, identity: tuple[int, int] | None = None) -> Iterator[lmdb.Transaction]:
    """A read transaction whose values are memoryviews, valid within the block only.

    `identity` is (device, inode) of the file that an earlier opening saw; another file under the same name is refused.
    """
    with _open_lock, open_file(path) as file:
        _lock_file(file, fcntl.LOCK_SH)
        if identity is not None and identity != file_identity(file.fileno()):
            raise UserError(f"{path}: was replaced while it was being read; run the same command again.")
        check_structure(path)
        try:
            with lmdb.open(str(path), subdir=False, readonly=True, lock=False, create=False) as environment:
                with environment.begin(buffers=True) as transaction:
                    yield transaction
        except lmdb.Error as error:
            raise UserError(f"{path}: LMDB cannot read it ({error}); copy or make the bank again.") from error


@contextlib.contextmanager
def writing(path: str | Path, map_size: int) -> Iterator[lmdb.Transaction]:
    """A write transaction: committed and flushed to the disk at the end of the block, or nothing of it is."""
    with _open_lock, open(path, "ab") as file:
        _lock_file(file, fcntl.LOCK_EX)
        with lmdb.open(str(path), subdir=False, lock=False, map_size=map_size) as environment:
            with environment.begin(write=True) as transaction:
                yield transaction


def _lock_file(file: IO[bytes], kind: int) -> None:
    # A file system without flock: a published bank does not change, and a growing one has the lock of its writer.
    with contextlib.suppress(OSError):
        fcntl.flock(file, kind)


def file_identity(file: str | Path | int) -> tuple[int, int]:
    """(device, inode)."""
    status = os.stat(file)
    return status.st_dev, status.st_ino


def visit_records(
    path: str | Path,
    numbers: Iterable[int],
    function: Callable[[int, memoryview], Result],
    identity: tuple[int, int] | None = None,
    threads: int = 1,
    what: str = "bank",
) -> Iterator[Result]:
    """`function(number, record)` for each of the blocks, in order; it must not keep the memoryview.

    Raises:
        UserError: a block is absent or `function` finds it damaged.
    """
    todo = list(numbers)
    while todo:
        done: list[Result] = []
        with reading(path, identity) as transaction:
            group: list[tuple[int, memoryview]] = []
            size = 0
            for number in todo:
                record: memoryview | None = transaction.get(block_key(number))  # type: ignore[assignment]
                if record is None:
                    raise UserError(f"{path}: block {number} is missing; make the {what} again.")
                if group and size + len(record) > GROUP_BYTES:
                    break
                group.append((number, record))
                size += len(record)

            def visit(item: tuple[int, memoryview]) -> Result:
                try:
                    return function(*item)
                except DamagedRecord as error:
                    raise UserError(f"{path}: block {item[0]} {error}; copy or make the {what} again.") from None

            if threads == 1:
                done = list(map(visit, group))
            else:
                with ThreadPoolExecutor(threads) as pool:
                    done = list(pool.map(visit, group))
        todo = todo[len(group) :]
        yield from done


def write_footer(path: str | Path) -> None:
    """Append the digest of the file; LMDB does not look behind its last page."""
    size = os.path.getsize(path)
    with open(path, "rb+") as file:
        digest = _digest(file, size)
        file.write(_FOOTER.pack(FOOTER_MAGIC, size, digest))


def has_footer(path: str | Path) -> bool:
    """Whether the file ends as a published bank ends; the digest itself is not computed."""
    with open_file(path) as file:
        return _read_footer(file) is not None


def published_digest(path: str | Path) -> str | None:
    """The digest that was published with the bank, in hexadecimal: its name for caches. None for one that is being written."""
    with open_file(path) as file:
        footer = _read_footer(file)
    return None if footer is None else _FOOTER.unpack(footer)[2].hex()


def check_footer(path: str | Path) -> str:
    """What is wrong with the digest at the end of the file, or an empty text: then every byte is as it was published."""
    with open_file(path) as file:
        footer = _read_footer(file)
        if footer is None:
            return "the digest at its end is absent or damaged: truncated, changed, or not published yet"
        size = os.fstat(file.fileno()).st_size - _FOOTER.size
        file.seek(0)
        if footer != _FOOTER.pack(FOOTER_MAGIC, size, _digest(file, size)):
            return "its bytes do not give the digest that was written with them"
    return ""


def _read_footer(file: IO[bytes]) -> bytes | None:
    size = os.fstat(file.fileno()).st_size - _FOOTER.size
    if size < 0:
        return None
    file.seek(size)
    footer = file.read(_FOOTER.size)
    return footer if _FOOTER.unpack(footer)[:2] == (FOOTER_MAGIC, size) else None


def _digest(file: IO[bytes], size: int) -> bytes:
    digest = hashlib.blake2b(digest_size=32)
    while size > 0 and (chunk := file.read(min(size, 1 << 20))):
        digest.update(chunk)
        size -= len(chunk)
    return digest.digest()
