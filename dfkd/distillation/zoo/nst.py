"""NST: the channels' activation patterns have one distribution (Huang and Wang, arXiv 1707.01219), with k(a, b) = (a·b)².

    s_i, t_j: the channels of f_S, f_T as vectors over the pixels, of unit norm
    L = Σ_maps mean_b [mean_ij k(t_i, t_j) + mean_ij k(s_i, s_j) − 2 mean_ij k(s_i, t_j)]

The larger map of a pair is average-pooled to the smaller first. The first term is a constant, and cheap: sums of squared
products are taken of Gram matrices over channels or over pixels, whichever are smaller, where the published code makes a tensor
[B,C,C',HW].
"""

from __future__ import annotations

import torch
from torch.nn import functional as F

from dfkd.distillation.objective import Batch
from dfkd.distillation.zoo.objective import FeatureObjective, Seen, to_smaller


def kernel_mean(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """Mean over images and pairs of channels of (a·b)², of [B,C,N] and [B,C',N]."""
    channels, others, pixels = one.shape[1], other.shape[1], one.shape[2]
    narrow = pixels < min(channels, others)
    products = (one.mT @ one) * (other.mT @ other) if narrow else (one @ other.mT).square()
    return products.sum() / (len(one) * channels * others)


def selectivity_loss(student: list[torch.Tensor], teacher: list[torch.Tensor]) -> torch.Tensor:
    """Σ over pairs of maps [B,C,H,W] of the MMD² of their channels."""
    terms = []
    for pair in zip(student, teacher, strict=True):
        ours, theirs = (F.normalize(value.flatten(2), dim=2) for value in to_smaller(*pair))
        terms.append(kernel_mean(theirs, theirs) + kernel_mean(ours, ours) - 2 * kernel_mean(ours, theirs))
    return torch.stack(terms).sum()


class NST(FeatureObjective):
    """Neuron selectivity transfer on all maps."""

    def own(self, student: Seen, teacher: Seen, batch: Batch) -> torch.Tensor:
        """The sum over the pairs of maps."""
        return selectivity_loss(student.maps, teacher.maps)
