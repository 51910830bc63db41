from __future__ import annotations

import io
import json
import shutil

import torch
from rich.console import Console

from dfkd.bank.difference import difference, difference_table
from dfkd.bank.format import Block
from dfkd.bank.reader import BankReader
from dfkd.bank.writer import BankWriter


def text_of(result):
    console = Console(file=io.StringIO(), width=120)
    console.print(difference_table(result))
    return console.file.getvalue()


def write(path, meta, *blocks):
    with BankWriter(path.with_suffix(".work"), meta, resume=False) as writer:
        for block in blocks:
            writer.append(block)
        writer.publish(path)
    return path


def test_equal_banks(banks, tmp_path):
    bank = banks.make()
    shutil.copy(bank, tmp_path / "copy.lmdb")
    result = difference(bank, tmp_path / "copy.lmdb")
    assert result["same"]
    assert result["images"] == {"a": 20, "b": 20, "both": 20, "only_a": [], "only_b": [], "moved": []}
    assert "hold the same: 20 images" in text_of(result)


def test_what_differs(banks, tmp_path):
    first = banks.block(0, 6)
    order = torch.tensor([1, 0, 2, 3, 5])  # 4 is gone, 0 and 1 have changed places, 5 moved up
    images = torch.cat([first.images[order], banks.block(9, 1).images])
    labels = torch.cat([first.labels[order], torch.tensor([1])])
    labels[2] = (labels[2] + 1) % 3
    scores = {"bn": torch.cat([first.scores["bn"][order], torch.zeros(1)]), "new": torch.zeros(6)}
    scores["bn"][3] += 0.25
    parents = torch.cat([first.parents[order], torch.tensor([-1])])
    parents[0] = 77
    one = write(
        tmp_path / "a.lmdb", banks.meta(settings={"deep": {"lr": 1}, "steps": 3}, lineage=[{"stage": "teacher"}]), first
    )
    two = write(
        tmp_path / "b.lmdb",
        banks.meta(settings={"deep": {"lr": 2}, "steps": 3}, seed=8, lineage=[{"stage": "teacher", "sha256": "0"}]),
        Block(images, labels, scores, parents),
    )
    result = difference(one, two)
    assert not result["same"]
    assert result["metadata"] == [
        {"key": "lineage.0.sha256", "a": None, "b": "0"},
        {"key": "seed", "a": 7, "b": 8},
        {"key": "settings.deep.lr", "a": 1, "b": 2},
    ]
    assert result["images"] == {
        "a": 6, "b": 6, "both": 5, "only_a": [4], "only_b": [5], "moved": [[1, 0], [0, 1], [5, 4]],
    }  # fmt: skip
    assert result["changed"]["label"] == [[2, 2]]
    assert result["changed"]["parent"] == [[1, 0]]
    assert list(result["changed"]["scores"]) == ["bn"]
    assert result["changed"]["scores"]["bn"]["images"] == 1
    assert abs(result["changed"]["scores"]["bn"]["largest"] - 0.25) < 1e-6
    assert result["scores_only"] == {"a": ["oh"], "b": ["new"]}
    counts = [torch.bincount(BankReader(path).load().labels, minlength=3).tolist() for path in (one, two)]
    expected = {name: [a, b] for name, a, b in zip(banks.info.classes, *counts, strict=True) if a != b}
    assert result["classes"] == expected
    assert json.loads(json.dumps(result, allow_nan=False)) == result
    text = text_of(result)
    for words in (
        "settings.deep.lr",
        "in both: 5 images, 3 of them at another place",
        "label differs: 1",
        "by 0.25",
        "of A alone: oh",
    ):
        assert words in text


def test_copies_are_paired_one_by_one(banks, tmp_path):
    image = banks.block(0, 1).images
    one = write(tmp_path / "a.lmdb", banks.meta(), Block(image.repeat(3, 1, 1, 1), torch.zeros(3, dtype=torch.int64)))
    two = write(tmp_path / "b.lmdb", banks.meta(), Block(image.repeat(2, 1, 1, 1), torch.tensor([0, 1])))
    images = difference(one, two)["images"]
    assert (images["both"], images["only_a"], images["only_b"], images["moved"]) == (2, [2], [], [])
    assert difference(one, two)["changed"]["label"] == [[1, 1]]


def test_other_blocks_are_a_difference(banks, tmp_path):
    block = banks.block(0, 4)
    halves = [block.select(torch.tensor(mask)) for mask in ([True, True, False, False], [False, False, True, True])]
    thirds = [block.select(torch.tensor(mask)) for mask in ([True, True, True, False], [False, False, False, True])]
    result = difference(write(tmp_path / "a.lmdb", banks.meta(), *halves), write(tmp_path / "b.lmdb", banks.meta(), *thirds))
    assert (result["same"], result["blocks"], result["metadata"], result["images"]["both"]) == (False, False, [], 4)
    assert "divided into other blocks" in text_of(result)


def test_a_growing_bank_and_one_of_another_shape(banks, tmp_path):
    bank = banks.make()
    with BankWriter(tmp_path / "growing.lmdb", banks.meta()) as writer:
        for number in range(2):
            writer.append(banks.block(number))
        result = difference(bank, writer.path)
    assert result["images"]["only_a"] == list(range(10, 20))
    assert {"key": "status", "a": "complete", "b": "writing"} in result["metadata"]
    grey = banks.make("grey.lmdb", dataset=banks.info.model_copy(update={"channels": 1, "classes": ["x", "y", "zero"]}))
    assert difference(bank, grey)["images"]["both"] == 0
    assert {"one", "two", "x", "y"} <= difference(bank, grey)["classes"].keys()
