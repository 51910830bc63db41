"""The images of a bank's page: which are drawn, the sheet that holds their pixels, what the page's script knows of each."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from dfkd.bank.grid import to_pil
from dfkd.bank.reader import BankReader
from dfkd.inspection.scores import BankScores
from dfkd.runtime import derive_seed

IMAGES = 2000  # on a page, parents not counted
PIXEL_BYTES = 32 << 20  # of them; large images are fewer by default
DIGITS = 6  # significant ones of a score

# What an image is: its colour on the page and what is said of it.
STAGES = {
    "init": ("#0b5394", "inverted from the teacher"),
    "run": ("#0b5394", "made by the run against its student"),
    "accepted": ("#2e7d32", "a variation that passed the fidelity filter"),
    "kept parent": ("#7a7a7a", "none of its variations passed the filter: it stands for itself in the bank"),
    "rejected": ("#d1570a", "a variation that the filter dropped: the student never sees it"),
    "parent": ("#0b5394", "of the bank that was varied"),
}
# Columns that name something; every other one is a score, with a range, an order and a histogram.
NAMES = ("label", "prediction", "parent", "variation", "duplicate_of", "constant")


@dataclass(frozen=True)
class Part:
    """One of the banks on a page: the bank that it is about, the other outcome of its filter, or the bank of its parents."""

    path: Path
    reader: BankReader
    scores: BankScores
    parents: bool = False  # this is the bank of the parents

    def __len__(self) -> int:
        return len(self.scores)

    def column(self, name: str) -> np.ndarray | None:
        """A column [N] of the scores; None if this bank has none of this name."""
        return self.scores.columns.get(name)

    @functools.cached_property
    def stages(self) -> np.ndarray:
        """What each image is, as a place in `STAGES`: int64 [N]."""
        kind = self.reader.meta.kind
        name = "parent" if self.parents else {"variations": "accepted"}.get(kind, kind)
        stages = np.full(len(self), list(STAGES).index(name))
        variation = self.column("variation")
        if name == "accepted" and variation is not None:
            stages[variation < 0] = list(STAGES).index("kept parent")
        return stages

    @functools.cached_property
    def scored(self) -> list[str]:
        """The names of its scores."""
        return [name for name in self.scores.columns if name not in NAMES]


def default_count(shape: Sequence[int]) -> int:
    """How many images of this shape a page holds if nothing else is asked: 2,000, or what 32 MiB of pixels hold."""
    return max(1, min(IMAGES, PIXEL_BYTES // math.prod(shape)))


def draw_images(parts: Sequence[Part], count: int, seed: int) -> list[np.ndarray]:
    """At most `count` images of the parts, evenly over (stage, class), as ascending indices of each part.

    A stage or class that has fewer leaves the rest to the others. Which ones is drawn by the seed and the parent, so that
    the variations of a parent come together, those that were dropped too.
    """
    stages = np.concatenate([part.stages for part in parts])
    labels = np.concatenate([_of(part, "label") for part in parts])
    indices = np.concatenate([np.arange(len(part)) for part in parts])
    families = np.concatenate([_families(part) for part in parts])
    owners = np.repeat(np.arange(len(parts)), [len(part) for part in parts])
    draw = torch.Generator().manual_seed(derive_seed(seed, "bank page"))
    rank = torch.randperm(int(families.max(initial=-1)) + 1, generator=draw).numpy()
    order = np.lexsort((indices, rank[families], labels, stages))
    cells, starts, counts = np.unique(
        np.stack([stages, labels])[:, order], axis=1, return_index=True, return_counts=True
    )  # sorted as `order` is
    shares = even_shares(counts.tolist(), count) if cells.size else []
    chosen = [order[start : start + share] for start, share in zip(starts, shares, strict=True)]
    drawn = np.sort(np.concatenate([*chosen, np.zeros(0, np.int64)]).astype(np.int64))
    return [indices[drawn[owners[drawn] == owner]] for owner in range(len(parts))]


def _of(part: Part, name: str) -> np.ndarray:
    found = part.column(name)
    return np.zeros(0, np.int64) if found is None else found


def _families(part: Part) -> np.ndarray:
    """What images are drawn together by: their parent; an image without one is its own."""
    parents = part.column("parent")
    own = np.arange(len(part))
    return own if parents is None else np.where(parents < 0, own, parents)


def even_shares(counts: Sequence[int], total: int) -> list[int]:
    """`total` spread over groups of these sizes as evenly as they allow; what is left over goes to the first ones."""
    shares = [0] * len(counts)
    left = min(total, sum(counts))
    while left:
        open_groups = [place for place, size in enumerate(counts) if shares[place] < size]
        each = left // len(open_groups)
        for place in open_groups if each else open_groups[:left]:
            more = min(max(each, 1), counts[place] - shares[place])
            shares[place] += more
            left -= more
    return shares


def parents_of(parts: Sequence[Part], drawn: Sequence[np.ndarray]) -> np.ndarray:
    """The parents of the images that were drawn, ascending."""
    named = [_of(part, "parent")[rows] for part, rows in zip(parts, drawn, strict=True)]
    found = np.unique(np.concatenate(named))
    return found[found >= 0]


@dataclass(frozen=True)
class Sheet:
    """The pixels of all images of a page: cell i stands in row i // columns, column i % columns; equal images share one."""

    picture: Image.Image
    columns: int
    rows: int
    cells: list[int]  # of each image


def draw_sheet(parts: Sequence[Part], drawn: Sequence[np.ndarray]) -> Sheet:
    """The sheet of these images, part by part; only they are read from the banks."""
    place_of: dict[bytes, int] = {}
    cells: list[int] = []
    pixels: list[torch.Tensor] = []
    for part, indices in zip(parts, drawn, strict=True):
        for image in part.reader.images(torch.from_numpy(indices)):
            content = image.numpy().tobytes()
            if content not in place_of:
                place_of[content] = len(place_of)
                pixels.append(image)
            cells.append(place_of[content])
    channels, size = parts[0].reader.meta.dataset.channels, parts[0].reader.meta.dataset.image_size
    columns = max(1, math.ceil(math.sqrt(len(pixels))))
    rows = max(1, math.ceil(len(pixels) / columns))
    sheet = torch.zeros(rows * columns, channels, size, size, dtype=torch.uint8)
    for place, image in enumerate(pixels):
        sheet[place] = image
    tiled = (
        sheet.view(rows, columns, channels, size, size).permute(2, 0, 3, 1, 4).reshape(channels, rows * size, columns * size)
    )
    return Sheet(to_pil(tiled), columns, rows, cells)


def describe_images(
    parts: Sequence[Part], drawn: Sequence[np.ndarray], sheet: Sheet, points: Sequence[np.ndarray]
) -> dict[str, Any]:
    """Lists over all images of the page, JSON-ready, for its script.

    `bank`, `index`: which image of which part. `stage`: place in `STAGES`. `cell`: place on the sheet. `family`: row of the
    parent on the page, -1 without one. `top`, `top_probability`: the teacher's likeliest classes. `x`, `y`: place among the
    features. `columns`: those of the scores by name, null where a part has none of it.
    """
    found: dict[str, list[Any]] = {
        name: [] for name in ("bank", "index", "stage", "family", "top", "top_probability", "x", "y")
    }
    found["cell"] = list(sheet.cells)
    scores: dict[str, list[Any]] = {name: [] for part in parts for name in part.scores.columns}
    first_parent, parents = _parent_rows(parts, drawn)
    for number, (part, rows, place) in enumerate(zip(parts, drawn, points, strict=True)):
        found["bank"] += [number] * len(rows)
        found["index"] += rows.tolist()
        found["stage"] += part.stages[rows].tolist()
        ids = np.full(len(rows), -1) if part.parents or not len(rows) else _of(part, "parent")[rows]
        found["family"] += [first_parent + parents[parent] if parent in parents else -1 for parent in ids.tolist()]
        found["top"] += part.scores.top_classes[rows].tolist()
        found["top_probability"] += [[rounded(value) for value in row] for row in part.scores.top_probabilities[rows].tolist()]
        for name, values in zip(("x", "y"), place.T.tolist(), strict=True):
            found[name] += [rounded(value) for value in values]
        for name, column in scores.items():
            own = part.column(name)
            column += [None] * len(rows) if own is None else [rounded(value) for value in own[rows].tolist()]
    return {**found, "columns": scores}


def _parent_rows(parts: Sequence[Part], drawn: Sequence[np.ndarray]) -> tuple[int, dict[int, int]]:
    """The first row of the parents on the page, and the place of each parent among them."""
    before = 0
    for part, rows in zip(parts, drawn, strict=True):
        if part.parents:
            return before, {parent: place for place, parent in enumerate(rows.tolist())}
        before += len(rows)
    return before, {}


def rounded(value: float) -> float | int | None:
    """A number as the page holds it: whole ones as such, others with six significant digits; None for what is not finite."""
    if not math.isfinite(value):
        return None
    return int(value) if value == int(value) else float(f"{value:.{DIGITS}g}")
