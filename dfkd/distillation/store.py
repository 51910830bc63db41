"""Images on the device: one preallocated uint8 tensor that grows in place, sampled by shuffled passes."""

from __future__ import annotations

from typing import NamedTuple

import torch

from dfkd.bank.reader import BankReader
from dfkd.runtime import Runtime, derive_seed

RESIDENT_SHARE = 0.5  # of the device's memory that images may take


class Fetched(NamedTuple):
    """A batch of a store, on the device."""

    images: torch.Tensor  # uint8 [B,C,H,W]
    labels: torch.Tensor  # int64 [B]
    rows: torch.Tensor  # int64 [B]: which images of the store these are


def is_streamed(store: str, images: int, shape: tuple[int, int, int], runtime: Runtime) -> bool:
    """What the setting `store` comes to for so many images [C,H,W]: whether they are streamed.

    `auto` looks at the memory that the device has, not at what is free now: the same job on the same machine always
    comes to the same.
    """
    if store != "auto":
        return store == "streamed"
    channels, height, width = shape
    return bool(runtime.ranks.agree(images * channels * height * width > RESIDENT_SHARE * runtime.memory()))


class ImageStore:
    """uint8 images [capacity,C,H,W] and labels on the device, filled from the front."""

    cropped = False  # as `dfkd.distillation.stream.Source` has it

    def __init__(self, capacity: int, shape: tuple[int, int, int], runtime: Runtime) -> None:
        self.images = torch.zeros(capacity, *shape, dtype=torch.uint8, device=runtime.device)
        self.labels = torch.zeros(capacity, dtype=torch.int64, device=runtime.device)
        self.count = 0

    def append(self, images: torch.Tensor, labels: torch.Tensor) -> None:
        """Copy a batch behind the images that are there. Raises ValueError beyond the capacity."""
        end = self.count + len(images)
        if end > len(self.images):
            raise ValueError(f"{end} images for a capacity of {len(self.images)}")
        self.images[self.count : end].copy_(images)
        self.labels[self.count : end].copy_(labels)
        self.count = end

    def append_bank(self, reader: BankReader) -> None:
        """Copy a bank's images and labels behind those that are there. Raises ValueError beyond the capacity."""
        end = self.count + len(reader)
        if self.images.device.type == "cpu" and self.count < end <= len(self.images):  # no second copy of a large bank
            self.labels[self.count : end] = torch.from_numpy(reader.gather(self.images[self.count : end].numpy()).labels)
            self.count = end
        elif len(reader):
            arrays = reader.load()
            self.append(arrays.images, arrays.labels)

    def passes(self, batch_size: int, *keys: int | str, steps: int | None = None) -> ShuffledPasses:
        """Shuffled passes over the images that are there now."""
        return ShuffledPasses(self.count, batch_size, *keys)

    def fetch(self, passes: ShuffledPasses, step: int) -> Fetched:
        """The batch of a step."""
        rows = passes.batch(step).to(self.images.device)
        return Fetched(self.images.index_select(0, rows), self.labels[rows], rows)  # which copies rows, not elements

    def expect(self, *keys: int | str) -> None:
        """Nothing has to be read."""

    def close(self) -> None:
        """Nothing is open."""


class ShuffledPasses:
    """Batches of indices from endless shuffled passes over `count` images.

    Batch `step` is a function of (seed keys, count, batch size, step): a resumed run draws what the uninterrupted one
    would have drawn. A batch that reaches past the end of a pass goes on with the next one, so that shapes are static.
    """

    def __init__(self, count: int, batch_size: int, *keys: int | str) -> None:
        self.count, self.batch_size, self.keys = count, batch_size, keys
        self._passes: dict[int, torch.Tensor] = {}

    def _pass(self, number: int) -> torch.Tensor:
        if number not in self._passes:
            generator = torch.Generator().manual_seed(derive_seed(*self.keys, number))
            self._passes = {
                number - 1: self._passes.get(number - 1, torch.empty(0)),
                number: torch.randperm(self.count, generator=generator),
            }
        return self._passes[number]

    def batch(self, step: int) -> torch.Tensor:
        """Indices [batch_size] of a step, int64 on the CPU."""
        first, last = step * self.batch_size, (step + 1) * self.batch_size
        parts = []
        for number in range(first // self.count, (last - 1) // self.count + 1):
            start = number * self.count
            parts.append(self._pass(number)[max(first - start, 0) : last - start])
        return torch.cat(parts)
