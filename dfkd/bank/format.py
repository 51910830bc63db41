"""What a bank holds: one `BankMeta`, and blocks of up to 256 images with labels, scores and parents."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor

from dfkd.bank.records import (
    BLOCK_IMAGES,
    FORMAT_VERSION,
    DamagedRecord,
    Header,
    check_record,
    pack_meta,
    pack_record,
    unpack_meta,
)
from dfkd.datasets.info import DatasetInfo
from dfkd.errors import UserError

__all__ = ["BLOCK_IMAGES", "FORMAT_VERSION", "BankMeta", "Block", "Shard", "decode", "decode_meta", "encode", "encode_meta"]

Kind = Literal["init", "variations", "rejected", "run"]


class BankMeta(BaseModel):
    """What the `meta` record says of the whole bank. No times, no paths: equal runs give equal bytes."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    format_version: int = FORMAT_VERSION
    kind: Kind
    dataset: DatasetInfo
    teacher_sha256: str  # of the weights that gave the labels
    stage: str
    stage_version: int
    settings: dict[str, Any] = {}
    seed: int = 0
    lineage: list[dict[str, Any]] = []  # the banks it was made from, oldest first
    extra: dict[str, Any] = {}  # what the stage wants to say besides; `shard`: a `Shard`
    status: Literal["writing", "complete"] = "writing"
    images: int = 0
    blocks: int = 0


class Shard(BaseModel):
    """`extra["shard"]` of a bank that is one of several parts: part `index` of `count`, counted from 1."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    index: int = Field(ge=1)
    count: int = Field(ge=1)
    first_block: int = Field(ge=0)  # of the whole bank
    blocks: int = Field(ge=0)  # in this part


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


def views(record: memoryview | bytes, header: Header) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Labels [n], parents [n], scores [S,n] and images [n,C,H,W] of a record, without copying."""
    count, offset = header.images, header.arrays
    labels = np.frombuffer(record, "<i8", count, offset)
    parents = np.frombuffer(record, "<i8", count, offset + 8 * count)
    scores = np.frombuffer(record, "<f4", len(header.names) * count, offset + 16 * count).reshape(-1, count)
    channels, height, width = header.shape
    pixels = offset + (16 + 4 * len(header.names)) * count
    images = np.frombuffer(record, "u1", count * channels * height * width, pixels).reshape(count, channels, height, width)
    return labels, parents, scores, images


def encode_meta(meta: BankMeta) -> bytes:
    """The `meta` record."""
    return pack_meta(meta.model_dump(mode="json"))


def decode_meta(value: memoryview | bytes | None, path: object) -> BankMeta:
    """Read the `meta` record of the bank at `path`.

    Raises:
        UserError: absent, damaged, or written by a later version of the format.
    """
    if value is None:
        raise UserError(f"{path}: not an image bank, an LMDB file without a meta record; give a .lmdb file that dfkd made.")
    try:
        content = unpack_meta(value)
        version = int(content["format_version"])
    except (DamagedRecord, KeyError, TypeError, ValueError) as error:
        reason = error if isinstance(error, DamagedRecord) else "names no format version"
        raise UserError(f"{path}: its meta record {reason}; copy or make the bank again.") from None
    if version > FORMAT_VERSION:
        raise UserError(
            f"{path}: written in format version {version}, this dfkd reads up to {FORMAT_VERSION}; update dfkd or remake it."
        )
    try:
        return BankMeta.model_validate(content)
    except ValidationError as error:
        fault = error.errors()[0]
        where = ".".join(map(str, fault["loc"]))
        raise UserError(f"{path}: its meta record does not fit ({where}: {fault['msg']}); make the bank again.") from None
