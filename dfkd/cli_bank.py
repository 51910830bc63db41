"""`dfkd bank …`: look into image banks. What checks, gathers and converts them is in `dfkd.cli_bank_convert`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from dfkd.cli_bank_convert import convert_app
from dfkd.cli_options import AsJson, Bank, BankTeacher, Device, print_json
from dfkd.errors import UserError, nearest

bank_app = typer.Typer(help="Look into image banks, check, gather and convert them.", no_args_is_help=True)


@bank_app.command()
def info(bank: Bank, as_json: AsJson = False) -> None:
    """Images, classes, score ranges, teacher, settings and lineage of a bank."""
    from dfkd.bank.stats import summarise, summary_table

    summary = summarise(bank)
    if as_json:
        print_json(summary)
    else:
        Console().print(summary_table(summary))


@bank_app.command()
def ls(
    places: Annotated[list[Path] | None, typer.Argument(help="folders or banks; `results` when none is named")] = None,
    as_json: AsJson = False,
) -> None:
    """List the banks in folders: kind, images, size, teacher, status."""
    from dfkd.bank.reader import BankReader

    rows: list[dict[str, Any]] = []
    for place in places or [Path("results")]:
        if not place.exists():
            raise UserError(f"{place}: no such file or folder; name where the banks are.")
        for path in sorted(place.rglob("*.lmdb")) if place.is_dir() else [place]:
            row: dict[str, Any] = {"path": str(path), "bytes": path.stat().st_size}
            try:
                meta = BankReader(path, allow_incomplete=True).meta
            except UserError as error:
                rows.append(row | {"status": "damaged", "fault": str(error)})
                continue
            rows.append(
                row
                | {"status": meta.status, "kind": meta.kind, "dataset": meta.dataset.name, "images": meta.images}
                | {"teacher_sha256": meta.teacher_sha256}
            )
    if as_json:
        print_json(rows)
        return
    table = Table("bank", "kind", "data set", "images", "bytes", "teacher", "status")
    for row in rows:
        images, teacher = row.get("images"), row.get("teacher_sha256", "")[:12]
        count = "" if images is None else f"{images:,}"
        table.add_row(
            row["path"],
            row.get("kind"),
            row.get("dataset"),
            count,
            f"{row['bytes']:,}",
            teacher,
            row.get("fault", row["status"]),
        )
    Console().print(table)


@bank_app.command()
def grid(
    bank: Bank,
    output: Annotated[Path, typer.Option("-o", "--output", help="the PNG to write")],
    per_class: Annotated[int, typer.Option(help="images in a row; with --parents, parents in a row")] = 10,
    scale: Annotated[int | None, typer.Option(help="enlargement; by default images are at least 32 pixels wide")] = None,
    order: Annotated[str, typer.Option(help="first, best or worst")] = "first",
    score: Annotated[str | None, typer.Option(help="the score that best and worst go by")] = None,
    parents: Annotated[Path | None, typer.Option(help="the bank that was varied: parents stand before variations")] = None,
    variations: Annotated[int, typer.Option(help="variations a parent, at most")] = 3,
) -> None:
    """Draw a contact sheet: one row a class."""
    from dfkd.bank.grid import contact_sheet

    if order not in ("first", "best", "worst"):
        raise UserError(f"--order {order}: {nearest(order, ('first', 'best', 'worst'))}.")
    contact_sheet(bank, output, per_class, scale, order, score, parents, variations)  # type: ignore[arg-type]


@bank_app.command()
def score(
    bank: Bank,
    teacher: BankTeacher = None,
    output: Annotated[Path | None, typer.Option("-o", "--output", help="by default NAME.scores.h5 beside the bank")] = None,
    device: Device = "auto",
) -> None:
    """Measure what the teacher says of every image: kept beside the bank for stats, pages and the viewer."""
    from dfkd.inspection.scores import scores_file, scores_of, write_scores
    from dfkd.runtime import Runtime

    scores = scores_of(bank, teacher, Runtime.create("reference", device))
    if scores.digest is None:
        raise UserError(f"{bank}: still being written, and its scores would be out of date at once; wait for its stage to end.")
    target = output or scores_file(bank)
    write_scores(target, scores)
    typer.echo(f"{target}: {len(scores)} images, {', '.join(scores.columns)}")


@bank_app.command()
def page(
    bank: Bank,
    output: Annotated[Path, typer.Option("-o", "--output", help="the HTML file to write")],
    teacher: BankTeacher = None,
    images: Annotated[int | None, typer.Option(help="at most so many on the page; 2,000, or fewer large ones")] = None,
    grid: Annotated[Path | None, typer.Option(help="also draw the contact sheet to this PNG")] = None,
    scores: Annotated[bool, typer.Option("--scores", help="also keep the scores beside the bank, NAME.scores.h5")] = False,
    device: Device = "auto",
) -> None:
    """Write a page to look through a bank: one HTML file that opens from disk."""
    from dfkd.inspection.bank_page import write_bank_page
    from dfkd.runtime import Runtime

    done = write_bank_page(bank, output, teacher, Runtime.create("reference", device), images, grid, scores)
    typer.echo(f"{output}: {done['shown']:,} images, {done['bytes'] / 1e6:.1f} MB; {bank} holds {done['images']:,}")


bank_app.add_typer(convert_app)
