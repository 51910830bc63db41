"""Writing: a growing bank that survives a kill, and the canonical file that is published from it."""

from __future__ import annotations

import errno
import fcntl
import logging
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import lmdb
from torch import Tensor

from dfkd.bank.format import BLOCK_IMAGES, BankMeta, Block, decode_meta, encode, encode_meta
from dfkd.bank.reader import BankReader
from dfkd.bank.records import META_KEY, DamagedRecord, Header, block_key, check_record, read_header, renumber
from dfkd.bank.storage import LMDB_MAGIC, check_structure, open_file, reading, visit_records, write_footer, writing
from dfkd.errors import UserError
from dfkd.files import atomic_path

logger = logging.getLogger(__name__)

FIRST_MAP = 1 << 20  # bytes; the map doubles whenever it is full
COMMIT_BYTES = 64 << 20  # a published file is committed in portions, so that memory does not grow with the bank
IDENTITY = ("kind", "dataset", "teacher_sha256", "stage", "stage_version", "settings", "seed")


class BankWriter:
    """A bank that grows by one transaction a block, at `path` in a checkpoint folder, until it is published elsewhere.

    A process killed at any moment loses at most the block in hand. `blocks` and `images` count what is whole.

    Args:
        path: the working file. `path` + `.writing` beside it is locked while the writer lives.
        meta: what the bank will say of itself; `status`, `images` and `blocks` are the writer's own.
        resume: go on after the last whole block of an earlier attempt (its `extra` and `lineage` stay) instead of
            starting anew.

    Raises:
        UserError: another writer has the file, it belongs to other settings, is damaged, or the disk is full.
    """

    def __init__(self, path: str | Path, meta: BankMeta, resume: bool = True) -> None:
        self.path = Path(path)
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._lock = open(self.path.with_name(self.path.name + ".writing"), "ab")  # noqa: SIM115 - held until close()
        except OSError as error:
            raise UserError(f"{path}: cannot be written ({error.strerror}); make space or choose another folder.") from error
        self._map_size = FIRST_MAP
        self._names: tuple[str, ...] | None = None  # of the scores, once there is a block
        try:
            self._take_lock()
            if not resume or _never_written(self.path):
                self.path.unlink(missing_ok=True)
            self.meta: BankMeta = self._resume(meta) if self.path.exists() else self._begin(meta)
        except BaseException:
            self._lock.close()
            raise

    def _take_lock(self) -> None:
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"{self.path}: another process is writing this bank; wait for it or stop it.") from None
        except OSError as error:
            logger.warning("%s: this file system has no locks (%s); make sure that one process writes", self.path, error)

    def _begin(self, meta: BankMeta) -> BankMeta:
        meta = meta.model_copy(update={"status": "writing", "images": 0, "blocks": 0})
        self._commit(lambda transaction: transaction.put(META_KEY, encode_meta(meta)))
        return meta

    def _resume(self, wanted: BankMeta) -> BankMeta:
        check_structure(self.path)
        with reading(self.path) as transaction:
            meta = decode_meta(transaction.get(META_KEY), self.path)
        found, asked = meta.model_dump(mode="json"), wanted.model_dump(mode="json")  # tuples of settings come back as lists
        other = [name for name in IDENTITY if found[name] != asked[name]]
        if other:
            raise UserError(f"{self.path}: begun with another {other[0]}; remove the file, or run with what it was begun with.")
        headers: list[Header] = []
        try:
            for _ in visit_records(self.path, range(meta.blocks), lambda n, record: headers.append(check_record(record, n))):
                pass
        except UserError as error:
            logger.warning("%s Going on from block %d.", error, len(headers))
        self._names = headers[0].names if headers else None
        self.meta = meta
        if len(headers) < meta.blocks:
            self._cut(headers)
        return self.meta

    @property
    def blocks(self) -> int:
        """Number of whole blocks."""
        return self.meta.blocks

    @property
    def images(self) -> int:
        """Number of images in whole blocks."""
        return self.meta.images

    def append(self, block: Block) -> None:
        """Add one block in one transaction, flushed to the disk.

        Raises:
            ValueError: the block does not fit the bank.
            UserError: the disk is full; nothing is lost, and the same command goes on from here.
        """
        block = block.checked(self.meta.dataset)
        if self._names is not None and tuple(block.scores) != self._names:
            raise ValueError(f"scores are {list(block.scores)}, in the blocks before {list(self._names)}")
        record = encode(block, self.blocks)
        meta = self.meta.model_copy(update={"blocks": self.blocks + 1, "images": self.images + len(block)})

        def change(transaction: lmdb.Transaction) -> None:
            transaction.put(block_key(self.blocks), record)
            transaction.put(META_KEY, encode_meta(meta))

        self._commit(change)
        self.meta, self._names = meta, tuple(block.scores)

    def append_images(
        self, images: Tensor, labels: Tensor, scores: Mapping[str, Tensor] | None = None, parents: Tensor | None = None
    ) -> None:
        """Add images [N,C,H,W] in blocks of 256 and a smaller last one."""
        for start in range(0, len(images), BLOCK_IMAGES):
            part = slice(start, start + BLOCK_IMAGES)
            named = {name: values[part] for name, values in (scores or {}).items()}
            self.append(Block(images[part], labels[part], named, None if parents is None else parents[part]))

    def truncate(self, blocks: int) -> None:
        """Drop all blocks but the first `blocks`: a stage that saved its state earlier than its last block."""
        if not 0 <= blocks <= self.blocks:
            raise ValueError(f"cannot keep {blocks} of {self.blocks} blocks")
        self._cut(list(visit_records(self.path, range(blocks), lambda number, record: read_header(record))))

    def _cut(self, kept: list[Header]) -> None:
        images = sum(header.images for header in kept)
        meta = self.meta.model_copy(update={"blocks": len(kept), "images": images})

        def change(transaction: lmdb.Transaction) -> None:
            for number in range(meta.blocks, self.blocks):
                transaction.delete(block_key(number))
            transaction.put(META_KEY, encode_meta(meta))

        self._commit(change)
        self.meta = meta
        self._names = kept[0].names if kept else None

    def update_meta(self, **changes: Any) -> None:
        """Replace `extra` or `lineage` of the bank as a whole."""
        if not set(changes) <= {"extra", "lineage"}:
            raise ValueError(f"{sorted(changes)}: only extra and lineage may change while a bank is written")
        meta = BankMeta.model_validate(self.meta.model_dump() | changes)
        self._commit(lambda transaction: transaction.put(META_KEY, encode_meta(meta)))
        self.meta = meta

    def reader(self) -> BankReader:
        """A reader of the blocks that are there now, for a stage that resumes."""
        return BankReader(self.path, allow_incomplete=True)

    def publish(self, output: str | Path) -> None:
        """Write the complete bank to `output`, whole or not at all; its bytes depend on meta and blocks alone.

        Raises:
            UserError: a block is damaged, or the disk is full; the working file stays as it is.
        """
        write_bank(output, self.meta, read_records(self.path, self.blocks))

    def _commit(self, change: Callable[[lmdb.Transaction], object]) -> None:
        if self._lock.closed:
            raise ValueError("the writer is closed")
        while True:
            try:
                with writing(self.path, self._map_size) as transaction:
                    change(transaction)
                return
            except lmdb.MapFullError:
                self._map_size *= 2
            except (lmdb.Error, OSError) as error:
                raise UserError(
                    f"{self.path}: could not be written ({_reason(error, self.path)}); "
                    "make space, then run the same command again."
                ) from error

    def close(self) -> None:
        """Let other writers in. The working file stays."""
        self._lock.close()

    def __enter__(self) -> BankWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


def _reason(error: Exception, path: Path) -> str:
    return str(error).removeprefix(f"{path}: ")


def _never_written(path: Path) -> bool:
    """Whether the file is absent or was abandoned before its first transaction: nothing in it can be lost."""
    if not path.exists():
        return True
    page = os.sysconf("SC_PAGE_SIZE")
    with open_file(path) as file:
        head = file.read(2 * page)
    if len(head) < 2 * page:
        return not head or head[16:20] == LMDB_MAGIC.to_bytes(4, "little")
    try:
        with reading(path) as transaction:
            return transaction.stat()["entries"] == 0
    except UserError:
        return False


def read_records(path: str | Path, blocks: int) -> Iterator[bytes]:
    """Copies of the first `blocks` records, their checksums checked."""

    def copy(number: int, record: memoryview) -> bytes:
        check_record(record, number)
        return bytes(record)

    return visit_records(path, range(blocks), copy)


def write_bank(output: str | Path, meta: BankMeta, records: Iterable[bytes]) -> None:
    """Publish a bank: records are numbered in their order, then comes the meta with `status: complete`, then the digest.

    The bytes depend on `meta` and the records alone. `images` and `blocks` of `meta` are counted anew.
    """

    def pairs() -> Iterator[tuple[bytes, bytes]]:
        blocks = images = 0
        try:
            for record in records:
                header = read_header(record)
                yield block_key(blocks), record if header.number == blocks else renumber(record, blocks)
                blocks, images = blocks + 1, images + header.images
        except DamagedRecord as error:
            raise UserError(f"{output}: not written, block {blocks} {error}; make the input again.") from None
        yield META_KEY, encode_meta(meta.model_copy(update={"status": "complete", "images": images, "blocks": blocks}))

    write_pairs(output, pairs())


def write_pairs(output: str | Path, pairs: Iterable[tuple[bytes, bytes]]) -> None:
    """Publish an LMDB file of keys, which ascend, and values, with the digest at its end; whole or not at all.

    The bytes depend on the pairs alone: one fresh file, portions and map sizes that follow from the pairs.
    """
    with atomic_path(output) as temporary:
        try:
            with lmdb.open(str(temporary), subdir=False, lock=False, sync=False, map_size=FIRST_MAP) as environment:
                portion = _Portion(environment)
                for key, value in pairs:
                    portion.put(key, value)
                portion.write()
        except lmdb.Error as error:  # atomic_path removes the partial file and tells the user
            raise OSError(errno.EIO, _reason(error, temporary)) from error
        write_footer(temporary)


class _Portion:
    """Pairs that one transaction will write, so that memory stays bounded."""

    def __init__(self, environment: lmdb.Environment) -> None:
        self._environment = environment
        self._pairs: list[tuple[bytes, bytes]] = []
        self._bytes, self._total, self._map_size = 0, 0, FIRST_MAP

    def put(self, key: bytes, value: bytes) -> None:
        if self._pairs and self._bytes + len(value) > COMMIT_BYTES:
            self.write()
        self._pairs.append((key, value))
        self._bytes += len(value)

    def write(self) -> None:
        # Twice the bytes are room enough for LMDB's own pages, and the sizes follow from the records.
        self._total += sum(len(key) + len(value) + 8192 for key, value in self._pairs)
        while self._map_size < 2 * self._total:
            self._map_size *= 2
        self._environment.set_mapsize(self._map_size)
        with self._environment.begin(write=True) as transaction:
            for key, value in self._pairs:
                transaction.put(key, value, append=True)
        self._pairs, self._bytes = [], 0
