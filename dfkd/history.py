"""Rows of figures as a stage goes on: kept in its checkpoint, written as CSV, shown by TensorBoard.

A history counts in its first column: `epoch` (a network's training), `batch` (the init bank) or `step` (the diffusion model).
Its bytes are reproducible, so times lie in a file of their own, `timing.csv` beside `history.csv`. While the stage goes on, the
rows so far are in `history.partial.csv` and `timing.partial.csv`.
"""

from __future__ import annotations

import csv
import io
import math
import re
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from dfkd.errors import UserError
from dfkd.files import atomic_path, unreadable

if TYPE_CHECKING:
    from torch import Tensor

    from dfkd.tensorboard import Board

Row = dict[str, float]
Columns = dict[str, list[float]]  # of a history that was read, the counter first
SHOWN = 64  # images of a grid, at most
GRIDS = 20  # of a job, at most
REFRESH_SECONDS = 1.0  # between two writes of the partial files, at least
COUNTERS = ("epoch", "batch", "step")


class Panel(NamedTuple):
    """Columns that are looked at together."""

    title: str
    group: str  # in TensorBoard
    labels: dict[str, str]  # column → its name in the panel
    log: bool  # a logarithmic axis where all values are positive
    prefix: str | None = None  # takes all columns that start so and are in no panel, under their names without it


# A method's further terms: those of its generator start with `g_`, all others belong to the student.
PANELS = (
    Panel("On the test split, %", "test", {"acc1": "Acc@1", "agree1": "Agree@1"}, False),
    Panel(
        "Training loss",
        "loss",
        {"loss": "total", "kd": "KL to teacher", "ce": "cross-entropy", "feature": "features", "head": "head"},
        True,
        "",
    ),
    Panel(
        "Generator's loss",
        "generator",
        {"g_loss": "total", "g_bn": "BN statistics", "g_oh": "one-hot", "g_csd": "against the head"},
        False,
        "g_",
    ),
    Panel("Learning rate", "rate", {"lr": "network", "lr_g": "generator"}, False),
    Panel("Images in the bank", "bank", {"images": "images"}, False),
)


def panels_of(columns: Mapping[str, Sequence[float]]) -> list[tuple[Panel, dict[str, str]]]:
    """The panels that these columns fill, each with its columns and their labels; without those that hold no finite value."""
    known = {*COUNTERS, *(name for panel in PANELS for name in panel.labels)}
    labels = [dict(panel.labels) for panel in PANELS]
    catching = [(panel.prefix, own) for panel, own in zip(PANELS, labels, strict=True) if panel.prefix is not None]
    for name in columns:
        if name not in known:
            prefix, own = max((pair for pair in catching if name.startswith(pair[0])), key=lambda pair: len(pair[0]))
            own[name] = name[len(prefix) :]
    found = []
    for panel, own in zip(PANELS, labels, strict=True):
        present = {key: label for key, label in own.items() if any(map(math.isfinite, columns.get(key, [])))}
        if present:
            found.append((panel, present))
    return found


class History:
    """The rows of one job. `append` and `show` pass them on to TensorBoard, whose files lie in `tensorboard`.

    Args:
        path: the CSV of the finished stage, `…history.csv`.
        tensorboard: folder of this job's event files. A resumed job goes on there: points that a killed one had
            already passed on beyond the saved state are dropped when they are read.
        counter: the first column.
        columns: those to be written even where there is no row.
    """

    def __init__(self, path: Path, tensorboard: Path, counter: str = "epoch", columns: Sequence[str] = ()) -> None:
        self.path, self.folder, self.counter, self.columns = path, tensorboard, counter, (counter, *columns)
        self.rows: list[Row] = []
        self.timing: list[Row] = []
        self._board: Board | None = None
        self._written = -math.inf
        for former in (partial(path), partial(timing(path))):
            former.unlink(missing_ok=True)

    def append(self, row: Row, seconds: float, images: int) -> None:
        """Keep a row, and have the partial files follow.

        Args:
            row: its counter counts from 1.
            seconds: that the stage has measured so far, attempts before this one included.
            images: that this row is about: trained on, or made.
        """
        taken = seconds - sum(former["seconds"] for former in self.timing)
        speed = images / taken if taken > 0 else 0.0
        counter = {self.counter: row[self.counter]}
        self.rows.append(row)
        self.timing.append(counter | {"seconds": round(taken, 3), "images": images, "images_per_second": round(speed, 1)})
        if time.monotonic() - self._written > REFRESH_SECONDS:
            self._write(partial)
        self.board().scalars(self._tags(row) | {"speed/images_per_second": speed}, int(row[self.counter]))

    def shows(self, total: int) -> bool:
        """Whether the row appended last, of `total` rows in the end, is one to show images at."""
        return is_shown(len(self.rows), total)

    def show(self, name: str, images: Tensor | None, group: int = 1) -> None:
        """Pass the first of uint8 images [N,C,H,W] to TensorBoard with the last row; `group` of them belong together."""
        if images is not None and len(images):
            self.board().grid(name, images, int(self.rows[-1][self.counter]), group)

    def board(self) -> Board:
        """TensorBoard, opened when it is first needed: from the last row on, what was there before counts no more."""
        if self._board is None:
            from dfkd.tensorboard import Board

            self._board = Board(self.folder, int(self.rows[-1][self.counter]) if self.rows else 0)
        return self._board

    def _tags(self, row: Row) -> Row:
        panels = panels_of({name: [value] for name, value in row.items()})
        return {f"{panel.group}/{name}": row[name] for panel, labels in panels for name in labels}

    def state(self) -> dict[str, Any]:
        """For the checkpoint."""
        return {"rows": self.rows, "timing": self.timing}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Restore what `state` gave, before anything is appended."""
        self.rows, self.timing = [dict(row) for row in state.get("rows", [])], [dict(row) for row in state.get("timing", [])]
        if self.rows:
            self._write(partial)

    def truncate(self, count: int) -> None:
        """Keep the first `count` rows: of a stage whose work is saved apart from its figures."""
        del self.rows[count:], self.timing[count:]

    def publish(self) -> None:
        """Write the CSV files of the finished stage, remove the partial ones and close TensorBoard's."""
        self._write(lambda path: path)
        for former in (partial(self.path), partial(timing(self.path))):
            former.unlink(missing_ok=True)
        if self._board is not None:
            self._board.close()

    def _write(self, place: Callable[[Path], Path]) -> None:
        self._written = time.monotonic()
        write_rows(place(self.path), self.rows, self.columns)
        write_rows(place(timing(self.path)), self.timing, (self.counter, "seconds", "images", "images_per_second"))


def is_shown(number: int, total: int, most: int = GRIDS) -> bool:
    """Whether a number from 1 to `total` is the first, the last or one evenly spread in between: `most` of them at most."""
    every = max(1, math.ceil(total / (most - 1)))
    return (number - 1) % every == 0 or number == total


def timing(history: Path) -> Path:
    """Where the times of a history lie: `init.timing.csv` of `init.history.csv`."""
    return history.with_name(re.sub(r"history((\.partial)?\.csv)$", r"timing\1", history.name))


def partial(path: Path) -> Path:
    """Where the rows so far of a CSV lie while its stage goes on: `history.partial.csv` of `history.csv`."""
    return path.with_suffix(f".partial{path.suffix}")


def write_rows(path: Path, rows: Sequence[Row], columns: Sequence[str] = ()) -> None:
    """Rows as CSV, whole or not at all; floats as Python prints them; `columns` come first."""
    text = io.StringIO()
    names = list(dict.fromkeys([*columns, *(name for row in rows for name in row)]))  # a warm-up epoch has fewer
    writer = csv.DictWriter(text, fieldnames=names, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    with atomic_path(path) as temporary:
        temporary.write_text(text.getvalue(), encoding="utf-8")


def join_rows(paths: Sequence[Path], output: Path) -> None:
    """The rows of several histories, or of several timings, as one: those of shards, in their order.

    Raises:
        UserError: one cannot be read, or has other columns than the first.
    """
    tables = []
    for path in paths:
        try:
            tables.append(path.read_bytes().splitlines(keepends=True))
        except OSError as error:
            raise unreadable(path, error) from None
        if tables[-1][:1] != tables[0][:1]:
            raise UserError(f"{path}: its columns are not those of {paths[0]}; make both again with one setting.")
    with atomic_path(output) as temporary:
        temporary.write_bytes(b"".join(tables[0][:1] + [line for table in tables for line in table[1:]]))


def read_history(path: str | Path) -> Columns:
    """The columns of a history or its timing, the counter first; NaN where a cell is empty; no values where there are no rows.

    Raises:
        UserError: there is no such file, or it is none of this package's.
    """
    try:
        with Path(path).open(encoding="utf-8", newline="") as file:
            reader = csv.DictReader(file)
            rows, names = list(reader), list(reader.fieldnames or [])
        if not names or names[0] not in COUNTERS:
            counters = ", ".join(f"`{name}`" for name in COUNTERS)
            raise UserError(f"{path}: its first column is none of {counters}; is it a history.csv of this package?")
        return {key: [float(row[key] or "nan") for row in rows] for key in names}
    except OSError as error:
        raise unreadable(path, error) from None
    except (ValueError, TypeError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path}: not a history.csv of this package ({error}).") from None
