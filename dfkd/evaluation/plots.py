"""Learning curves and confusion matrices as PNG files whose bytes depend on the figures alone; the style of all pictures."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from cycler import cycler
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.ticker import MaxNLocator

from dfkd.evaluation.formats import MetricsFile
from dfkd.files import atomic_path
from dfkd.history import Columns, Panel, panels_of, read_history
from dfkd.pages import COLOURS

STYLE: dict[Any, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.3,
    "axes.prop_cycle": cycler(color=list(COLOURS)),
}
ROLE_COLOURS = {"teacher": "#0b5394", "student": "#cc4c02"}  # of the two networks, in every picture
MOST_LABELLED = 20  # classes up to which a confusion matrix carries names and numbers


def plot_history(history: str | Path, output: str | Path, title: str = "") -> None:
    """Draw the learning curves of a history.csv: a panel for each group of columns that is there."""
    draw_history(read_history(history), output, title)


def draw_history(columns: Columns, output: str | Path, title: str = "") -> None:
    """The same, of columns that are read already."""
    panels = panels_of(columns)
    wide = max(1, min(len(panels), 3))
    high = max(1, math.ceil(len(panels) / wide))
    with rc_context(STYLE):
        figure = Figure(figsize=(4.2 * wide, 2.9 * high + (0.3 if title else 0)), layout="constrained")
        axes = figure.subplots(high, wide, squeeze=False).flatten()
        for place, (panel, labels) in zip(axes, panels, strict=False):
            _draw_panel(place, columns, panel, labels)
        for place in axes[len(panels) :]:
            place.remove()
        if not panels:
            figure.text(0.5, 0.5, "no figures: nothing was trained", ha="center", va="center", color="#666666")
        if title:
            figure.suptitle(title)
        save_figure(figure, output)


def _draw_panel(axes: Axes, columns: Columns, panel: Panel, labels: dict[str, str]) -> None:
    counter = next(iter(columns))
    marker = "o" if len(columns[counter]) <= 30 else None
    for key, label in labels.items():
        axes.plot(columns[counter], columns[key], label=label, linewidth=1.4, marker=marker, markersize=2.5)
    shown = [value for key in labels for value in columns[key] if math.isfinite(value)]
    if panel.log and min(shown) > 0:
        axes.set_yscale("log")
    axes.set_title(panel.title, loc="left", fontweight="bold", fontsize=9)
    axes.set_xlabel(counter)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    if len(columns[counter]) == 1:
        axes.set_xticks(columns[counter])
    if len(labels) > 1:
        axes.legend(frameon=False, fontsize=8)


def plot_confusion(file: MetricsFile, output: str | Path) -> None:
    """Draw the confusion matrices of teacher (if there is one) and student (last epoch) of metrics.json, in % of each class."""
    pairs = [(f"Student {file.student.name}: {file.last.acc1:.2f} %", file.last.confusion)]
    if file.teacher is not None:
        pairs.insert(0, (f"Teacher {file.teacher.name}: {file.teacher.acc1:.2f} %", file.teacher.confusion))
    classes = file.classes
    with rc_context({**STYLE, "axes.grid": False}):
        figure = Figure(figsize=(10.4 if len(pairs) > 1 else 5.8, 5.0), layout="constrained")
        panels = figure.subplots(1, len(pairs), sharey=True, squeeze=False)[0]
        for axes, (name, matrix) in zip(panels, pairs, strict=True):
            image = _draw_matrix(axes, matrix, classes)
            axes.set_title(name, loc="left", fontweight="bold", fontsize=9)
        panels[0].set_ylabel("label")
        for axes in panels[1:]:
            axes.tick_params(left=False)
        figure.colorbar(image, ax=list(panels), shrink=0.8, label="% of the images of the class")
        save_figure(figure, output)


def _draw_matrix(axes: Axes, matrix: list[list[int]], classes: list[str]) -> AxesImage:
    shares = [[100 * count / max(sum(row), 1) for count in row] for row in matrix]
    image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=100)
    axes.set_xlabel("chosen class")
    for side in ("left", "bottom"):
        axes.spines[side].set_visible(False)
    if len(classes) > MOST_LABELLED:
        return image
    places = range(len(classes))
    rotation = 45 if max(len(name) for name in classes) > 2 else 0
    axes.set_xticks(places, classes, rotation=rotation, ha="right" if rotation else "center")
    axes.set_yticks(places, classes)
    for row, counts in enumerate(matrix):
        for column, count in enumerate(counts):
            if count:
                colour = "white" if shares[row][column] > 50 else "black"
                axes.text(column, row, str(count), ha="center", va="center", color=colour, fontsize=7)
    return image


def save_figure(figure: Figure, output: str | Path) -> None:
    """Write a PNG without the library's version in it, so that equal figures are equal bytes."""
    with atomic_path(output) as temporary:
        figure.savefig(temporary, format="png", dpi=110, metadata={"Software": None})
