"""`dfkd bank …`: check, gather and convert image banks."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dfkd.cli_options import AsJson, Bank, BankTeacher, Device, print_json
from dfkd.errors import UserError, nearest

convert_app = typer.Typer()


@convert_app.command()
def merge(
    shards: Annotated[list[Path], typer.Argument(help="every shard of one bank, in any order", metavar="SHARD...")],
    output: Annotated[Path, typer.Option("-o", "--output", help="the bank to write")],
) -> None:
    """Gather the shards of one bank: the same bytes as if one job had made it."""
    from dfkd.bank.merge import merge_banks

    meta = merge_banks(shards, output)
    typer.echo(f"{output}: {meta.images} images in {meta.blocks} blocks")


@convert_app.command()
def verify(bank: Bank, as_json: AsJson = False) -> None:
    """Check every byte of a bank; status 2 when any differs from what was published."""
    from dfkd.bank.verify import verify_bank

    faults = verify_bank(bank)
    if as_json:
        print_json({"path": str(bank), "faults": faults})
    elif not faults:
        typer.echo(f"{bank}: every byte is as it was published")
    if faults:
        raise UserError(f"{bank}: damaged or incomplete ({'; '.join(faults)}); copy or make the bank again.")


@convert_app.command("export")
def export_bank(
    bank: Bank,
    output: Annotated[Path, typer.Option("-o", "--output", help="a new folder; for hdf5 a file")],
    kind: Annotated[str, typer.Option("--format", help="folder, webdataset, hf or hdf5")] = "folder",
) -> None:
    """Write a bank for others, without loss: PNG files, tar files for webdataset, Parquet for Hugging Face datasets, HDF5."""
    from dfkd.bank.convert import FORMATS

    if kind not in FORMATS:
        raise UserError(f"--format {kind}: {nearest(kind, FORMATS)}.")
    typer.echo(f"{output}: {FORMATS[kind].export(bank, output)} images")


@convert_app.command("import")
def import_bank(
    source: Annotated[Path, typer.Argument(help="what `dfkd bank export` wrote, or a folder of <label or class name>/*.png")],
    output: Annotated[Path, typer.Option("-o", "--output", help="the bank to write")],
    teacher: Annotated[
        Path | None, typer.Option(help="teacher of images from elsewhere: it gives data set, classes and image size")
    ] = None,
) -> None:
    """Make a bank of an export, the same as before, or a new one of a folder of images."""
    from dfkd.bank.convert import import_bank as run
    from dfkd.models.weights import read_card

    if teacher is None:
        meta = run(source, output, None, None)
    else:
        card = read_card(teacher)
        meta = run(source, output, card.dataset, card.sha256)
    typer.echo(f"{output}: {meta.images} images, kind {meta.kind}")


@convert_app.command()
def prune(
    bank: Bank,
    where: Annotated[str, typer.Option(help="images for which this holds are left out, e.g. 'label != prediction'")],
    output: Annotated[Path | None, typer.Option("-o", "--output", help="the bank to write; the old one stays")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="print what would go, class by class, and write nothing")] = False,
    teacher: BankTeacher = None,
    as_json: AsJson = False,
    device: Device = "auto",
) -> None:
    """Write a bank without the images for which a condition holds."""
    from rich.console import Console
    from rich.table import Table

    from dfkd.inspection.prune import prune_bank
    from dfkd.runtime import Runtime

    if (output is None) != dry_run:
        raise UserError(f"{bank}: give either --output, the bank to write, or --dry-run.")
    counts = prune_bank(bank, where, output, teacher, Runtime.create("reference", device))
    if as_json:
        print_json(counts)
        return
    if dry_run:
        table = Table("class", "images", "would go", "would stay")
        for name, of in counts["classes"].items():
            table.add_row(name, *(f"{count:,}" for count in (of["images"], of["removed"], of["images"] - of["removed"])))
        Console().print(table)
    what = "would leave out" if dry_run else f"{output}: leaves out"
    typer.echo(f"{what} {counts['removed']:,} of {counts['images']:,} images, {counts['kept']:,} stay")
