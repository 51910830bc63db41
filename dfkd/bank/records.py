"""The bytes of one record: a framed block of arrays with its checksum, or the meta. Imports no torch."""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

FORMAT_VERSION = 1
BLOCK_IMAGES = 256  # at most, in one record
META_KEY = b"meta"
RECORD_MAGIC = b"DFKDBLK\0"

_HEADER = struct.Struct("<8s8I")  # magic, format version, number, n, C, H, W, bytes of the score names, bytes of the record
_CHECKSUM = struct.Struct("<I")  # CRC-32 of all that precedes it in the record


class DamagedRecord(ValueError):
    """A record that is not what was written; the text says what is wrong with it."""


class Header(NamedTuple):
    """What stands at the start of a record."""

    number: int
    images: int
    shape: tuple[int, int, int]  # C, H, W
    names: tuple[str, ...]  # of the scores, in their order
    arrays: int  # offset of the labels; parents, scores and pixels follow without gaps


def block_key(number: int) -> bytes:
    """`block/00000000`, …: in this order in the file."""
    return b"block/%08d" % number


def pack_record(number: int, shape: tuple[int, int, int], count: int, names: Sequence[str], arrays: Sequence[bytes]) -> bytes:
    """Frame the arrays of a block: header, score names, arrays, CRC-32."""
    text = json.dumps(list(names), ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # keeps the arrays aligned
    size = _HEADER.size + len(text) + sum(map(len, arrays)) + _CHECKSUM.size
    header = _HEADER.pack(RECORD_MAGIC, FORMAT_VERSION, number, count, *shape, len(text), size)
    body = b"".join((header, text, *arrays))
    return body + _CHECKSUM.pack(zlib.crc32(body))


def read_header(record: memoryview | bytes) -> Header:
    """Header of a record, its checksum not looked at.

    Raises:
        DamagedRecord: the bytes cannot be a record.
    """
    if len(record) < _HEADER.size + _CHECKSUM.size or bytes(record[:8]) != RECORD_MAGIC:
        raise DamagedRecord("is not a record of images")
    _, _, number, count, *shape, names_bytes, size = _HEADER.unpack_from(record)
    channels, height, width = shape
    arrays = _HEADER.size + names_bytes
    try:
        names = tuple(json.loads(bytes(record[_HEADER.size : arrays])))
    except ValueError:
        raise DamagedRecord("has a damaged header") from None
    expected = arrays + count * (16 + 4 * len(names) + channels * height * width) + _CHECKSUM.size
    if not size == len(record) == expected:
        raise DamagedRecord(f"has {len(record)} bytes where {expected} belong")
    return Header(number, count, (channels, height, width), names, arrays)


def check_record(record: memoryview | bytes, number: int) -> Header:
    """Header of record `number`, its checksum and its place checked.

    Raises:
        DamagedRecord: any byte differs from what was written, or the record belongs elsewhere.
    """
    end = len(record) - _CHECKSUM.size
    if end < _HEADER.size or zlib.crc32(record[:end]) != _CHECKSUM.unpack_from(record, end)[0]:
        raise DamagedRecord("fails its checksum")
    header = read_header(record)
    if header.number != number:
        raise DamagedRecord(f"holds block {header.number}")
    return header


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


def renumber(record: bytes, number: int) -> bytes:
    """The same block under another number."""
    body = bytearray(record[: -_CHECKSUM.size])
    struct.pack_into("<I", body, 12, number)
    return bytes(body) + _CHECKSUM.pack(zlib.crc32(body))


def pack_meta(content: Mapping[str, Any]) -> bytes:
    """Canonical JSON with a `checksum`: CRC-32 of the canonical JSON without it."""
    return _canonical({**content, "checksum": f"{zlib.crc32(_canonical(content)):08x}"})


def unpack_meta(value: memoryview | bytes) -> dict[str, Any]:
    """What `pack_meta` was given.

    Raises:
        DamagedRecord: not a meta record, or any byte differs from what was written.
    """
    try:
        content = json.loads(bytes(value))
        content.pop("checksum")
    except (ValueError, KeyError, AttributeError, TypeError):
        raise DamagedRecord("cannot be read") from None
    if pack_meta(content) != bytes(value):
        raise DamagedRecord("fails its checksum")
    return dict(content)


def _canonical(content: Mapping[str, Any]) -> bytes:
    return json.dumps(content, sort_keys=True, ensure_ascii=False, separators=(",", ":")).encode()
