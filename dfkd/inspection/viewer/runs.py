"""Runs: finished ones beside their student, and those in progress in the checkpoint folders. No pickle is run."""

from __future__ import annotations

import csv
import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from dfkd.errors import UserError

LARGEST = 64 << 20  # bytes of a history that is read
# Checkpoint folders of the workflow and the folder that the finished stage writes to: a run keeps its name when it ends.
PLACES = (
    (re.compile(r"(.*)checkpoints/distill/([^/]+)/([^/]+)_seed(\d+)"), r"\1runs/\2/\3/seed\4"),
    (re.compile(r"(.*)checkpoints/scratch/([^/]+)_seed(\d+)"), r"\1runs/scratch/\2/seed\3"),
    (re.compile(r"(.*)checkpoints/teacher/([^/]+)"), r"\1teachers/\2"),
)
STAGES = ("distill", "scratch", "teacher")


@dataclass(frozen=True)
class Run:
    """A training that is followed: `folder` is where the finished stage writes, `checkpoint` where it works until then."""

    name: str
    folder: str
    checkpoint: str | None
    histories: tuple[str, ...]  # files of rows, the one to be believed first
    bank: str | None  # name of its own bank

    @property
    def running(self) -> bool:
        """Whether its stage has not ended; it may have been stopped."""
        return self.checkpoint is not None


def gather_runs(files: Iterable[str], banks: Iterable[str]) -> dict[str, Run]:
    """Runs by name, of the names of all `history.csv`, `history.partial.csv` and `fingerprint` files, and of all banks."""
    there, known = set(files), set(banks)
    working: dict[str, str] = {}
    folders: list[str] = []
    for file in sorted(there):
        place = PurePosixPath(file).parent
        if place.name == "":
            place = PurePosixPath(".")
        checkpoint = _checkpoint_of(place)
        if checkpoint is None:
            folders.append(str(place))
        else:
            working[_output_of(checkpoint)] = checkpoint
    found: dict[str, Run] = {}
    for name in sorted({*folders, *working}):
        checkpoint = working.get(name)
        partial = f"{name}/history.partial.csv"
        # Beside a run in progress, `history.csv` in its output folder would be that of an earlier one.
        own = [f"{checkpoint}/history.csv", f"{checkpoint}/history.partial.csv", partial] if checkpoint else []
        histories = tuple(file for file in own or (f"{name}/history.csv", partial) if _plain(file) in there)
        if not histories and not checkpoint:  # a fingerprint of something else
            continue
        unfinished = checkpoint or (name if histories and histories[0].endswith(".partial.csv") else None)
        candidates = (f"{checkpoint}/bank.lmdb", f"{name}/bank.lmdb")
        bank = next((file for file in map(_plain, candidates) if file in known), None)
        found[name] = Run(name, name, unfinished, tuple(dict.fromkeys(map(_plain, histories))), bank)
    return found


def _plain(name: str) -> str:
    return name.removeprefix("./")


def _checkpoint_of(place: PurePosixPath) -> str | None:
    """The checkpoint folder that this is, or None."""
    text = str(place)
    return text if any(f"checkpoints/{stage}/" in f"{text}/" for stage in STAGES) else None


def _output_of(checkpoint: str) -> str:
    for pattern, output in PLACES:
        match = pattern.fullmatch(checkpoint)
        if match:
            return match.expand(output)
    return checkpoint


def read_rows(path: Path) -> dict[str, list[float | None]]:
    """The columns of a history; None where a cell is empty or not finite.

    Raises:
        UserError: it cannot be read, or is no history.
    """
    try:
        if path.stat().st_size > LARGEST:
            raise UserError(f"{path.name}: larger than {LARGEST >> 20} MiB, and so no history of this package.")
        with path.open(encoding="utf-8", newline="") as file:
            reader = csv.DictReader(file)
            names = list(reader.fieldnames or [])
            rows = [[_number(row[name]) for name in names] for row in reader]
    except (OSError, UnicodeDecodeError, csv.Error, ValueError, TypeError) as error:
        raise UserError(f"{path.name}: not a history of this package ({error}).") from None
    return {name: list(values) for name, values in zip(names, zip(*rows, strict=True), strict=True)} if rows else {}


def _number(text: str | None) -> float | None:
    if text is None:
        raise ValueError("a row with too few cells")
    value = float(text or "nan")
    return value if math.isfinite(value) else None


def read_state(folder: Path) -> dict[str, list[float | None]]:
    """The rows that the checkpoint keeps; nothing if it cannot be read. Tensors are mapped, not read; no code is run."""
    import torch

    try:
        content: Any = torch.load(folder / "state.pt", map_location="cpu", weights_only=True, mmap=True)
        rows = content["state"]["rows"]
        names = list(dict.fromkeys(name for row in rows for name in row))
        return {name: [_finite(row.get(name)) for row in rows] for name in names}
    except Exception:  # torch names no common class for a damaged file; a file that is being replaced is read the next time
        return {}


def _finite(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None


def last_of(columns: dict[str, list[float | None]], names: Sequence[str] = ("epoch", "acc1", "agree1")) -> dict[str, float]:
    """The last figure of each of these columns that has one."""
    last = {}
    for name in names:
        values = [value for value in columns.get(name, ()) if value is not None]
        if values:
            last[name] = values[-1]
    return last
