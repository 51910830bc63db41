"""Images as text: half blocks in 24-bit colours, two pixels a character; shades where there are no colours."""

from __future__ import annotations

import math

import numpy as np
from rich.color import Color
from rich.style import Style
from rich.text import Text
from torch import Tensor

SHADES = " .:-=+*#%@"  # dark to bright, for output without colours
LEAST = 24  # pixels that a small image is enlarged to


def fitting_scale(size: int, columns: int) -> int:
    """By how much an image `size` pixels wide is enlarged: to at least 24 columns where there is room; negative: reduced."""
    if size > columns:
        return -math.ceil(size / max(columns, 1))
    return max(1, min(math.ceil(LEAST / size), columns // size))


def half_blocks(image: Tensor, scale: int = 1) -> Text:
    """uint8 [C,H,W] of 1 or 3 channels as lines of `▀`: the upper pixel in the foreground, the lower one in the background.

    Pixels are repeated `scale` times; where it is negative, each -scale-th is taken. Nothing is smoothed.
    """
    pixels = _scaled(image, scale)
    pixels = np.repeat(pixels, 3, axis=2) if pixels.shape[2] == 1 else pixels
    lines = []
    for top in range(0, len(pixels), 2):
        line = Text()
        lower = pixels[top + 1] if top + 1 < len(pixels) else None
        for column, upper in enumerate(pixels[top].tolist()):
            below = None if lower is None else Color.from_rgb(*lower[column])
            line.append("▀", Style(color=Color.from_rgb(*upper), bgcolor=below))
        lines.append(line)
    return Text("\n").join(lines)


def shades(image: Tensor, scale: int = 1) -> Text:
    """uint8 [C,H,W] as lines of characters, two of them a pixel, the brighter the denser. For output without colours."""
    grey = _scaled(image, scale).mean(axis=2)
    places = (grey * len(SHADES) / 256).astype(int)
    return Text("\n".join("".join(SHADES[place] * 2 for place in row) for row in places))


def _scaled(image: Tensor, scale: int) -> np.ndarray:
    pixels = image.permute(1, 2, 0).numpy()
    if scale < 0:
        return pixels[::-scale, ::-scale]
    return pixels.repeat(scale, axis=0).repeat(scale, axis=1)


def bar(share: float, width: int = 20) -> str:
    """A bar of `share` (0 to 1) of `width` characters, in eighths."""
    eighths = round(max(0.0, min(share, 1.0)) * width * 8)
    return "█" * (eighths // 8) + (" ▏▎▍▌▋▊▉"[eighths % 8] if eighths % 8 else "")


def spark(values: list[float]) -> str:
    """A line of columns `▁…█`, one a value, the largest filling its character; blank where a value is 0."""
    largest = max(values, default=0)
    return "".join(" ▁▂▃▄▅▆▇█"[math.ceil(value / largest * 8)] if value > 0 else " " for value in values)
