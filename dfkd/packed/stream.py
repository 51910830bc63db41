"""The training split of a packed file as a source of a streamed store: decoded in worker processes, a window ahead."""

from __future__ import annotations

import contextlib
import ctypes
import multiprocessing
import signal
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import numpy as np
import torch

from dfkd.datasets.info import DatasetInfo
from dfkd.errors import UserError
from dfkd.packed.file import PackedFile, decode_array, leave_signals

PR_SET_PDEATHSIG = 1  # of prctl(2)
TASK = 64  # images that a process decodes at a time


class PackedSource:
    """A split of a packed file, every image as the centre square at the data set's size: what `dfkd prepare` would store.

    Processes are started here, before any thread is. Close it in the end.

    Args:
        workers: processes that decode; 0: in this one; None: as many as torch has threads.

    Raises:
        UserError: the file has no such split, or other classes.
    """

    def __init__(self, path: Path, split: str, info: DatasetInfo, workers: int | None = None) -> None:
        self.file, self.info = PackedFile(path), info
        if split not in self.file.meta.splits or self.file.meta.classes != info.classes:
            raise UserError(f"{path}: is not the packed file of the data set {info.name}; give the one it was prepared from.")
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

    def read(self, blocks: list[int], images: np.ndarray) -> None:
        """Fill uint8 [n,C,H,W] with the images of these blocks, one behind the other. A `UserError` tells of damage."""
        parts = [np.arange(self.starts[block], self.starts[block + 1]) for block in blocks]
        numbers = np.concatenate(parts) + self._images.start
        tasks = np.array_split(numbers, -(-len(numbers) // TASK))
        work = [(self.file, task, self.info) for task in tasks]
        done = map(_decode, work) if self._pool is None else self._pool.map(_decode, work)
        start = 0
        try:
            for part in done:
                images[start : start + len(part)] = part
                start += len(part)
        except BrokenProcessPool:
            raise UserError(
                f"{self.file.path}: a process that decodes its images was killed, for want of memory perhaps; "
                "run the same command again to continue."
            ) from None

    def close(self) -> None:
        """End the processes."""
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)


def _begin() -> None:
    """In a worker process: signals are for the process that it works for, and it ends with that one, however that ends."""
    leave_signals()
    with contextlib.suppress(OSError, AttributeError):  # not Linux
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, int(signal.SIGKILL))


def _decode(work: tuple[PackedFile, np.ndarray, DatasetInfo]) -> np.ndarray:
    """uint8 [n,C,H,W] of some images. Touches no tensor: the process that this one was forked from may hold a GPU."""
    file, numbers, info = work
    return decode_array(file.contents(numbers), info.image_size, info.channels, file.path)
