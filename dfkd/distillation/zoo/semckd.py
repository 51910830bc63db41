"""SemCKD: every map of the student learns from every map of the teacher, weighed per image (Chen et al., arXiv 2012.03236).

    s_i = F_i F_iᵀ           similarities of the batch's images in map i, [B,B]; t_j likewise
    w_bij = softmax_j <q_i(s_i)_b, k_j(t_j)_b>       q, k: Linear B→B/2, ReLU, Linear B/2→B/4, L2 norm
    L = mean_b 1/S Σ_i Σ_j w_bij mean_chw (Proj_ij(F_i) − F_j)²

Proj_ij is 1×1, 3×3, 1×1 over twice the teacher's channels, with BatchNorm and ReLU between; the larger map is average-pooled
first.

Deviations from KDrefine's copy of the code: its two linear layers without effect are left away; the queries are as wide as the
batch, so a batch of another size is refused (there, CIFAR-100's last one of 16 images is silently taken for 64 quarters).
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import nn
from torch.nn import functional as F

from dfkd.distillation.objective import Batch
from dfkd.distillation.zoo.objective import FeatureObjective, Seen, Shape, to_smaller
from dfkd.methods.kd_stages import SemCKDSettings
from dfkd.runtime import wide


def similarity(maps: torch.Tensor) -> torch.Tensor:
    """F Fᵀ [B,B] of maps [B,C,H,W]."""
    rows = maps.flatten(1)
    return rows @ rows.T


def query(batch: int) -> nn.Sequential:
    """What makes a row of similarities [B,B] comparable: [B, B/4], not yet normalised."""
    return nn.Sequential(nn.Linear(batch, batch // 2), nn.ReLU(), nn.Linear(batch // 2, batch // 4))


def projection(inputs: int, outputs: int) -> nn.Sequential:
    """[B,inputs,H,W] → [B,outputs,H,W]."""
    width = 2 * outputs
    return nn.Sequential(
        nn.Conv2d(inputs, width, 1, bias=False),
        nn.BatchNorm2d(width),
        nn.ReLU(),
        nn.Conv2d(width, width, 3, padding=1, bias=False),
        nn.BatchNorm2d(width),
        nn.ReLU(),
        nn.Conv2d(width, outputs, 1, bias=False),
    )


class Calibration(nn.Module):
    """The heads: queries, keys, and a projection for each pair of maps."""

    def __init__(self, student: list[Shape], teacher: list[Shape], batch: int) -> None:
        super().__init__()
        self.queries = nn.ModuleList(query(batch) for _ in student)
        self.keys = nn.ModuleList(query(batch) for _ in teacher)
        pairs = [[projection(ours[0], theirs[0]) for theirs in teacher] for ours in student]
        self.projections = nn.ModuleList(nn.ModuleList(row) for row in pairs)

    def weights(self, student: list[torch.Tensor], teacher: list[torch.Tensor]) -> torch.Tensor:
        """w [B,S,T], which sums to 1 over the teacher's maps."""
        ours = torch.stack([F.normalize(head(similarity(f)), dim=1) for head, f in zip(self.queries, student, strict=True)], 1)
        theirs = torch.stack([F.normalize(head(similarity(f)), dim=1) for head, f in zip(self.keys, teacher, strict=True)], 1)
        return (ours @ theirs.transpose(1, 2)).softmax(2)

    def distances(self, student: list[torch.Tensor], teacher: list[torch.Tensor]) -> torch.Tensor:
        """The mean square distance of every pair for every image, [B,S,T]."""
        rows = []
        for ours, heads in zip(student, self.projections, strict=True):
            for theirs, head in zip(teacher, heads, strict=True):  # type: ignore[call-overload]
                given, wanted = to_smaller(ours, theirs)
                rows.append(wide(head(given) - wanted).square().mean((1, 2, 3)))
        return torch.stack(rows, 1).unflatten(1, (len(student), len(teacher)))

    def forward(self, student: list[torch.Tensor], teacher: list[torch.Tensor]) -> torch.Tensor:
        """The loss, a scalar."""
        weighed = self.weights(student, teacher) * self.distances(student, teacher)
        return weighed.sum((1, 2)).mean() / len(student)


class SemCKD(FeatureObjective):
    """All pairs of maps, weighed by what the batch's images have in common in them."""

    paired: ClassVar[bool] = False
    shareable = False
    settings: SemCKDSettings

    def build(self, student: list[Shape], teacher: list[Shape]) -> nn.ModuleDict:
        """Queries, keys and projections, for batches of the settings' size."""
        return nn.ModuleDict({"calibration": Calibration(student, teacher, self.settings.batch_size)})

    def own(self, student: Seen, teacher: Seen, batch: Batch) -> torch.Tensor:
        """The loss. Raises ValueError for a batch of another size than the heads'."""
        if len(batch.images) != self.settings.batch_size:
            raise ValueError(f"SemCKD: a batch of {len(batch.images)} images for heads of {self.settings.batch_size}")
        with self.runtime.autocast():
            return self.heads["calibration"](student.maps, teacher.maps)
