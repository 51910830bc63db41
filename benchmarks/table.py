"""Sections of rows: on the terminal, as Markdown, as JSON."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from rich.console import Console
from rich.table import Table

COLUMNS = ("", "value", "unit", "target", "note")


@dataclass(frozen=True)
class Row:
    """One measurement. `target` says what it should be, and where the target holds."""

    name: str
    value: float | str
    unit: str = ""
    target: str = ""
    note: str = ""

    def cells(self) -> tuple[str, ...]:
        return self.name, number(self.value), self.unit, self.target, self.note


@dataclass
class Section:
    """Rows that belong together; `samples` are the single measurements behind them, seconds unless its name says other."""

    title: str
    rows: list[Row]
    samples: dict[str, list[float]] = field(default_factory=dict)


def number(value: float | str) -> str:
    """Three significant digits, whole numbers above a thousand with separators."""
    if isinstance(value, str):
        return value
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def print_sections(sections: list[Section], console: Console) -> None:
    for section in sections:
        table = Table(title=section.title, title_justify="left", title_style="bold")
        for column in COLUMNS:
            table.add_column(column, justify="right" if column == "value" else "left")
        for row in section.rows:
            table.add_row(*row.cells())
        console.print(table)


def markdown(about: dict[str, Any], sections: list[Section]) -> str:
    """A page: what was run where and when, then a table a section."""
    lines = ["# Benchmark", ""]
    lines += [f"* {name}: {_plain(value)}" for name, value in about.items()]
    for section in sections:
        lines += ["", f"## {section.title}", "", _line(COLUMNS), _line(["---", "---:", "---", "---", "---"])]
        lines += [_line(row.cells()) for row in section.rows]
    return "\n".join(lines) + "\n"


def _line(cells: Any) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _plain(value: Any) -> str:
    return ", ".join(f"{name} {_plain(item)}" for name, item in value.items()) if isinstance(value, dict) else str(value)


def as_json(about: dict[str, Any], sections: list[Section]) -> dict[str, Any]:
    return {"about": about, "sections": [asdict(section) for section in sections]}
