"""Reading packed images: blocks in any order, and all of a split decoded in worker processes."""

from __future__ import annotations

import functools
import signal
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from dfkd.bank.records import META_KEY
from dfkd.bank.storage import file_identity, published_digest, reading, visit_records
from dfkd.datasets.arrays import Split
from dfkd.datasets.folder import Cut, centre_square, decode, pixel_limit, why_unreadable
from dfkd.errors import UserError
from dfkd.packed.format import PackedBlock, PackedMeta, decode_packed_meta, read_block
from dfkd.progress import progress
from dfkd.settings import MAX_PIXELS

Result = TypeVar("Result")


class PackedFile:
    """The packed images at `path`, as they were when this was made.

    Nothing stays open between two calls, so it may be pickled, carried across a fork and used beside others; what several
    processes read of it is in memory once, in the system's page cache.

    Raises:
        UserError: absent, not such a file, truncated, damaged, or of a later format.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        if self.path.is_dir():
            raise UserError(f"{self.path}: a folder, not packed images; pack it with `dfkd data pack`.")
        if not self.path.is_file():
            raise UserError(f"{self.path}: no such file; pack a folder of images with `dfkd data pack`.")
        with reading(self.path) as transaction:
            self.meta: PackedMeta = decode_packed_meta(transaction.get(META_KEY), self.path)
            self.identity = file_identity(self.path)
        digest = published_digest(self.path)
        if digest is None:
            raise UserError(f"{self.path}: truncated or changed behind its last page; copy or pack it again.")
        self.digest = digest  # BLAKE2b of the file, as it was written: its name
        self._checked: set[int] = set()

    @functools.cached_property
    def starts(self) -> list[int]:
        """Index of the first image of each block, over all splits, and the number of images at the end."""
        counts = self._visit(range(self.meta.blocks), lambda block: len(block.labels), check=False)
        return np.concatenate([[0], np.cumsum(list(counts))]).astype(int).tolist()

    def _visit(self, numbers: Sequence[int], function: Callable[[PackedBlock], Result], check: bool = True) -> Iterator[Result]:
        def visit(number: int, record: memoryview) -> Result:
            return function(read_block(record, number, check))

        return visit_records(self.path, numbers, visit, self.identity, what="packed file")

    def blocks(self, numbers: Sequence[int]) -> Iterator[tuple[list[bytes], np.ndarray]]:
        """Encoded images and labels int64 [n] of these blocks, in the order asked, checked."""

        def copied(block: PackedBlock) -> tuple[list[bytes], np.ndarray]:
            return [block.content(index) for index in range(len(block.labels))], block.labels.copy()

        return self._visit(numbers, copied)

    def contents(self, indices: Sequence[int] | np.ndarray) -> list[bytes]:
        """Encoded images by their index over all splits, in the order asked; each touched block is checked once."""
        wanted = np.asarray(indices, dtype=np.int64).reshape(-1)
        of_block = np.searchsorted(self.starts, wanted, side="right") - 1
        found: list[bytes] = [b""] * len(wanted)

        def gather(number: int, record: memoryview) -> None:
            block = read_block(record, number, number not in self._checked)
            self._checked.add(number)
            for place in np.flatnonzero(of_block == number):
                found[place] = block.content(int(wanted[place]) - self.starts[number])

        for _ in visit_records(self.path, np.unique(of_block).tolist(), gather, self.identity, what="packed file"):
            pass
        return found

    def check(self, numbers: Sequence[int]) -> None:
        """Read blocks, which brings them into the page cache, and compare their checksums."""
        for _ in self._visit(numbers, lambda block: None):
            pass
        self._checked.update(numbers)

    def labels(self, split: str) -> torch.Tensor:
        """int64 [N], in the order of the split's images."""
        parts = self._visit(self.split_blocks(split), lambda block: block.labels.copy(), check=False)
        return torch.from_numpy(np.concatenate(list(parts)).astype(np.int64))

    def names(self, split: str) -> list[str]:
        """Names of the files that were packed, relative to the folder, in the order of the split's images."""
        return [name for names in self._visit(self.split_blocks(split), lambda block: block.names) for name in names]

    def split_blocks(self, split: str) -> range:
        """The numbers of a split's blocks."""
        first = self.meta.splits[split].first_block
        return range(first, first + self.meta.splits[split].blocks)

    def split_images(self, split: str) -> range:
        """The indices of a split's images over all splits."""
        blocks = self.split_blocks(split)
        return range(self.starts[blocks.start], self.starts[blocks.stop])

    def decoded(
        self,
        split: str,
        size: int,
        channels: int,
        max_pixels: int = MAX_PIXELS,
        workers: int | None = None,
        centre: float = 1.0,
    ) -> Split:
        """A whole split as uint8 [N,channels,size,size] and labels int64 [N], decoded in `workers` processes (0: in this one).

        Args:
            centre: share of the short side that the centre square has, which is seen of an image.

        Raises:
            UserError: a block is damaged, or an image has more than `max_pixels` pixels.
        """
        numbers = self.split_blocks(split)
        count = self.meta.splits[split].images
        images = torch.empty(count, channels, size, size, dtype=torch.uint8)
        labels = torch.empty(count, dtype=torch.int64)
        if workers is None:
            workers = torch.get_num_threads() if len(numbers) > 2 else 0
        loader = DataLoader(
            _DecodedBlocks(self, numbers, size, channels, max_pixels, centre),
            batch_size=None,
            num_workers=workers,
            worker_init_fn=leave_signals,
        )
        start = 0
        with progress(f"decoding {self.path.name} {split}", count) as steps:
            for block in loader:
                if isinstance(block, str):
                    raise UserError(block)
                part = slice(start, start + len(block[1]))
                images[part], labels[part] = block
                start = part.stop
                steps.advance(len(block[1]))
        return images, labels


class _DecodedBlocks(Dataset):  # type: ignore[type-arg]
    """Block by block: images and labels, or the sentence that says why not, which no process wraps in a traceback."""

    def __init__(
        self, file: PackedFile, numbers: Sequence[int], size: int, channels: int, max_pixels: int, centre: float
    ) -> None:
        self.file, self.numbers, self.size, self.channels, self.max_pixels = file, numbers, size, channels, max_pixels
        self.cut = functools.partial(centre_square, size=size, share=centre)

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, index: int) -> Split | str:
        try:
            contents, labels = next(self.file.blocks([self.numbers[index]]))
            cuts = [self.cut] * len(contents)
            images = decode_array(contents, self.size, self.channels, self.file.path, self.max_pixels, cuts)
            return torch.from_numpy(images), torch.from_numpy(labels)
        except UserError as error:
            return str(error)


def decode_array(
    contents: Sequence[bytes],
    size: int,
    channels: int,
    path: Path,
    max_pixels: int = MAX_PIXELS,
    cuts: Sequence[Cut] | None = None,
) -> np.ndarray:
    """uint8 [n,channels,size,size]: the centre square of each image, as an image folder is read, or each one's own cut."""
    images = np.empty((len(contents), channels, size, size), dtype=np.uint8)
    with pixel_limit(max_pixels):
        for index, content in enumerate(contents):
            try:
                images[index] = decode(content, size, channels, max_pixels, cuts[index] if cuts else None)
            except Exception as error:  # Pillow's decoders have no common class
                raise UserError(
                    f"{path}: an image cannot be decoded ({why_unreadable(error)}); pack the folder again."
                ) from None
    return images


def leave_signals(worker: int = 0) -> None:
    """In a worker process: SIGINT and SIGTERM, which a whole group gets, are for the process that it works for."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
