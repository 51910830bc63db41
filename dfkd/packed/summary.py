"""What `dfkd data info` tells of packed images, and `dfkd data verify`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import typer
from rich.console import Console
from rich.table import Table

from dfkd.bank.storage import check_footer
from dfkd.errors import UserError
from dfkd.packed.file import PackedFile


def summarise_packed(path: Path) -> dict[str, Any]:
    """The meta, the size of the file, and of each split the images of every class, as JSON can hold it."""
    file = PackedFile(path)
    counts = {
        split: np.bincount(file.labels(split).numpy(), minlength=len(file.meta.classes)).tolist() for split in file.meta.splits
    }
    return {**file.meta.model_dump(mode="json"), "file_bytes": file.path.stat().st_size, "images_by_class": counts}


def print_packed(path: Path) -> None:
    """The same for a reader."""
    found = summarise_packed(path)
    pixels = "files as they were"
    if found["size"]:
        pixels = f"short side at most {found['size']} pixels, {found['reencoded']:,} written anew as JPEG {found['quality']}"
    typer.echo(f"{path}: packed from {found['source']}, {found['file_bytes'] / 1e6:,.1f} MB, {pixels}")
    table = Table()
    for name in ("split", "images", "MB", "blocks", "images of a class"):
        table.add_column(name, justify="left" if name == "split" else "right")
    for split, values in found["splits"].items():
        counts = found["images_by_class"][split]
        spread = f"{min(counts):,}" if min(counts) == max(counts) else f"{min(counts):,} to {max(counts):,}"
        table.add_row(split, f"{values['images']:,}", f"{values['bytes'] / 1e6:,.1f}", f"{values['blocks']:,}", spread)
    Console().print(table)
    names = found["classes"]
    typer.echo(f"{len(names)} classes: {', '.join(names[:10])}{', …' if len(names) > 10 else ''}")
    if found["skipped"]:
        typer.echo(f"{found['skipped']} unreadable files left out, first {found['skipped_first'][0]}")
    if found["repeated"]:
        typer.echo(f"{found['repeated']} files have the content of another one")


def packed_faults(path: Path) -> list[str]:
    """What is wrong with the file; an empty list when every byte is as it was written."""
    if fault := check_footer(path):
        return [fault]
    file = PackedFile(path)
    try:
        file.check(range(file.meta.blocks))
    except UserError as error:
        return [str(error).removeprefix(f"{path}: ")]
    return []
