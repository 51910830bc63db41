"""Which files of a results folder belong to a bank: its teacher, the bank its parents lie in, the banks made from it.

Files are recognised by what they say of themselves (SHA-256, kind, lineage), not by where they lie; the layout of the results
only says where to look. Imports no torch.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from dfkd.bank.file import BankFile
from dfkd.bank.meta import BankMeta
from dfkd.errors import UserError

LEVELS = 6  # folders upwards in which teachers are looked for


def find_teacher(near: str | Path, sha256: str) -> Path | None:
    """Weights with this SHA-256 in the `teachers` folder of the results that `near` lies in; None if there are none."""
    for folder in list(Path(near).resolve().parents)[:LEVELS]:
        for card in sorted((folder / "teachers").glob("*/*.json")):
            weights = card.with_suffix(".safetensors")
            if _sha256(card) == sha256 and weights.exists():
                return weights
    return None


def _sha256(card: Path) -> str:
    try:
        content = json.loads(card.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return ""
    return str(content.get("sha256", "")) if isinstance(content, dict) else ""


def is_made_from(meta: BankMeta, other: BankMeta) -> bool:
    """Whether the parent ids of a bank point into the other one, according to its lineage."""
    if meta.kind not in ("variations", "rejected") or not meta.lineage or other.kind != "init":
        return False
    made_from = next((step for step in reversed(meta.lineage) if step.get("stage") != "prune"), meta.lineage[-1])
    same_size = (other.stage, other.images) == (made_from.get("stage"), made_from.get("images"))
    return same_size and other.teacher_sha256 == meta.teacher_sha256


def parent_bank(bank: str | Path) -> Path | None:
    """The bank beside `bank` that its parent ids point into; None if it has no parents or that bank is not there."""
    path = Path(bank)
    meta = BankFile(path, allow_incomplete=True).meta
    return next((other for other, found in _beside(path) if is_made_from(meta, found)), None)


def child_banks(bank: str | Path) -> list[Path]:
    """The banks beside `bank` whose parent ids point into it: variations, and those that the filter dropped."""
    path = Path(bank)
    meta = BankFile(path, allow_incomplete=True).meta
    return [other for other, found in _beside(path) if is_made_from(found, meta)]


def rejected_bank(bank: str | Path) -> Path | None:
    """The bank beside `bank`, a bank of variations, that holds what the fidelity filter dropped of the same parents."""
    parent = parent_bank(bank)
    children = child_banks(parent) if parent is not None else []
    return next((child for child in children if BankFile(child, allow_incomplete=True).meta.kind == "rejected"), None)


def _beside(path: Path) -> Iterator[tuple[Path, BankMeta]]:
    """The other readable banks of the folder, in the order of their names."""
    for other in sorted(path.parent.glob("*.lmdb")):
        if other.name == path.name:
            continue
        try:
            yield other, BankFile(other, allow_incomplete=True).meta
        except UserError:  # a damaged one is nobody's parent
            continue
