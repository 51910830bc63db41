"""DDA, main stage: Diverse Diffusion Augmentation for data-free distillation (Li et al., ACM MM 2024, arXiv 2410.17606).

Its published code is CSD (Customizing Synthetic Data, Luo et al., arXiv 2307.04542) with twice the epochs and twice the
synthesis batch, and so is this file; the diffusion is a stage of its own (`dfkd.diffusion`). In every epoch

    synthesis   min over G, z:  R_bn + CE(T(v), y) - csd CE(h(f_S(rot_k v)), 4y + k)
    student     min over S, a:  KL_20(S || T) + CE(S(x), y) + 30 MSE(a(F_S), F_T)
    head        min over h:     CE(h(f_S(rot_k x)), 4y + k)

v is the random view of x = G(z); f_S are the student's penultimate features, F the last feature maps before the final BN;
h is the auxiliary head that tells class and rotation at once, a the aligner. The synthesis looks for images that the
student does not understand yet.

Deviations from the published code, none of which changes a figure by intent: the head's features are taken without a
graph (it was built and thrown away); the last, smaller batch of a shuffled pass is filled up from the next pass, so that
shapes are static; the seed reaches every draw.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from dfkd.config import DistillSettings
from dfkd.datasets.info import DatasetInfo
from dfkd.datasets.views import rotations
from dfkd.models.generators import reset_n02
from dfkd.runtime import Runtime, StopRequest
from dfkd.synthesis.inversion import GeneratorInversion, Synthesis
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


class DDA:
    """The method's networks, losses and steps; `dfkd.distillation.distill` drives them."""

    terms = ("loss", "kd", "ce", "feature", "head")

    def __init__(
        self, teacher: nn.Module, student: nn.Module, info: DatasetInfo, settings: DistillSettings, runtime: Runtime
    ) -> None:
        self.teacher, self.student, self.settings, self.runtime = teacher, student, settings, runtime
        self.head = runtime.place(RotationHead(student.feature_dim, len(info.classes)))  # type: ignore[arg-type]
        self.aligner = runtime.place(Aligner(student.feature_channels[-1], teacher.feature_channels[-1]))  # type: ignore[index, arg-type]
        fused = runtime.precision == "fast"
        decay = {"momentum": settings.momentum, "weight_decay": settings.weight_decay, "fused": fused}
        parameters = [*student.parameters(), *self.aligner.parameters()]
        self.optimiser = torch.optim.SGD(parameters, lr=settings.lr, **decay)  # type: ignore[arg-type]
        self.head_optimiser = torch.optim.SGD(self.head.parameters(), lr=settings.head_lr, **decay)  # type: ignore[arg-type]
        self.synthesizer = GeneratorInversion(
            teacher,
            info,
            runtime,
            batch_size=settings.synthesis_batch_size,
            steps=settings.g_steps,
            lr=settings.lr_g,
            latent_size=settings.latent_size,
            generator=settings.generator,
            width=settings.width,
            bn=settings.bn,
            oh=settings.oh,
            term=self.adversarial,
            term_name="csd",
        )
        self._student_losses = runtime.compiled(self._losses)
        self._head_features = runtime.compiled(self._features)

    def adversarial(self, views: torch.Tensor, labels: torch.Tensor, _logits: torch.Tensor) -> torch.Tensor:
        """- csd CE(h(f_S(rot_k v)), 4y + k), with the gradient through student and head to the views."""
        with self.runtime.autocast():
            features = self._features(views)
            joint = self.head(features)
        return -self.settings.csd * F.cross_entropy(joint, rotation_labels(labels))

    def _features(self, views: torch.Tensor) -> torch.Tensor:
        """Penultimate features of the four rotations of a batch, [4B,C]."""
        return self.student(rotations(views), return_features=True)[1][-1]

    def synthesize(self, stop: StopRequest | None = None) -> Synthesis:
        """One batch against the student as it is; student and head are frozen and in eval mode meanwhile."""
        trained = [parameter for network in (self.student, self.head) for parameter in network.parameters()]
        self.student.eval()
        for parameter in trained:
            parameter.requires_grad_(False)
        made = self.synthesizer.synthesize(stop)
        for parameter in trained:
            parameter.requires_grad_(True)
        return made

    def begin_epoch(self, rate: float) -> None:
        """After the synthesis: set the student's rate and re-initialise the head, whose momentum is left as it is."""
        for group in self.optimiser.param_groups:
            group["lr"] = rate
        reset_n02(self.head)

    def _losses(self, images: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        """The weighted sum and the unweighted terms of the student's step."""
        with torch.no_grad(), self.runtime.autocast():
            teacher_logits, teacher_features = self.teacher(images, return_features=True)
        with self.runtime.autocast():
            logits, features = self.student(images, return_features=True)
            target = teacher_features[-2]
            aligned = self.aligner(features[-2], target.shape[2:])
        kd = kl_divergence(logits, teacher_logits, self.settings.temperature)
        ce = F.cross_entropy(logits.float(), labels)
        feature = F.mse_loss(aligned.float(), target.float())
        loss = self.settings.kd * kd + self.settings.ce * ce + self.settings.feature * feature
        return {"loss": loss, "kd": kd, "ce": ce, "feature": feature}

    def step(self, images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """One student step and one head step on a batch of normalised views [B,C,H,W]; returns the terms, detached."""
        self.student.train()
        losses = self._student_losses(images, labels)
        self.optimiser.zero_grad()
        losses["loss"].backward()
        self.optimiser.step()

        self.student.eval()
        with torch.no_grad(), self.runtime.autocast():
            features = self._head_features(images)
        head = F.cross_entropy(self.head(features.float()), rotation_labels(labels))
        self.head_optimiser.zero_grad()
        head.backward()
        self.head_optimiser.step()
        return torch.stack([*(value.detach() for value in losses.values()), head.detach()])

    def state(self) -> dict[str, Any]:
        """All that a resumed run needs."""
        return {name: part.state_dict() for name, part in self._parts().items()}

    def load_state(self, state: dict[str, Any]) -> None:
        """Restore what `state` gave."""
        for name, part in self._parts().items():
            part.load_state_dict(state[name])

    def _parts(self) -> dict[str, Any]:
        return {
            "student": self.student,
            "aligner": self.aligner,
            "head": self.head,
            "optimiser": self.optimiser,
            "head_optimiser": self.head_optimiser,
        }
