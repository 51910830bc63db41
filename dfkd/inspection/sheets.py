"""Which sheet of which banks: finds the banks that belong together, chooses and orders their images, has them drawn."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from dfkd.bank.families import family_sheet, verdict_sheet
from dfkd.bank.grid import contact_sheet
from dfkd.bank.reader import BankReader
from dfkd.bank.stages import stage_sheet
from dfkd.errors import UserError
from dfkd.inspection.columns import chosen, ranking
from dfkd.inspection.related import child_banks, parent_bank, rejected_bank
from dfkd.runtime import Runtime

PER_CLASS = {"class": 10, "stage": 6, "parent": 10, "verdict": 4}  # of what a sheet shows, in a row


class Choice(NamedTuple):
    """Which images a sheet shows, and in which order."""

    order: str  # `first`: as they lie; `best`, `worst`: by falling or rising values of a column
    score: str | None  # that column, stored or measured
    condition: str  # images for which it holds; empty: all
    teacher: Path | None  # for what is measured; None: the banks' own
    runtime: Runtime


def draw_sheet(
    by: str,
    banks: Sequence[Path],
    output: Path,
    choice: Choice,
    per_class: int | None = None,
    scale: int | None = None,
    parents: Path | None = None,
    rejected: Path | None = None,
    variations: int = 3,
) -> None:
    """Draw a contact sheet.

    Args:
        by: `class`: one bank; `stage`: the banks side by side, of a single one those that belong to it; `parent`: variations
            behind their parents; `verdict`: also what the fidelity filter dropped.
        banks: the banks, complete or not.
        output: the PNG.
        choice: which images, in which order.
        per_class: images of a bank in a row, or parents; None: by the kind of sheet.
        scale: enlargement; by default the smallest that makes an image at least 32 pixels wide.
        parents: the bank that was varied; None: found beside.
        rejected: the bank of dropped variations; None: found beside.
        variations: of each parent, at most.

    Raises:
        UserError: a bank cannot be read or is not found, a score or condition does not fit, or no image is chosen.
    """
    bank, per_class = banks[0], PER_CLASS[by] if per_class is None else per_class
    if by == "stage":
        banks = banks if len(banks) > 1 else _stages(bank)
        stage_sheet(banks, output, per_class, scale, [_sequence(path, choice) for path in banks])
        return
    sequence = _sequence(bank, choice)
    if by == "class":
        contact_sheet(bank, output, per_class, scale, sequence)
        return
    origin = parents or parent_bank(bank)
    if origin is None:
        raise UserError(f"{bank}: the bank of its parents is not beside it; name it with --parents.")
    if by == "parent":
        family_sheet(bank, origin, output, per_class, scale, variations, sequence)
        return
    dropped = rejected or rejected_bank(bank)
    if dropped is None:
        raise UserError(f"{bank}: the bank of what the filter dropped is not beside it; name it with --rejected.")
    verdict_sheet(bank, dropped, origin, output, per_class, scale, variations, sequence)


def _stages(bank: Path) -> list[Path]:
    """The init bank and the variations that belong to a bank, and the bank itself, oldest first."""
    first = parent_bank(bank) or bank
    children = [child for child in child_banks(first) if BankReader(child, allow_incomplete=True).meta.kind == "variations"]
    return list(dict.fromkeys([first, *children, bank]))


def _sequence(bank: Path, choice: Choice) -> np.ndarray:
    reader = BankReader(bank, allow_incomplete=True)
    sequence = ranking(reader, choice.order, choice.score, choice.teacher, choice.runtime)
    if not choice.condition.strip():
        return sequence
    mask = chosen(reader, choice.condition, choice.teacher, choice.runtime)
    if not mask.any():
        raise UserError(f"{bank}: no image for which '{choice.condition}' holds; choose another condition.")
    return sequence[mask[sequence]]
