from __future__ import annotations

import pytest

from dfkd.bank.format import Block
from dfkd.bank.merge import merge_banks
from dfkd.bank.reader import BankReader
from dfkd.bank.verify import verify_bank
from dfkd.bank.writer import BankWriter
from dfkd.errors import UserError


@pytest.fixture
def four(banks):
    return [banks.shard(index, 4, part) for index, part in enumerate((range(3), range(3, 6), range(6, 8), range(8, 10)), 1)]


def test_any_number_of_shards_gives_the_same_bytes(banks, four, tmp_path):
    merge_banks([banks.shard(1, 1, range(10))], tmp_path / "one.lmdb")
    meta = merge_banks([four[2], four[0], four[3], four[1]], tmp_path / "four.lmdb")
    plain = banks.make("plain.lmdb", range(10), extra={"note": "same"})
    merge_banks([plain], tmp_path / "again.lmdb")
    expected = plain.read_bytes()
    for name in ("one.lmdb", "four.lmdb", "again.lmdb"):
        assert (tmp_path / name).read_bytes() == expected
    assert (meta.images, meta.blocks, meta.extra) == (50, 10, {"note": "same"})
    assert verify_bank(tmp_path / "four.lmdb") == []


def test_histories_and_timings_beside_all_shards_become_one(banks, four, tmp_path):
    merge_banks(four, tmp_path / "a.lmdb")
    assert not list(tmp_path.glob("a.*.csv"))
    for number, shard in enumerate(four, 1):
        shard.with_suffix(".history.csv").write_text(f"batch,lr\n{number},0.1\n")
        if number < 4:
            shard.with_suffix(".timing.csv").write_text(f"batch,seconds\n{number},2\n")
    merge_banks(four[::-1], tmp_path / "b.lmdb")
    assert (tmp_path / "b.history.csv").read_text() == "batch,lr\n1,0.1\n2,0.1\n3,0.1\n4,0.1\n"
    assert not (tmp_path / "b.timing.csv").exists()
    four[2].with_suffix(".history.csv").write_text("batch,loss\n3,1\n")
    refused(four, tmp_path / "c.lmdb", "3-of-4.history.csv: its columns are not those of .*1-of-4")


def refused(inputs, output, words):
    with pytest.raises(UserError, match=words):
        merge_banks(inputs, output)
    assert not output.exists()


def test_missing_and_doubled_shards_are_named(banks, four, tmp_path):
    output = tmp_path / "out.lmdb"
    refused([four[0], four[3]], output, "shard 2, 3 of 4 is missing")
    refused([*four, four[1]], output, r"2-of-4\.lmdb: shard 2 of 4 is given twice")
    refused([*four, banks.shard(1, 2, range(5))], output, r"1-of-2\.lmdb: shard 1 of 2, .*1-of-4\.lmdb is one of 4")
    refused([], output, "no shards to merge")


def test_shards_that_do_not_belong_together(banks, four, tmp_path):
    output = tmp_path / "out.lmdb"
    for change, word in (
        ({"teacher_sha256": "cd" * 32}, "its teacher is not that"),
        ({"settings": {"steps": 4}}, "its settings is not that"),
        ({"kind": "variations"}, "its kind is not that"),
        ({"seed": 1}, "its seed is not that"),
    ):
        refused([*four[:3], banks.shard(4, 4, range(8, 10), **change)], output, rf"4-of-4\.lmdb: {word}")
    refused([four[0], banks.make("plain.lmdb")], output, r"plain\.lmdb: does not say which shard it is")


def test_shards_of_another_split(banks, four, tmp_path):
    refused([*four[:3], banks.shard(4, 4, range(9, 10))], tmp_path / "out.lmdb", "from 9 on, and 8 come before it")


def test_shards_with_other_scores(banks, four, tmp_path):
    meta = BankReader(four[3]).meta
    with BankWriter(tmp_path / "w.lmdb", meta) as writer:
        for number in (8, 9):
            block = banks.block(number)
            writer.append(Block(block.images, block.labels))
        writer.publish(four[3])
    refused(four, tmp_path / "out.lmdb", r"4-of-4\.lmdb: its scores are not those")


def test_an_incomplete_shard(banks, four, tmp_path):
    with BankWriter(tmp_path / "part.lmdb", banks.meta()) as writer:
        writer.append(banks.block(8))
    refused([*four[:3], tmp_path / "part.lmdb"], tmp_path / "out.lmdb", r"part\.lmdb: incomplete")


def test_a_damaged_shard_leaves_no_output(banks, four, tmp_path):
    pixels = banks.block(7).images.numpy().tobytes()
    four[2].write_bytes(four[2].read_bytes().replace(pixels, b"!" + pixels[1:]))
    refused(four, tmp_path / "out.lmdb", r"3-of-4\.lmdb: block 1 fails its checksum")
    assert not list(tmp_path.glob(".*"))
