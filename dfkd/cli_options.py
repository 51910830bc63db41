"""Options and output that several files of commands share."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

Bank = Annotated[Path, typer.Argument(help="the bank, a .lmdb file", metavar="BANK")]
BankTeacher = Annotated[
    Path | None,
    typer.Option("--teacher", help="teacher weights; by default those the bank was made with"),
]
AsJson = Annotated[bool, typer.Option("--json", help="print JSON")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N")]


def print_json(content: Any) -> None:
    """Print JSON on stdout, indented; a number that is not finite is an error, as JSON has none."""
    typer.echo(json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False))
