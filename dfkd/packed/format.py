"""The bytes of a packed file: blocks of encoded images as they were read, and the `meta`. Imports no torch."""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
from pydantic import BaseModel, ConfigDict, ValidationError

from dfkd.bank.meta import PACKED_FORMAT
from dfkd.bank.records import DamagedRecord, pack_meta, unpack_meta
from dfkd.errors import UserError

FORMAT_VERSION = 1
BLOCK_IMAGES = 256  # at most, in one block
BLOCK_BYTES = 16 << 20  # of encoded images, at most, unless one alone is larger
MAGIC = b"DFKDPAK\0"

_HEADER = struct.Struct("<8s4IQ")  # magic, format version, number, n, bytes of the names, bytes of the record
_CHECKSUM = struct.Struct("<I")  # CRC-32 of all that precedes it in the record


class SplitMeta(BaseModel):
    """One split: its blocks follow on each other."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    images: int
    first_block: int
    blocks: int
    bytes: int  # of the encoded images


class PackedMeta(BaseModel):
    """What the `meta` record says of the whole file. No times, no paths: the same folder gives the same bytes."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    format: Literal["dfkd packed images"] = PACKED_FORMAT  # type: ignore[assignment]
    format_version: int = FORMAT_VERSION
    source: str  # name of the folder
    files_sha256: str  # of all names and contents, as `dfkd prepare` notes it for the folder itself
    classes: list[str]  # in the order of the labels
    splits: dict[str, SplitMeta]  # `train` and `test`, `test` alone, or `all`
    size: int | None = None  # pixels of the short side to which larger images were brought; None: files as they were
    quality: int | None = None  # of JPEG, where they were
    reencoded: int = 0  # images that were
    seed: int = 0  # of the order of the images
    skipped: int = 0  # unreadable files
    skipped_first: list[str] = []
    repeated: int = 0  # files whose content another file has too

    @property
    def images(self) -> int:
        """Of all splits."""
        return sum(split.images for split in self.splits.values())

    @property
    def blocks(self) -> int:
        """Of all splits."""
        return sum(split.blocks for split in self.splits.values())


class PackedImage(NamedTuple):
    """One encoded image."""

    content: bytes  # a file that Pillow reads
    label: int
    name: str  # of the file, relative to the folder


class PackedBlock(NamedTuple):
    """A block as it lies in the file: nothing is copied, nothing may outlive the transaction."""

    labels: np.ndarray  # int64 [n]
    ends: np.ndarray  # uint64 [n + 1]: image i is contents[ends[i]:ends[i + 1]]
    contents: memoryview
    names: list[str]

    def content(self, index: int) -> bytes:
        """A copy of encoded image `index`."""
        return bytes(self.contents[int(self.ends[index]) : int(self.ends[index + 1])])


def pack_block(number: int, images: Sequence[PackedImage]) -> bytes:
    """The record of a block, under its number in the file."""
    names = json.dumps([image.name for image in images], ensure_ascii=False, separators=(",", ":")).encode()
    names += b" " * (-len(names) % 8)  # keeps the arrays aligned
    labels = np.array([image.label for image in images], dtype="<i8")
    ends = np.concatenate([[0], np.cumsum([len(image.content) for image in images])]).astype("<u8")
    arrays = labels.tobytes() + ends.tobytes()
    size = _HEADER.size + len(names) + len(arrays) + int(ends[-1]) + _CHECKSUM.size
    header = _HEADER.pack(MAGIC, FORMAT_VERSION, number, len(images), len(names), size)
    body = b"".join((header, names, arrays, *(image.content for image in images)))
    return body + _CHECKSUM.pack(zlib.crc32(body))


def read_block(record: memoryview, number: int, check: bool = True) -> PackedBlock:
    """Block `number` of a record; `check` compares its checksum.

    Raises:
        DamagedRecord: any byte differs from what was written, or the record belongs elsewhere.
    """
    end = len(record) - _CHECKSUM.size
    if end < _HEADER.size or bytes(record[:8]) != MAGIC:
        raise DamagedRecord("is not a record of packed images")
    if check and zlib.crc32(record[:end]) != _CHECKSUM.unpack_from(record, end)[0]:
        raise DamagedRecord("fails its checksum")
    _, _, found, count, names_bytes, size = _HEADER.unpack_from(record)
    if found != number or size != len(record):
        raise DamagedRecord(f"holds block {found} of {size} bytes")
    arrays = _HEADER.size + names_bytes
    start = arrays + 8 * count + 8 * (count + 1)
    labels = np.frombuffer(record, "<i8", count, arrays)
    ends = np.frombuffer(record, "<u8", count + 1, arrays + 8 * count)
    return PackedBlock(labels, ends, record[start:end], json.loads(bytes(record[_HEADER.size : arrays])))


def encode_packed_meta(meta: PackedMeta) -> bytes:
    """The `meta` record."""
    return pack_meta(meta.model_dump(mode="json"))


def decode_packed_meta(value: memoryview | bytes | None, path: object) -> PackedMeta:
    """Read the `meta` record of the packed file at `path`.

    Raises:
        UserError: absent, damaged, of a bank, or written by a later version of the format.
    """
    try:
        content = {} if value is None else unpack_meta(value)
    except DamagedRecord as error:
        raise UserError(f"{path}: its meta record {error}; copy or pack it again.") from None
    if content.get("format") != PACKED_FORMAT:
        kind = "an image bank" if "teacher_sha256" in content else "another LMDB file"
        raise UserError(f"{path}: {kind}, not packed images; give a file that `dfkd data pack` made.")
    if int(content.get("format_version", 0)) > FORMAT_VERSION:
        raise UserError(
            f"{path}: written in format version {content['format_version']}, this dfkd reads up to {FORMAT_VERSION}; "
            "update dfkd or pack it again."
        )
    try:
        return PackedMeta.model_validate(content)
    except ValidationError as error:
        fault = error.errors()[0]
        where = ".".join(map(str, fault["loc"]))
        raise UserError(f"{path}: its meta record does not fit ({where}: {fault['msg']}); pack it again.") from None
