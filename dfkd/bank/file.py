"""Reading into numpy arrays: what a bank says of all its images, images at random. Imports no torch."""

from __future__ import annotations

import functools
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dfkd.bank.meta import BankMeta, decode_meta
from dfkd.bank.records import META_KEY, check_record, read_header, views
from dfkd.bank.storage import file_identity, has_footer, reading, visit_records
from dfkd.errors import UserError


@dataclass
class BlockColumns:
    """What blocks say of their images, short of the images."""

    labels: np.ndarray  # int64 [N]
    scores: dict[str, np.ndarray]  # float32 [N] each
    parents: np.ndarray  # int64 [N], index in the parent bank; -1: none


class BankFile:
    """The bank at `path`, as it was when this was made.

    Nothing stays open between two calls, so it may be pickled, carried across a fork and used beside others. Every
    record that is returned has passed its checksum. A published bank that takes this name meanwhile is refused.

    Args:
        path: the bank's file.
        allow_incomplete: also read one that is still being written, or was left so.
        teacher_sha256: of the weights the bank must have been made with.

    Raises:
        UserError: absent, not a bank, truncated, damaged, of a later format, incomplete, or of another teacher.
    """

    def __init__(
        self,
        path: str | Path,
        allow_incomplete: bool = False,
        teacher_sha256: str | None = None,
    ) -> None:
        self.path = Path(path)
        with reading(self.path) as transaction:
            self.meta: BankMeta = decode_meta(transaction.get(META_KEY), self.path)
            self.identity = file_identity(self.path)
        if self.meta.status != "complete" and not allow_incomplete:
            raise UserError(
                f"{self.path}: incomplete, {self.meta.images} images are written; run the stage that makes it to its end."
            )
        if self.meta.status == "complete" and not has_footer(self.path):
            raise UserError(f"{self.path}: truncated or changed behind its last page; copy or make the bank again.")
        if teacher_sha256 is not None and teacher_sha256 != self.meta.teacher_sha256:
            raise UserError(
                f"{self.path}: made with teacher {self.meta.teacher_sha256[:12]}, not with {teacher_sha256[:12]} as asked; "
                "give the teacher it was made with, or make the bank again with this one."
            )
        self._checked: set[int] = set()

    def __len__(self) -> int:
        return self.meta.images

    @functools.cached_property
    def _outlines(self) -> list[tuple[int, bytes]]:
        return list(
            visit_records(
                self.path,
                range(self.meta.blocks),
                lambda number, record: (read_header(record).images, bytes(record[-4:])),
                self.identity,
            )
        )

    @property
    def checksums(self) -> list[bytes]:
        """The CRC-32 at the end of each block: equal in two snapshots of a growing bank where the block is the same."""
        return [checksum for _, checksum in self._outlines]

    @functools.cached_property
    def starts(self) -> list[int]:
        """Index of the first image of each block, and the number of images at the end."""
        starts = [0]
        for count, _ in self._outlines:
            starts.append(starts[-1] + count)
        if starts[-1] != self.meta.images:
            raise UserError(f"{self.path}: {starts[-1]} images in blocks, {self.meta.images} in its meta; make the bank again.")
        return starts

    def pixels(self, indices: Sequence[int] | np.ndarray) -> np.ndarray:
        """Images uint8 [len(indices),C,H,W] in the order asked; each touched block is checked once."""
        wanted = np.asarray(indices, dtype=np.int64).reshape(-1)
        if wanted.size and not 0 <= int(wanted.min()) <= int(wanted.max()) < len(self):
            raise IndexError(f"images {int(wanted.min())} to {int(wanted.max())} of {len(self)}")
        result = np.empty((wanted.size, *self.meta.dataset.shape), dtype=np.uint8)
        of_block = np.searchsorted(self.starts, wanted, side="right") - 1

        def gather(number: int, record: memoryview) -> None:
            header = read_header(record) if number in self._checked else check_record(record, number)
            self._checked.add(number)
            places = np.flatnonzero(of_block == number)
            result[places] = views(record, header)[3][wanted[places] - self.starts[number]]

        for _ in visit_records(self.path, np.unique(of_block).tolist(), gather, self.identity):
            pass
        return result

    def labels(self) -> np.ndarray:
        """Labels int64 [N] of all images, read without the images; a block's checksum waits until its images are read."""
        found = visit_records(
            self.path, range(self.meta.blocks), lambda _, record: views(record, read_header(record))[0].copy(), self.identity
        )
        return np.concatenate([np.empty(0, dtype=np.int64), *found])

    def copy_blocks(self, numbers: Sequence[int], images: np.ndarray) -> None:
        """Fill `images`, uint8 [n,C,H,W], with those of these blocks, one behind the other, every one checked."""
        starts = self.starts
        ends = np.cumsum([starts[number + 1] - starts[number] for number in numbers]).tolist()
        place = dict(zip(numbers, ends, strict=True))

        def fill(number: int, record: memoryview) -> None:
            header = check_record(record, number)
            images[place[number] - header.images : place[number]] = views(record, header)[3]

        for _ in visit_records(self.path, numbers, fill, self.identity, min(4, os.cpu_count() or 1)):
            pass

    def gather(self, images: np.ndarray | None = None, first: int = 0) -> BlockColumns:
        """Labels, scores and parents of the blocks from `first` on, every one checked.

        `images`, uint8 [N,C,H,W], is filled with their images; without it these are left on the disk.
        """
        starts, blocks = self.starts, self.meta.blocks
        count = starts[-1] - starts[first]
        labels, parents = np.empty(count, dtype=np.int64), np.empty(count, dtype=np.int64)
        names = next(visit_records(self.path, [0], lambda _, record: read_header(record).names)) if blocks else ()
        scores = np.empty((len(names), count), dtype=np.float32)

        def fill(number: int, record: memoryview) -> None:
            header = check_record(record, number)
            if header.names != names:
                raise UserError(f"{self.path}: block {number} has other scores than block 0; make the bank again.")
            part = slice(starts[number] - starts[first], starts[number + 1] - starts[first])
            labels[part], parents[part], scores[:, part], found = views(record, header)
            if images is not None:
                images[part] = found

        # zlib and numpy release the interpreter's lock while they check and copy.
        threads = min(4, os.cpu_count() or 1)
        for _ in visit_records(self.path, range(first, blocks), fill, self.identity, threads):
            pass
        self._checked.update(range(first, blocks))
        return BlockColumns(labels, dict(zip(names, scores, strict=True)), parents)
