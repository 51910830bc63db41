from __future__ import annotations

import multiprocessing
import os
import resource
import signal
from multiprocessing.connection import Connection
from pathlib import Path

import pytest
import torch

from dfkd.bank.format import Block
from dfkd.bank.reader import BankReader
from dfkd.bank.verify import verify_bank
from dfkd.bank.writer import BankWriter
from dfkd.errors import UserError

PROCESSES = multiprocessing.get_context("fork")  # the others import torch anew for each child


def fill(writer: BankWriter, until: int, block) -> None:
    while writer.blocks < until:
        writer.append(block(writer.blocks))


def test_append_and_resume(banks, tmp_path):
    path = tmp_path / "work" / "bank.lmdb"
    with BankWriter(path, banks.meta()) as writer:
        fill(writer, 3, banks.block)
        assert (writer.blocks, writer.images) == (3, 15)
    with BankWriter(path, banks.meta()) as writer:
        assert (writer.blocks, writer.images) == (3, 15)
        fill(writer, 5, banks.block)
        assert torch.equal(writer.reader().block(4).images, banks.block(4).images)
        assert len(writer.reader().load()) == 25
    with BankWriter(path, banks.meta(), resume=False) as writer:
        assert (writer.blocks, writer.images) == (0, 0)


def test_append_images_splits_into_blocks_of_256(banks, tmp_path):
    images = torch.randint(0, 256, (600, 3, 4, 4), dtype=torch.uint8)
    labels, scores = torch.arange(600) % 3, {"bn": torch.arange(600.0)}
    with BankWriter(tmp_path / "w.lmdb", banks.meta()) as writer:
        writer.append_images(images, labels, scores)
        assert [len(block) for block in writer.reader().blocks()] == [256, 256, 88]
        arrays = writer.reader().load()
    assert torch.equal(arrays.images, images)
    assert torch.equal(arrays.labels, labels)
    assert torch.equal(arrays.scores["bn"], scores["bn"])
    assert arrays.parents.unique().tolist() == [-1]


def test_published_bytes_do_not_depend_on_the_history(banks, tmp_path):
    expected = banks.make(blocks=range(6)).read_bytes()
    path = tmp_path / "other.lmdb"
    with BankWriter(path, banks.meta(extra={"a": 1})) as writer:
        fill(writer, 4, banks.block)
        writer.truncate(1)
        assert (writer.blocks, writer.images) == (1, 5)
        writer.append(banks.block(99))
    with BankWriter(path, banks.meta()) as writer:
        assert writer.meta.extra == {"a": 1}
        writer.truncate(1)
        fill(writer, 6, banks.block)
        writer.update_meta(extra={})
        writer.publish(tmp_path / "again.lmdb")
        writer.publish(tmp_path / "folder" / "third.lmdb")
    assert (tmp_path / "again.lmdb").read_bytes() == expected
    assert (tmp_path / "folder" / "third.lmdb").read_bytes() == expected
    assert [item.name for item in (tmp_path / "folder").iterdir()] == ["third.lmdb"]  # no lock file, no partial one
    assert BankReader(tmp_path / "again.lmdb").meta.status == "complete"


def test_published_bytes_depend_on_meta_and_blocks(banks):
    contents = {
        banks.make("a.lmdb").read_bytes(),
        banks.make("b.lmdb", seed=8).read_bytes(),
        banks.make("c.lmdb", blocks=range(5)).read_bytes(),
    }
    assert len(contents) == 3


def test_the_map_grows_by_doubling(banks, tmp_path):
    large = banks.info.model_copy(update={"image_size": 64})
    with BankWriter(tmp_path / "w.lmdb", banks.meta(dataset=large)) as writer:
        for number in range(3):
            writer.append(banks.block(number, 250, large))  # 3 MB each, in a map that begins with 1 MiB
        writer.publish(tmp_path / "bank.lmdb")
    assert torch.equal(BankReader(tmp_path / "bank.lmdb").block(2).images, banks.block(2, 250, large).images)
    assert verify_bank(tmp_path / "bank.lmdb") == []


def test_a_bank_in_several_portions_is_canonical_too(banks, tmp_path, monkeypatch):
    monkeypatch.setattr("dfkd.bank.writer.COMMIT_BYTES", 2000)
    first, second = banks.make("a.lmdb", blocks=range(40)), banks.make("b.lmdb", blocks=range(40))
    assert first.read_bytes() == second.read_bytes()
    assert verify_bank(first) == []
    assert len(BankReader(first).load()) == 200


def test_an_empty_bank_can_be_published(banks):
    path = banks.make(blocks=range(0), kind="rejected")
    assert verify_bank(path) == []
    arrays = BankReader(path).load()
    assert tuple(arrays.images.shape) == (0, 3, 4, 4)
    assert len(arrays) == 0


def test_a_second_writer_is_refused(banks, tmp_path):
    path = tmp_path / "w.lmdb"
    with BankWriter(path, banks.meta()) as writer:
        fill(writer, 1, banks.block)
        with pytest.raises(UserError, match=r"w\.lmdb: another process is writing this bank"):
            BankWriter(path, banks.meta(), resume=False)
        fill(writer, 2, banks.block)
    with BankWriter(path, banks.meta()) as writer:
        assert writer.blocks == 2
    with pytest.raises(ValueError, match="closed"):
        writer.append(banks.block(2))


@pytest.mark.parametrize("change", [{"seed": 8}, {"settings": {}}, {"teacher_sha256": "cd" * 32}, {"stage_version": 2}])
def test_a_bank_of_other_settings_is_not_continued(banks, tmp_path, change):
    with BankWriter(tmp_path / "w.lmdb", banks.meta()) as writer:
        fill(writer, 1, banks.block)
    with pytest.raises(UserError, match=f"begun with another {next(iter(change))}"):
        BankWriter(tmp_path / "w.lmdb", banks.meta(**change))
    with BankWriter(tmp_path / "w.lmdb", banks.meta()) as writer:
        assert writer.blocks == 1


def test_settings_with_tuples_are_the_same_settings(banks, tmp_path):
    meta = banks.meta(settings={"shard": (1, 4)})
    with BankWriter(tmp_path / "w.lmdb", meta) as writer:
        fill(writer, 2, banks.block)
    with BankWriter(tmp_path / "w.lmdb", meta) as writer:
        assert writer.blocks == 2


def test_misuse_changes_nothing(banks, tmp_path):
    with BankWriter(tmp_path / "w.lmdb", banks.meta()) as writer:
        fill(writer, 2, banks.block)
        block = banks.block(2)
        with pytest.raises(ValueError, match=r"scores are \['bn'\], in the blocks before \['bn', 'oh'\]"):
            writer.append(Block(block.images, block.labels, {"bn": block.scores["bn"]}))
        with pytest.raises(ValueError, match="seed"):
            writer.update_meta(seed=3)
        with pytest.raises(ValueError, match="3 of 2"):
            writer.truncate(3)
        assert (writer.reader().meta, writer.blocks) == (writer.meta, 2)


def test_damaged_last_blocks_of_an_attempt_are_dropped(banks, tmp_path):
    path = tmp_path / "w.lmdb"
    with BankWriter(path, banks.meta()) as writer:
        fill(writer, 4, banks.block)
    pixels = banks.block(2).images.numpy().tobytes()
    path.write_bytes(path.read_bytes().replace(pixels, pixels[:-1] + b"?"))
    with BankWriter(path, banks.meta()) as writer:
        assert (writer.blocks, writer.images) == (2, 10)
        fill(writer, 4, banks.block)
        writer.publish(tmp_path / "bank.lmdb")
    assert (tmp_path / "bank.lmdb").read_bytes() == banks.make("whole.lmdb").read_bytes()


@pytest.mark.parametrize("content", [b"", bytes(16) + (0xBEEFC0DE).to_bytes(4, "little")])
def test_a_file_abandoned_before_its_first_transaction_is_begun_anew(banks, tmp_path, content):
    (tmp_path / "w.lmdb").write_bytes(content)
    with BankWriter(tmp_path / "w.lmdb", banks.meta()) as writer:
        fill(writer, 1, banks.block)
        assert len(writer.reader()) == 5


def test_a_file_that_is_no_bank_is_kept(banks, tmp_path):
    for content in (b"important", b"important" * 2000):
        (tmp_path / "w.lmdb").write_bytes(content)
        with pytest.raises(UserError, match=r"w\.lmdb: not an image bank"):
            BankWriter(tmp_path / "w.lmdb", banks.meta())
        assert (tmp_path / "w.lmdb").read_bytes() == content


def _write_forever(path: Path, meta, make_block, pipe: Connection) -> None:
    with BankWriter(path, meta) as writer:
        while True:
            pipe.send(writer.blocks)
            writer.append(make_block(writer.blocks, 200))


def test_sigkill_in_the_middle_of_writing_loses_at_most_the_block_in_hand(banks, tmp_path):
    path, kept = tmp_path / "work" / "w.lmdb", 0
    for round_ in range(6):
        mine, theirs = PROCESSES.Pipe()
        child = PROCESSES.Process(target=_write_forever, args=(path, banks.meta(), banks.block, theirs))
        child.start()
        theirs.close()
        begun = mine.recv()
        assert begun >= kept  # nothing whole was lost in the round before
        for _ in range(3 + round_):
            begun = mine.recv()  # sent just before the block is written
        os.kill(child.pid, signal.SIGKILL)
        child.join()
        assert child.exitcode == -signal.SIGKILL
        while mine.poll():
            try:
                begun = mine.recv()
            except EOFError:
                break
        with BankWriter(path, banks.meta()) as writer:
            kept = writer.blocks
            assert kept in (begun, begun + 1)
            reader = writer.reader()
            assert torch.equal(reader.block(kept - 1).images, banks.block(kept - 1, 200).images)
    assert kept >= 27
    with BankWriter(path, banks.meta()) as writer:
        writer.append(banks.block(kept, 200))
        writer.publish(tmp_path / "killed.lmdb")
    assert (tmp_path / "killed.lmdb").read_bytes() == banks.make("whole.lmdb", range(kept + 1), 200).read_bytes()


def _fill_the_disk(folder: Path, meta, make_block, pipe: Connection) -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, resource.RLIM_INFINITY))  # Python ignores SIGXFSZ
    with BankWriter(folder / "w.lmdb", meta) as writer:
        try:
            while True:
                writer.append(make_block(writer.blocks, 200))
        except UserError as error:
            pipe.send((writer.blocks, str(error)))
        resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, resource.RLIM_INFINITY))
        try:
            writer.publish(folder / "bank.lmdb")
        except UserError as error:
            pipe.send((writer.blocks, str(error)))
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        writer.append(make_block(writer.blocks, 200))  # the same writer goes on when there is space
        pipe.send((writer.blocks, ""))


def test_a_full_disk_loses_nothing(banks, tmp_path):
    mine, theirs = PROCESSES.Pipe()
    child = PROCESSES.Process(target=_fill_the_disk, args=(tmp_path / "disk", banks.meta(), banks.block, theirs))
    child.start()
    theirs.close()
    (blocks, append), (_, publish), (more, _) = mine.recv(), mine.recv(), mine.recv()
    child.join()
    assert child.exitcode == 0
    assert blocks > 5
    assert more == blocks + 1
    assert "w.lmdb: could not be written" in append
    assert "make space, then run the same command again" in append
    assert "bank.lmdb: could not be written" in publish
    assert sorted(item.name for item in (tmp_path / "disk").iterdir()) == ["w.lmdb", "w.lmdb.writing"]
    with BankWriter(tmp_path / "disk" / "w.lmdb", banks.meta()) as writer:
        assert writer.blocks == more
        writer.publish(tmp_path / "bank.lmdb")
    assert (tmp_path / "bank.lmdb").read_bytes() == banks.make("whole.lmdb", range(more), 200).read_bytes()


def test_a_folder_that_cannot_be_made_is_named(banks, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"w\.lmdb: cannot be written"):
        BankWriter(tmp_path / "file" / "w.lmdb", banks.meta())
