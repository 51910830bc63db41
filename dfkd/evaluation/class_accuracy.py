"""Whether the classes of which the banks hold many images are those that a student has learnt well."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from dfkd.evaluation.evaluated import Evaluated
from dfkd.evaluation.metrics import confusion, per_class_accuracy, rank_correlation
from dfkd.evaluation.plots import MOST_LABELLED, ROLE_COLOURS, STYLE, save_figure

# rings and dots, so that both are seen where the two are equal
MARKS: dict[str, dict[str, Any]] = {
    "teacher": {"s": 60, "facecolors": "none", "edgecolors": ROLE_COLOURS["teacher"], "linewidths": 1.6},
    "student": {"s": 22, "color": ROLE_COLOURS["student"]},
}


def plot_class_accuracy(evaluated: Evaluated, output: str | Path) -> None:
    """Draw Acc@1 of each class against its images in the banks as PNG.

    Where all classes have equally many (or none), which no scatter plot could show, the classes stand beside each other.
    """
    counts = evaluated.bank_images
    matrices = {role: confusion(logits, evaluated.labels) for role, logits in evaluated.logits.items()}
    nan = float("nan")
    accuracies = {
        role: torch.tensor([nan if value is None else value for value in per_class_accuracy(matrix)])
        for role, matrix in matrices.items()
    }
    spread = bool(counts.min() < counts.max())
    with rc_context(STYLE):
        figure = Figure(figsize=(7.2, 4.6), layout="constrained")
        axes = figure.subplots()
        places = counts if spread else torch.arange(len(counts))
        for role, values in accuracies.items():
            there = values.isfinite()
            text = evaluated.title(role)
            if spread:
                found = rank_correlation(counts[there], values[there])
                text += ": rank correlation " + ("undefined" if found is None else f"{found:+.2f}".replace("-", "−"))
            axes.scatter(places[there], values[there], label=text, zorder=3, **MARKS[role])
        if len(accuracies) > 1:
            axes.vlines(places, accuracies["teacher"], accuracies["student"], color="#bbbbbb", linewidth=1, zorder=2)
        _label(axes, evaluated, torch.stack(list(accuracies.values())), spread)
        axes.legend(frameon=False, fontsize=8)
        save_figure(figure, output)


def _label(axes: Axes, evaluated: Evaluated, accuracies: Tensor, spread: bool) -> None:
    classes, counts = evaluated.info.classes, evaluated.bank_images
    total = int(counts.sum())
    axes.set_ylabel("Acc@1 of the class, %")
    if spread:
        axes.set_title(f"Acc@1 by class and the {total:,} images of the banks", loc="left", fontweight="bold", fontsize=9)
        axes.set_xlabel("images of the class in the banks")
        lowest = accuracies.nan_to_num(torch.inf).amin(0)
        if len(classes) <= MOST_LABELLED:
            for name, place, height in zip(classes, counts.tolist(), lowest.tolist(), strict=True):
                if height < float("inf"):
                    axes.annotate(name, (place, height), (0, -11), textcoords="offset points", fontsize=7, ha="center")
        return
    held = f"the banks hold {int(counts[0]):,} images of every class" if total else "no image bank belongs to this student"
    axes.set_title(f"Acc@1 by class ({held})", loc="left", fontweight="bold", fontsize=9)
    axes.set_xlabel("class")
    if len(classes) <= MOST_LABELLED:
        rotation = 45 if max(map(len, classes)) > 2 else 0
        axes.set_xticks(range(len(classes)), classes, rotation=rotation, ha="right" if rotation else "center")
