"""AT: the student attends to where the teacher does (Zagoruyko and Komodakis, arXiv 1612.03928, in the benchmark's form).

    A(f) = N(vec(mean_c f_c²))        N: division by the L2 norm
    L    = Σ_maps mean_{b,hw} (A(f_S) − A(f_T))²

The larger map of a pair is average-pooled to the smaller first. The paper's own loss is the norm of the difference, not its
mean square.
"""

from __future__ import annotations

import torch
from torch.nn import functional as F

from dfkd.distillation.objective import Batch
from dfkd.distillation.zoo.objective import FeatureObjective, Seen, to_smaller


def attention(maps: torch.Tensor) -> torch.Tensor:
    """[B,C,H,W] → [B,H·W], rows of unit norm: the mean square over the channels."""
    return F.normalize(maps.square().mean(1).flatten(1), dim=1)


def attention_loss(student: list[torch.Tensor], teacher: list[torch.Tensor]) -> torch.Tensor:
    """Σ over pairs of maps [B,C,H,W] of the mean squared difference of their attentions."""
    terms = []
    for pair in zip(student, teacher, strict=True):
        ours, theirs = to_smaller(*pair)
        terms.append(F.mse_loss(attention(ours), attention(theirs)))
    return torch.stack(terms).sum()


class AT(FeatureObjective):
    """Attention transfer on all maps."""

    def own(self, student: Seen, teacher: Seen, batch: Batch) -> torch.Tensor:
        """The sum over the pairs of maps."""
        return attention_loss(student.maps, teacher.maps)
