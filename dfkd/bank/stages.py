"""Contact sheets of several banks: what each stage made of a class, side by side."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from dfkd.bank.format import BankMeta
from dfkd.bank.grid import Caption, Row, by_class, cell_size, check_sizes, draw_rows, save_sheet
from dfkd.bank.reader import BankReader
from dfkd.errors import UserError


def stage_sheet(
    paths: Sequence[str | Path],
    output: str | Path,
    per_class: int = 6,
    scale: int | None = None,
    sequences: Sequence[np.ndarray] | None = None,
) -> None:
    """Draw one row a class, in it a group of images of each bank.

    Args:
        paths: banks of the same classes and image size; they may still be being written.
        output: the PNG.
        per_class: images of each bank in a row.
        scale: enlargement; by default the smallest that makes an image at least 32 pixels wide.
        sequences: of each bank the indices of the images that may be shown, in this order; by default all as they lie.

    Raises:
        UserError: a bank cannot be read, or its classes or images do not fit those of the first.
    """
    check_sizes(output, per_class, scale)
    readers = [BankReader(path, allow_incomplete=True) for path in paths]
    first = readers[0].meta.dataset
    for reader in readers[1:]:
        found = reader.meta.dataset
        if (found.classes, found.shape) != (first.classes, first.shape):
            raise UserError(f"{reader.path}: its classes or images are not those of {paths[0]}; name banks of one data set.")
    chosen: Sequence[np.ndarray | None] = [None] * len(readers) if sequences is None else sequences
    groups = [
        [list(reader.images(indices[:per_class].tolist())) for indices in by_class(reader, sequence)]
        for reader, sequence in zip(readers, chosen, strict=True)
    ]
    rows: list[Row] = [list(row) for row in zip(*groups, strict=True)]
    captions = [Caption(stage_name(reader.meta), column=place) for place, reader in enumerate(readers)]
    save_sheet(draw_rows(rows, first.classes, cell_size(readers[0], scale), captions), output)


def stage_name(meta: BankMeta) -> str:
    """What made a bank, in a few words: `init`, `variations (bank-diffusion)`, `run dda (wrn161)`."""
    said = meta.extra
    if meta.kind == "run" and "method" in said:
        return f"run {said['method']}" + (f" ({said['student']})" if "student" in said else "")
    return f"{meta.kind} ({said['backend']})" if "backend" in said else meta.kind
