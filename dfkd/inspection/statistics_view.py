"""The figures of `dfkd.inspection.statistics` for a terminal."""

from __future__ import annotations

from typing import Any

import numpy as np
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from dfkd.bank.terminal import spark

BINS = 16  # of the pixel histogram


def statistics_table(figures: dict[str, Any]) -> RenderableType:
    """One row a class, and one for all; below it what the columns mean as far as it is not plain."""
    known = figures["teacher"] is not None
    varied = figures["all"]["accept_rate"] is not None
    table = Table(title=Text(f"{figures['path']} ({figures['status']})"), title_justify="left")
    table.add_column("class")
    for name in ("images", "const", "twins", *(["kept"] if varied else [])):
        table.add_column(name, justify="right")
    table.add_column(f"pixels 0{' ' * (BINS - 11)}255", no_wrap=True)
    for name in ("conf", "entropy", "agree", "R_bn", "spread") if known else ():
        table.add_column(name, justify="right")
    for name, of in figures["classes"].items():
        table.add_row(*_cells(name, of, known, varied))
    table.add_section()
    table.add_row(*_cells("all", figures["all"], known, varied))
    notes = ["const: all pixels of one value; twins: the same pixels as an earlier image; pixels: spread of their values"]
    notes += ["kept: share that the fidelity filter accepted"] if varied else []
    if known:
        notes.append(
            f"of teacher {figures['teacher']}: conf, entropy (nats): means; agree: share that it assigns to the label;"
        )
        notes.append("R_bn: distance of the images' BN statistics to its own, as one batch;")
        notes.append(f"spread: root mean square distance of its {figures['features']} features over all pairs of images")
    elif figures["images"]:
        notes.append("its teacher was not found in the results around it: name it with --teacher to see what it says")
    broken = {name: count for name, count in figures["non_finite_scores"].items() if count}
    notes += [f"NOT FINITE: {count:,} values of score {name}; dfkd did not write these" for name, count in broken.items()]
    if against := figures.get("against"):
        notes.append(against_line(against))
    return Group(table, *(Text(note) for note in notes))


def against_line(against: dict[str, Any]) -> str:
    """FID and KID in a sentence."""
    split = f" ({against['split']} split)" if against["split"] else ""
    return (
        f"against {against['against']}{split}, {against['images'][1]:,} images, in the {against['features']} features of "
        f"{against['teacher']}: FID {against['fid']:.4g}, KID {against['kid']:.4g} ± {against['kid_std']:.2g} "
        f"({against['kid_subset_size']} images a subset)"
    )


def _cells(name: str, of: dict[str, Any], known: bool, varied: bool) -> list[Text | str]:
    counts = np.array(of["histogram"]).reshape(BINS, -1).sum(1)
    cells: list[Text | str] = [Text(name), *(f"{of[key]:,}" for key in ("images", "constant", "duplicates"))]
    cells += [_figure(of["accept_rate"], ".1%")] if varied else []
    cells.append(Text(spark(counts.tolist()), style="cyan"))
    if known:
        kinds = {"confidence": ".3f", "entropy": ".3f", "agreement": ".1%", "bn_distance": ".3g", "rms_distance": ".3g"}
        cells += [_figure(of[key], kind) for key, kind in kinds.items()]
    return cells


def _figure(value: float | None, kind: str) -> str:
    return "-" if value is None else f"{value:{kind}}"
