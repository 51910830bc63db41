"""Streamed images: passes in block order, windows read ahead, runs that resume exactly."""

import itertools
import signal

import pytest
import torch

from dfkd.bank.format import BankMeta
from dfkd.bank.reader import BankReader
from dfkd.bank.writer import BankWriter
from dfkd.distillation import distill as student_stage
from dfkd.distillation import store as stores
from dfkd.distillation import teacher as teacher_stage
from dfkd.distillation.store import ImageStore, is_streamed
from dfkd.distillation.stream import ArraySource, BankSource, BlockPasses, StreamedStore
from dfkd.errors import UserError
from dfkd.methods import CSDSettings
from dfkd.models.weights import read_card
from dfkd.progress import Stopped
from dfkd.settings import TeacherSettings


def rows(parts, given):
    """The rows of a batch, in its order."""
    return torch.cat([torch.cat([part.window.images[part.places], part.own + given]) for part in parts])


def starts(*sizes):
    return torch.tensor([0, *itertools.accumulate(sizes)])


CASES = [
    (starts(5, 5, 5, 5), 0, 8, 4),
    (starts(5, 1, 7, 3, 2, 6), 11, 6, 7),
    (starts(3, 4), 20, 100, 5),  # one window
    (starts(9, 9), 0, 2, 4),  # blocks larger than the buffer
    (starts(2, 1), 1, 2, 10),  # passes smaller than a batch
]


@pytest.mark.parametrize(("blocks", "own", "buffer", "batch"), CASES)
def test_every_pass_holds_every_image_once(blocks, own, buffer, batch):
    passes, count = BlockPasses(blocks, own, buffer, batch, 0, "order"), int(blocks[-1]) + own
    batches = [rows(passes.batch(step), count - own) for step in range(3 * count)]
    assert {len(found) for found in batches} == {batch}
    drawn = torch.cat(batches).split(count)[:-1]
    for one in drawn:
        assert sorted(one.tolist()) == list(range(count))
    assert len({tuple(one.tolist()) for one in drawn[:4]}) > 1


def test_a_batch_depends_on_keys_and_step_alone():
    blocks = starts(*[8] * 20)
    walked, jumped = (BlockPasses(blocks, 13, 24, 9, 3, "order") for _ in range(2))
    for step in range(60):
        last = rows(walked.batch(step), 160)
    assert torch.equal(last, rows(jumped.batch(59), 160))
    assert not torch.equal(last, rows(BlockPasses(blocks, 13, 24, 9, 4, "order").batch(59), 160))


def test_a_window_is_whole_blocks_shuffled_with_its_share_of_the_own_images():
    passes = BlockPasses(starts(*[8] * 50), 100, 64, 16, 0, "order")
    windows = [passes.window(0, index) for index in range(7)]
    assert [len(window.images) for window in windows] == [64] * 6 + [16]
    assert [len(window.own) for window in windows] == [16] * 6 + [4]
    assert sorted(torch.cat([window.blocks for window in windows]).tolist()) == list(range(50))
    assert sorted(torch.cat([window.own for window in windows]).tolist()) == list(range(100))
    first = windows[0]
    assert set((first.images // 8).tolist()) == set(first.blocks.tolist())
    assert sorted(first.order.tolist()) == list(range(80))
    drawn = rows(list(itertools.chain(*(passes.batch(step) for step in range(5)))), 400)
    assert drawn[drawn < 400].tolist() != sorted(drawn[drawn < 400].tolist())
    assert {int(row) for row in drawn if row < 400} == set(first.images.tolist())  # five batches are this window
    assert first.blocks.tolist() != passes.window(1, 0).blocks.tolist()


@pytest.fixture
def bank(tiny_data, tmp_path):
    """150 images in 15 blocks, each image its number."""
    images = torch.arange(150)[:, None, None, None].expand(150, 1, 8, 8).to(torch.uint8).contiguous()
    meta = BankMeta(kind="init", dataset=tiny_data.info, teacher_sha256="0" * 64, stage="init-bank", stage_version=1)
    with BankWriter(tmp_path / "working.lmdb", meta) as writer:
        for part in images.split(10):
            writer.append_images(part, part[:, 0, 0, 0].long() % 3)
        writer.publish(tmp_path / "bank.lmdb")
    return tmp_path / "bank.lmdb"


def test_a_batch_is_the_images_of_its_rows_whatever_they_come_from(bank, tiny_data, reference):
    reader, shape = BankReader(bank), tiny_data.info.shape
    array = torch.randint(0, 256, (30, *shape), dtype=torch.uint8)
    own = torch.randint(0, 256, (12, *shape), dtype=torch.uint8)
    store = StreamedStore([ArraySource(array, torch.zeros(30).long()), BankSource(reader)], 20, shape, 40, reference)
    store.append(own, torch.full((12,), 2))
    resident = ImageStore(192, shape, reference)
    resident.append(array, torch.zeros(30).long())
    resident.append_bank(reader)
    resident.append(own, torch.full((12,), 2))
    assert store.count == resident.count == 192
    assert torch.equal(store.labels, resident.labels)
    passes = store.passes(16, 0, "order", steps=24)
    seen = []
    for step in range(24):
        found = store.fetch(passes, step)
        assert torch.equal(found.images, resident.images[found.rows])
        assert torch.equal(found.labels, resident.labels[found.rows])
        assert len(store._ready) <= 3  # what memory holds
        seen += found.rows.tolist()
    assert sorted(seen[:192]) == sorted(seen[192:]) == list(range(192))
    assert seen[:192] != seen[192:]
    store.close()


def test_the_next_window_is_read_while_this_one_is_used_and_none_in_vain(bank, tiny_data, reference):
    reader, read = BankReader(bank), []

    class Watched(BankSource):
        def read(self, blocks, images, key):
            read.append(len(blocks))
            super().read(blocks, images, key)

    store = StreamedStore([Watched(reader)], 0, tiny_data.info.shape, 50, reference)
    passes = store.passes(25, 0, "order", steps=4)  # 100 images: two windows of three
    for step in range(4):
        store.fetch(passes, step)
        for future in store._ready.values():
            future.result()
        assert len(read) == 2  # the second is there from the first step on
    assert read == [5, 5]
    store.close()


def test_what_a_round_begins_with_is_read_before_its_own_images_are_there(bank, tiny_data, reference):
    store = StreamedStore([BankSource(BankReader(bank))], 10, tiny_data.info.shape, 50, reference)
    for number in range(5):
        store.expect(0, "order", number)
    ((key, future),) = store._ready.items()
    store.append(torch.zeros(10, *tiny_data.info.shape, dtype=torch.uint8), torch.zeros(10).long())
    store.fetch(store.passes(8, 0, "order", 4), 0)
    assert store._ready[key] is future
    store.close()


def test_damage_is_told_when_its_window_is_read(bank, tiny_data, reference):
    content = bytearray(bank.read_bytes())
    place = content.index(bytes([77]) * 64)
    content[place] ^= 1
    bank.write_bytes(content)
    store = StreamedStore([BankSource(BankReader(bank))], 0, tiny_data.info.shape, 20, reference)
    passes = store.passes(10, 0, "order")
    with pytest.raises(UserError, match=r"bank\.lmdb: block 7 fails its checksum"):
        [store.fetch(passes, step) for step in range(15)]
    store.close()


def test_auto_streams_what_takes_more_than_half_of_the_memory(reference, monkeypatch):
    monkeypatch.setattr(type(reference), "memory", lambda self: 2 * 100 * 3 * 4 * 4)
    assert not is_streamed("auto", 100, (3, 4, 4), reference)
    assert is_streamed("auto", 101, (3, 4, 4), reference)
    assert is_streamed("streamed", 1, (3, 4, 4), reference)
    assert not is_streamed("resident", 10**9, (3, 4, 4), reference)
    assert 0 < stores.RESIDENT_SHARE < 1


@pytest.mark.parametrize("stage", ["teacher", "student"])
def test_stopped_and_resumed_it_ends_with_the_same_bytes(request, tiny_data, reference, tmp_path, monkeypatch, stage):
    streamed = {"precision": "reference", "store": "streamed", "shuffle_buffer": 20, "epochs": 2, "batch_size": 16}
    if stage == "teacher":
        chosen = TeacherSettings(**streamed)

        def run(folder):
            teacher_stage.train_teacher(
                tiny_data.data, "wrn101", chosen, folder / "w.safetensors", folder / "checkpoint", reference
            )
    else:
        teacher, bank = request.getfixturevalue("tiny_teacher"), request.getfixturevalue("tiny_bank")
        chosen = CSDSettings(**streamed, kd_steps=9, synthesis_batch_size=8, g_steps=1, latent_size=8, width=4)

        def run(folder):
            student_stage.distill(
                teacher, [bank], "wrn101", tiny_data.test, chosen, 0, folder / "w.safetensors", folder / "checkpoint",
                reference, "csd",
            )  # fmt: skip

    run(tmp_path / "whole")
    fetch, steps = StreamedStore.fetch, []

    def interrupted(*arguments):
        steps.append(arguments[2])
        if len(steps) == 7:
            signal.raise_signal(signal.SIGTERM)
        return fetch(*arguments)

    monkeypatch.setattr(StreamedStore, "fetch", interrupted)
    with pytest.raises(Stopped):
        run(tmp_path / "stopped")
    assert not (tmp_path / "stopped" / "w.safetensors").exists()
    run(tmp_path / "stopped")
    assert len(steps) == (17 if stage == "teacher" else 19)  # the images that were waited for are asked for again
    for path in (tmp_path / "whole").glob("*.safetensors"):
        assert (tmp_path / "stopped" / path.name).read_bytes() == path.read_bytes()
    card = read_card(tmp_path / "whole" / "w.safetensors")
    assert card.notes["store"] == "streamed, shuffle buffer of 20 images"
    assert card.settings["store"] == "streamed"
