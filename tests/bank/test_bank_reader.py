from __future__ import annotations

import multiprocessing
import os
import pickle
import shutil
import threading
from pathlib import Path

import lmdb
import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from dfkd.bank import storage
from dfkd.bank.format import encode_meta
from dfkd.bank.reader import BankReader
from dfkd.bank.writer import BankWriter
from dfkd.errors import UserError

FORK = multiprocessing.get_context("fork")


def test_load_gives_all_arrays_in_order(banks):
    arrays = BankReader(banks.make()).load()
    blocks = [banks.block(number) for number in range(4)]
    assert torch.equal(arrays.images, torch.cat([block.images for block in blocks]))
    assert torch.equal(arrays.labels, torch.cat([block.labels for block in blocks]))
    assert torch.equal(arrays.parents, torch.cat([block.parents for block in blocks]))
    assert torch.equal(arrays.scores["oh"], torch.cat([block.scores["oh"] for block in blocks]))
    assert (arrays.images.dtype, arrays.labels.dtype) == (torch.uint8, torch.int64)
    assert (arrays.parents.dtype, arrays.scores["bn"].dtype) == (torch.int64, torch.float32)


def test_load_in_several_groups_gives_the_same(banks, monkeypatch):
    path = banks.make(blocks=range(9))
    whole = BankReader(path).load()
    monkeypatch.setattr(storage, "GROUP_BYTES", 900)  # two records
    parts = BankReader(path).load()
    assert torch.equal(whole.images, parts.images)
    assert torch.equal(whole.parents, parts.parents)


def test_images_at_random(banks):
    reader = BankReader(banks.make())
    images = reader.load().images
    indices = torch.randint(0, 20, (64,), generator=torch.Generator().manual_seed(0))
    for _ in range(2):  # the second time, the blocks are not checked again
        assert torch.equal(reader.images(indices), images[indices])
    assert torch.equal(reader.images([19]), images[19:])
    assert tuple(reader.images([]).shape) == (0, 3, 4, 4)
    for wrong in ([20], [-1]):
        with pytest.raises(IndexError):
            reader.images(wrong)
    with pytest.raises(IndexError):
        reader.block(4)


def test_blocks_in_order(banks):
    reader = BankReader(banks.make())
    assert len(reader) == 20
    assert reader.starts == [0, 5, 10, 15, 20]
    for number, block in enumerate(reader.blocks()):
        assert torch.equal(block.images, banks.block(number).images)


def test_not_a_bank(banks, tmp_path):
    for name, content in (("empty", b""), ("text", b"hello\n"), ("long", b"hello\n" * 5000), ("zeros", bytes(9000))):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UserError, match=f"{name}: not an image bank"):
            BankReader(tmp_path / name)
    with pytest.raises(UserError, match=r"absent\.lmdb: no such bank"):
        BankReader(tmp_path / "absent.lmdb")
    with pytest.raises(UserError, match="a folder, not an image bank"):
        BankReader(tmp_path)
    with lmdb.open(str(tmp_path / "other.lmdb"), subdir=False, lock=False) as environment:
        with environment.begin(write=True) as transaction:
            transaction.put(b"key", b"value")
    with pytest.raises(UserError, match=r"other\.lmdb: not an image bank, an LMDB file without a meta record"):
        BankReader(tmp_path / "other.lmdb")


def test_a_truncated_bank(banks, tmp_path):
    content = banks.make().read_bytes()
    path = tmp_path / "short.lmdb"
    for size in (len(content) - 1, len(content) - 64, len(content) - 65, len(content) // 2, 8192):
        path.write_bytes(content[:size])
        with pytest.raises(UserError, match=r"short\.lmdb: truncated"):
            BankReader(path)


def test_an_incomplete_bank(banks, tmp_path):
    path = tmp_path / "w.lmdb"
    with BankWriter(path, banks.meta()) as writer:
        writer.append(banks.block(0))
    with pytest.raises(UserError, match=r"w\.lmdb: incomplete, 5 images are written; run the stage"):
        BankReader(path)
    assert len(BankReader(path, allow_incomplete=True).load()) == 5


def test_a_record_that_fails_its_checksum(banks, tmp_path):
    path = banks.make()
    pixels = banks.block(2).images.numpy().tobytes()
    path.write_bytes(path.read_bytes().replace(pixels, b"!" + pixels[1:]))
    reader = BankReader(path)
    assert len(reader.block(1)) == 5
    for use in (lambda: reader.block(2), reader.load, lambda: reader.images([11]), lambda: list(reader.blocks())):
        with pytest.raises(UserError, match=r"bank\.lmdb: block 2 fails its checksum; copy or make the bank again"):
            use()


def test_a_bank_of_another_teacher(banks):
    path = banks.make()
    assert BankReader(path, teacher_sha256="ab" * 32).meta.teacher_sha256 == "ab" * 32
    with pytest.raises(UserError, match=r"made with teacher abababababab, not with cdcdcdcdcdcd as asked; give the teacher"):
        BankReader(path, teacher_sha256="cd" * 32)


def test_a_bank_of_a_later_format(banks, tmp_path):
    path = tmp_path / "new.lmdb"
    with lmdb.open(str(path), subdir=False, lock=False) as environment:
        with environment.begin(write=True) as transaction:
            transaction.put(b"meta", encode_meta(banks.meta(format_version=2)))
    with pytest.raises(UserError, match=r"format version 2, this dfkd reads up to 1; update dfkd"):
        BankReader(path)


def test_a_bank_that_is_replaced_meanwhile_is_not_mixed(banks):
    path = banks.make()
    reader = BankReader(path)
    other = banks.make("other.lmdb", blocks=range(7, 12))
    shutil.copy(other, path.with_name("copy"))
    os.replace(path.with_name("copy"), path)
    with pytest.raises(UserError, match="was replaced while it was being read"):
        reader.load()


def test_readers_share_a_file_and_pickle(banks):
    path = banks.make()
    one, other = BankReader(path), BankReader(path)
    pairs = zip(one.blocks(), other.blocks(), strict=True)
    assert all(torch.equal(left.images, right.images) for left, right in pairs)
    again = pickle.loads(pickle.dumps(one))
    assert torch.equal(again.images([3, 17]), other.images([3, 17]))


class Rows(Dataset):
    def __init__(self, reader: BankReader) -> None:
        self.reader = reader

    def __len__(self) -> int:
        return len(self.reader)

    def __getitem__(self, index: int) -> torch.Tensor:
        return self.reader.images([index])[0]


def test_a_reader_goes_across_a_fork(banks):
    reader = BankReader(banks.make())
    images = reader.load().images
    loader = DataLoader(Rows(reader), batch_size=4, num_workers=2, multiprocessing_context=FORK)
    assert torch.equal(torch.cat(list(loader)), images)
    assert torch.equal(reader.load().images, images)


def test_threads_read_at_once(banks):
    reader = BankReader(banks.make(blocks=range(8)))
    expected = reader.load().images
    found: dict[int, bool] = {}

    def read(thread: int) -> None:
        found[thread] = all(torch.equal(reader.load().images, expected) for _ in range(5))

    threads = [threading.Thread(target=read, args=(index,)) for index in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == dict.fromkeys(range(4), True)


def _read_while_it_grows(path: Path, make_block, results) -> None:
    seen: list[int] = []
    while not seen or seen[-1] < 60:
        reader = BankReader(path, allow_incomplete=True)
        arrays = reader.load()
        if reader.meta.blocks and not torch.equal(arrays.images[-20:], make_block(reader.meta.blocks - 1, 20).images):
            results.put("wrong images")
            return
        seen.append(reader.meta.blocks)
    results.put("right" if seen == sorted(seen) else "went back")


def test_processes_read_while_one_writes(banks, tmp_path):
    path, results = tmp_path / "w.lmdb", FORK.SimpleQueue()
    with BankWriter(path, banks.meta()) as writer:
        readers = [FORK.Process(target=_read_while_it_grows, args=(path, banks.block, results)) for _ in range(2)]
        for reader in readers:
            reader.start()
        for number in range(60):
            writer.append(banks.block(number, 20))
        for reader in readers:
            reader.join()
    assert [results.get(), results.get()] == ["right", "right"]


def test_memory_does_not_keep_the_pages_that_were_read(banks, monkeypatch):
    large = banks.info.model_copy(update={"image_size": 64})
    path = banks.make(blocks=range(12), count=200, dataset=large)  # 29 MB
    monkeypatch.setattr(storage, "GROUP_BYTES", 3 << 20)
    reader = BankReader(path)
    before, seen = _mapped_bytes(), []
    views = reader.blocks()
    for _ in views:
        seen.append(_mapped_bytes() - before)
    assert len(seen) == 12
    assert max(seen) < 6 << 20


def _mapped_bytes() -> int:
    with open("/proc/self/status", encoding="utf-8") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith("RssFile"))
