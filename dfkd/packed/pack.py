"""`dfkd data pack`: image files become one LMDB file, checked, shuffled, encoded as they were or made smaller."""

from __future__ import annotations

import hashlib
import io
import logging
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image

from dfkd.bank.records import META_KEY, block_key
from dfkd.bank.writer import write_pairs
from dfkd.datasets.folder import (
    LISTED,
    check_left,
    class_files,
    class_names,
    listing_sha256,
    pixel_limit,
    report_unreadable,
    split_folders,
    upright,
    why_unreadable,
)
from dfkd.errors import UserError
from dfkd.packed.format import (
    BLOCK_BYTES,
    BLOCK_IMAGES,
    PackedImage,
    PackedMeta,
    SplitMeta,
    encode_packed_meta,
    pack_block,
)
from dfkd.progress import Steps, progress
from dfkd.runtime import derive_seed
from dfkd.settings import MAX_PIXELS

logger = logging.getLogger(__name__)

AHEAD = 256  # files that the threads have in hand


class _Listed(NamedTuple):
    """A file to be packed."""

    path: Path
    label: int
    split: str
    name: str  # relative to the folder; `split/…` where the splits come from two


class _Taken(NamedTuple):
    """What became of it."""

    content: bytes  # as it will be packed; empty if it is unreadable
    digest: bytes  # SHA-256 of the file
    reencoded: bool
    fault: str


def pack(
    folder: Path,
    output: Path,
    test: Path | None = None,
    size: int | None = None,
    quality: int = 90,
    skip_unreadable: bool = False,
    max_pixels: int = MAX_PIXELS,
    seed: int = 0,
) -> PackedMeta:
    """Write all images below `folder` to `output`, whole or not at all; the same folder gives the same bytes.

    Every file is decoded once, so that none fails later. The order is shuffled by `seed`, since blocks are what is read
    from the file at a time: a block of one class would make batches of few.

    Args:
        folder: `train/<class>/…` and `test/<class>/…`, or `<class>/…`, as the source `folder:` reads it.
        test: the test split's folder of classes, where it does not lie in `folder`; `folder` is the training split then.
        size: the short side, pixels, to which larger images are brought, as JPEG of `quality`; the others stay as they are.

    Raises:
        UserError: no or differing class folders, unreadable files (all are looked at, the first are named), a full disk.
    """
    folders = split_folders(folder) if test is None else {"train": folder, "test": test}
    for place in folders.values():
        split_folders(place)
    classes = class_names(folders)
    listing = [
        _Listed(path, label, split, f"{split}/{path.relative_to(place)}" if test else str(path.relative_to(folder)))
        for split, place in folders.items()
        for path, label in class_files(place, classes)
    ]
    if size is not None and size < 8:
        raise UserError(f"--size {size}: give 8 pixels or more.")
    packing = _Packing(listing, folders, classes, size, quality, max_pixels, seed)
    with pixel_limit(max_pixels), progress(f"packing {output.name}", len(listing)) as steps:
        write_pairs(output, packing.pairs(steps, folder, skip_unreadable))
    assert packing.meta is not None
    return packing.meta


class _Packing:
    """The keys and values of the file, one block in hand at a time."""

    def __init__(
        self,
        listing: list[_Listed],
        folders: dict[str, Path],
        classes: list[str],
        size: int | None,
        quality: int,
        max_pixels: int,
        seed: int,
    ) -> None:
        self.listing, self.folders, self.classes = listing, folders, classes
        self.size, self.quality, self.max_pixels, self.seed = size, quality, max_pixels, seed
        self.digests = [b""] * len(listing)
        self.faults: dict[int, str] = {}
        self.reencoded = self.blocks = 0
        self.splits: dict[str, SplitMeta] = {}
        self.meta: PackedMeta | None = None

    def pairs(self, steps: Steps, folder: Path, skip_unreadable: bool) -> Iterator[tuple[bytes, bytes]]:
        """Blocks, then the meta. Refuses unreadable files once all have been looked at."""
        for split in self.folders:
            first, images, size = self.blocks, 0, 0
            for block in self._blocks(split, steps, skip_unreadable):
                yield block_key(self.blocks), pack_block(self.blocks, block)
                self.blocks += 1
                images += len(block)
                size += sum(len(image.content) for image in block)
            self.splits[split] = SplitMeta(images=images, first_block=first, blocks=self.blocks - first, bytes=size)
        named = {self.listing[index].name: self.faults[index] for index in sorted(self.faults)}
        report_unreadable(folder, len(self.listing), named, skip_unreadable, "give --skip-unreadable")
        for split, place in self.folders.items():
            kept = [item.label for index, item in enumerate(self.listing) if item.split == split and index not in self.faults]
            check_left(place, self.classes, torch.tensor(kept, dtype=torch.int64))
        repeated = len(self.listing) - len(set(self.digests))
        if repeated:
            logger.warning("%s: %d files have the content of another one", folder, repeated)
        self.meta = PackedMeta(
            source=folder.resolve().name,
            files_sha256=listing_sha256(zip((Path(item.name) for item in self.listing), self.digests, strict=True)),
            classes=self.classes,
            splits=self.splits,
            size=self.size,
            quality=None if self.size is None else self.quality,
            reencoded=self.reencoded,
            seed=self.seed,
            skipped=len(named),
            skipped_first=list(named)[:LISTED],
            repeated=repeated,
        )
        yield META_KEY, encode_packed_meta(self.meta)

    def _blocks(self, split: str, steps: Steps, skip_unreadable: bool) -> Iterator[list[PackedImage]]:
        block: list[PackedImage] = []
        size = 0
        for image in self._images(split, steps, skip_unreadable):
            if block and (len(block) == BLOCK_IMAGES or size + len(image.content) > BLOCK_BYTES):
                yield block
                block, size = [], 0
            block.append(image)
            size += len(image.content)
        if block:
            yield block

    def _images(self, split: str, steps: Steps, skip_unreadable: bool) -> Iterator[PackedImage]:
        """The readable images of a split in shuffled order; once a file is refused, the rest is only looked at."""
        mine = [index for index, item in enumerate(self.listing) if item.split == split]
        order = np.random.default_rng(derive_seed(self.seed, "pack", split)).permutation(mine).tolist()
        with ThreadPoolExecutor(torch.get_num_threads()) as pool:
            for start in range(0, len(order), AHEAD):
                part = order[start : start + AHEAD]
                for index, taken in zip(part, pool.map(self._take, part), strict=True):
                    self.digests[index] = taken.digest
                    if taken.fault:
                        self.faults[index] = taken.fault
                    elif skip_unreadable or not self.faults:
                        self.reencoded += taken.reencoded
                        item = self.listing[index]
                        yield PackedImage(taken.content, item.label, _readable(item.name))
                steps.advance(len(part))

    def _take(self, index: int) -> _Taken:
        digest = b""
        try:
            content = self.listing[index].path.read_bytes()
            digest = hashlib.sha256(content).digest()
            image = upright(content, 3, self.max_pixels)
            smaller = self.size is not None and min(image.size) > self.size
            return _Taken(self._smaller(content, image) if smaller else content, digest, smaller, "")
        except Exception as error:  # Pillow's decoders have no common class for damaged files
            return _Taken(b"", digest, False, why_unreadable(error))

    def _smaller(self, content: bytes, image: Image.Image) -> bytes:
        """A JPEG whose short side has `size` pixels; a grey file stays grey."""
        with Image.open(io.BytesIO(content)) as opened:
            grey = opened.mode == "L"
        assert self.size is not None
        share = self.size / min(image.size)
        width, height = (max(self.size, round(side * share)) for side in image.size)
        written = io.BytesIO()
        shrunk = image.resize((width, height), Image.Resampling.BILINEAR)
        (shrunk.convert("L") if grey else shrunk).save(written, "JPEG", quality=self.quality)
        return written.getvalue()


def _readable(name: str) -> str:
    """A file's name as JSON can hold it, whatever its bytes."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")
