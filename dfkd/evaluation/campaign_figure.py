"""The picture of a campaign: Acc@1 of every method on every pair, one panel a pair."""

from __future__ import annotations

import math
from collections.abc import Sequence

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from dfkd.campaigns import SCRATCH
from dfkd.evaluation.campaign import Column, Gathered
from dfkd.evaluation.compare import Row
from dfkd.evaluation.compare_figure import accuracy_range, colours_of, draw_accuracy, rendered
from dfkd.evaluation.plots import STYLE

ACROSS = 5  # panels beside each other


def draw_campaign(gathered: Gathered) -> Image.Image:
    """A dot a method with its spread over the seeds; a panel without results says so."""
    methods, columns = gathered.campaign.methods, gathered.columns
    colours = _colours(gathered)
    across = min(ACROSS, len(columns))
    down = math.ceil(len(columns) / across)
    height = 0.24 * len(methods) + 1.0
    with rc_context(STYLE):
        figure = Figure(figsize=(1.6 + 2.9 * max(across, 2), down * height + 0.4), layout="constrained")
        panels = figure.subplots(down, across, squeeze=False)
        for place, axes in enumerate(panels.flat):
            if place >= len(columns):
                axes.set_axis_off()
                continue
            _draw_column(axes, columns[place], methods, colours, named=place % across == 0)
        figure.supxlabel("Acc@1, %. Dot: last epoch, ring: best epoch, cross: published, line: teacher", fontsize=8)
        return rendered(figure)


def _colours(gathered: Gathered) -> dict[str, str]:
    """One colour a method in all panels; grey without a result, for a control and for what has seen the data."""
    first: dict[str, Row] = {}
    for column in gathered.columns:
        for method in gathered.campaign.methods:
            row = column.row(method)
            if row is not None:
                first.setdefault(method, row)
    free = [first[method] for method in gathered.campaign.methods if method in first and first[method].data_free]
    grey = dict.fromkeys((*gathered.campaign.methods, SCRATCH), "#777777")
    return grey | colours_of([row for row in free if not row.control])


def _draw_column(axes: Axes, column: Column, methods: Sequence[str], colours: dict[str, str], named: bool) -> None:
    rows = [(place, row) for place, method in enumerate(methods) if (row := column.row(method)) is not None]
    axes.set_title(f"{column.dataset}\n{column.teacher} → {column.student}", loc="left", fontweight="bold", fontsize=9)
    axes.set_yticks(range(len(methods)), methods if named else [""] * len(methods))
    axes.set_ylim(len(methods) - 0.5, -0.5)
    axes.grid(axis="y", color="#eeeeee")
    for text, method in zip(axes.get_yticklabels(), methods, strict=True):
        text.set_color(colours[method])
        text.set_fontweight("bold")
    if not rows:
        axes.set_xticks([])
        axes.text(0.5, 0.5, "no results yet", transform=axes.transAxes, ha="center", color="#777777")
        return
    low, high = accuracy_range([row for _, row in rows])
    high = max([high, *(row.best_acc1 + 0.3 for _, row in rows if row.best_acc1 is not None)])
    published = [row.published for _, row in rows if row.published is not None]
    high, low = max([high, *(value + 0.3 for value in published)]), min([low, *(value - 0.3 for value in published)])
    if column.teacher_acc1 is not None and column.teacher_acc1 > low:
        high = max(high, column.teacher_acc1 + 0.3)
        axes.axvline(column.teacher_acc1, color="#999999", linewidth=1, zorder=0)
    axes.set_xlim(low, min(high, 100.5))
    for place, row in rows:
        colour = colours[row.method]
        if row.acc1 >= low:
            draw_accuracy(axes, row, place, colour)
        else:  # far below the methods: at the edge, with its figure
            axes.plot(low, place, "<", color=colour, markersize=6, clip_on=False)
            axes.annotate(
                f"{row.acc1:.1f}", (low, place), (7, 0), textcoords="offset points", va="center", fontsize=7, color=colour
            )
