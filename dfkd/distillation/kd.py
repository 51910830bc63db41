"""Plain distillation: the student imitates the teacher's answers (Hinton et al., arXiv 1503.02531)."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import torch
from torch.nn import functional as F

from dfkd.distillation.objective import Batch, Objective
from dfkd.synthesis.priors import kl_divergence

if TYPE_CHECKING:
    from dfkd.methods import KDSettings, MethodSettings


def imitation(student: torch.Tensor, teacher: torch.Tensor, settings: MethodSettings) -> torch.Tensor:
    """The loss that `settings.loss` names, of logits [B,K]: KL at the temperature, or L1 or MSE, mean over all B·K logits."""
    if settings.loss == "l1":
        return F.l1_loss(student.float(), teacher.float())
    if settings.loss == "mse":
        return F.mse_loss(student.float(), teacher.float())
    return kl_divergence(student, teacher, settings.temperature)


class KD(Objective):
    """The imitation of the teacher's answers and nothing else."""

    terms: ClassVar[tuple[str, ...]] = ("loss",)
    shareable = True

    def losses(self, batch: Batch) -> dict[str, torch.Tensor]:
        """The imitation loss."""
        answers = self.teacher_answers(batch)
        with self.runtime.autocast():
            logits = self.student(batch.images)
        return {"loss": imitation(logits, answers, self.settings)}


class VanillaKD(KD):
    """alpha · imitation + beta · cross-entropy with the images' labels; labels are looked at only when beta is above 0."""

    terms: ClassVar[tuple[str, ...]] = ("loss", "kd", "ce")
    settings: KDSettings

    def losses(self, batch: Batch) -> dict[str, torch.Tensor]:
        """The sum and its two terms; `ce` is 0 where beta is."""
        answers = self.teacher_answers(batch)
        with self.runtime.autocast():
            logits = self.student(batch.images)
        kd = imitation(logits, answers, self.settings)
        ce = F.cross_entropy(logits.float(), batch.labels) if self.settings.beta else torch.zeros_like(kd)
        return {"loss": self.settings.alpha * kd + self.settings.beta * ce, "kd": kd, "ce": ce}
