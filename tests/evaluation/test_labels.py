import itertools

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text

from dfkd.evaluation.labels import label_points, place


def overlap(one, other):
    wide, high = min(one[2], other[2]) - max(one[0], other[0]), min(one[3], other[3]) - max(one[1], other[1])
    return max(wide, 0) * max(high, 0)


@pytest.mark.parametrize("kind", ["scattered", "a heap", "one point", "a corner"])
def test_no_name_covers_another_and_all_are_within(kind):
    generator = np.random.default_rng(3)
    spread = {"scattered": 150.0, "a heap": 12.0, "one point": 0.0, "a corner": 4.0}[kind]
    middle = (395.0, 295.0) if kind == "a corner" else (200.0, 150.0)
    marks = [tuple(np.clip(middle + spread * generator.uniform(-1, 1, 2), 0, (400, 300))) for _ in range(15)]
    sizes = [(float(width), 9.0) for width in generator.integers(20, 80, 15)]
    boxes = place(marks, sizes, (0.0, 0.0, 400.0, 300.0))
    assert [(round(b[2] - b[0], 6), round(b[3] - b[1], 6)) for b in boxes] == [(w, h) for w, h in sizes]
    assert max(overlap(one, other) for one, other in itertools.combinations(boxes, 2)) == 0
    assert all(box[0] >= 0 and box[1] >= 0 and box[2] <= 400 and box[3] <= 300 for box in boxes)
    assert boxes == place(marks, sizes, (0.0, 0.0, 400.0, 300.0))


def test_a_name_that_is_alone_stands_right_of_its_point():
    (box,) = place([(50.0, 50.0)], [(30.0, 10.0)], (0.0, 0.0, 200.0, 100.0))
    assert box == pytest.approx((55.0, 45.0, 85.0, 55.0))


def test_names_are_written_on_logarithmic_axes():
    figure = Figure(figsize=(5, 4), dpi=80)
    axes = figure.subplots()
    axes.set_xscale("log")
    axes.set_xlim(10, 1000)
    axes.set_ylim(0, 100)
    points = [(100.0, 50.0), (101.0, 50.5), (102.0, 49.5), (990.0, 99.0)]
    label_points(axes, points, ["cmi-nonadversarial", "cmi-adversarial", "cmi", "real"], ["red", "blue", "green", "grey"])
    renderer = FigureCanvasAgg(figure).get_renderer()
    frame = axes.get_window_extent(renderer).extents
    assert [text.get_text() for text in axes.texts] == ["cmi-nonadversarial", "cmi-adversarial", "cmi", "real"]
    assert [text.get_color() for text in axes.texts] == ["red", "blue", "green", "grey"]
    figure.draw(renderer)  # places the texts
    texts = [Text.get_window_extent(text, renderer).extents for text in axes.texts]  # without the line to the point
    assert max(overlap(one, other) for one, other in itertools.combinations(texts, 2)) == 0
    assert texts[3][2] <= frame[2]
