"""SP: images that are alike for the teacher are alike for the student (Tung and Mori, ICCV 2019, arXiv 1907.09682).

G = F Fᵀ,  F = f flattened to [B,C·H·W],  rows of G divided by their L2 norm
L = Σ_maps Σ_ij (G_S − G_T)²_ij / B²        of the last map alone, unless layers are named
"""

from __future__ import annotations

import torch
from torch.nn import functional as F

from dfkd.distillation.objective import Batch
from dfkd.distillation.zoo.objective import FeatureObjective, Seen


def similarities(maps: torch.Tensor) -> torch.Tensor:
    """[B,…] → inner products of the images [B,B], rows of unit norm."""
    flat = maps.flatten(1)
    return F.normalize(flat @ flat.T, dim=1)


def similarity_loss(student: list[torch.Tensor], teacher: list[torch.Tensor]) -> torch.Tensor:
    """Σ over pairs of maps of the mean squared difference of their similarities."""
    pairs = zip(student, teacher, strict=True)
    return torch.stack([F.mse_loss(similarities(ours), similarities(theirs)) for ours, theirs in pairs]).sum()


class SP(FeatureObjective):
    """Similarities of the images of a batch, of the last map."""

    sees = "last"

    def own(self, student: Seen, teacher: Seen, batch: Batch) -> torch.Tensor:
        """The sum over the pairs of maps."""
        return similarity_loss(*([self.whole(values, batch) for values in seen.maps] for seen in (student, teacher)))
