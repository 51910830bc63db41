"""PKT: similarities as probabilities (Passalis and Tefas, ECCV 2018, arXiv 1803.10837), of the pooled feature e.

S_ij = (cos(e_i, e_j) + 1) / 2,  P = S / row sums
L    = mean_ij P_T log((P_T + 1e-7) / (P_S + 1e-7))        over all B² entries: hence the weight of 30,000
"""

from __future__ import annotations

import torch

from dfkd.distillation.objective import Batch
from dfkd.distillation.zoo.objective import FeatureObjective, Seen

EPSILON = 1e-7


def affinities(features: torch.Tensor) -> torch.Tensor:
    """[B,D] → probabilities [B,B] that sum to 1 in each row."""
    unit = features / (torch.linalg.vector_norm(features, dim=1, keepdim=True) + EPSILON)
    similar = (unit @ unit.T + 1) / 2
    return similar / similar.sum(1, keepdim=True)


def affinity_loss(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    """The divergence of pooled features [B,D_S] from those of the teacher [B,D_T]."""
    ours, theirs = affinities(student), affinities(teacher)
    return (theirs * ((theirs + EPSILON) / (ours + EPSILON)).log()).mean()


class PKT(FeatureObjective):
    """Probabilistic knowledge transfer of the pooled features."""

    sees = ""
    pooled = True

    def own(self, student: Seen, teacher: Seen, batch: Batch) -> torch.Tensor:
        """The divergence."""
        return affinity_loss(self.whole(student.pooled, batch), self.whole(teacher.pooled, batch))
