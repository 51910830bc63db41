from __future__ import annotations

import random
import struct

import pytest

from dfkd.bank.storage import check_footer
from dfkd.bank.verify import verify_bank
from dfkd.bank.writer import BankWriter
from dfkd.errors import UserError


def test_a_whole_bank_has_no_faults(banks):
    assert verify_bank(banks.make()) == []


def test_the_digest_finds_a_flip_of_any_byte(banks):
    path = banks.make(blocks=range(2), count=2)
    content = path.read_bytes()
    assert check_footer(path) == ""
    with open(path, "rb+", buffering=0) as file:
        for place in range(len(content)):  # pages, records, meta, free space, the digest itself
            file.seek(place)
            file.write(bytes([content[place] ^ 1 << place % 8]))
            assert check_footer(path) != "", place
            file.seek(place)
            file.write(content[place : place + 1])
    assert check_footer(path) == ""


def test_verify_finds_flips_wherever_they_are(banks):
    path = banks.make(blocks=range(6), count=100)
    content = path.read_bytes()
    draw = random.Random(0)
    places = [16, 40, 4096 + 128, 4096 + 136, len(content) - 1, *(draw.randrange(len(content)) for _ in range(12))]
    for place in places:
        damaged = bytearray(content)
        damaged[place] ^= draw.randrange(1, 256)
        path.write_bytes(damaged)
        assert verify_bank(path) != [], place


def test_verify_names_the_damaged_block(banks):
    path = banks.make()
    pixels = banks.block(2).images.numpy().tobytes()
    path.write_bytes(path.read_bytes().replace(pixels, b"!" + pixels[1:]))
    digest, block = verify_bank(path)
    assert "digest" in digest
    assert block == "block 2 fails its checksum"


def test_damage_that_kills_the_reader_is_a_fault(banks):
    path = banks.make()
    content = bytearray(path.read_bytes())
    struct.pack_into("<H", content, 8192 + 16 + 2 * 2, 0xF000)  # the tree's only leaf: its third key now lies behind the file
    path.write_bytes(content)
    faults = verify_bank(path)
    assert len(faults) == 2
    assert faults[1].startswith("LMDB's pages are damaged: reading them ends in SIG")


def test_truncated_extended_and_unfinished_banks(banks, tmp_path):
    path = banks.make()
    content = path.read_bytes()
    path.write_bytes(content[:-1])
    assert verify_bank(path) == ["the digest at its end is absent or damaged: truncated, changed, or not published yet"]
    path.write_bytes(content[: len(content) // 2])
    assert any("truncated" in fault and "bytes are there" in fault for fault in verify_bank(path))
    path.write_bytes(content + b"x")
    assert verify_bank(path) != []
    with BankWriter(tmp_path / "w.lmdb", banks.meta()) as writer:
        writer.append(banks.block(0))
    assert any("incomplete: 5 images are written" in fault for fault in verify_bank(tmp_path / "w.lmdb"))
    with pytest.raises(UserError, match="no such bank"):
        verify_bank(tmp_path / "absent.lmdb")
