"""The student's side of CSD (Customizing Synthetic Data, Luo et al., arXiv 2307.04542) and DDA: imitation and rotation head.

    student     min over S, a:  KL_20(S || T) + CE(S(x), y) + 30 MSE(a(F_S), F_T)
    head        min over h:     CE(h(f_S(rot_k x)), 4y + k)

f_S are the student's penultimate features, F the last feature maps before the final BN; h is the auxiliary head that tells
class and rotation at once, a the aligner. The synthesis (`dfkd.synthesis.csd`) looks for images that the head fails on.

Deviations from the published code, none of which changes a figure by intent: the head's features are taken without a
graph (it was built and thrown away); the last, smaller batch of a shuffled pass is filled up from the next pass, so that
shapes are static; the seed reaches every draw.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from dfkd.datasets.info import DatasetInfo
from dfkd.datasets.views import rotations
from dfkd.distillation.objective import Batch, Objective
from dfkd.methods import CSDSettings
from dfkd.models.generators import reset_n02
from dfkd.runtime import Runtime
from dfkd.synthesis.priors import kl_divergence, rotation_labels


class RotationHead(nn.Module):
    """Linear - ReLU - Linear to 4K joint class × rotation logits of unit L2 norm, [B,C] -> [B,4K].

    The norm confines the cross-entropy ([2.72, 4.69] for K = 10): the adversarial term saturates and cannot blow up.
    """

    def __init__(self, features: int, classes: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(features, features), nn.ReLU(), nn.Linear(features, 4 * classes))

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """[B,C] -> [B,4K], rows of unit norm."""
        return F.normalize(self.layers(features).float(), dim=1)


class Aligner(nn.Module):
    """Maps the student's last feature maps to the teacher's: 1×1, 3×3 and 1×1 convolutions with BN and ReLU between.

    A student map of another spatial size is average-pooled to the teacher's first. 640,000 weights for wrn161 -> wrn402.
    """

    def __init__(self, student: int, teacher: int) -> None:
        super().__init__()
        wide = 2 * teacher
        self.layers = nn.Sequential(
            nn.Conv2d(student, wide, 1, bias=False), nn.BatchNorm2d(wide), nn.ReLU(),
            nn.Conv2d(wide, wide, 3, padding=1, bias=False), nn.BatchNorm2d(wide), nn.ReLU(),
            nn.Conv2d(wide, teacher, 1, bias=False),
        )  # fmt: skip

    def forward(self, student: torch.Tensor, size: torch.Size) -> torch.Tensor:
        """[B,student,H,W] -> [B,teacher,*size]."""
        if student.shape[2:] != size:
            student = F.adaptive_avg_pool2d(student, (size[0], size[1]))
        return self.layers(student)


class CSDObjective(Objective):
    """Imitation of answers and features, cross-entropy with the bank's labels, and the head's own step."""

    terms = ("loss", "kd", "ce", "feature", "head")
    optimiser_steps = 2  # student and head
    needs_labels = True
    needs_features = True
    shareable = True
    settings: CSDSettings

    def __init__(
        self, teacher: nn.Module, student: nn.Module, info: DatasetInfo, settings: CSDSettings, runtime: Runtime
    ) -> None:
        self.head = runtime.place(RotationHead(student.feature_dim, len(info.classes)))  # type: ignore[arg-type]
        self.aligner = runtime.place(Aligner(student.feature_channels[-1], teacher.feature_channels[-1]))  # type: ignore[index, arg-type]
        super().__init__(teacher, student, info, settings, runtime, trained=(self.aligner,))
        self.head_optimiser = torch.optim.SGD(
            self.head.parameters(),
            lr=settings.head_lr,
            momentum=settings.momentum,
            weight_decay=settings.weight_decay,
            fused=runtime.precision == "fast",
        )
        self._head_features = runtime.compiled(self.rotated_features)

    def losses(self, batch: Batch) -> dict[str, torch.Tensor]:
        """The weighted sum and the unweighted terms of the student's step."""
        with torch.no_grad(), self.runtime.autocast():
            teacher_logits, teacher_features = self.teacher(batch.images, return_features=True)
        with self.runtime.autocast():
            logits, features = self.student(batch.images, return_features=True)
            target = teacher_features[-2]
            aligned = self.aligner(features[-2], target.shape[2:])
        kd = kl_divergence(logits, teacher_logits, self.settings.temperature)
        ce = F.cross_entropy(logits.float(), batch.labels)
        feature = F.mse_loss(aligned.float(), target.float())
        loss = self.settings.kd * kd + self.settings.ce * ce + self.settings.feature * feature
        return {"loss": loss, "kd": kd, "ce": ce, "feature": feature}

    def rotated_features(self, images: torch.Tensor) -> torch.Tensor:
        """The student's penultimate features of the four rotations of a batch [B,C,H,W], [4B,F]."""
        return self.student(rotations(images), return_features=True)[1][-1]

    def misunderstanding(self, images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """CE(h(f_S(rot_k x)), 4y + k), with the gradient through student and head to the images."""
        with self.runtime.autocast():
            joint = self.head(self.rotated_features(images))
        return F.cross_entropy(joint, rotation_labels(labels))

    def begin_epoch(self, epoch: int, rate: float) -> None:
        """Set the student's rate and re-initialise the head, whose momentum is left as it is."""
        super().begin_epoch(epoch, rate)
        reset_n02(self.head)

    def step(self, batch: Batch) -> torch.Tensor:
        """One student step and one head step; returns the terms, detached."""
        terms = super().step(batch)
        self.student.eval()
        with torch.no_grad(), self.runtime.autocast():
            features = self._head_features(batch.images)
        head = F.cross_entropy(self.head(features.float()), rotation_labels(batch.labels))
        self.head_optimiser.zero_grad()
        self.runtime.ranks.backward(head, self.head_optimiser, batch.share)
        self.head_optimiser.step()
        return torch.cat([terms, self.runtime.ranks.mean(head.detach()[None], batch.share)])

    def parts(self) -> dict[str, Any]:
        """Student, aligner, head and both optimisers."""
        return super().parts() | {"aligner": self.aligner, "head": self.head, "head_optimiser": self.head_optimiser}
