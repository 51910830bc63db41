"""Two banks beside each other in figures: images per class, histograms of the scores that both have."""

from __future__ import annotations

from typing import Any

import numpy as np

from dfkd.inspection.viewer.index import BankIndex

BINS = 40
NO_SCORES = ("label", "prediction", "parent", "duplicate_of", "variation")  # whole numbers that count or name


def class_counts(index: BankIndex) -> list[int]:
    """Images of each class."""
    return [int(count) for count in np.bincount(index.columns["label"], minlength=len(index.classes))]


def scores_in(index: BankIndex) -> list[str]:
    """The columns that measure something of an image."""
    return [name for name in index.columns if name not in NO_SCORES]


def ranges(index: BankIndex) -> dict[str, dict[str, float]]:
    """Smallest value, mean and largest value of every score."""
    found = {}
    for name in scores_in(index):
        values = index.columns[name].astype(np.float64)
        if len(values):
            found[name] = {"min": float(values.min()), "mean": float(values.mean()), "max": float(values.max())}
    return found


def compared(one: BankIndex, other: BankIndex) -> dict[str, Any]:
    """Counts and histograms of two banks, JSON-ready. Histograms have the bins of both, their bars are shares of a bank."""
    shared = [name for name in scores_in(one) if name in other.columns]
    return {
        "classes": one.classes if len(one.classes) >= len(other.classes) else other.classes,
        "counts": [class_counts(one), class_counts(other)],
        "images": [len(one), len(other)],
        "histograms": {name: _histogram(one.columns[name], other.columns[name]) for name in shared if len(one) and len(other)},
        "only": [
            [name for name in scores_in(one) if name not in other.columns],
            [name for name in scores_in(other) if name not in one.columns],
        ],
        "means": [{name: ranges(index)[name]["mean"] for name in shared if len(index)} for index in (one, other)],
    }


def _histogram(one: np.ndarray, other: np.ndarray) -> dict[str, Any]:
    both = [one.astype(np.float64), other.astype(np.float64)]
    low, high = min(values.min() for values in both), max(values.max() for values in both)
    if low == high:
        low, high = low - 0.5, high + 0.5
    shares = [(np.histogram(values, BINS, (low, high))[0] / len(values)).round(6).tolist() for values in both]
    return {"low": float(low), "high": float(high), "shares": shares}
