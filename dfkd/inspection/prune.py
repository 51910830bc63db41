"""A bank without the images for which a condition holds."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dfkd.bank.format import encode
from dfkd.bank.reader import BankReader
from dfkd.bank.writer import write_bank
from dfkd.errors import UserError
from dfkd.files import file_sha256
from dfkd.inspection.columns import chosen
from dfkd.runtime import Runtime


def prune_bank(
    bank: str | Path, condition: str, output: str | Path | None, teacher: Path | None, runtime: Runtime
) -> dict[str, Any]:
    """Remove the images for which `condition` holds; publish the others, in their order, as `output` (None: count only).

    The new bank keeps kind, teacher, settings, scores and parent ids; its lineage gains the step
    `{"stage": "prune", "where": condition, "images": before, "kept": after, "sha256": of the bank's file}`.

    Returns:
        `where`, `images`, `removed`, `kept`, `classes` (by name: `images`, `removed`); JSON-ready.

    Raises:
        UserError: the condition cannot be read, all images would go, `output` is the bank itself, or the bank is not complete
            (to be counted it need not be).
    """
    path = Path(bank)
    reader = BankReader(path, allow_incomplete=output is None)
    if output is not None and Path(output).exists() and Path(output).samefile(path):
        raise UserError(f"{output}: is the bank to be pruned; write the new one under another name.")
    falls = chosen(reader, condition, teacher, runtime)
    labels, classes = reader.columns().labels.numpy(), reader.meta.dataset.classes
    before, removed = (np.bincount(part, minlength=len(classes)).tolist() for part in (labels, labels[falls]))
    if falls.all():
        raise UserError(
            f"{path}: the condition '{condition}' holds for all {len(falls)} images and would leave none; narrow it."
        )
    kept = int((~falls).sum())
    if output is not None:
        step = {"stage": "prune", "where": condition, "images": len(falls), "kept": kept, "sha256": file_sha256(path)}
        extra = {key: value for key, value in reader.meta.extra.items() if key != "shard"}  # no longer that part of a whole
        meta = reader.meta.model_copy(update={"lineage": [*reader.meta.lineage, step], "extra": extra})
        write_bank(output, meta, _records(reader, ~falls))
    return {
        "path": str(path),
        "where": condition,
        "images": len(falls),
        "removed": len(falls) - kept,
        "kept": kept,
        "classes": {
            name: {"images": count, "removed": gone} for name, count, gone in zip(classes, before, removed, strict=True)
        },
    }


def _records(reader: BankReader, stays: np.ndarray) -> Iterator[bytes]:
    start = number = 0
    for block in reader.blocks():
        mask = torch.from_numpy(stays[start : start + len(block)])
        start += len(block)
        if mask.any():
            yield encode(block.select(mask), number)
            number += 1
