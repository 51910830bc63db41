"""t-SNE maps of what the networks make of the test images (van der Maaten and Hinton, JMLR 2008)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from matplotlib import colormaps, rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from torch import Tensor, nn

from dfkd.datasets.info import DatasetInfo
from dfkd.datasets.views import normalise, to_unit
from dfkd.evaluation.evaluated import Evaluated, balanced_subset
from dfkd.evaluation.plots import MOST_LABELLED, STYLE, save_figure
from dfkd.models.adapter import MissingFeatures
from dfkd.runtime import Runtime

MOST_IMAGES = 2000
PERPLEXITY = 30.0  # as in the paper's examples; a third of the images where there are few
ITERATIONS = 500  # half of scikit-learn's default: the maps differ little from there on
Colour = tuple[float, float, float, float]
FEWEST_IMAGES = 4  # of which a map can be made


@torch.inference_mode()
def penultimate_features(
    model: nn.Module, images: Tensor, info: DatasetInfo, runtime: Runtime, batch_size: int = 500
) -> Tensor:
    """What the last layer takes, float32 [N,D] on the CPU, of uint8 images [N,C,H,W]; for a network in eval mode.

    Raises:
        MissingFeatures: a registered model has no layer that gives them.
    """
    parts = []
    for batch in images.split(batch_size):
        unit = normalise(to_unit(batch.to(runtime.device)), info)
        with runtime.autocast():
            _, features = model(runtime.images(unit), return_features=True)
        parts.append(features[-1].flatten(1).float().cpu())
    return torch.cat(parts)


def embed(features: Tensor) -> np.ndarray:
    """A t-SNE map, float32 [N,2], of features [N,D]: the same for the same features."""
    from sklearn.manifold import TSNE

    points = features.numpy()
    start = "pca" if min(points.shape) >= 2 else "random"
    perplexity = min(PERPLEXITY, (len(points) - 1) / 3)
    tsne = TSNE(2, perplexity=perplexity, init=start, max_iter=ITERATIONS, random_state=0)
    found: np.ndarray = tsne.fit_transform(points)
    return found


def plot_feature_map(evaluated: Evaluated, output: str | Path, batch_size: int = 500) -> None:
    """Draw a map for each network as PNG, coloured by class, the disagreements of the networks ringed.

    A registered model without features is mapped by its logits, which its panel says.
    """
    chosen = balanced_subset(evaluated.labels, MOST_IMAGES)
    labels, marked = evaluated.labels[chosen].numpy(), evaluated.marked()[chosen].numpy()
    classes = evaluated.info.classes
    legend = len(classes) <= MOST_LABELLED
    roles = list(evaluated.models)
    with rc_context({**STYLE, "axes.grid": False}):
        figure = Figure(figsize=(4.9 * len(roles) + (1.2 if legend else 0), 5.1), layout="constrained")
        for axes, role in zip(figure.subplots(1, len(roles), squeeze=False)[0], roles, strict=True):
            values, what = _values(evaluated, role, chosen, batch_size)
            if len(chosen) >= FEWEST_IMAGES:
                _draw_map(axes, embed(values), labels, marked, len(classes))
            axes.set_title(f"{evaluated.title(role)}: {what}", loc="left", fontweight="bold", fontsize=9)
            axes.set_xticks([])
            axes.set_yticks([])
            axes.spines[:].set(visible=True, color="#bbbbbb")
        ringed = "teacher and student disagree" if len(roles) > 1 else "the student is wrong"
        handles = [_mark("none", "black", f"{ringed} ({int(marked.sum()):,})")]
        if legend:
            handles += [_mark(_colour(label, len(classes)), "none", name) for label, name in enumerate(classes)]
        figure.legend(handles=handles[1:], loc="outside right center", frameon=False, fontsize=8)
        figure.legend(handles=handles[:1], loc="outside lower left", frameon=False, fontsize=8)
        save_figure(figure, output)


def _values(evaluated: Evaluated, role: str, chosen: Tensor, batch_size: int) -> tuple[Tensor, str]:
    """What is mapped of a network, [N,D], and its name."""
    model = evaluated.models[role]
    number = f"t-SNE of {len(chosen):,} test images"
    try:
        features = penultimate_features(model, evaluated.images[chosen], evaluated.info, evaluated.runtime, batch_size)
    except MissingFeatures:
        return evaluated.logits[role][chosen], f"{number}, by their logits (it has no features)"
    return features, number


def _draw_map(axes: Axes, points: np.ndarray, labels: np.ndarray, marked: np.ndarray, classes: int) -> None:
    size = 14 if len(points) <= 1000 else 7
    x, y = points.T
    axes.scatter(x, y, s=size, c=[_colour(int(label), classes) for label in labels], linewidths=0)
    axes.scatter(x[marked], y[marked], s=4 * size, facecolors="none", edgecolors="black", linewidths=0.6)


def _colour(label: int, classes: int) -> Colour:
    if classes <= MOST_LABELLED:
        return colormaps["tab10" if classes <= 10 else "tab20"](label)
    return colormaps["turbo"](label / (classes - 1))


def _mark(face: Colour | str, edge: str, label: str) -> Line2D:
    return Line2D([], [], linestyle="none", marker="o", markersize=6, markerfacecolor=face, markeredgecolor=edge, label=label)
