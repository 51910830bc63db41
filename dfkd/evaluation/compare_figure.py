"""The pictures of a comparison: accuracies, learning curves, accuracy against cost, images."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib import colormaps, rc_context
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter
from PIL import Image

from dfkd.bank.grid import CELL, draw_rows
from dfkd.bank.reader import BankReader
from dfkd.errors import UserError
from dfkd.evaluation.compare import Row, run_folders
from dfkd.evaluation.formats import ResultFile
from dfkd.evaluation.labels import label_points
from dfkd.evaluation.plots import STYLE
from dfkd.history import read_history

SHOWN = 20  # images of a method
PALETTES = (("tab10", 10), ("Dark2", 8))
GREYS = (("tab10", 7), ("Dark2", 7))  # left to the controls
LINES = {"real": "--", "noise": ":"}
DPI = 110
# What accuracy is drawn against: name, key of the row, how many of the row's units are one of the name's.
COSTS = (
    ("seconds", "seconds", 1.0),
    ("images", "images", 1.0),
    ("teacher queries", "teacher_queries", 1.0),
    ("Wh", "energy", 3600.0),
)


@dataclass(frozen=True)
class Curve:
    """Test accuracy of one method by epoch, mean over its seeds."""

    method: str
    epochs: list[float]
    acc1: list[float]
    spread: list[float]  # standard deviation (n - 1); 0 for one seed
    seconds: float | None  # of one distillation, measured


def read_curve(result: ResultFile, runs: Path) -> Curve:
    """The learning curve of a method from the histories of its seeds."""
    accuracies, epochs = [], list[float]()
    for folder in run_folders(result, runs):
        path = folder / "history.csv"
        columns = read_history(path)
        if "acc1" not in columns or (epochs and columns["epoch"] != epochs):
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
    colours = colours_of(rows)
    timed = [curve for curve in curves if curve.seconds]
    with rc_context(STYLE):
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
        return rendered(figure)


def draw_costs(rows: Sequence[Row]) -> Image.Image | None:
    """Acc@1 against what one student took: seconds, images, teacher queries, and energy where it is known.

    None if nothing of it was measured. A row without an amount is left out of its panel.
    """
    shown = [
        (title, found)
        for title, key, unit in COSTS
        if (found := [(row, value / unit) for row in rows if (value := getattr(row, key))])
    ]
    if not shown:
        return None
    colours = colours_of(rows)
    with rc_context(STYLE):
        figure = Figure(figsize=(13, 4.6), layout="constrained")
        panels = figure.subplots(1, len(shown), squeeze=False, sharey=True)[0]
        for axes, (title, found) in zip(panels, shown, strict=True):
            _draw_points(axes, found, accuracy_range(rows), colours)
            _label(axes, f"Acc@1 by {title}, %", f"{title} of one student")
        figure.draw_without_rendering()  # the layout is final from here on
        figure.set_layout_engine("none")
        for axes, (_, found) in zip(panels, shown, strict=True):
            low = axes.get_ylim()[0]
            names = [row.method if row.acc1 >= low else f"{row.method} {row.acc1:.1f}" for row, _ in found]
            points = [(cost, max(row.acc1, low)) for row, cost in found]
            label_points(axes, points, names, [colours[row.method] for row, _ in found])
        return rendered(figure)


def _draw_points(axes: Axes, found: Sequence[tuple[Row, float]], limits: tuple[float, float], colours: dict[str, str]) -> None:
    """One panel: a dot a method, hollow for a control, a triangle at the edge for one far below the methods."""
    axes.set_xscale("log")
    costs = [cost for _, cost in found]
    axes.set_xlim(min(costs) / 1.6, max(costs) * 1.6)
    axes.set_ylim(*limits)
    for row, cost in found:
        colour, below = colours[row.method], row.acc1 < limits[0]
        inside = "white" if row.control else colour
        axes.plot(
            cost, max(row.acc1, limits[0]), "v" if below else "o",
            markersize=6, markerfacecolor=inside, markeredgecolor=colour, clip_on=False, zorder=3,
        )  # fmt: skip
        if row.acc1_std and not below:
            axes.errorbar(cost, row.acc1, yerr=row.acc1_std, color=colour, linewidth=0.8, capsize=2)
    free = sorted((cost, -row.acc1) for row, cost in found if row.data_free and not row.control)
    front = [(cost, -low) for place, (cost, low) in enumerate(free) if all(low < other for _, other in free[:place])]
    if front:
        axes.plot(*zip(*front, strict=True), drawstyle="steps-post", color="#bbbbbb", linewidth=1, zorder=1)
    decades = math.log10(max(costs) / min(costs))
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if decades < 1.7 else (1,)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}" if value >= 1 else f"{value:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())


def accuracy_range(rows: Sequence[Row]) -> tuple[float, float]:
    """Limits of Acc@1 that hold every method; a control far below them does not press them together."""
    own = [row.acc1 for row in rows if not row.control] or [row.acc1 for row in rows]
    margin = 0.08 * (max(own) - min(own)) + 0.2
    highest = max(row.acc1 for row in rows)
    lowest = min([*own, *(row.acc1 for row in rows if row.acc1 > min(own) - 4 * margin)])
    return lowest - margin, highest + margin


def colours_of(rows: Sequence[Row]) -> dict[str, str]:
    """A colour for each method, in the order of the rows; controls are grey."""
    palette = [
        to_hex(colormaps[name](place)) for name, count in PALETTES for place in range(count) if (name, place) not in GREYS
    ]
    return {row.method: "#777777" if row.control else palette[place % len(palette)] for place, row in enumerate(rows)}


def rendered(figure: Figure) -> Image.Image:
    """The figure as a picture."""
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=DPI, metadata={"Software": None})
    return Image.open(file).convert("RGB")


def draw_accuracy(axes: Axes, row: Row, place: float, colour: str) -> None:
    """Acc@1 of a method on line `place`: a dot with its spread, a ring for the best epoch, a cross for the published figure."""
    axes.errorbar(row.acc1, place, xerr=row.acc1_std, fmt="o", color=colour, markersize=5, capsize=2)
    if row.best_acc1 is not None:
        axes.plot(row.best_acc1, place, "o", markerfacecolor="none", markeredgecolor=colour, markersize=8)
    if row.published is not None:
        axes.plot(row.published, place, "x", color="black", markersize=5)


def _draw_accuracies(axes: Axes, rows: Sequence[Row], colours: dict[str, str]) -> None:
    for place, row in enumerate(rows):
        draw_accuracy(axes, row, place, colours[row.method])
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


def draw_images(results: Sequence[ResultFile], runs: Path) -> Image.Image | None:
    """A row per method that makes images: the first ones of the bank of its first seed's run. None where no method does."""
    rows, names, size = [], [], 1
    for result in results:
        reader = BankReader(run_folders(result, runs)[0] / "bank.lmdb")
        if len(reader):
            size = reader.meta.dataset.image_size
            rows.append([[image] for image in reader.images(range(min(SHOWN, len(reader))))])
            names.append(result.method)
    return draw_rows(rows, names, size * math.ceil(CELL / size)) if rows else None


def stack(pictures: Sequence[Image.Image]) -> Image.Image:
    """The pictures under each other, on white."""
    both = Image.new("RGB", (max(item.width for item in pictures), sum(item.height for item in pictures)), "white")
    top = 0
    for item in pictures:
        both.paste(item, (0, top))
        top += item.height
    return both
