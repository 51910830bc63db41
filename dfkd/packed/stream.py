"""The training split of a packed file as a source of a streamed store: decoded in worker processes, a window ahead.

An image is seen as `dfkd prepare` would store it, its centre square; or, of a data set with `crop: resized`, as a random box of
the whole photograph, cut here since the fixed-size image holds less than that. Which box is a function of the pass and of the
image alone: neither of the processes, nor of the window, nor of what was read before.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import math
import multiprocessing
import random
import signal
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image

from dfkd.datasets.info import DatasetInfo
from dfkd.datasets.prepared import read_packed_train
from dfkd.errors import UserError
from dfkd.packed.file import PackedFile, decode_array, leave_signals
from dfkd.runtime import derive_seed

PR_SET_PDEATHSIG = 1  # of prctl(2)
TASK = 64  # images that a process decodes at a time

Key = tuple[int | str, ...]


class PackedSource:
    """A split of a packed file, at the data set's size, in the crop of its training views if that is cut out of whole images.

    Processes are started here, before any thread is. Close it in the end.

    Args:
        info: of the data set that was prepared from the file.
        workers: processes that decode; 0: in this one; None: as many as torch has threads.

    Raises:
        UserError: the file has no such split, or other classes.
    """

    def __init__(self, path: Path, split: str, info: DatasetInfo, workers: int | None = None) -> None:
        self.file, self.info, self.name = PackedFile(path), info, Path(path).name
        if split not in self.file.meta.splits or self.file.meta.classes != info.classes:
            raise UserError(f"{path}: is not the packed file of the data set {info.name}; give the one it was prepared from.")
        self.cropped = info.crop == "resized"
        self._blocks, self._images = self.file.split_blocks(split), self.file.split_images(split)
        first = self._images.start
        self.starts: Sequence[int] = [start - first for start in self.file.starts[self._blocks.start : self._blocks.stop + 1]]
        self.labels = self.file.labels(split)
        count = torch.get_num_threads() if workers is None else workers
        self._pool: ProcessPoolExecutor | None = None
        if count:
            context = multiprocessing.get_context("fork")
            self._pool = ProcessPoolExecutor(count, context, _begin)
            self._pool.submit(int).result()  # all processes begin with the first task

    def read(self, blocks: list[int], images: np.ndarray, key: Key) -> None:
        """Fill uint8 [n,C,H,W] with the images of these blocks, one behind the other, for the pass that `key` drew.

        Raises:
            UserError: a block or an image is damaged, or the system has killed a process that decodes.
        """
        rows = np.concatenate([np.arange(self.starts[block], self.starts[block + 1]) for block in blocks])
        tasks = np.array_split(rows, -(-len(rows) // TASK))
        work = [_Task(self.file, self._images.start, task, self.info, key) for task in tasks]
        start = 0
        try:
            for part in map(_decode, work) if self._pool is None else self._pool.map(_decode, work):
                images[start : start + len(part)] = part
                start += len(part)
        except BrokenProcessPool:
            raise UserError(
                f"{self.file.path}: a process that decodes its images was killed, as happens where memory runs out; "
                "lower shuffle_buffer or OMP_NUM_THREADS and start again."
            ) from None

    def close(self) -> None:
        """End the processes."""
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)


def kept_source(data: Path, packed: Path | None, info: DatasetInfo, store: str) -> PackedSource | None:
    """The training images of a prepared data set that stayed in a packed file; None if it holds them itself.

    Args:
        data: the prepared data set.
        packed: the packed file that the user gave for it.
        info: the data set, as it is to be seen.
        store: the setting of that name.

    Raises:
        UserError: the packed file is missing, another one, or in vain; `store` wants on the device what stays in the file.
    """
    named = read_packed_train(data)
    if named is None:
        if packed is not None:
            raise UserError(f"{data}: holds its training images itself; leave --packed away.")
        return None
    if packed is None:
        raise UserError(f"{data}: its training images lie in the packed file {named['file']}; give it with --packed.")
    if store == "resident":
        raise UserError(
            f"{data}: its training images stay in {named['file']} and are streamed from there, not resident; "
            "leave store at auto, or prepare the data set without keep_packed."
        )
    if PackedFile(packed).digest != named["digest"]:
        raise UserError(f"{packed}: is not the {named['file']} that {data} was prepared from; give that one, or prepare again.")
    source = PackedSource(packed, "train", info)
    source.name = named["file"]  # whatever it is called now
    return source


def packed_lineage(source: object) -> dict[str, str]:
    """What a card's lineage says of images that stayed in a packed file: its name → its BLAKE2b digest."""
    return {f"packed {source.name}": source.file.digest} if isinstance(source, PackedSource) else {}


def draw_box(
    full_height: int, full_width: int, scale: tuple[float, float], ratio: tuple[float, float], seed: int
) -> tuple[int, int, int, int]:
    """(top, left, height, width) of a random box in an image of this size, as torchvision's RandomResizedCrop draws it.

    It covers a share of the area uniform in `scale`, with a width / height log-uniform in `ratio`, in whole pixels; of ten
    proposals the first that fits is taken. If none does it is the image itself, less what makes it longer than `ratio` allows,
    at its centre. Not drawn by torchvision's own function, whose numbers are those of torch's global generator: the run's.

    C. Szegedy et al., *Going deeper with convolutions*, arXiv 1409.4842, section 6: scale 0.08 to 1, ratio 3/4 to 4/3.
    """
    draw = random.Random(seed).random  # the one function whose numbers are those of every version of Python
    low, high = math.log(ratio[0]), math.log(ratio[1])
    for _ in range(10):
        area = full_height * full_width * (scale[0] + (scale[1] - scale[0]) * draw())
        aspect = math.exp(low + (high - low) * draw())
        width, height = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < width <= full_width and 0 < height <= full_height:
            top, left = int(draw() * (full_height - height + 1)), int(draw() * (full_width - width + 1))
            return top, left, height, width
    height, width = min(full_height, round(full_width / ratio[0])), min(full_width, round(full_height * ratio[1]))
    return (full_height - height) // 2, (full_width - width) // 2, height, width


def random_box(image: Image.Image, info: DatasetInfo, seed: int) -> Image.Image:
    """The random box of an image that `seed` draws, at the data set's size: bilinear, antialiased where it is larger."""
    top, left, height, width = draw_box(image.height, image.width, info.crop_scale, info.crop_ratio, seed)
    box = image.crop((left, top, left + width, top + height))
    return box.resize((info.image_size, info.image_size), Image.Resampling.BILINEAR)


def _begin() -> None:
    """In a worker process: signals are for the process that it works for, and it ends with that one, however that ends."""
    leave_signals()
    with contextlib.suppress(OSError, AttributeError):  # not Linux
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, int(signal.SIGKILL))


class _Task(NamedTuple):
    """Some images of a split."""

    file: PackedFile
    first: int  # of the split, in the file
    rows: np.ndarray  # of the images, in the split
    info: DatasetInfo
    key: Key  # of the pass


def _decode(task: _Task) -> np.ndarray:
    """uint8 [n,C,H,W] of some images. Touches no tensor: the process that this one was forked from may hold a GPU."""
    info, cuts = task.info, None
    if info.crop == "resized":
        seeds = [derive_seed(*task.key, "crop", row) for row in task.rows.tolist()]
        cuts = [functools.partial(random_box, info=info, seed=seed) for seed in seeds]
    contents = task.file.contents(task.rows + task.first)
    return decode_array(contents, info.image_size, info.channels, task.file.path, cuts=cuts)
