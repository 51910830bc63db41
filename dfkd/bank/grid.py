"""Contact sheets: a bank at a glance, one row a class."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from dfkd.bank.reader import BankReader
from dfkd.errors import UserError, nearest
from dfkd.files import atomic_path

CELL = 32  # pixels, at least
GAP = 2
GROUP_GAP = 8  # between a parent with its variations and the next parent
FONT_SIZE = 14
Order = Literal["first", "best", "worst"]
# Of each class: groups of images that stand side by side; the first of a group is the parent where there is one.
Row = list[list[Tensor]]


def contact_sheet(
    path: str | Path,
    output: str | Path,
    per_class: int = 10,
    scale: int | None = None,
    order: Order = "first",
    score: str | None = None,
    parents: str | Path | None = None,
    variations: int = 3,
) -> None:
    """Draw a PNG with one row a class, its name at the left, pixels enlarged without smoothing.

    Args:
        path: the bank; it may still be being written.
        output: the PNG.
        per_class: images in a row; with `parents`, parents in a row.
        scale: enlargement; by default the smallest that makes an image at least 32 pixels wide.
        order: `first`: as they lie in the bank; `best`, `worst`: by falling or rising `score`.
        score: name of a score of the bank, for `best` and `worst`.
        parents: the bank that the parent ids of `path` point into: each parent stands before its variations.
        variations: at most this many of each parent.

    Raises:
        UserError: a bank cannot be read, a score does not exist, or the parents are not in `parents`.
    """
    if per_class < 1 or (scale is not None and scale < 1) or variations < 1:
        raise UserError(f"{output}: a grid needs at least one image a class and a scale of at least 1.")
    reader = BankReader(path, allow_incomplete=True)
    labels, rank, parent_ids = _columns(reader, order, score)
    sequence = torch.argsort(rank, stable=True)
    if parents is None:
        chosen = [[[index] for index in _of_class(labels, sequence, label)[:per_class]] for label in _classes(reader)]
        rows = [[list(reader.images(group)) for group in row] for row in chosen]
    else:
        parent_reader = _parent_reader(reader, parents, parent_ids)
        rows = []
        for label in _classes(reader):
            families: dict[int, list[int]] = {}
            for index in _of_class(labels, sequence, label):
                families.setdefault(int(parent_ids[index]), []).append(index)
            families.pop(-1, None)
            shown = [(parent, children[:variations]) for parent, children in families.items()][:per_class]
            rows.append([[*parent_reader.images([parent]), *reader.images(children)] for parent, children in shown])
    scale = scale or math.ceil(CELL / reader.meta.dataset.image_size)
    sheet = draw_rows(rows, reader.meta.dataset.classes, reader.meta.dataset.image_size * scale)
    with atomic_path(output) as temporary:
        sheet.save(temporary, format="PNG")


def _classes(reader: BankReader) -> range:
    return range(len(reader.meta.dataset.classes))


def _columns(reader: BankReader, order: Order, score: str | None) -> tuple[Tensor, Tensor, Tensor]:
    """Labels, sort keys and parents of all images, without keeping the images."""
    columns = reader.columns()
    if order == "first" or not len(columns):
        return columns.labels, torch.zeros(len(columns)), columns.parents
    if score not in columns.scores:
        known = nearest(score or "", columns.scores) if columns.scores else "it has none"
        raise UserError(f"{reader.path}: no score '{score or ''}' to order by; {known}.")
    keys = columns.scores[score]
    return columns.labels, keys if order == "worst" else -keys, columns.parents


def _of_class(labels: Tensor, sequence: Tensor, label: int) -> list[int]:
    found: list[int] = sequence[labels[sequence] == label].tolist()
    return found


def _parent_reader(reader: BankReader, parents: str | Path, ids: Tensor) -> BankReader:
    parent_reader = BankReader(parents, allow_incomplete=True)
    if parent_reader.meta.dataset.shape != reader.meta.dataset.shape:
        raise UserError(f"{parents}: its images have another shape than those of {reader.path}; name the bank it came from.")
    if not (ids >= 0).any() or int(ids.max()) >= len(parent_reader):
        raise UserError(f"{parents}: does not hold the parents of {reader.path}; name the bank that was varied.")
    return parent_reader


def draw_rows(rows: list[Row], names: list[str], cell: int) -> Image.Image:
    """Rows of images under each other, each with its name at the left; an image is `cell` pixels wide."""
    font = ImageFont.load_default(size=FONT_SIZE)
    height = max(cell, FONT_SIZE + 4) + GAP
    left = max(math.ceil(font.getlength(name)) for name in names) + 3 * GAP
    families = max((len(group) for row in rows for group in row), default=1) > 1
    # Columns are as wide as the largest family, so that the parents stand below each other.
    columns = [
        max((len(row[place]) for row in rows if place < len(row)), default=1)
        for place in range(max((len(row) for row in rows), default=1) or 1)
    ]
    starts = [left]
    for column in columns:
        starts.append(starts[-1] + column * (cell + GAP) + (GROUP_GAP if families else 0))
    sheet = Image.new("RGB", (starts[-1] + GAP, len(rows) * height + GAP), "white")
    pen = ImageDraw.Draw(sheet)
    text: Callable[..., None] = pen.text
    for index, (row, name) in enumerate(zip(rows, names, strict=True)):
        top = GAP + index * height
        text((left - 2 * GAP, top + (height - GAP) // 2), name, fill="black", font=font, anchor="rm")
        for start, group in zip(starts, row, strict=False):
            for place, image in enumerate(group):
                picture = to_pil(image).convert("RGB").resize((cell, cell), Image.Resampling.NEAREST)
                sheet.paste(picture, (start + place * (cell + GAP), top))
    return sheet


def to_pil(image: Tensor) -> Image.Image:
    """A uint8 image [C,H,W] of 1 or 3 channels as a picture."""
    return Image.fromarray(image[0].numpy() if len(image) == 1 else image.permute(1, 2, 0).contiguous().numpy())
