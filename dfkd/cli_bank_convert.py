"""`dfkd bank …`: check, gather and convert image banks."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dfkd.cli_options import AsJson, Bank, print_json
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
    output: Annotated[Path, typer.Option("-o", "--output", help="a new folder")],
    kind: Annotated[str, typer.Option("--format", help="folder: <label>/<index>.png and images.csv")] = "folder",
) -> None:
    """Write the images of a bank as files."""
    from dfkd.bank.folder import export_folder

    if kind != "folder":
        raise UserError(f"--format {kind}: {nearest(kind, ('folder',))}.")
    typer.echo(f"{output}: {export_folder(bank, output)} images")


@convert_app.command("import")
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
