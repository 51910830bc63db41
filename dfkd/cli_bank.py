"""`dfkd bank …`: look into image banks, check, gather and convert them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from dfkd.errors import UserError, nearest

bank_app = typer.Typer(help="Look into image banks, check, gather and convert them.", no_args_is_help=True)

Bank = Annotated[Path, typer.Argument(help="the bank, a .lmdb file", metavar="BANK")]
AsJson = Annotated[bool, typer.Option("--json", help="print JSON")]


@bank_app.command()
def info(bank: Bank, as_json: AsJson = False) -> None:
    """Images, classes, score ranges, teacher, settings and lineage of a bank."""
    from dfkd.bank.stats import summarise, summary_table

    summary = summarise(bank)
    if as_json:
        _print_json(summary)
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
        _print_json(rows)
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
def merge(
    shards: Annotated[list[Path], typer.Argument(help="every shard of one bank, in any order", metavar="SHARD...")],
    output: Annotated[Path, typer.Option("-o", "--output", help="the bank to write")],
) -> None:
    """Gather the shards of one bank: the same bytes as if one job had made it."""
    from dfkd.bank.merge import merge_banks

    meta = merge_banks(shards, output)
    typer.echo(f"{output}: {meta.images} images in {meta.blocks} blocks")


@bank_app.command()
def verify(bank: Bank, as_json: AsJson = False) -> None:
    """Check every byte of a bank; status 2 when any differs from what was published."""
    from dfkd.bank.verify import verify_bank

    faults = verify_bank(bank)
    if as_json:
        _print_json({"path": str(bank), "faults": faults})
    elif not faults:
        typer.echo(f"{bank}: every byte is as it was published")
    if faults:
        raise UserError(f"{bank}: damaged or incomplete ({'; '.join(faults)}); copy or make the bank again.")


@bank_app.command()
def score(
    bank: Bank,
    teacher: Annotated[Path | None, typer.Option(help="teacher weights; by default those the bank was made with")] = None,
    output: Annotated[Path | None, typer.Option("-o", "--output", help="by default NAME.scores.h5 beside the bank")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N")] = "auto",
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


@bank_app.command("export")
def export_bank(
    bank: Bank,
    output: Annotated[Path, typer.Option("-o", "--output", help="a new folder")],
    kind: Annotated[str, typer.Option("--format", help="folder: <label>/<index>.png and images.csv")] = "folder",
) -> None:
    """Write the images of a bank as files."""
    from dfkd.bank.folder import export_folder

    if kind != "folder":
        raise UserError(f"--format {kind}: {nearest(kind, ('folder',))}.")
    typer.echo(f"{output}: {export_folder(bank, output)} images")


@bank_app.command("import")
def import_bank(
    folder: Annotated[Path, typer.Argument(help="a folder of <label or class name>/*.png")],
    teacher: Annotated[Path, typer.Option(help="the teacher's weights: they give data set, classes and image size")],
    output: Annotated[Path, typer.Option("-o", "--output", help="the bank to write")],
) -> None:
    """Make a bank of a folder of images."""
    from dfkd.bank.folder import import_folder
    from dfkd.models.weights import read_card

    card = read_card(teacher)
    typer.echo(f"{output}: {import_folder(folder, output, card.dataset, card.sha256)} images")


@bank_app.command()
def browse(
    folder: Annotated[Path, typer.Argument(help="where the banks and runs are")] = Path("results"),
    host: Annotated[
        str, typer.Option(help="address to listen on; others than this machine see what is on 0.0.0.0")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="the next free one if it is taken; 0: any")] = 8765,
    no_open: Annotated[bool, typer.Option("--no-open", help="print the address, open no browser")] = False,
    device: Annotated[str, typer.Option(help="where teacher and student run: auto, cpu, cuda or cuda:N")] = "auto",
) -> None:
    """Look through banks and runs in the browser; nothing below the folder is written."""
    from dfkd.inspection.viewer.serve import browse as serve

    serve(folder, host, port, not no_open, device, typer.echo)


def _print_json(content: Any) -> None:
    typer.echo(json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False))
