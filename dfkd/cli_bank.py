"""`dfkd bank …`: look into image banks. What checks, gathers and converts them is in `dfkd.cli_bank_convert`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from dfkd.cli_bank_convert import convert_app
from dfkd.cli_options import AsJson, Bank, BankTeacher, Device, print_json
from dfkd.errors import UserError, nearest

bank_app = typer.Typer(help="Look into image banks, check, gather and convert them.", no_args_is_help=True)

SHEETS = ("class", "stage", "parent", "verdict")
ORDERS = ("first", "best", "worst")


@bank_app.command()
def info(bank: Bank, as_json: AsJson = False) -> None:
    """Images, classes, score ranges, teacher, settings and lineage of a bank."""
    from dfkd.bank.reader import BankReader
    from dfkd.bank.stats import summarise, summary_table

    summary = summarise(bank)
    if as_json:
        print_json(summary)
    else:
        Console().print(summary_table(summary, BankReader(bank, allow_incomplete=True).meta))


@bank_app.command()
def ls(
    places: Annotated[list[Path] | None, typer.Argument(help="folders or banks; `results` when none is named")] = None,
    as_json: AsJson = False,
) -> None:
    """List the banks in folders: what they are, images, classes, size, teacher, status."""
    from dfkd.inspection.listing import list_banks, listing_table

    rows = list_banks(places or [Path("results")])
    if as_json:
        print_json(rows)
    else:
        Console().print(listing_table(rows))


@bank_app.command()
def show(
    bank: Bank,
    index: Annotated[int, typer.Argument(help="the image's place in the bank, from 0", metavar="N", min=0)],
    teacher: BankTeacher = None,
    output: Annotated[Path | None, typer.Option("-o", "--output", help="also write it, enlarged, as this PNG")] = None,
    scale: Annotated[int | None, typer.Option(help="enlargement", min=1)] = None,
    as_json: AsJson = False,
    device: Device = "auto",
) -> None:
    """Show an image in the terminal beside its parent, with its scores and the classes that the teacher sees in it."""
    from dfkd.inspection.image import look_at, render, save_picture
    from dfkd.runtime import Runtime

    shown = look_at(bank, index, teacher, Runtime.create("reference", device))
    if output is not None:
        save_picture(shown, output, scale)
    if as_json:
        print_json(shown.said)
    else:
        console = Console()
        console.print(render(shown, console, scale))


@bank_app.command()
def grid(
    banks: Annotated[list[Path], typer.Argument(help="the bank; with --by stage as many as you like", metavar="BANK...")],
    output: Annotated[Path, typer.Option("-o", "--output", help="the PNG to write")],
    by: Annotated[
        str | None,
        typer.Option(help="class; stage: banks side by side; parent: before its variations; verdict: also what was dropped"),
    ] = None,
    per_class: Annotated[
        int | None, typer.Option(help="images in a row; by stage, of each bank; by parent or verdict, parents")
    ] = None,
    scale: Annotated[int | None, typer.Option(help="enlargement; by default images are at least 32 pixels wide")] = None,
    order: Annotated[str, typer.Option(help="first, best or worst")] = "first",
    score: Annotated[str | None, typer.Option(help="the score that best and worst go by, stored or measured")] = None,
    where: Annotated[str, typer.Option(help="a condition on the images, e.g. 'label_probability < 0.5'")] = "",
    parents: Annotated[Path | None, typer.Option(help="the bank that was varied; by default the one beside")] = None,
    rejected: Annotated[Path | None, typer.Option(help="what the filter dropped; by default the bank beside")] = None,
    variations: Annotated[int, typer.Option(help="variations a parent, at most")] = 3,
    teacher: BankTeacher = None,
    device: Device = "auto",
) -> None:
    """Draw a contact sheet: one row a class."""
    from dfkd.inspection.sheets import Choice, draw_sheet
    from dfkd.runtime import Runtime

    if by is None:
        by = "verdict" if rejected else "parent" if parents else "class"
    for name, value, known in (("by", by, SHEETS), ("order", order, ORDERS)):
        if value not in known:
            raise UserError(f"--{name} {value}: {nearest(value, known)}.")
    if by != "stage" and len(banks) > 1:
        raise UserError(f"{banks[1]}: a sheet by {by} shows one bank; name one, or compare them with --by stage.")
    choice = Choice(order, score, where, teacher, Runtime.create("reference", device))
    draw_sheet(by, banks, output, choice, per_class, scale, parents, rejected, variations)


@bank_app.command()
def stats(
    bank: Bank,
    against: Annotated[
        Path | None, typer.Option(help="a bank or a prepared data set: FID and KID to it in the teacher's features")
    ] = None,
    teacher: BankTeacher = None,
    as_json: AsJson = False,
    device: Device = "auto",
) -> None:
    """Figures of each class: pixels, constant and equal images, accept rate, what the teacher says, diversity."""
    from dfkd.inspection.distances import distances
    from dfkd.inspection.statistics import statistics
    from dfkd.inspection.statistics_view import statistics_table
    from dfkd.runtime import Runtime

    runtime = Runtime.create("reference", device)
    figures = statistics(bank, teacher, runtime)
    if against is not None:
        figures["against"] = distances(bank, against, teacher, runtime)
    if as_json:
        print_json(figures)
    else:
        Console().print(statistics_table(figures))


@bank_app.command()
def diff(
    first: Annotated[Path, typer.Argument(help="a bank", metavar="A")],
    second: Annotated[Path, typer.Argument(help="another", metavar="B")],
    features: Annotated[bool, typer.Option("--features", help="also FID and KID in the teacher's features")] = False,
    teacher: BankTeacher = None,
    as_json: AsJson = False,
    device: Device = "auto",
) -> None:
    """Compare two banks: metadata, counts, images by their pixels, labels, scores. Status 0: the same, 1: not, 2: trouble."""
    from dfkd.bank.difference import difference, difference_table

    result = difference(first, second)
    if features or teacher:
        from dfkd.inspection.distances import distances
        from dfkd.inspection.statistics_view import against_line
        from dfkd.runtime import Runtime

        result["features"] = distances(first, second, teacher, Runtime.create("reference", device))
    if as_json:
        print_json(result)
    else:
        Console().print(difference_table(result))
        if "features" in result:
            typer.echo(against_line(result["features"]))
    if not result["same"]:
        raise typer.Exit(1)


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
def browse(
    folder: Annotated[Path, typer.Argument(help="where the banks and runs are")] = Path("results"),
    host: Annotated[
        str, typer.Option(help="address to listen on; others than this machine see what is on 0.0.0.0")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="the next free one if it is taken; 0: any")] = 8765,
    no_open: Annotated[bool, typer.Option("--no-open", help="print the address, open no browser")] = False,
    device: Device = "auto",
) -> None:
    """Look through banks and runs in the browser; nothing below the folder is written."""
    from dfkd.inspection.viewer.serve import browse as serve

    serve(folder, host, port, not no_open, device, typer.echo)


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
