"""Reading into tensors: whole banks, single blocks, images at random."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from dfkd.bank.file import BankFile, BlockColumns
from dfkd.bank.format import Block, decode
from dfkd.bank.storage import visit_records


@dataclass
class BankColumns:
    """What a bank says of all its images, short of the images."""

    labels: Tensor  # int64 [N]
    scores: dict[str, Tensor]  # float32 [N] each
    parents: Tensor  # int64 [N], index in the parent bank; -1: none

    def __len__(self) -> int:
        return len(self.labels)


@dataclass
class BankArrays(BankColumns):
    """A whole bank in memory."""

    images: Tensor  # uint8 [N,C,H,W]


class BankReader(BankFile):
    """The bank at `path`, as it was when the reader was made, in tensors; see `BankFile`."""

    def block(self, number: int) -> Block:
        """Block `number`, from 0."""
        if not 0 <= number < self.meta.blocks:
            raise IndexError(f"block {number} of {self.meta.blocks}")
        return next(self._blocks([number]))

    def blocks(self) -> Iterator[Block]:
        """All blocks in order; memory holds a few at a time."""
        return self._blocks(range(self.meta.blocks))

    def _blocks(self, numbers: Sequence[int]) -> Iterator[Block]:
        return visit_records(self.path, numbers, lambda number, record: decode(record, number), self.identity)

    def images(self, indices: Sequence[int] | Tensor) -> Tensor:
        """Images [len(indices),C,H,W] in the order asked; each touched block is checked once."""
        return torch.from_numpy(self.pixels(np.asarray(indices)))

    def columns(self) -> BankColumns:
        """Labels, scores and parents of all images, every block checked; the images are left on the disk."""
        return BankColumns(*_tensors(self.gather()))

    def load(self) -> BankArrays:
        """The whole bank, every block checked, in arrays that are allocated once."""
        images = np.empty((len(self), *self.meta.dataset.shape), dtype=np.uint8)
        return BankArrays(*_tensors(self.gather(images)), torch.from_numpy(images))


def _tensors(found: BlockColumns) -> tuple[Tensor, dict[str, Tensor], Tensor]:
    scores = {name: torch.from_numpy(values) for name, values in found.scores.items()}
    return torch.from_numpy(found.labels), scores, torch.from_numpy(found.parents)
