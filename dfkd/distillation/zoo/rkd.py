"""RKD: distances and angles among the images of a batch (Park et al., CVPR 2019, arXiv 1904.05068), of the pooled feature e.

    d_ij  = |e_i − e_j| / mean_{i≠j} |e_i − e_j|,     L_d = mean_ij h(d_S − d_T)
    a_ijk = cos of the angle at e_i to e_j and e_k,   L_a = mean_ijk h(a_S − a_T)        h: smooth L1
    L     = distance L_d + angle L_a                  25 and 50

The means are over all B² and B³ entries, those that are 0 on both sides included.
"""

from __future__ import annotations

import torch
from torch.nn import functional as F

from dfkd.distillation.objective import Batch
from dfkd.distillation.zoo.objective import FeatureObjective, Seen
from dfkd.methods.objectives import RKDSettings


def distances(features: torch.Tensor) -> torch.Tensor:
    """[B,D] → distances [B,B] in units of their mean; 0 on the diagonal. Equal rows are 1e-6 apart before the division."""
    squares = features.square().sum(1)
    apart = (squares[:, None] + squares - 2 * features @ features.T).clamp_min(1e-12).sqrt()
    apart = apart * (1 - torch.eye(len(features), dtype=apart.dtype, device=apart.device))
    return apart * (len(features) * (len(features) - 1)) / apart.sum()


def angles(features: torch.Tensor) -> torch.Tensor:
    """[B,D] → cosines [B,B,B] of the angles at the first index; 0 where a side has no length."""
    sides = F.normalize(features[None] - features[:, None], dim=2)
    return sides @ sides.mT


class RKD(FeatureObjective):
    """Distances and angles of the pooled features."""

    sees = ""
    pooled = True
    settings: RKDSettings

    def own(self, student: Seen, teacher: Seen, batch: Batch) -> torch.Tensor:
        """Both relations, weighed; one without weight is not computed."""
        ours, theirs = self.whole(student.pooled, batch), self.whole(teacher.pooled, batch)
        terms = [
            weight * F.smooth_l1_loss(relation(ours), relation(theirs))
            for weight, relation in ((self.settings.distance, distances), (self.settings.angle, angles))
            if weight
        ]
        return torch.stack(terms).sum()
