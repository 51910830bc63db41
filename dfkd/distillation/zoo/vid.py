"""VID: the teacher's maps are likely, given the student's (Ahn et al., CVPR 2019, arXiv 1904.05835).

    m(f_S): three 1×1 convolutions without bias, C_S → C_T → C_T → C_T, ReLU between them
    s²_c  = softplus(t_c) + 1e-5, t trained, s² = 5 at the start
    L     = Σ_maps mean_{b,c,hw} ((m(f_S) − f_T)² / s²_c + log s²_c) / 2

The larger map of a pair is average-pooled to the smaller first. The loss may be negative.
"""

from __future__ import annotations

import math

import torch
from torch import nn
from torch.nn import functional as F

from dfkd.distillation.objective import Batch
from dfkd.distillation.zoo.objective import FeatureObjective, Seen, Shape, to_smaller
from dfkd.runtime import wide

VARIANCE, EPSILON = 5.0, 1e-5


class Gaussian(nn.Module):
    """The mean that a student's map [B,C_S,H,W] gives the teacher's [B,C_T,H,W], and a variance per channel."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.mean = nn.Sequential(
            nn.Conv2d(inputs, outputs, 1, bias=False),
            nn.ReLU(),
            nn.Conv2d(outputs, outputs, 1, bias=False),
            nn.ReLU(),
            nn.Conv2d(outputs, outputs, 1, bias=False),
        )
        self.scale = nn.Parameter(torch.full((outputs,), math.log(math.expm1(VARIANCE - EPSILON))))

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        """The mean."""
        return self.mean(maps)

    @property
    def variance(self) -> torch.Tensor:
        """[C_T], positive."""
        return F.softplus(self.scale) + EPSILON


def gaussian_loss(mean: torch.Tensor, variance: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    """Minus the log-likelihood, up to a constant, per element of `wanted` [B,C,H,W]; variance [C]."""
    spread = variance.view(1, -1, 1, 1)
    return 0.5 * ((mean - wanted).square() / spread + spread.log()).mean()


class VID(FeatureObjective):
    """The likelihood of all maps, one head each."""

    def build(self, student: list[Shape], teacher: list[Shape]) -> nn.ModuleDict:
        """The heads."""
        pairs = enumerate(zip(student, teacher, strict=True))
        return nn.ModuleDict({str(index): Gaussian(ours[0], theirs[0]) for index, (ours, theirs) in pairs})

    def own(self, student: Seen, teacher: Seen, batch: Batch) -> torch.Tensor:
        """The sum over the pairs of maps."""
        terms = []
        for index, pair in enumerate(zip(student.maps, teacher.maps, strict=True)):
            ours, theirs = to_smaller(*pair)
            head: Gaussian = self.heads[str(index)]  # type: ignore[assignment]
            terms.append(gaussian_loss(self.through(str(index), ours), wide(head.variance), theirs))
        return torch.stack(terms).sum()
