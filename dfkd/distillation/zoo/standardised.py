"""Standardised logits: what the student learns is their order and relative distance, not their scale.

    z~ = m (z − mean z) / (std z + 1e-7)        mean and standard deviation over the classes

`LogitStd` (Sun et al., CVPR 2024, arXiv 2403.01427): L = ce CE(z_S, y) + kd T² KL(z~_T || z~_S), m = 1, unbiased deviation. Its
temperature is the base temperature: 2 for most pairs, 3 for some.

`KDrefine` (https://github.com/YujieZheng99/KDrefine): L = ce CE(z~_S, y) + kd T² KL(z~_T || z~_S), m = 2, unbiased deviation;
the cross-entropy too is of z~ (`standardise: kd` leaves it the raw logits). Its code of December 2022 had m = 4 and
m (z − mean z) / sqrt(var z + 1e-7) with the biased variance (`variance: biased`). Its students' convolutions are trained as
blocks of branches, which is the setting `blocks` and not part of the objective. Both losses leave scale and shift of the
raw logits open, so weight decay alone decides these, and the loss on raw logits says little.
"""

from __future__ import annotations

import torch
from torch.nn import functional as F

from dfkd.distillation.kd import imitation
from dfkd.distillation.objective import Batch
from dfkd.distillation.zoo.objective import DataObjective
from dfkd.methods.objectives import KDrefineSettings

EPSILON = 1e-7


def standardise(logits: torch.Tensor, multiplier: float = 1.0, biased: bool = False) -> torch.Tensor:
    """Logits [B,K], K at least 2, with mean 0 and deviation `multiplier` in every row; a constant row gives 0."""
    centred = logits - logits.mean(1, keepdim=True)
    if biased:
        return multiplier * centred * torch.rsqrt(logits.var(1, correction=0, keepdim=True) + EPSILON)
    return multiplier * centred / (logits.std(1, keepdim=True) + EPSILON)


class LogitStd(DataObjective):
    """KD between standardised logits, cross-entropy of the raw ones."""

    def imitation(self, student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
        """T² KL of the standardised logits."""
        return imitation(standardise(student), standardise(teacher), self.settings)


class KDrefine(DataObjective):
    """KD and cross-entropy of standardised logits."""

    settings: KDrefineSettings

    def imitation(self, student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
        """T² KL of the standardised logits."""
        return imitation(self._standardised(student), self._standardised(teacher), self.settings)

    def cross_entropy(self, student: torch.Tensor, batch: Batch) -> torch.Tensor:
        """CE of the standardised logits with the labels; of the raw ones where the settings say so."""
        logits = self._standardised(student) if self.settings.standardise == "both" else student
        return F.cross_entropy(logits, batch.labels)

    def _standardised(self, logits: torch.Tensor) -> torch.Tensor:
        return standardise(logits, self.settings.multiplier, self.settings.variance == "biased")
