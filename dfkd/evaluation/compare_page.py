"""A comparison of methods to look at: one HTML file that loads nothing, its figure as PNG and its table as CSV beside it."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import colormaps, rc_context
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from PIL import Image

from dfkd.bank.grid import CELL, draw_rows
from dfkd.bank.reader import BankReader
from dfkd.errors import UserError
from dfkd.evaluation.compare import (
    FEWEST_SEEDS,
    LEVEL,
    Row,
    read_correct,
    read_results,
    run_folders,
    table,
    teacher_of,
    write_csv,
)
from dfkd.evaluation.formats import ResultFile
from dfkd.evaluation.plots import STYLE as PLOT_STYLE
from dfkd.files import atomic_path
from dfkd.history import read_history
from dfkd.pages import check_page, picture_uri, write_page

SHOWN = 20  # images of a method
PALETTES = (("tab10", 10), ("Dark2", 8))
GREYS = (("tab10", 7), ("Dark2", 7))  # left to the controls
LINES = {"real": "--", "noise": ":"}
# Title of a column, what it means.
COLUMNS = (
    ("method", "grey: a control"),
    ("Acc@1", "last epoch, %, mean ± standard deviation over the seeds"),
    ("to the best", "Acc@1 minus that of the best data-free method, percentage points, with its interval"),
    ("best epoch", "Acc@1 of the epoch chosen on the test split, %"),
    ("Agree@1", "share of test images on which student and teacher choose the same class, %"),
    ("L_p", "probability loyalty, mean of 1 − JSD^(1/4)"),
    ("seconds", "of one student: the method's banks and its distillation"),
    ("images", "synthesised for one student"),
    ("teacher queries", "images that the teacher classified for one student"),
    ("published", "Acc@1 of the same pair, %; the highest where sources differ; the source on the figure"),
    ("last − published", "percentage points"),
    ("best − published", "percentage points"),
)


@dataclass(frozen=True)
class Curve:
    """Test accuracy of one method by epoch, mean over its seeds."""

    method: str
    epochs: list[float]
    acc1: list[float]
    spread: list[float]  # standard deviation (n - 1); 0 for one seed
    seconds: float | None  # of one distillation, measured


def write_comparison(paths: Sequence[Path], runs: Path, output: Path) -> list[Row]:
    """Compare the methods of these result files; writes `output` (HTML) and .png and .csv beside it.

    Args:
        paths: result files of one target, one a method.
        runs: `results/runs`, where their histories, banks and predictions lie.
        output: the HTML file.

    Raises:
        UserError: a file is absent, broken or of another target, or a result does not fit its run.
    """
    check_page(output)
    results = read_results(paths)
    rows = table(results, read_correct(results, runs))
    by_method = {result.method: result for result in results}
    ordered = [by_method[row.method] for row in rows]
    curves = [read_curve(result, runs) for result in ordered]
    figure, sheet = draw_figure(rows, curves), draw_images(ordered, runs)
    content = page(ordered[0], rows, figure, sheet)
    write_csv(rows, output.with_suffix(".csv"))
    with atomic_path(output.with_suffix(".png")) as temporary:
        _above(figure, sheet).save(temporary, format="PNG")
    write_page(output, "compare.html", **content)
    return rows


def read_curve(result: ResultFile, runs: Path) -> Curve:
    """The learning curve of a method from the histories of its seeds."""
    accuracies, epochs = [], list[float]()
    for folder in run_folders(result, runs):
        path = folder / "history.csv"
        columns = read_history(path)
        if not columns.get("acc1") or (epochs and columns["epoch"] != epochs):
            raise UserError(f"{path}: no column `acc1`, or not the epochs of the other seeds; run the distil stage again.")
        epochs = columns["epoch"]
        accuracies.append(columns["acc1"])
    values = np.array(accuracies, dtype=np.float64)
    spread = values.std(0, ddof=1) if len(values) > 1 else np.zeros(len(epochs))
    cost = result.cost.get("distill")
    seconds = None if cost is None else (cost.per_seed or cost).seconds
    return Curve(result.method, epochs, values.mean(0).tolist(), spread.tolist(), seconds)


def draw_figure(rows: Sequence[Row], curves: Sequence[Curve]) -> Image.Image:
    """Acc@1 of each method, and its learning curve against epochs and against seconds. The names are the legend."""
    palette = [
        to_hex(colormaps[name](place)) for name, count in PALETTES for place in range(count) if (name, place) not in GREYS
    ]
    colours = {row.method: "#777777" if row.control else palette[place % len(palette)] for place, row in enumerate(rows)}
    timed = [curve for curve in curves if curve.seconds]
    with rc_context(PLOT_STYLE):
        figure = Figure(figsize=(13, max(3.4, 0.28 * len(rows) + 1.2)), layout="constrained")
        panels = figure.subplots(1, 3 if timed else 2)
        _draw_accuracies(panels[0], rows, colours)
        for curve in curves:
            _draw_curve(panels[1], curve, curve.epochs, colours[curve.method])
        _label(panels[1], "Acc@1 by epoch, %", "epoch")
        panels[1].xaxis.set_major_locator(MaxNLocator(integer=True))
        for curve in timed:
            last = curve.epochs[-1]
            times = [epoch / last * (curve.seconds or 0.0) for epoch in curve.epochs]
            _draw_curve(panels[2], curve, times, colours[curve.method])
        if timed:
            _label(
                panels[2], "Acc@1 by time, %", "seconds = epoch / epochs × measured seconds of the\ndistillation, without banks"
            )
            panels[2].set_xscale("log")
        file = io.BytesIO()
        figure.savefig(file, format="png", dpi=110, metadata={"Software": None})
    return Image.open(file).convert("RGB")


def _draw_accuracies(axes: Axes, rows: Sequence[Row], colours: dict[str, str]) -> None:
    for place, row in enumerate(rows):
        colour = colours[row.method]
        axes.errorbar(row.acc1, place, xerr=row.acc1_std, fmt="o", color=colour, markersize=5, capsize=2)
        if row.best_acc1 is not None:
            axes.plot(row.best_acc1, place, "o", markerfacecolor="none", markeredgecolor=colour, markersize=8)
        if row.published is not None:
            axes.plot(row.published, place, "x", color="black", markersize=5)
    axes.set_yticks(range(len(rows)), [row.method for row in rows])
    for text, row in zip(axes.get_yticklabels(), rows, strict=True):
        text.set_color(colours[row.method])
        text.set_fontweight("bold")
    axes.invert_yaxis()
    published = ", cross: published" if any(row.published is not None for row in rows) else ""
    _label(axes, "Acc@1, %", f"dot: last epoch, ring: best epoch{published}")


def _draw_curve(axes: Axes, curve: Curve, across: Sequence[float], colour: str) -> None:
    marker = "o" if len(across) == 1 else None
    axes.plot(across, curve.acc1, LINES.get(curve.method, "-"), color=colour, linewidth=1.3, marker=marker)
    if any(curve.spread):
        low, high = (np.add(curve.acc1, sign * np.array(curve.spread)) for sign in (-1, 1))
        axes.fill_between(across, low, high, color=colour, alpha=0.15, linewidth=0)


def _label(axes: Axes, title: str, across: str) -> None:
    axes.set_title(title, loc="left", fontweight="bold", fontsize=9)
    axes.set_xlabel(across, fontsize=8)


def draw_images(results: Sequence[ResultFile], runs: Path) -> Image.Image:
    """A row per method: the first images of the bank of its first seed's run; empty for a run that makes none."""
    rows, size = [], 1
    for result in results:
        reader = BankReader(run_folders(result, runs)[0] / "bank.lmdb")
        size = reader.meta.dataset.image_size
        rows.append([[image] for image in reader.images(range(min(SHOWN, len(reader))))])
    return draw_rows(rows, [result.method for result in results], size * math.ceil(CELL / size))


def page(first: ResultFile, rows: Sequence[Row], figure: Image.Image, sheet: Image.Image) -> dict[str, Any]:
    """What the template of the comparison is filled with."""
    return {
        "title": f"{first.dataset}: {teacher_of(first).name} → {first.student.name}",
        "teacher": teacher_of(first),
        "student": first.student,
        "about_noise": _about_noise(rows),
        "columns": COLUMNS,
        "rows": [(row, _cells(row)) for row in rows],
        "figure": picture_uri(figure),
        "sheet": picture_uri(sheet),
    }


def _about_noise(rows: Sequence[Row]) -> str:
    if all(row.exceeds_noise is None for row in rows):
        return f"Fewer than {FEWEST_SEEDS} seeds: which differences are more than noise is not known."
    return (
        f"A difference to the best data-free method is marked ● when its {100 * LEVEL:.0f} % interval leaves out 0 "
        "(paired bootstrap over test images and seeds, each method on its own), ○ when it may be noise."
    )


def _cells(row: Row) -> list[tuple[Any, str, str, str]]:
    """Of each column after the method's name: the value that it is sorted by, the words, small ones below, a title."""
    mark = "" if row.exceeds_noise is None else ("● " if row.exceeds_noise else "○ ")
    interval = "" if row.to_best_low is None else f"{row.to_best_low:+.2f} to {row.to_best_high:+.2f}"
    published = "" if row.published is None else f"{row.published:.2f}"
    return [
        (row.acc1, _spread(row.acc1, row.acc1_std, 2), "", ""),
        (row.to_best, f"{mark}{row.to_best:+.2f}", interval, ""),
        (row.best_acc1, _spread(row.best_acc1, row.best_acc1_std, 2), "", ""),
        (row.agree1, _spread(row.agree1, row.agree1_std, 2), "", ""),
        (row.lp, _spread(row.lp, row.lp_std, 4), "", ""),
        (row.seconds, f"{row.seconds:,.0f}", "", ""),
        (row.images, f"{row.images:,.0f}", "", ""),
        (row.teacher_queries, f"{row.teacher_queries:,.0f}", "", ""),
        (row.published, published, "", row.published_source),
        (row.last_minus_published, _signed(row.last_minus_published), "", ""),
        (row.best_minus_published, _signed(row.best_minus_published), "", ""),
    ]


def _spread(value: float | None, spread: float | None, decimals: int) -> str:
    if value is None:
        return ""
    return f"{value:.{decimals}f}" + ("" if spread is None else f" ± {spread:.{decimals}f}")


def _signed(value: float | None) -> str:
    return "" if value is None else f"{value:+.2f}"


def _above(upper: Image.Image, lower: Image.Image) -> Image.Image:
    """The two pictures under each other, on white."""
    both = Image.new("RGB", (max(upper.width, lower.width), upper.height + lower.height), "white")
    both.paste(upper, (0, 0))
    both.paste(lower, (0, upper.height))
    return both
