"""What a bank says of itself: its `meta` record, typed. Imports no torch."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from dfkd.bank.records import FORMAT_VERSION, DamagedRecord, pack_meta, unpack_meta
from dfkd.datasets.info import DatasetInfo
from dfkd.errors import UserError

PACKED_FORMAT = "dfkd packed images"  # what `dfkd data pack` writes has the same blocks and digest, but is no bank

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
        if str(content.get("format", "")) == PACKED_FORMAT:
            raise UserError(f"{path}: a file of packed images, not an image bank; `dfkd data info` tells what is in it.")
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
