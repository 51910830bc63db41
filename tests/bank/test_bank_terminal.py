from __future__ import annotations

import io

import pytest
import torch
from rich.console import Console

from dfkd.bank.terminal import bar, fitting_scale, half_blocks, shades, spark

GREY = torch.tensor([[[0, 255], [10, 20], [30, 40]]], dtype=torch.uint8)


def cells(text):
    """(character, foreground, background) of each cell, line by line."""
    console = Console(file=io.StringIO(), force_terminal=True, color_system="truecolor", width=80)
    lines = console.render_lines(text, pad=False)

    def triplet(color):
        return None if color is None else tuple(color.triplet)

    return [
        [(char, triplet(segment.style.color), triplet(segment.style.bgcolor)) for segment in line for char in segment.text]
        for line in lines
    ]


def test_two_pixels_a_character():
    assert cells(half_blocks(GREY)) == [
        [("▀", (0,) * 3, (10,) * 3), ("▀", (255,) * 3, (20,) * 3)],
        [("▀", (30,) * 3, None), ("▀", (40,) * 3, None)],
    ]


def test_colours_and_scales():
    image = torch.tensor([[1, 2]] * 2, dtype=torch.uint8).expand(3, 2, 2).clone()
    image[1] += 100
    first, second = (1, 101, 1), (2, 102, 2)
    assert cells(half_blocks(image)) == [[("▀", first, first), ("▀", second, second)]]
    assert cells(half_blocks(image, 2)) == [[("▀", c, c) for c in (first, first, second, second)]] * 2
    large = image.repeat_interleave(3, 1).repeat_interleave(3, 2)
    assert cells(half_blocks(large, -3)) == cells(half_blocks(image))


def test_shades_without_colours():
    assert shades(GREY).plain == "  @@\n    \n...."
    assert "\x1b" not in shades(GREY, 2).plain


@pytest.mark.parametrize(
    ("size", "columns", "scale"), [(16, 80, 2), (8, 80, 3), (32, 80, 1), (32, 16, -2), (224, 80, -3), (16, 20, 1), (16, 16, 1)]
)
def test_scale_fits(size, columns, scale):
    assert fitting_scale(size, columns) == scale
    assert (size * scale if scale > 0 else -(-size // -scale)) <= columns


def test_bars_and_sparks():
    assert bar(1.0, 4) == "████"
    assert bar(0.5, 3) == "█▌"
    assert bar(0.0, 4) == bar(-1, 4) == ""
    assert bar(2, 4) == "████"
    assert spark([0, 1, 4, 8]) == " ▁▄█"
    assert spark([]) == spark([0, 0]).strip() == ""
    assert spark([1e-9, 1]) == "▁█"  # what is there is seen
