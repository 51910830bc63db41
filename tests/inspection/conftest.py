"""A results folder in small: a teacher of the bars, an init bank of real bars with a blank and a twin, its variations."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from dfkd.bank.format import BankMeta
from dfkd.bank.writer import BankWriter
from dfkd.datasets.prepared import read_split
from dfkd.files import file_sha256
from dfkd.models.weights import load_model, save_weights


def write(path: Path, meta: BankMeta, images, labels, scores=None, parents=None) -> Path:
    with BankWriter(path.with_suffix(".work"), meta, resume=False) as writer:
        writer.append_images(images, labels, scores, parents)
        writer.publish(path)
    for left in path.parent.glob(f"{path.stem}.work*"):
        left.unlink()
    return path


@pytest.fixture(scope="session")
def tree(tiny_data, tiny_teacher, reference, tmp_path_factory) -> SimpleNamespace:
    """`results/` with teachers/bars_wrn101 and banks/bars_wrn101: init.lmdb (60 images), variations.lmdb, rejected.lmdb."""
    results = tmp_path_factory.mktemp("tree") / "results"
    model, card = load_model(tiny_teacher)
    teacher = results / "teachers" / "bars_wrn101" / "weights.safetensors"
    teacher.parent.mkdir(parents=True)
    save_weights(teacher, model, card)
    images, labels = read_split(tiny_data.test, "test")
    images = images.clone()
    images[7] = 30  # constant
    images[11] = images[5]  # a twin, label 2 as its model
    common = {"dataset": tiny_data.info, "teacher_sha256": card.sha256, "stage_version": 1}
    lineage = [{"stage": "teacher", "architecture": card.architecture, "sha256": card.sha256}]
    folder = results / "banks" / "bars_wrn101"
    folder.mkdir(parents=True)
    init = write(
        folder / "init.lmdb",
        BankMeta(kind="init", stage="init-bank", lineage=lineage, settings={"steps": 3}, **common),
        images,
        labels,
        {"confidence": torch.rand(60, generator=torch.Generator().manual_seed(0))},
    )
    lineage = [*lineage, {"stage": "init-bank", "images": 60, "sha256": file_sha256(init)}]
    parents = torch.arange(60).repeat_interleave(2)
    noise = torch.randint(0, 40, (120, 1, 8, 8), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)
    varied = (images[parents] // 2 + noise).clamp(0, 255).to(torch.uint8)
    cosine = torch.rand(120, generator=torch.Generator().manual_seed(2))
    kept = cosine >= 0.3
    extra = {"backend": "bank-diffusion", "accept_rate": kept.float().mean().item(), "threshold": 0.3}
    banks = {}
    for name, mask in (("variations", kept), ("rejected", ~kept)):
        meta = BankMeta(kind=name, stage="augment", lineage=lineage, extra=extra, **common)
        scores = {"cosine": cosine[mask], "confidence": cosine[mask], "variation": torch.arange(120)[mask] % 2}
        banks[name] = write(folder / f"{name}.lmdb", meta, varied[mask], labels[parents][mask], scores, parents[mask])
    return SimpleNamespace(
        results=results, teacher=teacher, init=init, **banks, images=images, labels=labels, info=tiny_data.info, card=card
    )
