"""What a bank holds: one `BankMeta`, and blocks of up to 256 images with labels, scores and parents."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from dfkd.bank.meta import BankMeta, Shard, decode_meta, encode_meta
from dfkd.bank.records import BLOCK_IMAGES, FORMAT_VERSION, check_record, pack_record, views
from dfkd.datasets.info import DatasetInfo

__all__ = ["BLOCK_IMAGES", "FORMAT_VERSION", "BankMeta", "Block", "Shard", "decode", "decode_meta", "encode", "encode_meta"]


@dataclass
class Block:
    """Up to 256 images that are written, checked and lost together."""

    images: Tensor  # uint8 [n,C,H,W]
    labels: Tensor  # int64 [n]
    scores: dict[str, Tensor] = field(default_factory=dict)  # float32 [n] each, finite
    parents: Tensor | None = None  # int64 [n], index in the parent bank; -1 (the default): none

    def __len__(self) -> int:
        return len(self.labels)

    def select(self, mask: Tensor) -> Block:
        """The images for which `mask`, bool [n], holds."""
        parents = None if self.parents is None else self.parents[mask]
        return Block(self.images[mask], self.labels[mask], {name: v[mask] for name, v in self.scores.items()}, parents)

    def checked(self, info: DatasetInfo) -> Block:
        """The block on the CPU with its parents filled in.

        Raises:
            ValueError: a type, shape or label that does not fit the data set.
        """
        count = len(self.labels)
        parents = torch.full((count,), -1) if self.parents is None else self.parents
        if not 1 <= count <= BLOCK_IMAGES:
            raise ValueError(f"a block holds 1 to {BLOCK_IMAGES} images, not {count}")
        if self.images.dtype != torch.uint8 or tuple(self.images.shape) != (count, *info.shape):
            raise ValueError(f"images are {self.images.dtype} {tuple(self.images.shape)}, not uint8 {(count, *info.shape)}")
        for name, values in (("labels", self.labels), ("parents", parents)):
            if values.dtype != torch.int64 or tuple(values.shape) != (count,):
                raise ValueError(f"{name} are {values.dtype} {tuple(values.shape)}, not int64 {(count,)}")
        if int(self.labels.min()) < 0 or int(self.labels.max()) >= len(info.classes):
            raise ValueError(f"labels reach from {int(self.labels.min())} to {int(self.labels.max())}, not 0 to classes - 1")
        for name, values in self.scores.items():
            if tuple(values.shape) != (count,) or not torch.isfinite(values).all():
                raise ValueError(f"score '{name}' is {tuple(values.shape)} or not finite, not one number an image")
        scores = {name: values.detach().to("cpu", torch.float32) for name, values in self.scores.items()}
        return Block(self.images.cpu(), self.labels.cpu(), scores, parents.cpu())


def encode(block: Block, number: int) -> bytes:
    """The record of a checked block, under its number in the bank."""
    channels, height, width = block.images.shape[1:]
    parents = block.parents if block.parents is not None else torch.full((len(block),), -1)
    arrays = [_bytes(block.labels, "<i8"), _bytes(parents, "<i8")]
    arrays += [_bytes(values, "<f4") for values in block.scores.values()]
    arrays.append(_bytes(block.images, "u1"))
    return pack_record(number, (channels, height, width), len(block), list(block.scores), arrays)


def _bytes(values: Tensor, kind: str) -> bytes:
    return np.ascontiguousarray(values.numpy(), dtype=kind).tobytes()


def decode(record: memoryview | bytes, number: int) -> Block:
    """The block of record `number`, in memory of its own.

    Raises:
        DamagedRecord: the checksum fails or the record belongs elsewhere.
    """
    header = check_record(record, number)
    labels, parents, scores, images = views(record, header)
    named = {name: torch.from_numpy(values.copy()) for name, values in zip(header.names, scores, strict=True)}
    return Block(torch.from_numpy(images.copy()), torch.from_numpy(labels.copy()), named, torch.from_numpy(parents.copy()))
