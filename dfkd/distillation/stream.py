"""Images that do not fit the device: read window by window in shuffled block order, a window ahead of the steps.

A *window* is a run of blocks of the shuffled order with about `buffer` images: the shuffle buffer. It is read from the mapped
file in one go, checked, brought to the device while the window before it is used, and its images are drawn in random order.
So a step costs what it costs on resident images, and memory holds three windows, however large the bank is.

Everything that is drawn is a function of keys and step, as `ShuffledPasses` has it: a resumed run reads the window in hand and
goes on as the uninterrupted one would. A pass holds every image once.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from dfkd.bank.reader import BankReader
from dfkd.distillation.store import Fetched, ImageStore
from dfkd.errors import UserError
from dfkd.runtime import Runtime, derive_seed
from dfkd.settings import TrainingSettings

KEPT = 3  # windows: one or two that a batch is drawn from, and the next one

Key = tuple[int | str, ...]  # what a pass or a window was drawn by


class Source(Protocol):
    """Where images are read from, block by block."""

    starts: Sequence[int]  # index of the first image of each block, and the number of images at the end
    labels: Tensor  # int64 [N]
    cropped: bool  # images come in the random crop of their training view, another one in every pass

    def read(self, blocks: list[int], images: np.ndarray, key: Key) -> None:
        """Fill uint8 [n,C,H,W] with the images of these ascending blocks, one behind the other, for the pass of `key`."""


class BankSource:
    """A bank: its blocks, mapped and checked as they are read."""

    cropped = False

    def __init__(self, reader: BankReader) -> None:
        self.reader = reader
        self.starts: Sequence[int] = reader.starts
        self.labels = torch.from_numpy(reader.labels())

    def read(self, blocks: list[int], images: np.ndarray, key: Key) -> None:
        """As `Source` says. Raises a `UserError` if a block is damaged."""
        self.reader.copy_blocks(blocks, images)


class ArraySource:
    """Images in memory, for a device that has less of it: every image is a block, so that the order is any order."""

    cropped = False

    def __init__(self, images: Tensor, labels: Tensor) -> None:
        self.images, self.labels = images, labels
        self.starts: Sequence[int] = range(len(images) + 1)

    def read(self, blocks: list[int], images: np.ndarray, key: Key) -> None:
        """As `Source` says."""
        torch.index_select(self.images, 0, torch.tensor(blocks), out=torch.from_numpy(images))

    def close(self) -> None:
        """Nothing is open."""


class Window(NamedTuple):
    """A part of a pass."""

    key: Key  # of its pass, and its number in it
    blocks: Tensor  # int64, ascending
    images: Tensor  # int64: the given images in it, in the order of the blocks
    own: Tensor  # int64: the run's own images in it, counted from 0
    order: Tensor  # int64: the order in which both are drawn, given images first in the count


class Pass(NamedTuple):
    """Every image once: windows one after the other. `W` is their number."""

    blocks: Tensor  # int64, shuffled
    edges: Tensor  # int64 [W + 1]: window w has blocks[edges[w]:edges[w + 1]]
    given: Tensor  # int64 [W + 1]: given images before window w
    before: Tensor  # int64 [W + 1]: images before window w
    own: Tensor  # int64: the own images, shuffled


class Part(NamedTuple):
    """What a batch takes of a window."""

    window: Window
    places: Tensor  # int64: places in `window.images`
    own: Tensor  # int64: own images


class BlockPasses:
    """Batches from endless passes over given images in shuffled block order, with `own` more mixed in evenly.

    Args:
        starts: int64 [blocks + 1], index of the first given image of each block, and their number, which is not 0.
        own: images that lie on the device, drawn in any order.
        buffer: given images of a window, about.
        steps: of the passes in all, as far as it is known: no window is read ahead for later ones.
    """

    def __init__(
        self, starts: Tensor, own: int, buffer: int, batch_size: int, *keys: int | str, steps: int | None = None
    ) -> None:
        self.starts, self.own, self.buffer, self.batch_size, self.keys = starts, own, buffer, batch_size, keys
        self.given = int(starts[-1])
        self.count = self.given + own
        self.end = None if steps is None else steps * batch_size
        self._passes: dict[int, Pass] = {}
        self._windows: dict[tuple[int, int], Window] = {}

    def _pass(self, number: int) -> Pass:
        if number not in self._passes:
            generator = torch.Generator().manual_seed(derive_seed(*self.keys, number))
            blocks = torch.randperm(len(self.starts) - 1, generator=generator)
            own = torch.randperm(self.own, generator=generator)
            sizes = self.starts[blocks + 1] - self.starts[blocks]
            ends = sizes.cumsum(0)
            window = (ends - sizes) // self.buffer  # of each block
            last = torch.cat([window[1:] != window[:-1], torch.ones(1, dtype=torch.bool)])
            zero = torch.zeros(1, dtype=torch.int64)
            given = torch.cat([zero, ends[last]])
            before = given + self.own * given // self.given  # the own ones are dealt out in proportion
            self._passes = {earlier: found for earlier, found in self._passes.items() if earlier == number - 1}
            self._passes[number] = Pass(blocks, torch.cat([zero, last.nonzero()[:, 0] + 1]), given, before, own)
        return self._passes[number]

    def window(self, number: int, index: int) -> Window:
        """Window `index` of pass `number`."""
        if (number, index) not in self._windows:
            whole = self._pass(number)
            blocks = whole.blocks[whole.edges[index] : whole.edges[index + 1]].sort().values
            first, last = (int(whole.before[edge] - whole.given[edge]) for edge in (index, index + 1))
            sizes = self.starts[blocks + 1] - self.starts[blocks]
            images = torch.arange(int(sizes.sum())) + (self.starts[blocks] - sizes.cumsum(0) + sizes).repeat_interleave(sizes)
            key = (*self.keys, number, index)
            generator = torch.Generator().manual_seed(derive_seed(*key))
            order = torch.randperm(len(images) + last - first, generator=generator)
            while len(self._windows) >= KEPT:
                del self._windows[next(iter(self._windows))]
            self._windows[number, index] = Window(key, blocks, images, whole.own[first:last], order)
        return self._windows[number, index]

    def batch(self, step: int) -> list[Part]:
        """What step `step` takes, window by window; as many images as a batch has."""
        first, last = step * self.batch_size, (step + 1) * self.batch_size
        parts = []
        while first < last:
            number, place = divmod(first, self.count)
            before = self._pass(number).before
            index = int(torch.searchsorted(before, place, right=True)) - 1
            end = min(int(before[index + 1]), place + last - first)
            window = self.window(number, index)
            drawn = window.order[place - int(before[index]) : end - int(before[index])]
            given = drawn < len(window.images)
            parts.append(Part(window, drawn[given], window.own[drawn[~given] - len(window.images)]))
            first += end - place
        return parts

    def after(self, step: int) -> Window | None:
        """The window behind those of a step, if a step will need it."""
        number, place = divmod((step + 1) * self.batch_size - 1, self.count)
        before = self._pass(number).before
        index = int(torch.searchsorted(before, place, right=True))
        if self.end is not None and number * self.count + int(before[index]) >= self.end:
            return None
        return self.window(number, index) if index + 1 < len(before) else self.window(number + 1, 0)


class StreamedStore:
    """Given images that stay in their files, and the run's own on the device; sampled together.

    Args:
        sources: the given images, in the order in which their rows are counted.
        capacity: of the run's own images.
        buffer: images of a window.
    """

    def __init__(
        self, sources: Sequence[Source], capacity: int, shape: tuple[int, int, int], buffer: int, runtime: Runtime
    ) -> None:
        self.sources, self.buffer, self.shape, self.runtime = list(sources), buffer, shape, runtime
        self.own = ImageStore(capacity, shape, runtime)
        lengths = [torch.as_tensor(source.starts).diff() for source in self.sources]
        self.starts = torch.cat([torch.zeros(1, dtype=torch.int64), torch.cat(lengths).cumsum(0)])
        self._first_blocks = np.cumsum([0, *map(len, lengths)])
        self.cropped = any(source.cropped for source in self.sources)
        if self.cropped and (capacity or len(self.sources) > 1):
            raise UserError("images that are cropped as they are decoded are trained on alone, with no bank or synthesis.")
        given = torch.cat([source.labels for source in self.sources])
        self.given = len(given)
        self._labels = torch.cat([given, torch.zeros(capacity, dtype=torch.int64)]).to(runtime.device)
        self._pool = ThreadPoolExecutor(1, "windows")
        self._ready: dict[Key, Future[Tensor]] = {}
        self._stream = torch.cuda.Stream(runtime.device) if runtime.device.type == "cuda" else None

    @property
    def count(self) -> int:
        """Images, given and own."""
        return self.given + self.own.count

    @property
    def labels(self) -> Tensor:
        """int64 [count] on the device: of the given images, then of the own."""
        return self._labels[: self.count]

    def append(self, images: Tensor, labels: Tensor) -> None:
        """Copy own images behind those that are there. Raises ValueError beyond the capacity."""
        self.own.append(images, labels)
        self._labels[self.count - len(labels) : self.count].copy_(labels)

    def append_bank(self, reader: BankReader) -> None:
        """Copy the images of the run's own bank, when it resumes."""
        if len(reader):
            arrays = reader.load()
            self.append(arrays.images, arrays.labels)

    def passes(self, batch_size: int, *keys: int | str, steps: int | None = None) -> BlockPasses:
        """Passes over all that is there now."""
        return BlockPasses(self.starts, self.own.count, self.buffer, batch_size, *keys, steps=steps)

    def expect(self, *keys: int | str) -> None:
        """Begin to read what passes of these keys begin with: no block depends on the own images that are still made."""
        window = BlockPasses(self.starts, 0, self.buffer, 1, *keys).window(0, 0)
        self._begin(window)
        self._keep({window.key})

    def fetch(self, passes: BlockPasses, step: int) -> Fetched:
        """The batch of a step, on the device; the window behind it is read meanwhile."""
        device = self.runtime.device
        images, rows = [], []
        parts = passes.batch(step)
        for part in parts:
            if len(part.places):
                images.append(self._window(part.window).index_select(0, part.places.to(device)))
                rows.append(part.window.images[part.places])
            if len(part.own):
                images.append(self.own.images.index_select(0, part.own.to(device)))
                rows.append(part.own + self.given)
        row = torch.cat(rows).to(device)
        ahead = passes.after(step)
        if ahead is not None:
            self._begin(ahead)
        self._keep({part.window.key for part in parts} | ({ahead.key} if ahead else set()))
        return Fetched(images[0] if len(images) == 1 else torch.cat(images), self._labels[row], row)

    def _begin(self, window: Window) -> None:
        if window.key not in self._ready:
            self._ready[window.key] = self._pool.submit(self._load, window)

    def _keep(self, keys: set[Key]) -> None:
        """Let go of all windows but these."""
        for key in self._ready.keys() - keys:
            self._ready.pop(key).cancel()

    def _window(self, window: Window) -> Tensor:
        """Its given images on the device, waited for if they are still being read."""
        self._begin(window)
        images = self._ready[window.key].result()
        if self._stream is not None:
            images.record_stream(torch.cuda.current_stream(self.runtime.device))
        return images

    def _load(self, window: Window) -> Tensor:
        """Read a window, and bring it to the device on a stream of its own."""
        images = torch.empty(len(window.images), *self.shape, dtype=torch.uint8, pin_memory=self._stream is not None)
        for number, source in enumerate(self.sources):
            first, last = self._first_blocks[number : number + 2]
            begin, end = np.searchsorted(window.blocks.numpy(), [first, last])
            places = np.searchsorted(window.images.numpy(), self.starts[[first, last]].numpy())
            if begin < end:
                source.read((window.blocks[begin:end] - int(first)).tolist(), images[slice(*places)].numpy(), window.key[:-1])
        if self._stream is None:
            return images
        with torch.cuda.stream(self._stream):
            moved = images.to(self.runtime.device, non_blocking=True)
        self._stream.synchronize()  # this thread alone waits
        return moved

    def close(self) -> None:
        """End the thread that reads."""
        self._pool.shutdown(wait=False, cancel_futures=True)


Store = ImageStore | StreamedStore


def stream_notes(streamed: bool, settings: TrainingSettings) -> dict[str, str]:
    """What a card says of images that were streamed, since their order is another one."""
    return {"store": f"streamed, shuffle buffer of {settings.shuffle_buffer} images"} if streamed else {}
