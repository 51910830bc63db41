"""Contact sheets: a bank at a glance, one row a class."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from dfkd.bank.reader import BankReader
from dfkd.errors import UserError
from dfkd.files import atomic_path

CELL = 32  # pixels, at least
GAP = 2
FRAME = 3  # pixels, of an image that is marked
GROUP_GAP = 8  # between a parent with its variations and the next parent
FONT_SIZE = 14
# Of each class: groups of images that stand side by side; the first of a group is the parent where there is one.
Row = list[list[Tensor]]
Marks = list[list[list[str | None]]]  # colours of frames, as the images in the rows


class Caption(NamedTuple):
    """A word above the images, at the start of a column of groups; those of one column follow each other."""

    text: str
    colour: str = "black"
    column: int = 0


def contact_sheet(
    path: str | Path, output: str | Path, per_class: int = 10, scale: int | None = None, sequence: np.ndarray | None = None
) -> None:
    """Draw a PNG with one row a class, its name at the left, pixels enlarged without smoothing.

    Args:
        path: the bank; it may still be being written.
        output: the PNG.
        per_class: images in a row.
        scale: enlargement; by default the smallest that makes an image at least 32 pixels wide.
        sequence: indices of the images that may be shown, the first of a class foremost; by default all as they lie.

    Raises:
        UserError: the bank cannot be read.
    """
    check_sizes(output, per_class, scale)
    reader = BankReader(path, allow_incomplete=True)
    groups = [indices[:per_class].tolist() for indices in by_class(reader, sequence)]
    rows = [[[image] for image in reader.images(indices)] for indices in groups]
    save_sheet(draw_rows(rows, reader.meta.dataset.classes, cell_size(reader, scale)), output)


def check_sizes(output: str | Path, per_class: int, scale: int | None, variations: int = 1) -> None:
    """Refuse a sheet without images."""
    if per_class < 1 or (scale is not None and scale < 1) or variations < 1:
        raise UserError(f"{output}: a grid needs at least one image a class and a scale of at least 1.")


def by_class(reader: BankReader, sequence: np.ndarray | None = None) -> list[np.ndarray]:
    """Of each class the indices of its images, in the order of `sequence`."""
    labels = reader.columns().labels.numpy()
    sequence = np.arange(len(labels)) if sequence is None else sequence
    return [sequence[labels[sequence] == label] for label in range(len(reader.meta.dataset.classes))]


def cell_size(reader: BankReader, scale: int | None = None) -> int:
    """Width of a drawn image in pixels."""
    size = reader.meta.dataset.image_size
    return size * (scale or math.ceil(CELL / size))


def save_sheet(sheet: Image.Image, output: str | Path) -> None:
    """Write a PNG, whole or not at all."""
    with atomic_path(output) as temporary:
        sheet.save(temporary, format="PNG")


def draw_rows(
    rows: list[Row], names: list[str], cell: int, captions: Sequence[Caption] = (), marks: Marks | None = None
) -> Image.Image:
    """Rows of images under each other, each with its name at the left; an image is `cell` pixels wide.

    `captions` stand in a line above the rows; images whose mark is a colour are framed in it.
    """
    font = ImageFont.load_default(size=FONT_SIZE)
    gap = GAP if marks is None else GAP + 2 * FRAME
    height, above = max(cell, FONT_SIZE + 4) + gap, gap + (FONT_SIZE + 6 if captions else 0)
    left = max(math.ceil(font.getlength(name)) for name in names) + 3 * GAP
    starts = _column_starts(rows, captions, left, cell + gap, font)
    sheet = Image.new("RGB", (starts[-1] + gap, len(rows) * height + above), "white")
    pen = ImageDraw.Draw(sheet)
    text: Callable[..., None] = pen.text
    ends: dict[int, int] = {}
    for caption in captions:
        x = ends.get(caption.column, starts[caption.column])
        text((x, above - gap - 3), caption.text, fill=caption.colour, font=font, anchor="ls")
        ends[caption.column] = x + math.ceil(font.getlength(caption.text + "   "))
    for index, (row, name) in enumerate(zip(rows, names, strict=True)):
        top = above + index * height
        text((left - 2 * GAP, top + (height - gap) // 2), name, fill="black", font=font, anchor="rm")
        for column, (start, group) in enumerate(zip(starts, row, strict=False)):
            for place, image in enumerate(group):
                x = start + place * (cell + gap)
                if marks is not None and (colour := marks[index][column][place]) is not None:
                    pen.rectangle((x - FRAME, top - FRAME, x + cell + FRAME - 1, top + cell + FRAME - 1), fill=colour)
                picture = to_pil(image).convert("RGB").resize((cell, cell), Image.Resampling.NEAREST)
                sheet.paste(picture, (x, top))
    return sheet


def _column_starts(
    rows: list[Row], captions: Sequence[Caption], left: int, step: int, font: ImageFont.FreeTypeFont | ImageFont.ImageFont
) -> list[int]:
    """Where each column of groups begins, and where the last one ends: as wide as its largest group and its captions."""
    families = max((len(group) for row in rows for group in row), default=1) > 1
    count = max((len(row) for row in rows), default=1) or 1
    words = [sum(math.ceil(font.getlength(c.text + "   ")) for c in captions if c.column == place) for place in range(count)]
    starts = [left]
    for place in range(count):
        images = max((len(row[place]) for row in rows if place < len(row)), default=1) * step
        last = place == max((caption.column for caption in captions), default=-1)  # nothing stands behind its words
        wide = max(images, words[place] if not last or place == count - 1 else 0)
        starts.append(starts[-1] + wide + (GROUP_GAP if families else 0))
    return starts


def to_pil(image: Tensor) -> Image.Image:
    """A uint8 image [C,H,W] of 1 or 3 channels as a picture."""
    return Image.fromarray(image[0].numpy() if len(image) == 1 else image.permute(1, 2, 0).contiguous().numpy())
