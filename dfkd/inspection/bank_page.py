"""The page of a bank: its images to look through, statistics, the teacher's features, and where it comes from, in one file.

The page of variations shows what the fidelity filter dropped and the parents beside them; that of any other bank shows it
alone. Its bytes depend on these banks, the teacher and the names of the files, on nothing else.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dfkd.bank.format import BankMeta
from dfkd.bank.reader import BankReader
from dfkd.bank.storage import published_digest
from dfkd.errors import UserError
from dfkd.evaluation.commands import bank_command, place_of, target_command, weights_command
from dfkd.files import file_sha256, read_json
from dfkd.inspection import page_figures as figures
from dfkd.inspection.page_images import (
    STAGES,
    Part,
    default_count,
    describe_images,
    draw_images,
    draw_sheet,
    parents_of,
    rounded,
)
from dfkd.inspection.related import child_banks, find_teacher, parent_bank
from dfkd.inspection.scores import MEASURED, scores_file, scores_of, write_scores
from dfkd.inspection.sheets import Choice
from dfkd.inspection.sheets import draw_sheet as draw_contact_sheet
from dfkd.models.weights import WeightsCard, read_card
from dfkd.pages import check_page, picture_uri, write_page
from dfkd.runtime import Runtime

ABOUT = MEASURED | {"cosine": "of the variation and its parent, in the embedding of the fidelity filter"}
LONG = ("dropped", "histogram", "accept_rate_per_class")  # of a bank's own notes, what the page shows otherwise


def write_bank_page(
    bank: Path,
    output: Path,
    teacher: Path | None,
    runtime: Runtime,
    images: int | None = None,
    grid: Path | None = None,
    keep_scores: bool = False,
) -> dict[str, int]:
    """Write the page of a bank; on request its contact sheet and its scores too, so that one start does for all three.

    Args:
        bank: complete or still being written.
        output: the page, an .html file.
        teacher: weights whose answers are shown; None: those that the bank was made with.
        runtime: what the scores are measured with, where they are not kept beside the bank.
        images: at most so many images of the bank (and of the other outcome of its filter) are on the page; their parents
            come in addition. None: 2,000, or fewer large ones (`default_count`).
        grid: a PNG, one row a class, variations behind their parents.
        keep_scores: write the scores of the bank, and of the other outcome of its filter, to `NAME.scores.h5` beside them.

    Returns:
        `images` of the bank, `shown` on the page with its parents and what was dropped, `bytes` of the page.

    Raises:
        UserError: a bank or the teacher cannot be read, or the page cannot be written.
    """
    check_page(output)
    if images is not None and images < 1:
        raise UserError(f"--images {images}: a page shows at least one image.")
    parts = _read_parts(bank, teacher, runtime)
    own = parts[0]
    if keep_scores:
        _keep_scores(part for part in parts if not part.parents)
    if grid is not None:
        by = "parent" if any(part.parents for part in parts) else "class"
        draw_contact_sheet(by, [bank], grid, Choice("first", None, "", teacher, runtime))
    words = _page_words(bank, output, teacher, images, grid, keep_scores)
    content, shown = _content(parts, images or default_count(own.reader.meta.dataset.shape), teacher, words)
    write_page(output, "bank_page.html", **content)
    return {"images": len(own), "shown": shown, "bytes": output.stat().st_size}


def _read_parts(bank: Path, teacher: Path | None, runtime: Runtime) -> list[Part]:
    """The bank, the other outcome of its filter where it lies beside it, and the bank of the parents."""
    parents = parent_bank(bank)
    other = _other_outcome(bank, parents) if parents else None
    paths = [path for path in (bank, other, parents) if path is not None]
    parts = []
    for path in paths:
        scores = scores_of(path, teacher, runtime)  # first: a growing bank has these images and more when it is opened below
        parts.append(Part(path, BankReader(path, allow_incomplete=True), scores, parents=path == parents))
    linked = any((part.scores.columns.get("parent", np.zeros(0)) >= 0).any() for part in parts if not part.parents)
    return [part for part in parts if linked or not part.parents]


def _other_outcome(bank: Path, parents: Path) -> Path | None:
    """What the filter dropped beside a bank of variations, or the other way round; a pruned bank is no longer all of either."""
    if _pruned(own := BankReader(bank, allow_incomplete=True).meta):
        return None
    for path in child_banks(parents):
        meta = BankReader(path, allow_incomplete=True).meta
        if meta.kind != own.kind and not _pruned(meta):
            return path
    return None


def _pruned(meta: BankMeta) -> bool:
    return any(step.get("stage") == "prune" for step in meta.lineage)


def _keep_scores(parts: Any) -> None:
    for part in parts:
        if part.scores.digest is None:
            raise UserError(
                f"{part.path}: still being written, and its scores would be out of date at once; wait for its stage to end."
            )
        write_scores(scores_file(part.path), part.scores)


def _content(parts: Sequence[Part], count: int, teacher: Path | None, words: list[str]) -> tuple[dict[str, Any], int]:
    """What the template is given, and the number of images on the page."""
    own, made = parts[0], [part for part in parts if not part.parents]
    meta = own.reader.meta
    drawn = draw_images(made, count, meta.seed)
    drawn += [parents_of(made, drawn) for part in parts if part.parents]
    sheet = draw_sheet(parts, drawn)
    axes = figures.principal_axes([part.scores.features for part in parts])
    points = [_project(part.scores.features[rows], axes) for part, rows in zip(parts, drawn, strict=True)]
    shown = sum(map(len, drawn))
    data = {
        "classes": meta.dataset.classes,
        "size": meta.dataset.image_size,
        "sheet": [sheet.columns, sheet.rows],
        "stages": [{"name": name, "colour": colour, "about": about} for name, (colour, about) in STAGES.items()],
        "banks": [
            {"name": part.path.stem, "file": part.path.name, "images": len(part), "shown": len(rows), "parents": part.parents}
            for part, rows in zip(parts, drawn, strict=True)
        ],
        "scores": list(dict.fromkeys(name for part in parts for name in part.scored)),
        "about": ABOUT,
        "images": describe_images(parts, drawn, sheet, points),
        "counts": figures.counts_by_stage(parts),
        "histograms": figures.histograms(parts),
        "answers": figures.answers(own),
        "explained": None if axes is None else [rounded(share) for share in axes[2]],
    }
    weights = teacher or find_teacher(own.path, own.scores.teacher_sha256)
    content = {
        "title": f"Image bank {own.path.name}",
        "data": data,
        "sheet": picture_uri(sheet.picture),
        "parts": parts,
        "tables": _tables(parts),
        "made": [len(part) for part in made],
        "drawn": [len(rows) for part, rows in zip(parts, drawn, strict=True) if not part.parents],
        "meta": meta,
        "facts_of_bank": _facts(own),
        "settings": [(name, _plain(value)) for name, value in meta.settings.items()],
        "card": _card_facts(weights, own.scores.teacher_sha256),
        "foreign": own.scores.teacher_sha256 != meta.teacher_sha256,
        "lineage": _lineage(own),
        "commands": _commands(own, words),
    }
    return content, shown


def _project(features: np.ndarray, axes: tuple[np.ndarray, np.ndarray, list[float]] | None) -> np.ndarray:
    """Features [n,D] on the two axes: float64 [n,2]; zeros without axes."""
    if axes is None or not len(features):
        return np.zeros((len(features), 2))
    mean, directions, _ = axes
    return np.asarray((features.astype(np.float64) - mean) @ directions)


def _tables(parts: Sequence[Part]) -> list[dict[str, Any]]:
    """The table of classes of each bank on the page; the filter's outcome is in that of the first."""
    other = next((part for part in parts[1:] if not part.parents), None)
    return [
        {
            "bank": part.path.name,
            "stages": [name for place, name in enumerate(STAGES) if (part.stages == place).any()],
            "rows": figures.class_table(part, other if part is parts[0] else None),
        }
        for part in parts
        if len(part)
    ]


def _facts(part: Part) -> list[tuple[str, Any]]:
    """What the bank says of itself."""
    meta = part.reader.meta
    channels, height, width = meta.dataset.shape
    facts: list[tuple[str, Any]] = [
        ("file", shown_path(part.path)),
        ("kind", meta.kind + ("" if meta.status == "complete" else f", {meta.status}")),
        ("images", f"{len(part):,} of {channels}×{height}×{width}, data set {meta.dataset.name}"),
        ("made by", f"stage {meta.stage}, version {meta.stage_version}, seed {meta.seed}"),
    ]
    digest = published_digest(part.path) if meta.status == "complete" else None
    if digest is not None:
        facts += [("digest (BLAKE2b)", digest), ("SHA-256", file_sha256(part.path))]
    return facts + [(name, _plain(value)) for name, value in sorted(meta.extra.items()) if name not in LONG]


def _plain(value: Any) -> str:
    """A value of settings or notes in words."""
    if isinstance(value, dict):
        return ", ".join(f"{key} {_plain(inner)}" for key, inner in value.items()) or "none"
    if isinstance(value, list):
        return ", ".join(map(_plain, value)) or "none"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _card_facts(teacher: Path | None, sha256: str) -> list[tuple[str, Any]]:
    """What is known of the teacher."""
    if teacher is None:
        return [("SHA-256", sha256), ("weights", "not in the results around the bank")]
    card: WeightsCard = read_card(teacher)
    accuracy = [("Acc@1 on the test split", f"{card.metrics['acc1']:.2f} %")] if "acc1" in card.metrics else []
    return [
        ("architecture", f"{card.architecture}, {card.params:,} parameters"),
        ("weights", shown_path(teacher)),
        ("SHA-256", card.sha256),
        *accuracy,
        ("made by", f"stage {card.stage}, version {card.stage_version}, seed {card.seed}"),
        ("settings", _plain(card.settings)),
        ("dfkd", f"{card.versions.get('dfkd', 'unknown')}, revision {card.revision}"),
        ("libraries", _plain({name: version for name, version in card.versions.items() if name != "dfkd"})),
    ]


def _lineage(part: Part) -> list[tuple[str, str]]:
    """The steps that led to the bank, itself the last: name and what is known of it."""
    meta = part.reader.meta
    steps = [
        (str(step.get("stage", "?")), _plain({key: value for key, value in step.items() if key != "stage"}))
        for step in meta.lineage
    ]
    return [*steps, (meta.stage, f"{part.path.name}, {len(part):,} images")]


def _commands(own: Part, words: list[str]) -> list[tuple[str, str]]:
    """What to type for the bank and for this page."""
    meta, place = own.reader.meta, place_of(own.path.parent)
    if _pruned(meta):  # its stage made another bank; what was removed stands in the lineage
        return [("This page", shlex.join(words))]
    stage = bank_command(place, meta.stage, meta.settings) if meta.stage in ("init-bank", "augment") else None
    card = own.path.with_name("student.json")
    if meta.stage == "distill" and card.is_file():
        stage = weights_command(place, read_json(card), place.teacher if place else "", "student.safetensors")
    workflow = target_command(place, own.path.name) if place and own.reader.meta.status == "complete" else None
    found = [("The bank, by the workflow", workflow), ("The bank, by its stage with all settings", stage)]
    return [(name, text) for name, text in [*found, ("This page", shlex.join(words))] if text]


def _page_words(
    bank: Path, output: Path, teacher: Path | None, images: int | None, grid: Path | None, keep_scores: bool
) -> list[str]:
    words = ["dfkd", "bank", "page", shown_path(bank), "-o", shown_path(output)]
    words += ["--teacher", shown_path(teacher)] if teacher else []
    words += ["--images", str(images)] if images else []
    words += ["--grid", shown_path(grid)] if grid else []
    return [*words, "--scores"] if keep_scores else words


def shown_path(path: Path) -> str:
    """A file as the page names it: from the project's folder in the workflow's layout, by its bare name elsewhere."""
    place = place_of(path.parent)
    return f"{place.folder}/{path.name}" if place else path.name
