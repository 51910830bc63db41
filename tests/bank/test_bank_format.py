from __future__ import annotations

import json
import struct
import zlib
from pathlib import Path

import pytest
import torch

from dfkd.bank.format import BankMeta, Block, decode, decode_meta, encode, encode_meta
from dfkd.bank.records import DamagedRecord, check_record, renumber, unpack_meta
from dfkd.errors import UserError


def test_record_has_the_documented_bytes(banks):
    images = torch.arange(2 * 3 * 4 * 4, dtype=torch.uint8).reshape(2, 3, 4, 4)
    block = Block(images, torch.tensor([2, 0]), {"bn": torch.tensor([0.5, -1.0])}, torch.tensor([-1, 9]))
    body = struct.pack("<8s8I", b"DFKDBLK\0", 1, 3, 2, 3, 4, 4, 8, 40 + 8 + 32 + 8 + 96 + 4)
    body += b'["bn"]  ' + struct.pack("<2q2q2f", 2, 0, -1, 9, 0.5, -1.0) + bytes(range(96))
    assert encode(block, 3) == body + struct.pack("<I", zlib.crc32(body))


@pytest.mark.parametrize("count", [1, 5, 256])
def test_round_trip(banks, count):
    block = banks.block(1, count)
    again = decode(encode(block, 12), 12)
    assert torch.equal(again.images, block.images)
    assert torch.equal(again.labels, block.labels)
    assert torch.equal(again.parents, block.parents)
    assert list(again.scores) == ["bn", "oh"]
    assert all(torch.equal(again.scores[name], block.scores[name]) for name in block.scores)


def test_every_flipped_bit_of_a_record_is_found(banks):
    record = encode(banks.block(0, 1), 0)
    for place in range(len(record) * 8):
        damaged = bytearray(record)
        damaged[place // 8] ^= 1 << place % 8
        with pytest.raises(DamagedRecord):
            check_record(bytes(damaged), 0)
    for size in range(len(record)):
        with pytest.raises(DamagedRecord):
            check_record(record[:size], 0)


def test_a_record_knows_its_place(banks):
    record = encode(banks.block(0), 4)
    with pytest.raises(DamagedRecord, match="holds block 4"):
        check_record(record, 5)
    assert renumber(record, 5) == encode(banks.block(0), 5)


def test_meta_round_trip_and_every_flipped_bit(banks):
    meta = banks.meta(lineage=[{"kind": "init", "sha256": "00"}], extra={"accepted": [0.5, 1e-9]}, settings={"größe": [1, 2]})
    value = encode_meta(meta)
    assert decode_meta(value, "x") == meta
    assert json.loads(value)["kind"] == "init"
    for place in range(len(value) * 8):
        damaged = bytearray(value)
        damaged[place // 8] ^= 1 << place % 8
        with pytest.raises(DamagedRecord):
            unpack_meta(bytes(damaged))


def test_meta_of_a_later_format_names_both_versions(banks):
    value = encode_meta(BankMeta.model_validate(banks.meta().model_dump() | {"format_version": 2}))
    with pytest.raises(UserError, match=r"x\.lmdb: written in format version 2, this dfkd reads up to 1"):
        decode_meta(value, "x.lmdb")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"images": torch.zeros(5, 3, 4, 4)}, "images are torch.float32"),
        ({"images": torch.zeros(5, 1, 4, 4, dtype=torch.uint8)}, r"not uint8 \(5, 3, 4, 4\)"),
        ({"labels": torch.zeros(5, dtype=torch.int32)}, "labels are torch.int32"),
        ({"labels": torch.tensor([0, 1, 2, 3, 0])}, "reach from 0 to 3"),
        ({"parents": torch.zeros(4, dtype=torch.int64)}, "parents are"),
        ({"scores": {"bn": torch.tensor([0, 1, 2, 3, float("nan")])}}, "score 'bn'"),
    ],
)
def test_a_block_that_does_not_fit_is_refused(banks, change, words):
    block = banks.block(0)
    with pytest.raises(ValueError, match=words):
        Block(**({"images": block.images, "labels": block.labels} | change)).checked(banks.info)


def test_a_block_holds_1_to_256_images(banks):
    with pytest.raises(ValueError, match="not 257"):
        banks.block(0, 257).checked(banks.info)
    with pytest.raises(ValueError, match="not 0"):
        Block(torch.zeros(0, 3, 4, 4, dtype=torch.uint8), torch.zeros(0, dtype=torch.int64)).checked(banks.info)


def test_the_documented_way_to_read_without_the_package(banks, monkeypatch):
    text = (Path(__file__).parents[2] / "docs" / "bank-format.md").read_text(encoding="utf-8")
    code = text.split("```python\n")[1].split("```")[0]
    path = banks.make("init.lmdb", blocks=range(2))
    monkeypatch.chdir(path.parent)
    found: dict = {}
    exec(code, found)
    block = banks.block(1)
    assert found["meta"]["images"] == 10
    assert found["names"] == ["bn", "oh"]
    assert found["labels"].tolist() == block.labels.tolist()
    assert found["images"].tolist() == block.images.tolist()
