"""Contact sheets of variations: each parent with what was made from it, kept and dropped."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from dfkd.bank.grid import Caption, Marks, Row, by_class, cell_size, check_sizes, draw_rows, save_sheet
from dfkd.bank.reader import BankReader
from dfkd.errors import UserError

ACCEPTED, REJECTED = "#2e7d32", "#c62828"
ITSELF = -1  # score `variation` of a parent that stands for itself because none of its variations was kept


def family_sheet(
    path: str | Path,
    parents: str | Path,
    output: str | Path,
    per_class: int = 10,
    scale: int | None = None,
    variations: int = 3,
    sequence: np.ndarray | None = None,
) -> None:
    """Draw each parent before its variations, one row a class.

    Args:
        path: the bank of variations; it may still be being written.
        parents: the bank that its parent ids point into.
        output: the PNG.
        per_class: parents in a row.
        scale: enlargement; by default the smallest that makes an image at least 32 pixels wide.
        variations: at most this many of each parent.
        sequence: indices of the variations that may be shown, in this order; by default all as they lie.

    Raises:
        UserError: a bank cannot be read, or the parents are not in `parents`.
    """
    check_sizes(output, per_class, scale, variations)
    reader, origin, ids = _with_parents(path, parents)
    rows: list[Row] = []
    for indices in by_class(reader, sequence):
        families = _families(indices, ids)
        shown = [(parent, children[:variations]) for parent, children in families.items()][:per_class]
        rows.append([[*origin.images([parent]), *reader.images(children)] for parent, children in shown])
    save_sheet(draw_rows(rows, reader.meta.dataset.classes, cell_size(reader, scale)), output)


def verdict_sheet(
    path: str | Path,
    rejected: str | Path,
    parents: str | Path,
    output: str | Path,
    per_class: int = 5,
    scale: int | None = None,
    variations: int = 3,
    sequence: np.ndarray | None = None,
) -> None:
    """Draw each parent, then what the fidelity filter kept of it, framed green, then what it dropped, framed red.

    Parents of which something was dropped come first. Arguments as of `family_sheet`; `rejected`: the bank of what was
    dropped; `variations`: at most this many of each parent on either side.

    Raises:
        UserError: a bank cannot be read, or the parents are not in `parents`.
    """
    check_sizes(output, per_class, scale, variations)
    kept, origin, kept_ids = _with_parents(path, parents)
    dropped, _, dropped_ids = _with_parents(rejected, parents)
    made = kept.columns().scores.get("variation")
    rows: list[Row] = []
    marks: Marks = []
    for accepted, refused in zip(by_class(kept, sequence), by_class(dropped), strict=True):
        of_parent = [_families(accepted, kept_ids), _families(refused, dropped_ids)]
        order = sorted(dict.fromkeys([*of_parent[0], *of_parent[1]]), key=lambda parent: parent not in of_parent[1])
        row, frames = Row(), []
        for parent in order[:per_class]:
            both = [families.get(parent, [])[:variations] for families in of_parent]
            both[0] = [index for index in both[0] if made is None or made[index] != ITSELF]
            row.append([*origin.images([parent]), *kept.images(both[0]), *dropped.images(both[1])])
            frames.append([None, *[ACCEPTED] * len(both[0]), *[REJECTED] * len(both[1])])
        rows.append(row)
        marks.append(frames)
    captions = [Caption("parent"), Caption("accepted", ACCEPTED), Caption("rejected", REJECTED)]
    save_sheet(draw_rows(rows, kept.meta.dataset.classes, cell_size(kept, scale), captions, marks), output)


def _with_parents(path: str | Path, parents: str | Path) -> tuple[BankReader, BankReader, np.ndarray]:
    """A bank, the bank of its parents, and the parents' indices there, int64 [N]."""
    reader, origin = (BankReader(bank, allow_incomplete=True) for bank in (path, parents))
    if origin.meta.dataset.shape != reader.meta.dataset.shape:
        raise UserError(f"{parents}: its images have another shape than those of {path}; name the bank it came from.")
    ids = reader.columns().parents.numpy()
    if len(ids) and not 0 <= int(ids.max()) < len(origin):
        raise UserError(f"{parents}: does not hold the parents of {path}; name the bank that was varied.")
    return reader, origin, ids


def _families(indices: np.ndarray, ids: np.ndarray) -> dict[int, list[int]]:
    """Indices by their parent, parents in the order of their first child."""
    families: dict[int, list[int]] = {}
    for index in indices.tolist():
        families.setdefault(int(ids[index]), []).append(index)
    families.pop(-1, None)
    return families
