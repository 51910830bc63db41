"""Learning curves and confusion matrices as PNG files whose bytes depend on the figures alone."""

from __future__ import annotations

import csv
import math
from pathlib import Path
from typing import Any

from cycler import cycler
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.ticker import MaxNLocator

from dfkd.errors import UserError
from dfkd.evaluation.formats import read_metrics
from dfkd.files import atomic_path, unreadable

# Panels of the learning curves: title, columns of history.csv with their labels, logarithmic y axis.
PANELS: tuple[tuple[str, dict[str, str], bool], ...] = (
    ("On the test split, %", {"acc1": "Acc@1", "agree1": "Agree@1"}, False),
    (
        "Student's loss",
        {"loss": "total", "kd": "KL to teacher", "ce": "cross-entropy", "feature": "features", "head": "head"},
        True,
    ),
    ("Generator's loss", {"g_loss": "total", "g_bn": "BN statistics", "g_oh": "one-hot", "g_csd": "against the head"}, False),
    ("Learning rate", {"lr": "student"}, False),
    ("Images in the bank", {"images": "images"}, False),
)
STYLE: dict[Any, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.3,
    "axes.prop_cycle": cycler(color=["#0b5394", "#cc4c02", "#3a7d44", "#7b3294", "#666666", "#b58900", "#00838f", "#ad1457"]),
}
MOST_LABELLED = 20  # classes up to which a confusion matrix carries names and numbers


def plot_history(history: str | Path, output: str | Path, title: str = "") -> None:
    """Draw the learning curves of a history.csv (first column `epoch`): a panel for each group of columns that is there."""
    columns = read_history(history)
    panels = []
    for name, labels, log in PANELS:
        if "g_loss" in labels:  # what else a method's generator minimises is drawn under its own name
            labels = {**labels, **{key: key[2:] for key in columns if key.startswith("g_") and key not in labels}}
        present = {key: label for key, label in labels.items() if any(math.isfinite(value) for value in columns.get(key, []))}
        if present:
            panels.append((name, present, log))
    if not panels:
        raise UserError(f"{history}: none of the columns that can be drawn; is it a history.csv of this package?")
    wide = min(len(panels), 3)
    high = math.ceil(len(panels) / wide)
    with rc_context(STYLE):
        figure = Figure(figsize=(4.2 * wide, 2.9 * high + (0.3 if title else 0)), layout="constrained")
        axes = figure.subplots(high, wide, squeeze=False).flatten()
        for panel, (name, labels, log) in zip(axes, panels, strict=False):
            _draw_panel(panel, columns, name, labels, log)
        for panel in axes[len(panels) :]:
            panel.remove()
        if title:
            figure.suptitle(title)
        _save(figure, output)


def _draw_panel(axes: Axes, columns: dict[str, list[float]], name: str, labels: dict[str, str], log: bool) -> None:
    marker = "o" if len(columns["epoch"]) <= 30 else None
    for key, label in labels.items():
        axes.plot(columns["epoch"], columns[key], label=label, linewidth=1.4, marker=marker, markersize=2.5)
    shown = [value for key in labels for value in columns[key] if math.isfinite(value)]
    if log and min(shown) > 0:
        axes.set_yscale("log")
    axes.set_title(name, loc="left", fontweight="bold", fontsize=9)
    axes.set_xlabel("epoch")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    if len(labels) > 1:
        axes.legend(frameon=False, fontsize=8)


def read_history(path: str | Path) -> dict[str, list[float]]:
    """The numeric columns of a history.csv; NaN where a cell is empty. A file that is none is a `UserError`."""
    try:
        with Path(path).open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
        if not rows or "epoch" not in rows[0]:
            raise UserError(f"{path}: no rows with a column `epoch`; is it a history.csv of this package?")
        return {key: [float(row[key] or "nan") for row in rows] for key in rows[0] if key is not None}
    except OSError as error:
        raise unreadable(path, error) from None
    except (ValueError, TypeError) as error:
        raise UserError(f"{path}: not a history.csv of this package ({error}).") from None


def plot_confusion(metrics: str | Path, output: str | Path) -> None:
    """Draw the confusion matrices of teacher (if there is one) and student (last epoch) of metrics.json, in % of each class."""
    file = read_metrics(metrics)
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
        _save(figure, output)


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


def _save(figure: Figure, output: str | Path) -> None:
    """As PNG without the library's version in it, so that equal figures are equal bytes."""
    with atomic_path(output) as temporary:
        figure.savefig(temporary, format="png", dpi=110, metadata={"Software": None})
