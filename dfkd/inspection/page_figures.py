"""The figures of a bank's page, over all images of its banks: classes, distributions, what is odd, the teacher's features."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from dfkd.inspection.page_images import STAGES, Part, rounded

BINS = 40
ROWS = 8192  # features that are widened to float64 together
PROBABILITIES = ("confidence", "label_probability")
MEANS = ("confidence", "label_probability", "entropy", "cosine")  # of a class, where the bank has them


def class_table(part: Part, other: Part | None = None) -> list[dict[str, Any]]:
    """A row for each class, and one for all: counts, means of the scores, R_bn.

    `name`, `images`; `agree`: share whose label is the teacher's answer; mean `confidence`, `label_probability`, `entropy`,
    `cosine`; `bn_distance`: R_bn of all images of the class as one batch; `constant`, `duplicates`: counts; with the other
    outcome of the filter, `accepted`, `rejected` and `accept_rate` of its variations. None: nothing to measure.
    """
    names = part.reader.meta.dataset.classes
    labels = part.scores.columns.get("label", np.zeros(0, np.int64))
    masks = [("all", np.ones(len(part), dtype=bool)), *((name, labels == label) for label, name in enumerate(names))]
    distances = [part.scores.all_bn_distance, *part.scores.class_bn_distance.tolist()]
    rows = []
    for label, ((name, mask), distance) in enumerate(zip(masks, distances, strict=True), start=-1):
        row: dict[str, Any] = {"name": name, "images": int(mask.sum()), "bn_distance": rounded(distance)}
        row["agree"] = _mean(_get(part, "prediction") == labels, mask)
        row |= {key: _mean(_get(part, key), mask) for key in MEANS if part.column(key) is not None}
        row["constant"] = int(_get(part, "constant")[mask].sum())
        row["duplicates"] = int((_get(part, "duplicate_of")[mask] >= 0).sum())
        if other is not None:
            row |= _outcome((part, other), label)
        rows.append(row)
    return rows


def _get(part: Part, name: str) -> np.ndarray:
    return part.scores.columns.get(name, np.zeros(0))


def _mean(values: np.ndarray, mask: np.ndarray) -> float | None:
    return float(values[mask].astype(np.float64).mean()) if mask.any() else None


def _outcome(both: Sequence[Part], label: int) -> dict[str, Any]:
    """What the filter did to the variations of a class, of all classes for -1."""
    counts = {}
    for stage in ("accepted", "rejected"):
        of_stage = [(part.stages == list(STAGES).index(stage)) & _labelled(part, label) for part in both]
        counts[stage] = int(sum(mask.sum() for mask in of_stage))
    made = sum(counts.values())
    return counts | {"accept_rate": counts["accepted"] / made if made else None}


def _labelled(part: Part, label: int) -> np.ndarray:
    return np.ones(len(part), dtype=bool) if label < 0 else np.asarray(_get(part, "label") == label)


def counts_by_stage(parts: Sequence[Part]) -> dict[str, list[int]]:
    """Images of each class, for every stage that occurs; STAGES' order."""
    classes = len(parts[0].reader.meta.dataset.classes)
    found: dict[str, list[int]] = {}
    for place, stage in enumerate(STAGES):
        counts = np.zeros(classes, dtype=np.int64)
        for part in parts:
            counts += np.bincount(_get(part, "label")[part.stages == place].astype(np.int64), minlength=classes)
        if counts.any():
            found[stage] = counts.tolist()
    return found


def histograms(parts: Sequence[Part]) -> dict[str, dict[str, Any]]:
    """Of every score: `from`, `to` and the `counts` of 40 bins between them for each stage."""
    found: dict[str, dict[str, Any]] = {}
    for name in dict.fromkeys(name for part in parts for name in part.scored):
        having = [(part, part.scores.columns[name].astype(np.float64)) for part in parts if name in part.scored and len(part)]
        if not having:
            continue
        low, high = min(values.min() for _, values in having), max(values.max() for _, values in having)
        low, high = (0.0, 1.0) if name in PROBABILITIES else (low, high) if low < high else (low - 0.5, high + 0.5)
        counts: dict[str, list[int]] = {}
        for place, stage in enumerate(STAGES):
            chosen = [values[part.stages == place] for part, values in having]
            if sum(map(len, chosen)):
                counts[stage] = np.histogram(np.concatenate(chosen).clip(low, high), BINS, (low, high))[0].tolist()
        found[name] = {"from": float(low), "to": float(high), "counts": counts}
    return found


def answers(part: Part) -> list[list[int]]:
    """How many images of each label (row) the teacher takes for each class (column)."""
    classes = len(part.reader.meta.dataset.classes)
    table = np.zeros((classes, classes), dtype=np.int64)
    np.add.at(table, (_get(part, "label").astype(np.int64), _get(part, "prediction").astype(np.int64)), 1)
    return [[int(value) for value in row] for row in table]


def principal_axes(features: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray, list[float]] | None:
    """Mean [D], the two axes of largest variance [D,2] and their shares of it, over the rows of all [N,D]; None without two.

    Of each axis the largest component is positive.
    """
    filled = [values for values in features if len(values)]
    dimensions = filled[0].shape[1] if filled else 0
    count = sum(map(len, filled))
    if dimensions < 2 or count < 3:
        return None
    chunks = [values[start : start + ROWS] for values in filled for start in range(0, len(values), ROWS)]
    mean = sum(chunk.sum(0, dtype=np.float64) for chunk in chunks) / count
    covariance = np.zeros((dimensions, dimensions))
    for chunk in chunks:
        centred = chunk.astype(np.float64) - mean
        covariance += centred.T @ centred
    variances, vectors = np.linalg.eigh(covariance)
    if variances[-1] <= 0:
        return None
    axes = vectors[:, [-1, -2]]
    axes *= np.sign(axes[np.abs(axes).argmax(0), [0, 1]])
    return np.asarray(mean), axes, [float(variances[-1 - place] / variances.clip(min=0).sum()) for place in (0, 1)]
