"""The histories of a folder, whole or so far, and their charts."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from markupsafe import Markup
from plotly import graph_objects as go

from dfkd.errors import UserError
from dfkd.history import Columns, Panel, panels_of, partial, read_history, timing
from dfkd.pages import chart

FEW = 30  # points up to which each is marked
CHART_HEIGHT = 270  # pixels, without the legend
LEGEND_HEIGHT = 20  # of a row of it
SPEED = Panel("Images per second", "speed", {"images_per_second": "images/s"}, False)


@dataclass
class Curves:
    """A history, whole or so far."""

    name: str  # "" of a run; `init`, `variations` of banks
    columns: Columns
    times: Columns
    finished: bool

    @property
    def counter(self) -> str:
        """`epoch`, `batch` or `step`."""
        return next(iter(self.columns))

    @property
    def rows(self) -> int:
        """How many there are."""
        return len(self.columns[self.counter])

    @property
    def png(self) -> str:
        """The file's name."""
        return f"{self.name}.curves.png" if self.name else "curves.png"


def find_histories(folder: Path) -> list[Curves]:
    """The histories of a folder: of a run or a teacher, or those of the banks; finished ones before those so far.

    Raises:
        UserError: there is none.
    """
    if (own := _read(folder / "history.csv", "")) is not None:
        return [own]
    init = _read(folder / "init.history.csv", "init") or _shards(folder / "shards")
    found = [curves for curves in (init, _read(folder / "variations.history.csv", "variations")) if curves is not None]
    if not found:
        raise UserError(
            f"{folder}: no history.csv, init.history.csv or variations.history.csv, and none so far; "
            "name the folder of a run, a teacher or a teacher's banks."
        )
    return found


def _read(path: Path, name: str) -> Curves | None:
    for file, finished in ((partial(path), False), (path, True)):  # a stage that runs anew leaves the former file for a while
        if file.exists():
            columns = read_history(file)
            times = read_history(timing(file)) if timing(file).exists() else {}
            if finished or columns[next(iter(columns))]:
                return Curves(name, columns, times, finished)
    return None


def _shards(folder: Path) -> Curves | None:
    """What the shards of the init bank have so far, in the order of their batches."""
    so_far = (path.with_name(path.name.replace(".partial", "")) for path in folder.glob("*.history.partial.csv"))
    read = [_read(path, "init") for path in sorted({*folder.glob("*.history.csv"), *so_far})]
    parts = [part for part in read if part is not None and part.rows]
    if not parts:
        return None
    return Curves("init", _merged([part.columns for part in parts]), _merged([part.times for part in parts]), False)


def _merged(parts: Sequence[Columns]) -> Columns:
    """Rows of all parts by their counter."""
    names = list(dict.fromkeys(name for part in parts for name in part))
    rows = [row for part in parts for row in zip(*(part.get(name, []) for name in names), strict=True)]
    return {name: list(values) for name, values in zip(names, zip(*sorted(rows), strict=True), strict=False)}


def heading_of(curves: Curves) -> str:
    """What a history is about."""
    return {"init": "Init bank, batch by batch", "variations": "Training of the diffusion model"}.get(curves.name, "Curves")


def charts_of(curves: Curves) -> list[Markup]:
    """A chart for each panel of the history, and one of the speed."""
    counts = curves.columns[curves.counter]
    found = [_chart(counts, curves.columns, panel, labels, curves.counter) for panel, labels in panels_of(curves.columns)]
    if any(curves.times.get("images_per_second", [])):
        found.append(_chart(curves.times[curves.counter], curves.times, SPEED, SPEED.labels, curves.counter))
    return found


def _chart(counts: list[float], columns: Columns, panel: Panel, labels: Mapping[str, str], counter: str) -> Markup:
    mode = "lines+markers" if len(counts) <= FEW else "lines"
    figure = go.Figure()
    for key, label in labels.items():
        shown = [value if math.isfinite(value) else None for value in columns[key]]
        figure.add_scatter(x=counts, y=shown, name=label, mode=mode, line={"width": 1.7}, marker={"size": 5})
    values = [value for key in labels for value in columns[key] if math.isfinite(value)]
    log = panel.log and min(values) > 0
    figure.update_layout(
        title={"text": f"<b>{panel.title}</b>", "x": 0, "xref": "paper", "font": {"size": 13}},
        xaxis={"title": {"text": counter, "standoff": 6}},
        yaxis={"type": "log", "dtick": 1 if max(values) > 50 * min(values) else None} if log else {},
        hovermode="x unified",
        showlegend=len(labels) > 1,
        legend={"orientation": "h", "y": -0.24, "yanchor": "top", "x": 0, "font": {"size": 11}},
        height=CHART_HEIGHT + LEGEND_HEIGHT * math.ceil(len(labels) / 4),
    )
    return chart(figure)
