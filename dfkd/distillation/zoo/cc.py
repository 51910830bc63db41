"""CC: correlation congruence of the pooled features (Peng et al., ICCV 2019, arXiv 1904.01802), in three forms.

u, v [B,E]: linear maps of the student's and the teacher's pooled feature, both trained.

`form: neighbours`, that of the published figures (RepDistiller), with its weight 0.02:

    d_i = |u_i − v_i|,  L = mean_{i<B} Σ_e d_{i,e} d_{i+1,e}        neighbours in the shuffled batch

which is no correlation at all, and has the trivial minimum of two constant maps.

The paper's, on rows u, v of unit norm: L = Σ_ij (C_S − C_T)²_ij / B² with the kernel

    gaussian: C_ij = exp(−g |u_i − u_j|²) to second order, Σ_{p≤2} exp(−2g) (2g)^p / p! (u_i·u_j)^p,  g = 0.4
    bilinear: C_ij = u_i·u_j

Neither has a published figure in the benchmark's recipe; torchdistill's sample weighs them 0.003.
"""

from __future__ import annotations

import math

import torch
from torch import nn
from torch.nn import functional as F

from dfkd.distillation.objective import Batch
from dfkd.distillation.zoo.objective import FeatureObjective, Seen, Shape
from dfkd.methods.objectives import CCSettings

GAMMA, ORDER = 0.4, 2


def neighbour_loss(ours: torch.Tensor, theirs: torch.Tensor) -> torch.Tensor:
    """The published code's loss of embeddings [B,E], B at least 2."""
    apart = (ours - theirs).abs()
    return (apart[:-1] * apart[1:]).sum(1).mean()


def correlations(embedded: torch.Tensor, kernel: str) -> torch.Tensor:
    """[B,E] → the kernel's values [B,B] between rows, which are brought to unit norm."""
    unit = F.normalize(embedded, dim=1)
    inner = unit @ unit.T
    if kernel == "bilinear":
        return inner
    terms = [(2 * GAMMA) ** order / math.factorial(order) * inner**order for order in range(ORDER + 1)]
    return math.exp(-2 * GAMMA) * torch.stack(terms).sum(0)


def congruence_loss(ours: torch.Tensor, theirs: torch.Tensor, kernel: str) -> torch.Tensor:
    """The paper's loss of embeddings [B,E]."""
    return F.mse_loss(correlations(ours, kernel), correlations(theirs, kernel))


class CC(FeatureObjective):
    """Correlations of the pooled features, embedded."""

    sees = ""
    pooled = True
    settings: CCSettings

    def build(self, student: list[Shape], teacher: list[Shape]) -> nn.ModuleDict:
        """The two linear maps."""
        sizes = {role: observer.feature_dim for role, observer in self.observed.items()}
        return nn.ModuleDict({role: nn.Linear(sizes[role], self.settings.embedding_size) for role in ("student", "teacher")})

    def own(self, student: Seen, teacher: Seen, batch: Batch) -> torch.Tensor:
        """The loss of the chosen form."""
        ours = self.whole(self.through("student", student.pooled), batch)
        theirs = self.whole(self.through("teacher", teacher.pooled), batch)
        form = self.settings.form
        return neighbour_loss(ours, theirs) if form == "neighbours" else congruence_loss(ours, theirs, form)
