"""One image of a bank: what the bank says of it, its parent, and what the teacher says."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.columns import Columns
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text
from torch import Tensor

from dfkd.bank.format import BankMeta
from dfkd.bank.grid import Caption, draw_rows, save_sheet
from dfkd.bank.reader import BankReader
from dfkd.bank.terminal import bar, fitting_scale, half_blocks, shades
from dfkd.errors import UserError
from dfkd.evaluation.predict import predict
from dfkd.inspection.related import find_teacher, parent_bank
from dfkd.inspection.scores import MEASURED, fitting_scores
from dfkd.models.weights import load_model
from dfkd.runtime import Runtime

TOP = 5
SMALLEST_PICTURE = 256  # pixels, of the PNG


@dataclass(frozen=True)
class ImageOfBank:
    """An image, uint8 [C,H,W], what is known of it (JSON-ready), and its parent where that is to be had."""

    image: Tensor
    parent: Tensor | None
    said: dict[str, Any]
    meta: BankMeta


def look_at(bank: str | Path, index: int, teacher: Path | None, runtime: Runtime) -> ImageOfBank:
    """Image `index` of a bank, complete or not.

    `said` holds `index`, `label`, `class`, `parent` (index, or None), `parent_bank` (file name, or None), `scores` (the bank's
    own), `measured` (of the scores file beside the bank, or None), and `teacher` (or None): its `architecture`, and of the
    image (`image`) and of its parent (`parent`, or None) the five most probable classes, then the label if it is none of these.

    Raises:
        UserError: there is no such image, or `teacher` does not fit.
    """
    reader = BankReader(bank, allow_incomplete=True)
    if not 0 <= index < len(reader):
        held = f"it holds images 0 to {len(reader) - 1}" if len(reader) else "it holds none"
        raise UserError(f"{bank}: no image {index}; {held}.")
    image, columns, classes = reader.images([index])[0], reader.columns(), reader.meta.dataset.classes
    label, of_parent = int(columns.labels[index]), int(columns.parents[index])
    origin = parent_bank(reader.path) if of_parent >= 0 else None
    parent = BankReader(origin, allow_incomplete=True).images([of_parent])[0] if origin else None
    kept = fitting_scores(reader, reader.meta.teacher_sha256)
    said: dict[str, Any] = {
        "index": index,
        "label": label,
        "class": classes[label],
        "parent": of_parent if of_parent >= 0 else None,
        "parent_bank": origin.name if origin else None,
        "scores": {name: values[index].item() for name, values in columns.scores.items()},
        "measured": None if kept is None else {n: kept.columns[n][index].item() for n in MEASURED if n in kept.columns},
        "teacher": None,
    }
    weights = teacher or find_teacher(reader.path, reader.meta.teacher_sha256)
    if weights is not None:
        said["teacher"] = _answers([image] if parent is None else [image, parent], label, weights, reader, runtime)
    return ImageOfBank(image, parent, said, reader.meta)


def _answers(images: list[Tensor], label: int, weights: Path, reader: BankReader, runtime: Runtime) -> dict[str, Any]:
    model, card = load_model(weights, runtime)
    if card.dataset.shape != reader.meta.dataset.shape or len(card.dataset.classes) != len(reader.meta.dataset.classes):
        raise UserError(
            f"{weights}: its images or classes are not those of {reader.path}; give a teacher of {reader.meta.dataset.name}."
        )
    probabilities = predict(model, torch.stack(images), reader.meta.dataset, runtime).softmax(1)
    tops = []
    for shares in probabilities:
        best = shares.argsort(descending=True, stable=True)[:TOP].tolist()
        best += [label] if label not in best else []
        tops.append(
            [{"label": one, "class": reader.meta.dataset.classes[one], "probability": shares[one].item()} for one in best]
        )
    return {"architecture": card.architecture, "image": tops[0], "parent": tops[1] if len(tops) > 1 else None}


def render(shown: ImageOfBank, console: Console, scale: int | None = None) -> RenderableType:
    """The image beside its parent, with what is said of them. Without colours the pixels are shades."""
    said, size = shown.said, shown.meta.dataset.image_size
    coloured = console.color_system is not None
    pictures = [shown.image] if shown.parent is None else [shown.image, shown.parent]
    room = (console.width - 4 * (len(pictures) - 1)) // len(pictures) // (1 if coloured else 2)
    scale = scale or fitting_scale(size, room)
    names = [f"image {said['index']}, label {said['class']}", f"parent {said['parent']} in {said['parent_bank']}"]
    tops = [said["teacher"][key] for key in ("image", "parent")] if said["teacher"] else [None, None]
    parts: list[RenderableType] = []
    for picture, name, top in zip(pictures, names, tops, strict=False):
        drawn = half_blocks(picture, scale) if coloured else shades(picture, scale)
        parts.append(Group(Text(name, style="bold"), drawn, *([_bars(top, said["label"])] if top else [])))
    lines: list[RenderableType] = [Columns(parts, padding=(0, 4)), Text(), Text(_facts(shown, scale))]
    if said["teacher"] is None:
        lines.append(Text("its teacher was not found in the results around it: name it with --teacher", style="dim"))
    return Group(*lines)


def _bars(top: list[dict[str, Any]], label: int) -> Table:
    table = Table(box=None, show_header=False, padding=(0, 1, 0, 0))
    for answer in top:
        style = "bold green" if answer["label"] == label else ""
        share = answer["probability"]
        table.add_row(Text(answer["class"], style=style), f"{share:6.1%}", Text(f"{bar(share, 12):12}", style=style or "cyan"))
    return table


def _facts(shown: ImageOfBank, scale: int) -> str:
    said, meta = shown.said, shown.meta
    size = f"{meta.dataset.image_size}×{meta.dataset.image_size}"
    lines = [f"{size} pixels" + (f", every {-scale} shown" if scale < 0 else f", each {scale}×{scale}" if scale > 1 else "")]
    if said["parent"] is not None and shown.parent is None:
        lines.append(f"parent {said['parent']}: its bank is not beside this one")
    for name, title in (("scores", "scores"), ("measured", "measured")):
        if said[name]:
            lines.append(f"{title}: " + ", ".join(f"{key} {value:.4g}" for key, value in said[name].items()))
    if said["teacher"]:
        lines.append(f"bars: probabilities of teacher {said['teacher']['architecture']}; green: the label")
    return "\n".join(lines)


def save_picture(shown: ImageOfBank, output: str | Path, scale: int | None = None) -> None:
    """The image, and its parent behind it, as PNG, enlarged without smoothing (to at least 256 pixels by default)."""
    size = shown.meta.dataset.image_size
    cell = size * (scale or max(1, -(-SMALLEST_PICTURE // size)))
    groups = [[shown.image]] if shown.parent is None else [[shown.image], [shown.parent]]
    captions = [Caption(f"image {shown.said['index']}"), Caption(f"parent {shown.said['parent']}", column=1)]
    save_sheet(draw_rows([groups], [shown.said["class"]], cell, captions[: len(groups)]), output)
