"""Names beside points of a plot, none upon another."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.patheffects import withStroke

DISTANCES = (5, 9, 14, 20, 28, 38, 50, 64, 80, 100, 125)  # points between a point's centre and the nearest edge of its name
DIRECTIONS = 16
PASSES = 8
POINT = 4.0  # half the side of the square that a point covers, in points
MARGIN = 1.0  # points around a name that stay free
LEADER = 10  # distance from which on a line leads from the point to its name
Box = tuple[float, float, float, float]  # left, bottom, right, top
Boxes = npt.NDArray[np.float64]  # a box a row


def label_points(
    axes: Axes, points: Sequence[tuple[float, float]], texts: Sequence[str], colours: Sequence[str], size: float = 8
) -> None:
    """Write each text beside its point, within the axes, where it covers no other text and no point if there is room.

    Call it when limits and layout are final: the places are in points. Equal arguments give equal places.

    Args:
        points: in the axes' units.
        size: of the font, in points.
    """
    figure = axes.get_figure(root=True)
    assert isinstance(figure, Figure)
    renderer = FigureCanvasAgg(figure).get_renderer()
    scale = figure.dpi / 72
    marks = [tuple(axes.transData.transform(point) / scale) for point in points]
    font = FontProperties(size=size)
    line = renderer.get_text_width_height_descent("lp", font, False)[1]  # what a line of any text has at least
    extents = [renderer.get_text_width_height_descent(text, font, False) for text in texts]
    sizes = [(width / scale + MARGIN, max(height, line) / scale + MARGIN) for width, height, _ in extents]
    frame = tuple(value / scale for value in axes.get_window_extent(renderer).extents)
    places = place(marks, sizes, frame)  # type: ignore[arg-type]
    for mark, box, point, text, colour in zip(marks, places, points, texts, colours, strict=True):
        leader = {"arrowstyle": "-", "color": colour, "linewidth": 0.5, "shrinkA": 1, "shrinkB": 3}
        far = _gap(box, (*mark, *mark)) > LEADER
        shift = ((box[0] + box[2]) / 2 - mark[0], (box[1] + box[3]) / 2 - mark[1])
        written = axes.annotate(
            text, point, shift, textcoords="offset points", size=size, color=colour, ha="center", va="center",
            arrowprops=leader if far else None, annotation_clip=False,
        )  # fmt: skip
        written.set_path_effects([withStroke(linewidth=2, foreground="white")])
        written.set_in_layout(False)


def place(marks: Sequence[tuple[float, float]], sizes: Sequence[tuple[float, float]], frame: Box) -> list[Box]:
    """Boxes of these sizes beside the marks, within the frame, that overlap as little as can be found: each in turn takes
    the best of its places while the others stay, until none moves."""
    covered = np.array([(x - POINT, y - POINT, x + POINT, y + POINT) for x, y in marks])
    choices = [_candidates(mark, size) for mark, size in zip(marks, sizes, strict=True)]
    alone = [_cost_alone(boxes, covered, np.array([frame])) for boxes in choices]
    places = np.array([boxes[0] for boxes in choices])
    order = sorted(range(len(marks)), key=lambda index: marks[index])
    for _ in range(PASSES):
        before = places.copy()
        for index in order:
            others = np.delete(places, index, axis=0)
            costs = alone[index] + 100 * _overlaps(choices[index], others).sum(1)
            places[index] = choices[index][int(costs.argmin())]
        if np.array_equal(places, before):
            break
    return [tuple(box) for box in places.tolist()]


def _candidates(mark: tuple[float, float], size: tuple[float, float]) -> Boxes:
    """Places around the mark [places, 4], the nearest first; right and left before above and below."""
    boxes = []
    turns = sorted(range(DIRECTIONS), key=lambda turn: (abs(math.sin(2 * math.pi * turn / DIRECTIONS)), turn))
    for distance, turn in itertools.product(DISTANCES, turns):
        angle = 2 * math.pi * turn / DIRECTIONS
        x = mark[0] + math.cos(angle) * (distance + size[0] / 2)
        y = mark[1] + math.sin(angle) * (distance + size[1] / 2)
        boxes.append((x - size[0] / 2, y - size[1] / 2, x + size[0] / 2, y + size[1] / 2))
    return np.array(boxes)


def _cost_alone(boxes: Boxes, covered: Boxes, frame: Boxes) -> Boxes:
    """What each place costs whatever the other names do: being outside above all, then covering points, then being far."""
    outside = (boxes[0, 2] - boxes[0, 0]) * (boxes[0, 3] - boxes[0, 1]) - _overlaps(boxes, frame)[:, 0]
    return 1000 * outside + 10 * _overlaps(boxes, covered).sum(1) + 0.01 * np.arange(len(boxes))


def _overlaps(boxes: Boxes, others: Boxes) -> Boxes:
    """The areas that boxes [N, 4] and others [M, 4] share: [N, M]."""
    upper, lower = np.minimum(boxes[:, None, 2:], others[None, :, 2:]), np.maximum(boxes[:, None, :2], others[None, :, :2])
    return np.maximum(upper - lower, 0.0).prod(2)


def _gap(one: Box, other: Box) -> float:
    """How far two boxes lie apart."""
    return math.hypot(max(one[0] - other[2], other[0] - one[2], 0.0), max(one[1] - other[3], other[1] - one[3], 0.0))
