"""Small banks with contents that follow from the block's number."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from dfkd.bank.format import BankMeta, Block, Shard
from dfkd.bank.writer import BankWriter
from dfkd.datasets.info import DatasetInfo

INFO = DatasetInfo(
    name="tiny",
    classes=["zero", "one", "two"],
    image_size=4,
    channels=3,
    mean=[0.5] * 3,
    std=[0.2] * 3,
    crop_padding=1,
    flip=True,
)


def make_meta(**changes: object) -> BankMeta:
    values: dict[str, object] = {
        "kind": "init", "dataset": INFO, "teacher_sha256": "ab" * 32, "stage": "init-bank", "stage_version": 1,
        "settings": {"steps": 3, "lr": 1e-3}, "seed": 7,
    }  # fmt: skip
    return BankMeta(**(values | changes))


def make_block(number: int, count: int = 5, info: DatasetInfo = INFO) -> Block:
    generator = torch.Generator().manual_seed(number)
    images = torch.randint(0, 256, (count, *info.shape), dtype=torch.uint8, generator=generator)
    labels = torch.randint(0, len(info.classes), (count,), generator=generator)
    scores = {"bn": torch.rand(count, generator=generator), "oh": torch.rand(count, generator=generator)}
    return Block(images, labels, scores, torch.arange(count) - 1)


class Banks:
    """Makes banks in a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    info, meta, block = INFO, staticmethod(make_meta), staticmethod(make_block)

    def make(self, name: str = "bank.lmdb", blocks: range = range(4), count: int = 5, **changes: object) -> Path:
        """A published bank of these blocks."""
        meta = make_meta(**changes)
        with BankWriter(self.folder / "work" / name, meta, resume=False) as writer:
            for number in blocks:
                writer.append(make_block(number, count, meta.dataset))
            writer.publish(self.folder / name)
        return self.folder / name

    def shard(self, index: int, count: int, blocks: range, **changes: object) -> Path:
        shard = Shard(index=index, count=count, first_block=blocks.start, blocks=len(blocks)).model_dump()
        return self.make(f"{index}-of-{count}.lmdb", blocks, extra={"shard": shard, "note": "same"}, **changes)


@pytest.fixture
def banks(tmp_path: Path) -> Banks:
    return Banks(tmp_path)
