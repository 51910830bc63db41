"""The page of a campaign: one HTML file that loads nothing, its figures as CSV and its picture as PNG beside it."""

from __future__ import annotations

import os
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import quote

from dfkd.campaigns import FOLDER, Campaign
from dfkd.errors import UserError
from dfkd.evaluation.campaign import Column, Gathered, Place, StageTotal, add_up, gather, write_csv
from dfkd.evaluation.campaign_figure import draw_campaign
from dfkd.evaluation.compare import CONTROLS
from dfkd.evaluation.results_table import legend, signed, spread
from dfkd.evaluation.show import duration, energy
from dfkd.files import atomic_path
from dfkd.pages import picture_uri, write_page


@dataclass(frozen=True)
class View:
    """One figure of all methods on all pairs."""

    title: str
    note: str
    key: str  # of the row
    text: Callable[[float, float | None], str]  # the figure and its standard deviation, for people
    rising: bool = True  # more is better
    published: str = ""  # key of the row: minus the published figure


def _percent(value: float, deviation: float | None) -> str:
    return spread(value, deviation)


def _whole(value: float, _: float | None) -> str:
    return f"{value:,.0f}"


VIEWS = (
    View("Acc@1", "Last epoch, %.", "acc1", _percent, published="last_minus_published"),
    View("Acc@1, best epoch", "Of the epoch chosen on the test split, %.", "best_acc1", _percent,
         published="best_minus_published"),
    View("Agree@1", "Test images on which student and teacher choose the same class, %, last epoch.", "agree1", _percent),
    View("L_p", "Probability loyalty, mean of 1 − JSD^(1/4), last epoch.", "lp", lambda value, std: spread(value, std, 4)),
    View("Time", "Of one student: the banks of its method, whole, and its distillation.", "seconds",
         lambda value, _: duration(value), rising=False),
    View("Teacher queries", "Images that the teacher classified for one student.", "teacher_queries", _whole, rising=False),
    View("Images", "Synthesised for one student.", "images", _whole, rising=False),
    View("Energy", "Of one student: CPU packages and GPU, whatever else ran on them included.", "energy",
         lambda value, _: energy(value), rising=False),
)  # fmt: skip


@dataclass(frozen=True)
class Shown:
    """A cell of a view's table."""

    value: float | None = None
    text: str = ""
    state: str = "done"
    hint: str = ""
    best: bool = False
    difference: str = ""  # to the best data-free method
    noise: bool = False  # the difference may be noise
    published: str = ""
    source: str = ""
    page: Path | None = None  # of the result, below the folder `results`


@dataclass(frozen=True)
class Line:
    """A method in a view's table."""

    method: str
    reference: bool  # a control, or not data-free: not among those that can be the best
    badge: str
    cells: list[Shown]
    mean: Shown


def write_campaign(name: str, campaign: Campaign, results: Path, output: Path) -> Gathered:
    """Gather a campaign; writes `output` (HTML) and .csv and .png beside it. What is missing is shown as missing.

    Raises:
        UserError: the output is no HTML file, or Snakemake would take an incomplete page for the finished one.
    """
    if output.suffix != ".html":
        raise UserError(f"{output}: a campaign is an HTML file; name one that ends in .html.")
    gathered = gather(name, campaign, results)
    if gathered.missing and output.resolve() == (results / FOLDER / f"{name}.html").resolve():
        raise UserError(
            f"{output}: {len(gathered.missing)} results are missing, and Snakemake would take this page for the finished one; "
            "name another file."
        )
    picture = draw_campaign(gathered)
    write_csv(gathered, output.with_suffix(".csv"))
    with atomic_path(output.with_suffix(".png")) as temporary:
        picture.save(temporary, format="PNG")
    write_page(output, "campaign.html", **content(gathered, results, output), picture=picture_uri(picture))
    return gathered


def content(gathered: Gathered, results: Path, output: Path) -> dict[str, Any]:
    """What the template shows."""

    def link(page: Path | None) -> str:
        """Where a page lies as the output says it; empty if it is not there."""
        if page is None or not (results / page).exists():
            return ""
        return quote(Path(os.path.relpath(results / page, output.parent)).as_posix())

    views = [(view, lines(gathered, view)) for view in VIEWS]
    return {
        "title": gathered.campaign.title,
        "campaign": gathered.campaign,
        "name": gathered.name,
        "figures": headline(gathered),
        "columns": gathered.columns,
        "link": link,
        "linked": any(link(place.page) for place in gathered.places if place.state == "done"),
        "views": [(view, rows) for view, rows in views if any(cell.value for row in rows for cell in row.cells)],
        "legend": legend(gathered.groups) if gathered.groups else [],
        "notes": [(column, column.note) for column in gathered.columns if column.note],
        "missing": gathered.missing,
        "excluded": [place for place in gathered.places if place.state == "excluded"],
        "costs": [cost_line(total) for total in gathered.totals],
        "sum": cost_line(_sum(gathered.totals)) if gathered.totals else [],
        "metered": any(total.amounts.energy is not None for total in gathered.totals),
    }


def headline(gathered: Gathered) -> list[tuple[str, str, str]]:
    """The large figures: name, value, note."""
    count = gathered.done + len(gathered.missing)
    shown = [("results", f"{gathered.done} of {count}", "complete" if gathered.done == count else "the others are missing")]
    if gathered.totals:
        whole = _sum(gathered.totals).amounts
        students = sum(total.jobs for total in gathered.totals if total.stage in ("distill", "scratch"))
        shown += [
            ("students", f"{students:,}", f"seeds {', '.join(map(str, gathered.campaign.own_seeds))}"),
            ("time", duration(whole.seconds), "of all jobs, shared ones once"),
            ("images", f"{whole.images:,.0f}", "synthesised"),
            ("teacher queries", f"{whole.teacher_queries:,.0f}", "images classified"),
        ]
        if whole.energy is not None:
            shown.append(("energy", energy(whole.energy), "CPU packages and GPU"))
    return shown


def lines(gathered: Gathered, view: View) -> list[Line]:
    """The methods of a view's table, in the campaign's order."""
    bests = [_best(column, view) for column in gathered.columns]
    found = []
    for index, method in enumerate(gathered.campaign.methods):
        places = [column.places[index] for column in gathered.columns]
        row = next((place.row for place in places if place.row is not None), None)
        cells = [_shown(place, view, value) for place, value in zip(places, bests, strict=True)]
        values = [cell.value for cell, best in zip(cells, bests, strict=True) if best is not None]
        known = [value for value in values if value is not None]
        mean = statistics.fmean(known) if known and len(known) == len(values) else None  # over the same columns for all
        badge = "not data-free" if row is not None and not row.data_free else ""
        reference = bool(badge) or method in CONTROLS
        found.append(Line(method, reference, badge, cells, Shown(mean, "" if mean is None else view.text(mean, None))))
    means = [line.mean.value for line in found if line.mean.value is not None and not line.reference]
    highest = (max if view.rising else min)(means) if means else None
    return [
        line
        if line.reference or line.mean.value != highest
        else replace(line, mean=replace(line.mean, best=highest is not None))
        for line in found
    ]


def _best(column: Column, view: View) -> float | None:
    """The best figure of a data-free method in a column."""
    rows = [place.row for place in column.places if place.row is not None]
    values = [getattr(row, view.key) for row in rows if row.data_free and not row.control]
    known = [value for value in values if value is not None]
    return (max if view.rising else min)(known) if known else None


def _shown(place: Place, view: View, best: float | None) -> Shown:
    if place.row is None:
        hint = place.reason or ("left out" if place.state == "excluded" else f"{place.file}: no such file")
        return Shown(text="–" if place.state == "excluded" else "missing", state=place.state, hint=hint)
    row = place.row
    value = getattr(row, view.key)
    if value is None:
        return Shown()
    own = row.data_free and not row.control
    text = view.text(value, getattr(row, f"{view.key}_std", None))
    shown = Shown(value, text, best=own and value == best, page=place.page)
    if view.key == "acc1" and not place.best:
        mark = {True: "● ", False: "○ ", None: ""}[row.exceeds_noise]
        shown = replace(shown, difference=mark + signed(row.to_best), noise=row.exceeds_noise is False)
    if view.published and row.published is not None:
        beside = f"{row.published:.2f} ({signed(getattr(row, view.published))})"
        shown = replace(shown, published=beside, source=row.published_source)
    return shown


def cost_line(total: StageTotal) -> list[str]:
    """Stage, jobs, time, images, teacher queries, optimiser steps, energy."""
    own = total.amounts
    counts = [f"{number:,.0f}" for number in (own.images, own.teacher_queries, own.optimiser_steps)]
    return [total.stage, f"{total.jobs:,}", duration(own.seconds), *counts, energy(own.energy)]


def _sum(totals: Sequence[StageTotal]) -> StageTotal:
    return add_up("all", [(total.jobs, total.amounts) for total in totals])
