"""Checkpoints beside each other, on the terminal."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from dfkd.evaluation.formats import EvaluatedCheckpoint, EvaluationFile

# key, name, format
COLUMNS = (
    ("params", "params", "{:,.0f}"),
    ("macs", "MACs", "{:,.0f}"),
    ("acc1", "Acc@1 %", "{:.2f}"),
    ("acc5", "Acc@5 %", "{:.2f}"),
    ("agree1", "Agree@1 %", "{:.2f}"),
    ("lp", "L_p", "{:.4f}"),
    ("one_minus_js_distance", "1 − √JSD", "{:.4f}"),
    ("nll", "NLL", "{:.4f}"),
    ("ece", "ECE", "{:.4f}"),
)
WIDTH = 130  # where the output is no terminal


def print_evaluation(file: EvaluationFile, console: Console | None = None) -> None:
    """One row a checkpoint, the teacher's first."""
    console = console or Console(width=None if Console().is_terminal else WIDTH)
    console.print(evaluation_table(file))


def evaluation_table(file: EvaluationFile) -> Table:
    """As a table; columns that compare with a teacher are there if one was given."""
    columns = [column for column in COLUMNS if file.teacher or column[0] not in ("agree1", "lp", "one_minus_js_distance")]
    title = f"On the {file.images:,} test images of {file.dataset}"
    table = Table(title=title, title_justify="left", title_style="bold")
    table.add_column("checkpoint", overflow="fold")
    table.add_column("model")
    for _, name, _ in columns:
        table.add_column(name, justify="right", no_wrap=True)
    if file.teacher:
        table.add_row(*_cells(file.teacher, columns), style="dim", end_section=True)
    for row in file.checkpoints:
        table.add_row(*_cells(row, columns))
    return table


def _cells(row: EvaluatedCheckpoint, columns: list[tuple[str, str, str]]) -> list[str]:
    values = [(getattr(row, key), form) for key, _, form in columns]
    return [row.checkpoint, row.name, *("–" if value is None else form.format(value) for value, form in values)]
