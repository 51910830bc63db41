"""A bank in figures, class by class: what its pixels say, what its stage says, what its teacher says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from dfkd.bank.pixels import first_copies, is_constant, pixel_hashes, value_counts
from dfkd.bank.reader import BankReader
from dfkd.inspection.related import find_teacher
from dfkd.inspection.scores import BankScores, fitting_scores, scores_of
from dfkd.runtime import Runtime


def statistics(bank: str | Path, teacher: Path | None, runtime: Runtime) -> dict[str, Any]:
    """Figures of a bank, complete or not; images are streamed. JSON-ready: what is not known is None.

    Returns:
        `path`, `kind`, `status`, `images`, `teacher` (architecture; None where its weights are not found: then nothing that
        takes a teacher is known), `features` (dimension of its penultimate features), `non_finite_scores` (by the name of a
        stored score; pixels are bytes and cannot be NaN, the writer refuses such scores, so anything but 0 was written by
        something else), `accept_rate`; `all`, and `classes` by name, each with

        `images`, `constant` (all pixels of one value), `duplicates` (images whose pixels an earlier image of the bank has),
        `histogram` (256: how often each pixel value occurs), `accept_rate` (of the fidelity filter; variations alone),
        `confidence`, `entropy` (nats; means of the teacher's), `agreement` (share that the teacher assigns to the label),
        `bn_distance` (R_bn of the images as one batch, see `dfkd.inspection.scores`),
        `mean_squared_distance` (of the teacher's features over all pairs of images, exact) and its root, `rms_distance`.

    Raises:
        UserError: not a bank, damaged, or a teacher that does not fit.
    """
    reader = BankReader(bank, allow_incomplete=True)
    meta, names = reader.meta, reader.meta.dataset.classes
    columns = reader.columns()
    labels = columns.labels.numpy()
    constant, copies, values = _pixels(reader)
    scores = _scores(reader, teacher, runtime)
    rates = meta.extra.get("accept_rate_per_class") or {}
    groups = {name: labels == label for label, name in enumerate(names)}
    result: dict[str, Any] = {
        "path": str(bank),
        "kind": meta.kind,
        "status": meta.status,
        "images": len(labels),
        "teacher": scores.teacher if scores else None,
        "features": scores.features.shape[1] if scores else None,
        "non_finite_scores": {name: int((~score.isfinite()).sum()) for name, score in columns.scores.items()},
        "all": _group(np.ones(len(labels), dtype=bool), constant, copies, values.sum(0), meta.extra.get("accept_rate")),
        "classes": {
            name: _group(mask, constant, copies, values[label], rates.get(name))
            for label, (name, mask) in enumerate(groups.items())
        },
    }
    result["all"] |= _answers(scores, np.ones(len(labels), dtype=bool), None if scores is None else scores.all_bn_distance)
    for label, (name, mask) in enumerate(groups.items()):
        result["classes"][name] |= _answers(scores, mask, None if scores is None else float(scores.class_bn_distance[label]))
    return result


def _pixels(reader: BankReader) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """bool [N] of constant images, bool [N] of copies of an earlier image, int64 [K,256] counts of values."""
    hashes: list[bytes] = []
    constant: list[np.ndarray] = []
    classes = len(reader.meta.dataset.classes)
    values = np.zeros((classes, 256), dtype=np.int64)
    for block in reader.blocks():
        hashes += pixel_hashes(block.images)
        constant.append(is_constant(block.images).numpy())
        values += value_counts(block.images, block.labels, classes)
    return np.concatenate(constant) if constant else np.zeros(0, bool), first_copies(hashes) >= 0, values


def _scores(reader: BankReader, teacher: Path | None, runtime: Runtime) -> BankScores | None:
    sha256 = reader.meta.teacher_sha256
    if not len(reader) or (
        teacher is None and fitting_scores(reader, sha256) is None and find_teacher(reader.path, sha256) is None
    ):
        return None
    return scores_of(reader.path, teacher, runtime)


def _group(
    mask: np.ndarray, constant: np.ndarray, copies: np.ndarray, values: np.ndarray, rate: float | None
) -> dict[str, Any]:
    return {
        "images": int(mask.sum()),
        "constant": int(constant[mask].sum()),
        "duplicates": int(copies[mask].sum()),
        "histogram": values.tolist(),
        "accept_rate": rate,
    }


def _answers(scores: BankScores | None, mask: np.ndarray, bn_distance: float | None) -> dict[str, Any]:
    names = ("confidence", "entropy", "agreement", "bn_distance", "mean_squared_distance", "rms_distance")
    if scores is None or not mask.any():
        return dict.fromkeys(names)
    columns = {name: values[: len(mask)][mask] for name, values in scores.columns.items()}
    squared = mean_squared_distance(scores.features[: len(mask)][mask])
    found = (
        float(columns["confidence"].mean(dtype=float)),
        float(columns["entropy"].mean(dtype=float)),
        float((columns["label"] == columns["prediction"]).mean()),
        bn_distance if bn_distance is not None and np.isfinite(bn_distance) else None,
        squared,
        None if squared is None else squared**0.5,
    )
    return dict(zip(names, found, strict=True))


def mean_squared_distance(features: np.ndarray) -> float | None:
    """Mean of ||x - y||² over all pairs of rows of [N,D]; None for less than two rows.

    Exact without looking at the pairs: 2 N / (N - 1) times the mean squared distance to the mean.
    """
    count = len(features)
    if count < 2:
        return None
    rows = features.astype(np.float64)
    return float(2 / (count - 1) * np.square(rows - rows.mean(0)).sum())
