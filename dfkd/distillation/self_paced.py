"""What the students of CuDFKD (arXiv 2208.13648) and AdaDFKD minimise: the imitation, weighed by how hard it is.

    l = imitation(s, t)                       CuDFKD: `loss`
    l = imitation(s, t) + student_contrast InfoNCE(f_T, f_S)      AdaDFKD
    min over S:  v(l) l                       v without gradient, λ = pace + pace_growth · student steps so far

    log   v = (1 + e^-λ) / (1 + e^(l - λ))    hard  v = 1[l < λ]    soft  v = (1 - l / λ)+    none  v = 1

The papers weigh image by image. Their published code averages l over the batch first, so that v scales the gradient of whole
batches; the published figures are of that, and it is the default here. `per_sample: true` is the papers' form.

AdaDFKD compares features of different sizes by a linear map that its code draws anew at every use and never trains
(`projection: fresh`); `fixed` draws it once.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
from torch import nn
from torch.nn import functional as F

from dfkd.datasets.info import DatasetInfo
from dfkd.distillation.kd import imitation
from dfkd.distillation.objective import Batch, Objective
from dfkd.methods import AdaDFKDSettings, CuDFKDSettings
from dfkd.runtime import Runtime
from dfkd.synthesis.priors import pointwise_kl


def paced_weight(loss: torch.Tensor, pace: torch.Tensor, curriculum: str) -> torch.Tensor:
    """v of losses (any shape), without a graph. Easy ones keep a weight near 1, those far above λ = `pace` fall to 0."""
    loss = loss.detach()
    if curriculum == "log":
        return (1 + (-pace).exp()) * torch.sigmoid(pace - loss)
    if curriculum == "hard":
        return (loss < pace).to(loss.dtype)
    if curriculum == "soft":
        return (1 - loss / pace).clamp(min=0)
    return torch.ones_like(loss)


def pointwise_imitation(student: torch.Tensor, teacher: torch.Tensor, settings: CuDFKDSettings) -> torch.Tensor:
    """The imitation of each image [B], of logits [B,K]; its mean is `imitation`."""
    if settings.loss == "l1":
        return F.l1_loss(student.float(), teacher.float(), reduction="none").mean(1)
    if settings.loss == "mse":
        return F.mse_loss(student.float(), teacher.float(), reduction="none").mean(1)
    return pointwise_kl(student, teacher, settings.temperature)


class Pace(nn.Module):
    """λ, which grows by student step; on the device, so that a compiled loss does not change with it."""

    steps: torch.Tensor

    def __init__(self, start: float, growth: float) -> None:
        super().__init__()
        self.start, self.growth = start, growth
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))

    def forward(self) -> torch.Tensor:
        """λ of the step in hand."""
        return self.start + self.growth * self.steps


class SelfPaced(Objective):
    """The imitation, weighed."""

    terms: ClassVar[tuple[str, ...]] = ("loss", "weight", "imitation")
    shareable = True
    settings: CuDFKDSettings

    def __init__(
        self, teacher: nn.Module, student: nn.Module, info: DatasetInfo, settings: CuDFKDSettings, runtime: Runtime
    ) -> None:
        super().__init__(teacher, student, info, settings, runtime)
        self.pace = Pace(settings.pace, settings.pace_growth).to(runtime.device)

    def losses(self, batch: Batch) -> dict[str, torch.Tensor]:
        """The weighed loss and the means of weight and imitation."""
        answers = self.teacher_answers(batch)
        with self.runtime.autocast():
            logits = self.student(batch.images)
        found = self.imitation(self.whole(logits, batch), self.whole(answers, batch))
        return self.weighed(found) | {"imitation": found.mean()}

    def imitation(self, student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
        """Of logits [B,K]: a scalar, or [B] with `per_sample`."""
        form = pointwise_imitation if self.settings.per_sample else imitation
        return form(student, teacher, self.settings)

    def weighed(self, loss: torch.Tensor) -> dict[str, torch.Tensor]:
        """The means of v(l) l and of v(l)."""
        weight = paced_weight(loss, self.pace(), self.settings.curriculum)
        return {"loss": (weight * loss).mean(), "weight": weight.mean()}

    def step(self, batch: Batch) -> torch.Tensor:
        """One student step; λ grows."""
        terms = super().step(batch)
        self.pace.steps += 1
        return terms

    def parts(self) -> dict[str, Any]:
        """Student, optimiser and the count of steps."""
        return super().parts() | {"pace": self.pace}


class Projection(nn.Module):
    """Student's features [B,C_S] → the teacher's size [B,C_T], by a linear layer that is never trained; none if equal."""

    def __init__(self, student: int, teacher: int) -> None:
        super().__init__()
        self.layer = nn.Linear(student, teacher).requires_grad_(False) if student != teacher else None

    def redraw(self) -> None:
        """Draw the layer anew, in place and on its device; the seed comes from torch's global generator on the CPU."""
        if self.layer is None:
            return
        seed = int(torch.randint(2**62, ()))
        generator = torch.Generator(self.layer.weight.device).manual_seed(seed)
        bound = 1 / math.sqrt(self.layer.in_features)
        for values in (self.layer.weight, self.layer.bias):
            values.uniform_(-bound, bound, generator=generator)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """[B,C_S] → [B,C_T], float32."""
        return features.float() if self.layer is None else self.layer(features.float())


def info_nce(queries: torch.Tensor, keys: torch.Tensor, temperature: float) -> torch.Tensor:
    """CE(⟨q_i, k_j⟩ / τ over j, i) of each row, [B], of unit vectors [B,C]: q_i and k_i belong together, k_j are the others."""
    logits = queries @ keys.T / temperature
    return F.cross_entropy(logits, torch.arange(len(queries), device=queries.device), reduction="none")


class Relational(SelfPaced):
    """The imitation and the relations between the images of a batch, weighed together."""

    terms: ClassVar[tuple[str, ...]] = ("loss", "weight", "imitation", "contrast")
    settings: AdaDFKDSettings
    needs_features = True

    def __init__(
        self, teacher: nn.Module, student: nn.Module, info: DatasetInfo, settings: AdaDFKDSettings, runtime: Runtime
    ) -> None:
        super().__init__(teacher, student, info, settings, runtime)
        self.projection = Projection(student.feature_dim, teacher.feature_dim).to(runtime.device)  # type: ignore[arg-type]

    def redraw(self) -> None:
        """A fresh projection, if the settings want one for every use."""
        if self.settings.projection == "fresh":
            self.projection.redraw()

    def directions(self, features: torch.Tensor) -> torch.Tensor:
        """The student's features [B,C_S] as unit vectors of the teacher's size [B,C_T], float32."""
        return F.normalize(self.projection(features), dim=1)

    def losses(self, batch: Batch) -> dict[str, torch.Tensor]:
        """The weighed loss and the means of weight, imitation and contrast."""
        with torch.no_grad(), self.runtime.autocast():
            answers, expected = self.teacher(batch.images, return_features=True)
        with self.runtime.autocast():
            logits, features = self.student(batch.images, return_features=True)
        found = self.imitation(self.whole(logits, batch), self.whole(answers, batch))
        own, theirs = self.settings, self.whole(expected[-1], batch)
        ours = self.directions(self.whole(features[-1], batch))
        contrast = info_nce(F.normalize(theirs.float(), dim=1), ours, own.contrast_temperature)
        total = found + own.student_contrast * (contrast if own.per_sample else contrast.mean())
        return self.weighed(total) | {"imitation": found.mean(), "contrast": contrast.mean()}

    def step(self, batch: Batch) -> torch.Tensor:
        """One student step, with a projection of its own."""
        self.redraw()
        return super().step(batch)

    def parts(self) -> dict[str, Any]:
        """Also the projection."""
        return super().parts() | {"projection": self.projection}
