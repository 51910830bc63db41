"""One row an epoch: kept in the checkpoint, written as CSV, shown by TensorBoard."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path

from torch.utils.tensorboard import SummaryWriter

from dfkd.files import atomic_path

Row = dict[str, float]


class History:
    """Rows of figures by epoch. Epochs count from 1; `epoch` is the first column."""

    def __init__(self, tensorboard: Path, rows: Sequence[Row] = ()) -> None:
        self.rows: list[Row] = [dict(row) for row in rows]
        self._writer = SummaryWriter(str(tensorboard), purge_step=len(self.rows) + 1)

    def append(self, row: Row) -> None:
        """Keep a row and pass its figures to TensorBoard."""
        self.rows.append(row)
        for name, value in row.items():
            if name != "epoch":
                self._writer.add_scalar(name, value, int(row["epoch"]))
        self._writer.flush()

    def write_csv(self, path: Path) -> None:
        """All rows as CSV, whole or not at all; floats as Python prints them."""
        text = io.StringIO()
        names = list(dict.fromkeys(name for row in self.rows for name in row))  # a warm-up epoch has fewer
        writer = csv.DictWriter(text, fieldnames=names, lineterminator="\n")
        writer.writeheader()
        writer.writerows(self.rows)
        with atomic_path(path) as temporary:
            temporary.write_text(text.getvalue())

    def close(self) -> None:
        """Close TensorBoard's file."""
        self._writer.close()
