"""The teacher's features of images in the plane: PCA and t-SNE of a stratified sample."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

from dfkd.inspection.viewer.index import BankIndex, plain
from dfkd.inspection.viewer.jobs import Job, JobSteps

Method = Literal["pca", "tsne"]
MOST: dict[str, int] = {"pca": 5000, "tsne": 2000}  # points
PERPLEXITY = 30.0
ROUNDS = 4  # of t-SNE, 250 iterations each; the first one exaggerated


def stratified(labels: np.ndarray, limit: int) -> np.ndarray:
    """At most `limit` indices, as many of each class as its share of `labels` [N], drawn with a fixed seed, ascending.

    A class that is there keeps at least one image as long as `limit` allows it.
    """
    if len(labels) <= limit:
        return np.arange(len(labels))
    generator = np.random.default_rng(0)
    shuffled = generator.permutation(len(labels))
    # The k-th image of a class of n stands at (k + 1/2) / n: taking the first `limit` takes the same share of every class.
    by_class = shuffled[np.argsort(labels[shuffled], kind="stable")]
    ordered = labels[by_class]
    starts = np.searchsorted(ordered, ordered, side="left")
    counts = np.searchsorted(ordered, ordered, side="right") - starts
    rank = np.arange(len(labels)) - starts
    place = np.where(rank == 0, 0.0, (rank + 0.5) / counts)
    chosen = by_class[np.argsort(place, kind="stable")[:limit]]
    return np.sort(chosen)


def scatter(indexes: Sequence[BankIndex], method: Method, job: Job, stop: threading.Event) -> dict[str, Any]:
    """Points of several banks of one teacher in one plane, JSON-ready.

    `bank`, `index`, `label`, `prediction`, `x`, `y`: a list each, entry i is point i; `bank` counts in `indexes`.
    `explained` is the share of the variance in the plane, PCA only.

    Raises:
        UserError: the features of a bank are not measured.
    """
    features = [index.features() for index in indexes]
    sizes = [len(index) for index in indexes]
    quota = [max(1, MOST[method] * size // max(sum(sizes), 1)) for size in sizes]
    chosen = [stratified(index.columns["label"], share) for index, share in zip(indexes, quota, strict=True)]
    points = np.concatenate([values[rows].astype(np.float32) for values, rows in zip(features, chosen, strict=True)])
    explained = None
    if len(points) < 3:
        plane = np.zeros((len(points), 2), np.float32)
    elif method == "pca":
        plane, explained = _pca(points, JobSteps(job, 1, stop))
    else:
        plane = _tsne(points, JobSteps(job, ROUNDS, stop))
    parts = list(zip(indexes, chosen, strict=True))
    return {
        "banks": [index.name for index in indexes],
        "classes": indexes[0].classes,
        "bank": [number for number, (_, rows) in enumerate(parts) for _ in rows],
        "index": [row for _, rows in parts for row in rows.tolist()],
        "label": [value for index, rows in parts for value in index.columns["label"][rows].tolist()],
        "prediction": [value for index, rows in parts for value in index.columns["prediction"][rows].tolist()],
        "x": plain(plane[:, 0]),
        "y": plain(plane[:, 1]),
        "of": sum(sizes),
        "explained": explained,
    }


def _pca(points: np.ndarray, steps: JobSteps) -> tuple[np.ndarray, float]:
    from sklearn.decomposition import PCA

    pca = PCA(n_components=2, random_state=0)
    plane: np.ndarray = pca.fit_transform(points)
    steps.advance()
    return plane, float(np.nansum(pca.explained_variance_ratio_))


def _tsne(points: np.ndarray, steps: JobSteps) -> np.ndarray:
    """t-SNE in rounds that begin where the one before ended, so that its progress shows and it can be stopped."""
    from sklearn.decomposition import PCA
    from sklearn.manifold import TSNE

    few = min(50, *points.shape)
    reduced = PCA(n_components=few, random_state=0).fit_transform(points)
    plane = reduced[:, :2] / max(float(np.std(reduced[:, 0])), 1e-12) * 1e-4
    rate = max(len(points) / 12 / 4, 50.0)  # scikit-learn's own choice, for all rounds
    for number in range(ROUNDS):
        tsne = TSNE(
            perplexity=min(PERPLEXITY, (len(points) - 1) / 3),
            early_exaggeration=12.0 if number == 0 else 1.0,
            learning_rate=rate,
            max_iter=250,
            init=plane.astype(np.float32),
            random_state=0,
        )
        plane = tsne.fit_transform(reduced)
        steps.advance()
    return plane
