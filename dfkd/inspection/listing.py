"""All banks below folders: what they are, who made them, whether they are whole."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.filesize import decimal
from rich.table import Table
from rich.text import Text

from dfkd.bank.reader import BankReader
from dfkd.bank.stages import stage_name
from dfkd.errors import UserError
from dfkd.inspection.related import find_teacher
from dfkd.models.weights import read_card


def list_banks(places: Sequence[Path]) -> list[dict[str, Any]]:
    """A row for each `*.lmdb` in the places, in the order of their paths; JSON-ready.

    `status`: `complete`, `writing`, or `damaged` with the `fault` and no more than path and bytes. `teacher` is the
    architecture where its weights are found in the results around the bank, else None.

    Raises:
        UserError: a place does not exist.
    """
    rows: list[dict[str, Any]] = []
    for place in places:
        if not place.exists():
            raise UserError(f"{place}: no such file or folder; name where the banks are.")
        rows += [_row(path) for path in (sorted(place.rglob("*.lmdb")) if place.is_dir() else [place])]
    return rows


def _row(path: Path) -> dict[str, Any]:
    row: dict[str, Any] = {"path": str(path), "bytes": path.stat().st_size}
    try:
        meta = BankReader(path, allow_incomplete=True).meta
    except UserError as error:
        return row | {"status": "damaged", "fault": str(error)}
    shard = meta.extra.get("shard")
    return row | {
        "status": meta.status,
        "kind": meta.kind,
        "dataset": meta.dataset.name,
        "classes": len(meta.dataset.classes),
        "images": meta.images,
        "teacher": _architecture(path, meta.teacher_sha256),
        "teacher_sha256": meta.teacher_sha256,
        "stage": meta.stage,
        "made": stage_name(meta) + (f", shard {shard['index']} of {shard['count']}" if shard else ""),
    }


def _architecture(path: Path, teacher_sha256: str) -> str | None:
    weights = find_teacher(path, teacher_sha256)
    try:
        return read_card(weights).architecture if weights else None
    except UserError:
        return None


def listing_table(rows: Sequence[dict[str, Any]]) -> Table:
    """The rows for a terminal."""
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for name in ("bank", "what", "data set", "classes", "images", "size", "teacher", "status"):
        table.add_column(name, justify="right" if name in ("classes", "images", "size") else "left", overflow="fold")
    for row in rows:
        if row["status"] == "damaged":
            fault = row["fault"].removeprefix(f"{row['path']}: ")
            table.add_row(Text(row["path"]), "", "", "", "", decimal(row["bytes"]), "", Text(fault, style="red"))
            continue
        table.add_row(
            Text(row["path"]),
            Text(row["made"]),
            row["dataset"],
            f"{row['classes']:,}",
            f"{row['images']:,}",
            decimal(row["bytes"]),
            row["teacher"] or f"{row['teacher_sha256'][:12]}…",
            row["status"],
        )
    return table
