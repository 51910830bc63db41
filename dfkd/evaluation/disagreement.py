"""Where teacher and student disagree: test images with the label, both answers and how sure each was."""

from __future__ import annotations

import math
from pathlib import Path

import torch
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from dfkd.bank.grid import to_pil
from dfkd.evaluation.evaluated import Evaluated, in_turns
from dfkd.evaluation.plots import ROLE_COLOURS, STYLE, save_figure

MOST_SHOWN = 40
COLUMNS = 8
WIDTH, HEIGHT = 1.55, 1.85  # inches of an image's place with the text under it
IMAGE, LINE = 1.25, 0.14  # inches of the image itself, and of a line of text
TITLE, MARGIN = 0.17, 0.1  # inches of a line of the title, and of what is left free at the left and above
FEWEST_COLUMNS = 4  # that the title needs
LONGEST_NAME = 10  # characters of a class's name


def choose_disagreements(evaluated: Evaluated, count: int = MOST_SHOWN) -> Tensor:
    """Indices of at most `count` images on which student and teacher disagree, int64, in the order of classes.

    The classes take turns, each with the disagreement of which both networks are surest (the less sure one decides). Without a
    teacher these are the student's mistakes, the surest first.
    """
    sure = torch.stack([logits.double().softmax(1).amax(1) for logits in evaluated.logits.values()]).amin(0)
    found = evaluated.marked().nonzero()[:, 0]
    found = found[sure[found].argsort(descending=True, stable=True)]
    chosen = found[in_turns(evaluated.labels[found])[:count]]
    return chosen[evaluated.labels[chosen].argsort(stable=True)]


def plot_disagreement(evaluated: Evaluated, output: str | Path) -> None:
    """Draw the chosen images as PNG; the title says how many there are in all, and who is right how often."""
    chosen = choose_disagreements(evaluated)
    title = describe(evaluated, len(chosen))
    top = TITLE * len(title.splitlines()) + 2 * MARGIN
    columns, rows = min(COLUMNS, max(len(chosen), FEWEST_COLUMNS)), math.ceil(len(chosen) / COLUMNS)
    with rc_context({**STYLE, "axes.grid": False}):
        figure = Figure(figsize=(WIDTH * columns + MARGIN, HEIGHT * rows + top))
        axes = figure.add_axes((0, 0, 1, 1))
        axes.set_axis_off()
        for place, index in enumerate(chosen.tolist()):
            _draw_image(axes, evaluated, index, WIDTH * (place % COLUMNS), HEIGHT * (place // COLUMNS) + top)
        axes.set_xlim(0, WIDTH * columns + MARGIN)
        axes.set_ylim(HEIGHT * rows + top, 0)  # inches from the upper left corner
        axes.text(MARGIN, MARGIN, title, fontweight="bold", fontsize=9, va="top")
        save_figure(figure, output)


def describe(evaluated: Evaluated, shown: int) -> str:
    """How many disagreements there are, who is right in them, and how many are shown."""
    marked, labels = evaluated.marked(), evaluated.labels
    count, total = int(marked.sum()), len(labels)
    part = "" if shown == count else f"; {shown} of them shown, those of which both are surest, class by class"
    if "teacher" not in evaluated.logits:
        return f"The student is wrong on {count:,} of {total:,} test images{part.replace('both are', 'it is')}"
    if not count:
        return f"Teacher and student agree on all {total:,} test images"
    right = {role: int((choice[marked] == labels[marked]).sum()) for role, choice in evaluated.choices.items()}
    return (
        f"Teacher and student disagree on {count:,} of {total:,} test images{part}\n"
        f"Right in these: the teacher {right['teacher']:,}, the student {right['student']:,}, "
        f"neither {count - right['teacher'] - right['student']:,}"
    )


def _draw_image(axes: Axes, evaluated: Evaluated, index: int, left: float, top: float) -> None:
    picture = to_pil(evaluated.images[index]).convert("RGB")
    left += MARGIN
    axes.imshow(picture, extent=(left, left + IMAGE, top + IMAGE, top), interpolation="nearest")
    label = int(evaluated.labels[index])
    lines = [(f"label {_name(evaluated, label)}", "black", "bold")]
    for role, logits in evaluated.logits.items():
        sure, choice = logits[index].double().softmax(0).max(0)
        sign = "✓" if int(choice) == label else "✗"
        lines.append(
            (f"{role} {sign} {_name(evaluated, int(choice))}, {100 * float(sure):.0f} %", ROLE_COLOURS[role], "normal")
        )
    for number, (text, colour, weight) in enumerate(lines):
        axes.text(left, top + IMAGE + 0.04 + LINE * number, text, color=colour, weight=weight, fontsize=7, va="top")


def _name(evaluated: Evaluated, label: int) -> str:
    name = evaluated.info.classes[label]
    return name if len(name) <= LONGEST_NAME else f"{name[: LONGEST_NAME - 1]}…"
