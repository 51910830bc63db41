"""FitNet: the student's maps, through a regressor, are the teacher's hints (Romero et al., ICLR 2015, arXiv 1412.6550).

    L = Σ_maps mean_{b,c,hw} (R(f_S) − f_T)²        R: convolution, BatchNorm, ReLU (`regressor.py`)

The map is f_2, the second stage's. This is the published figures' form, which trains R and student jointly from the first
epoch; the paper trains up to the hint first, and its R has neither BatchNorm nor ReLU. With the ReLU, R reaches no negative
value, and the maps of a WRN, which lie before BatchNorm and ReLU, have those: `relu: false` leaves it out.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from dfkd.distillation.objective import Batch
from dfkd.distillation.zoo.objective import FeatureObjective, Seen, Shape
from dfkd.distillation.zoo.regressor import regressor
from dfkd.methods.objectives import FitNetSettings


class FitNet(FeatureObjective):
    """Hints, one regressor each."""

    sees = "hint"
    settings: FitNetSettings

    def build(self, student: list[Shape], teacher: list[Shape]) -> nn.ModuleDict:
        """The regressors."""
        pairs = enumerate(zip(student, teacher, strict=True))
        return nn.ModuleDict({str(index): regressor(*pair, "FitNet", self.settings.relu) for index, pair in pairs})

    def own(self, student: Seen, teacher: Seen, batch: Batch) -> torch.Tensor:
        """The mean squared distance of each hint, summed."""
        pairs = enumerate(zip(student.maps, teacher.maps, strict=True))
        return torch.stack([F.mse_loss(self.through(str(index), ours), theirs) for index, (ours, theirs) in pairs]).sum()
