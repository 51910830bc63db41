"""How far test images lie from a network's decision boundary.

The distance of an image x is the smallest ||r||_2 for which x + r gets another first choice than x, in pixels from 0 to 1
(before normalisation, the same space for every network; x + r may leave [0, 1]). DeepFool (Moosavi-Dezfooli et al., CVPR
2016, Algorithm 2) looks for r: it steps onto the nearest boundary of the network's linearisation until the first choice
changes. Boundaries are curved, so it ends well behind them: the segment from x to x + r is then bisected. What comes out is
an upper bound of the distance, as with DeepFool itself, since that change does alter the first choice. As in the authors'
code, only the boundaries to the classes with the largest logits are looked at (5 here, 9 there), and a step is overshot by 2 %.

The margin is the first-order estimate, (z1 - z2) / ||∇(z1 - z2)||_2, of the two largest logits.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from torch import Tensor, nn

from dfkd.datasets.info import DatasetInfo
from dfkd.datasets.views import normalise, to_unit
from dfkd.evaluation.evaluated import Evaluated, balanced_subset
from dfkd.evaluation.metrics import rank_correlation
from dfkd.evaluation.plots import ROLE_COLOURS, STYLE, save_figure
from dfkd.runtime import Runtime

MOST_IMAGES = 150
BINS = 30  # of the histograms
RIVALS = 5  # classes beside the first choice
STEPS = 20  # at most; the authors' code allows 50, two or three are usual
OVERSHOOT = 0.02
NUDGE = 1e-4  # added to each step, so that it ends behind the linearised boundary (the authors' code)
BISECTIONS = 6  # the place on the segment is then known to 1/64 of it
TINY = 1e-30  # instead of a division by zero
BATCH_SIZE = 128


class Boundary(NamedTuple):
    """Of each image, float32 [N] on the CPU, in pixels from 0 to 1."""

    distance: Tensor  # to the decision boundary; NaN where none was found
    margin: Tensor  # its first-order estimate; NaN where the gradient vanishes


def boundary_distance(model: nn.Module, images: Tensor, info: DatasetInfo, runtime: Runtime) -> Boundary:
    """Distance to the boundary and first-order margin of uint8 images [N,C,H,W], for a network in eval mode; in fp32."""
    work = _Search(model, info, runtime)
    parts = [work(to_unit(batch.to(runtime.device))) for batch in images.split(BATCH_SIZE)]
    return Boundary(*(torch.cat(columns).cpu() for columns in zip(*parts, strict=True)))


class _Search:
    def __init__(self, model: nn.Module, info: DatasetInfo, runtime: Runtime) -> None:
        self.model, self.info, self.runtime = model, info, runtime

    def logits(self, points: Tensor) -> Tensor:
        values: Tensor = self.model(self.runtime.images(normalise(points, self.info)))
        return values.float()

    @torch.no_grad()
    def __call__(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Distance and margin [n] of images [n,C,H,W] in [0, 1]."""
        logits = self.logits(images)
        order = logits.topk(min(RIVALS + 1, logits.shape[1])).indices
        change = torch.zeros_like(images)
        margin = torch.zeros(len(images), device=images.device)
        inside = torch.arange(len(images), device=images.device)  # those whose first choice has not changed yet
        for step in range(STEPS):
            gaps, gradients = self._linearised(images[inside] + change[inside], order[inside])
            norms = gradients.flatten(2).norm(dim=2)
            away = torch.where(norms > 0, gaps.abs() / norms, torch.inf)
            if step == 0:
                margin = torch.where(norms[:, 0] > 0, away[:, 0], torch.nan)
            near, rival = away.min(1)
            length = torch.where(near.isfinite(), (near + NUDGE) * (1 + OVERSHOOT), 0)
            each = torch.arange(len(inside), device=images.device)
            scale = length / norms[each, rival].clamp(min=TINY)
            change[inside] -= scale[:, None, None, None] * gradients[each, rival]
            inside = inside[self.logits(images[inside] + change[inside]).argmax(1) == order[inside, 0]]
            if not len(inside):
                break
        distance = self._bisected(images, change, order[:, 0])
        distance[inside] = torch.nan
        return distance, margin

    def _linearised(self, points: Tensor, order: Tensor) -> tuple[Tensor, Tensor]:
        """z_first - z_k [n,R] and its gradient [n,R,C,H,W] for each of the R rivals k."""
        with torch.enable_grad():
            points = points.detach().requires_grad_()
            chosen = self.logits(points).gather(1, order)
            gaps = chosen[:, :1] - chosen[:, 1:]
            count = gaps.shape[1]
            gradients = [torch.autograd.grad(gaps[:, k].sum(), points, retain_graph=k + 1 < count)[0] for k in range(count)]
        return gaps.detach(), torch.stack(gradients, 1)

    def _bisected(self, images: Tensor, change: Tensor, first: Tensor) -> Tensor:
        """||change|| [n] up to where it crosses the boundary; its end lies behind it."""
        low, high = torch.zeros(len(images), device=images.device), torch.ones(len(images), device=images.device)
        for _ in range(BISECTIONS):
            middle = (low + high) / 2
            crossed = self.logits(images + middle[:, None, None, None] * change).argmax(1) != first
            low, high = torch.where(crossed, low, middle), torch.where(crossed, middle, high)
        return high * change.flatten(1).norm(dim=1)


def plot_boundary(evaluated: Evaluated, output: str | Path) -> None:
    """Draw distance and margin as PNG: how they are distributed, and, with a teacher, the student's against the teacher's."""
    chosen = balanced_subset(evaluated.labels, MOST_IMAGES)
    images, marked = evaluated.images[chosen], evaluated.marked()[chosen]
    found = {
        role: boundary_distance(model, images, evaluated.info, evaluated.runtime) for role, model in evaluated.models.items()
    }
    both = "teacher" in found
    rows = {"Distance to the decision boundary (DeepFool)": "distance", "First-order margin": "margin"}
    with rc_context(STYLE):
        figure = Figure(figsize=(9.6 if both else 5.4, 6.6), layout="constrained")
        panels = figure.subplots(2, 2 if both else 1, squeeze=False, width_ratios=[1.4, 1] if both else [1])
        for line, (name, key) in zip(panels, rows.items(), strict=True):
            values = {role: getattr(boundary, key) for role, boundary in found.items()}
            _draw_distribution(line[0], evaluated, values)
            line[0].set_title(f"{name}, {len(chosen)} test images", loc="left", fontweight="bold", fontsize=9)
            if both:
                _draw_scatter(line[1], values["teacher"], values["student"], marked)
        save_figure(figure, output)


def _draw_distribution(axes: Axes, evaluated: Evaluated, values: dict[str, Tensor]) -> None:
    there = torch.cat([row[row.isfinite()] for row in values.values()])
    edges = np.linspace(0, float(there.max()) if len(there) else 1.0, BINS + 1).tolist()
    for role, row in values.items():
        seen = row[row.isfinite()]
        missing = f", none found for {len(row) - len(seen)}" if len(seen) < len(row) else ""
        text = (
            f"{evaluated.title(role)}: median {float(seen.median()):.3g}{missing}"
            if len(seen)
            else f"{evaluated.title(role)}: none"
        )
        axes.hist(seen.numpy(), edges, histtype="stepfilled", alpha=0.25, color=ROLE_COLOURS[role])
        axes.hist(seen.numpy(), edges, histtype="step", linewidth=1.4, color=ROLE_COLOURS[role], label=text)
        if len(seen):
            axes.axvline(float(seen.median()), color=ROLE_COLOURS[role], linewidth=1, linestyle="--")
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel("L2 norm, pixels from 0 to 1")
    axes.set_ylabel("images")
    axes.legend(frameon=False, fontsize=8)


def _draw_scatter(axes: Axes, teacher: Tensor, student: Tensor, marked: Tensor) -> None:
    seen = teacher.isfinite() & student.isfinite()
    groups = ((~marked & seen, "#444444", "same answer"), (marked & seen, "#c62828", "another answer"))
    for which, colour, text in groups:
        axes.scatter(
            teacher[which], student[which], s=9, color=colour, alpha=0.7, linewidths=0, label=f"{text} ({int(which.sum())})"
        )
    end = max([float(row[seen].max()) for row in (teacher, student)], default=1.0) if bool(seen.any()) else 1.0
    axes.plot([0, end], [0, end], color="#666666", linewidth=1, linestyle="--")
    correlation = rank_correlation(teacher[seen], student[seen]) if bool(seen.any()) else None
    text = "undefined" if correlation is None else f"{correlation:.2f}"
    axes.set_title(f"Rank correlation {text}", loc="left", fontweight="bold", fontsize=9)
    axes.set_xlabel("teacher")
    axes.set_ylabel("student")
    axes.legend(frameon=False, fontsize=8)
