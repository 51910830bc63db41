"""Reliability diagrams: whether a network that is 80 % sure is right 80 % of the time (Guo et al., ICML 2017)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from dfkd.evaluation.evaluated import Evaluated
from dfkd.evaluation.metrics import CalibrationBins, calibration_bins, ece
from dfkd.evaluation.plots import ROLE_COLOURS, STYLE, save_figure

GAP, GAP_FACE = "#c62828", "#f6d5d5"


def plot_reliability(evaluated: Evaluated, output: str | Path, bins: int = 15) -> None:
    """Draw accuracy against confidence for each network as PNG, the gap to the confidence shaded, the images per bin below."""
    roles = list(evaluated.logits)
    with rc_context(STYLE):
        figure = Figure(figsize=(4.2 * len(roles) + (0.8 if len(roles) == 1 else 0), 4.9), layout="constrained")
        panels = figure.subplots(2, len(roles), squeeze=False, sharex=True, sharey="row", height_ratios=[3, 1])
        for (upper, lower), role in zip(panels.T, roles, strict=True):
            logits = evaluated.logits[role]
            found = calibration_bins(logits, evaluated.labels, bins)
            _draw_accuracy(upper, found, role)
            mean = float((found.counts * found.confidence).sum() / len(logits))
            accuracy = float((found.counts * found.accuracy).sum() / len(logits))
            figures = f"accuracy {100 * accuracy:.2f} %, mean confidence {100 * mean:.2f} %"
            upper.set_title(
                f"{evaluated.title(role)}: ECE {ece(logits, evaluated.labels, bins):.4f}\n{figures}",
                loc="left",
                fontweight="bold",
                fontsize=9,
            )
            edges = np.linspace(0, 1, bins + 1)
            lower.bar(edges[:-1], found.counts.numpy(), 1 / bins, align="edge", color=ROLE_COLOURS[role], edgecolor="white")
            lower.set_yscale("symlog", linthresh=10)
            lower.set_xlabel("confidence in the first choice")
        panels[0, 0].set_ylabel("accuracy")
        panels[1, 0].set_ylabel("images")
        handles, labels = panels[0, 0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False, fontsize=8)
        save_figure(figure, output)


def _draw_accuracy(axes: Axes, found: CalibrationBins, role: str) -> None:
    bins = len(found.counts)
    left = np.linspace(0, 1, bins + 1)[:-1]
    there = (found.counts > 0).numpy()
    accuracy, confidence = found.accuracy.numpy(), found.confidence.numpy()
    axes.bar(left[there], accuracy[there], 1 / bins, align="edge", color=ROLE_COLOURS[role], alpha=0.55, edgecolor="white")
    axes.bar(
        left[there], (confidence - accuracy)[there], 1 / bins, accuracy[there], align="edge", color=GAP_FACE, edgecolor=GAP,
        hatch="////", linewidth=0, label="gap to the mean confidence",
    )  # fmt: skip
    axes.hlines(accuracy[there], left[there], left[there] + 1 / bins, color=ROLE_COLOURS[role], linewidth=2.5, label="accuracy")
    axes.plot([0, 1], [0, 1], color="#666666", linewidth=1, linestyle="--", label="perfect calibration")
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1.01)
