"""The picture of docs/scaling.md: `python -m benchmarks.scaling_plot [benchmarks/scaling.json] [docs/images/scaling.png]`."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from dfkd.evaluation.plots import STYLE, save_figure

ROOT = Path(__file__).resolve().parents[1]
WHOLE = ("write", "merge", "verify", "load", "open")  # of a bank
BATCHES = ("batch, resident", "batch, streamed")
Curve = dict[int, float]


def curves(samples: Mapping[str, Sequence[float]]) -> tuple[dict[str, Curve], dict[str, Curve]]:
    """Seconds, and bytes that the process grew by: action → images of the bank → value."""
    seconds: dict[str, Curve] = {}
    grown: dict[str, Curve] = {}
    for key, values in samples.items():
        name, count, memory = re.fullmatch(r"(.+), (\d+)(: bytes grown)?", key).groups()  # type: ignore[union-attr]
        (grown if memory else seconds).setdefault(name, {})[int(count)] = values[0]
    return seconds, grown


def draw(content: Mapping[str, object], output: Path) -> None:
    """Seconds of what is done to a whole bank, of a batch, and memory."""
    samples = next(section["samples"] for section in content["sections"] if section["title"].startswith("Banks of"))  # type: ignore
    seconds, grown = curves(samples)
    with rc_context(STYLE):
        figure = Figure(figsize=(12.0, 3.4), layout="constrained")
        whole, batch, memory = figure.subplots(1, 3)
        panel(whole, {name: seconds[name] for name in WHOLE}, "Seconds for the whole bank", 1, "s")
        panel(batch, {name: seconds[name] for name in BATCHES}, "Milliseconds for a batch of 256", 1000, "ms")
        panel(memory, {name: grown[name] for name in (*WHOLE, *BATCHES) if name != "open"}, "Memory that it takes", 1e-6, "MB")
        images = sorted(grown["load"])
        memory.plot(images, [count * 3072e-6 for count in images], color="#999999", linestyle=":", label="the images")
        memory.legend(frameon=False, fontsize=7)
        save_figure(figure, output)


def panel(axes: Axes, found: Mapping[str, Curve], title: str, factor: float, unit: str) -> None:
    """Curves over the number of images, both axes logarithmic."""
    for name, curve in found.items():
        points = sorted(curve.items())
        axes.plot([count for count, _ in points], [factor * value for _, value in points], marker="o", markersize=3, label=name)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_title(title, loc="left", fontweight="bold", fontsize=9)
    axes.set_xlabel("images of 32×32 in the bank")
    axes.set_ylabel(unit)
    axes.legend(frameon=False, fontsize=7)


def main(source: str = str(ROOT / "benchmarks" / "scaling.json"), output: str = str(ROOT / "docs/images/scaling.png")) -> None:
    draw(json.loads(Path(source).read_text(encoding="utf-8")), Path(output))


if __name__ == "__main__":
    main(*sys.argv[1:])
