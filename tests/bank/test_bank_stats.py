from __future__ import annotations

import json

import pytest
import torch

from dfkd.bank.format import Block
from dfkd.bank.stats import summarise
from dfkd.bank.writer import BankWriter


def test_summary_counts(banks, tmp_path):
    images = torch.randint(0, 256, (4, 3, 4, 4), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    images[2] = 7
    with BankWriter(tmp_path / "w.lmdb", banks.meta(kind="variations", lineage=[{"kind": "init"}])) as writer:
        first = {"cosine": torch.tensor([0.5, 0.75, 1.0, 0.25])}
        writer.append(Block(images, torch.tensor([0, 2, 2, 2]), first, torch.tensor([0, -1, 5, 5])))
        writer.append(Block(images[:1], torch.tensor([2]), {"cosine": torch.tensor([-0.5])}))
        incomplete = summarise(tmp_path / "w.lmdb")
        writer.publish(tmp_path / "bank.lmdb")
    summary = summarise(tmp_path / "bank.lmdb")
    assert (summary["images"], summary["blocks"], summary["kind"], summary["status"]) == (5, 2, "variations", "complete")
    assert summary["bytes"] == (tmp_path / "bank.lmdb").stat().st_size
    assert summary["classes"] == {"zero": 1, "one": 0, "two": 4}
    assert summary["scores"] == {"cosine": {"min": -0.5, "mean": pytest.approx(0.4), "max": 1.0}}
    assert (summary["blank"], summary["with_parent"]) == (1, 3)
    assert (summary["teacher_sha256"], summary["seed"], summary["settings"]) == ("ab" * 32, 7, {"steps": 3, "lr": 1e-3})
    assert json.loads(json.dumps(summary, allow_nan=False)) == summary
    assert incomplete["status"] == "writing"
    assert incomplete["classes"] == summary["classes"]


def test_summary_of_an_empty_bank(banks):
    summary = summarise(banks.make(blocks=range(0)))
    assert (summary["images"], summary["scores"]) == (0, {})
    assert summary["classes"] == {"zero": 0, "one": 0, "two": 0}
