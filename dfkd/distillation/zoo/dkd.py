"""DKD: the label's probability and the distribution over the other classes apart (Zhao et al., CVPR 2022, arXiv 2203.08679).

    L_DKD = r (alpha TCKD + beta NCKD),  r = min(epoch / ramp, 1), epochs counted from 1
    TCKD  = T² mean_b KL((p_y, 1 − p_y) of the teacher || of the student)
    NCKD  = T² mean_b KL(softmax of the teacher's other classes || of the student's)        softmaxes at T

with the labels y; L = CE + L_DKD. The code of KDrefine computes TCKD and leaves it out, and alpha and beta with it.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from dfkd.datasets.info import DatasetInfo
from dfkd.distillation.objective import Batch
from dfkd.distillation.zoo.objective import DataObjective
from dfkd.methods.objectives import DKDSettings
from dfkd.runtime import Runtime

NOWHERE = 1000.0  # taken off a logit, leaves its class without probability, and the sums finite


def decoupled(
    student: torch.Tensor, teacher: torch.Tensor, labels: torch.Tensor, temperature: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """(TCKD, NCKD) of logits [B,K], K at least 2, and labels [B]."""
    own = F.one_hot(labels, student.shape[1])
    binary, others = [], []
    for logits in (student / temperature, teacher / temperature):
        log_p = F.log_softmax(logits, dim=1)
        rest = torch.logsumexp(log_p.masked_fill(own.bool(), -torch.inf), dim=1)
        binary.append(torch.stack([log_p.gather(1, labels[:, None]).squeeze(1), rest], dim=1))
        others.append(F.log_softmax(logits - NOWHERE * own, dim=1))
    tckd = F.kl_div(binary[0], binary[1], reduction="batchmean", log_target=True)
    nckd = F.kl_div(others[0], others[1], reduction="batchmean", log_target=True)
    return tckd * temperature**2, nckd * temperature**2


class Ramp(nn.Module):
    """A factor that grows from epoch to epoch; a tensor, so that compiled code sees it change."""

    factor: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("factor", torch.ones(()))


class DKD(DataObjective):
    """The two parts, weighed apart, with the ramp of the published code."""

    settings: DKDSettings

    def __init__(
        self, teacher: nn.Module, student: nn.Module, info: DatasetInfo, settings: DKDSettings, runtime: Runtime
    ) -> None:
        self.ramp = runtime.place(Ramp())
        super().__init__(teacher, student, info, settings, runtime)

    def begin_epoch(self, epoch: int, rate: float) -> None:
        """Set the rate and the ramp's factor."""
        super().begin_epoch(epoch, rate)
        self.ramp.factor.fill_(min((epoch + 1) / self.settings.ramp, 1.0) if self.settings.ramp else 1.0)

    def own_of_logits(self, student: torch.Tensor, teacher: torch.Tensor, batch: Batch) -> torch.Tensor:
        """r (alpha TCKD + beta NCKD)."""
        tckd, nckd = decoupled(student, teacher, batch.labels, self.settings.temperature)
        return self.ramp.factor * (self.settings.alpha * tckd + self.settings.beta * nckd)

    def parts(self) -> dict[str, object]:
        """Student, optimiser and the ramp's factor."""
        return super().parts() | {"ramp": self.ramp}
