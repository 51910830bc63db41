"""`dfkd data …`: packed images."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dfkd.cli_options import AsJson, print_json
from dfkd.settings import MAX_PIXELS

Packed = Annotated[Path, typer.Argument(help="what `dfkd data pack` wrote", metavar="FILE")]

data_app = typer.Typer(no_args_is_help=True, help="Pack folders of images into one file, and look into such files.")


@data_app.command()
def pack(
    folder: Annotated[
        Path, typer.Argument(help="train/CLASS/… and test/CLASS/…, or CLASS/…, any format that Pillow reads", metavar="FOLDER")
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="the file to write, e.g. imagenet.lmdb")],
    test: Annotated[
        Path | None, typer.Option(help="folder of the test split, where it lies elsewhere; FOLDER is the training split then")
    ] = None,
    size: Annotated[int | None, typer.Option(help="bring larger images to this short side, in pixels, as JPEG")] = None,
    quality: Annotated[int, typer.Option(min=1, max=100, help="of that JPEG")] = 90,
    skip_unreadable: Annotated[bool, typer.Option("--skip-unreadable", help="leave such files out, do not stop")] = False,
    max_pixels: Annotated[int, typer.Option(min=1, help="a file with more pixels counts as unreadable")] = MAX_PIXELS,
) -> None:
    """Pack a folder of images into one file of blocks: encoded as they are, shuffled, every file checked."""
    from dfkd.packed.pack import pack as run

    meta = run(folder, output, test, size, quality, skip_unreadable, max_pixels)
    parts = ", ".join(f"{split.images:,} {name}" for name, split in meta.splits.items())
    typer.echo(
        f"{output}: {meta.images:,} images ({parts}), {len(meta.classes)} classes, {output.stat().st_size / 1e6:,.1f} MB"
    )


@data_app.command()
def info(file: Packed, as_json: AsJson = False) -> None:
    """Classes, splits, sizes and origin of packed images."""
    from dfkd.packed.summary import print_packed, summarise_packed

    if as_json:
        print_json(summarise_packed(file))
    else:
        print_packed(file)


@data_app.command()
def verify(file: Packed) -> None:
    """Compare every byte with the checksums that were written; exit status 1 if one differs."""
    from dfkd.packed.summary import packed_faults

    faults = packed_faults(file)
    for fault in faults:
        typer.echo(f"{file}: {fault}", err=True)
    if faults:
        raise typer.Exit(1)
    typer.echo(f"{file}: every byte is as it was written")
