"""CuDFKD: Dynamic Data-Free Knowledge Distillation by Easy-to-Hard Learning Strategy (Li et al., arXiv 2208.13648).

    min over G:  entropy SUM_k pbar_k log pbar_k + adv_e L_adv + oh CE(t, argmax t) + act L_act + bn R_bn

pbar is the mean softmax at the distillation temperature, L_act = - mean |f_T|, and L_adv = - KL_3(T || S) (`adversarial: kl`)
or - JS_3 (`js`). The curriculum has two halves: adv_e grows over the epochs, here, and the student weighs what it finds too
hard, in `dfkd.distillation.self_paced`.

    adv_e = adv + adv_growth (min(e, end) - begin)+      begin and end as epochs, e the epoch before: the published code sets
                                                         the weight at the end of an epoch

The generator is drawn from N(0, 0.02) once; Adam has betas (0.9, 0.99). While adv_e is 0 the student is not asked at all.
Ours: the entropy by log-softmaxes, which no class that underflows makes NaN. Not here: `--memory` of the published code, a
buffer of every image ever made, and its branch on features, which crashes. Some of its revisions confine the KL to images
on which student and teacher agree.
"""

from __future__ import annotations

import torch
from torch import nn

from dfkd.methods import CuDFKDSettings
from dfkd.models.generators import reset_n02
from dfkd.progress import StopRequest
from dfkd.synthesis.generative import StatisticsSynthesizer
from dfkd.synthesis.priors import activation, class_balance, js_divergence, kl_divergence, one_hot
from dfkd.synthesis.synthesizer import Synthesis

TEMPERATURE = 3.0  # of the adversarial term, whatever the student's is


def ramped(settings: CuDFKDSettings, epoch: int) -> float:
    """The weight of the adversarial term in an epoch counted from 0."""
    begin, end = int(settings.epochs * settings.begin), int(settings.epochs * settings.end)
    return settings.adv + settings.adv_growth * (min(max(epoch - 1, begin), end) - begin)


class CuDFKD(StatisticsSynthesizer):
    """Images of which the teacher is sure, spread over the classes, on which the student disagrees more and more."""

    settings: CuDFKDSettings
    pushing = False  # whether the adversarial term has a weight
    adv: torch.Tensor  # that weight, on the device: a compiled loss does not change with it

    def build(self) -> nn.Module:
        """The generator, drawn from N(0, 0.02)."""
        generator = super().build()
        reset_n02(generator)
        return generator

    def synthesize(self, epoch: int, stop: StopRequest | None = None) -> Synthesis:
        """`g_steps` steps of the generator at the epoch's weight."""
        weight = ramped(self.settings, epoch)
        self.pushing, self.adv = weight > 0, torch.tensor(weight).to(self.runtime.device)
        return super().synthesize(epoch, stop)

    def losses(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        """The generator's terms, unweighted but for `loss`."""
        with self.runtime.autocast():
            logits, features = self.teacher(images, return_features=True)
            student = self.student(images) if self.pushing else None
        return self.terms(logits, features[-1], student)

    def terms(self, teacher: torch.Tensor, features: torch.Tensor, student: torch.Tensor | None) -> dict[str, torch.Tensor]:
        """The same of the teacher's logits [B,K] and features [B,C] and the student's logits (None: not asked)."""
        own = self.settings
        bn = self.statistics_loss()
        entropy = class_balance(self.whole(teacher), own.temperature)
        oh = one_hot(teacher, teacher.argmax(1))
        act = activation(features)
        loss = own.entropy * entropy + own.oh * oh + own.act * act + own.bn * bn
        adv = torch.zeros_like(loss)
        if student is not None:
            adv = self.adversarial(student, teacher)
            loss = loss + self.adv * adv
        return {"loss": loss, "entropy": entropy, "adv": adv, "oh": oh, "act": act, "bn": bn}

    def adversarial(self, student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
        """L_adv of logits [B,K]."""
        if self.settings.adversarial == "js":
            return -js_divergence(student, teacher, TEMPERATURE)
        return -kl_divergence(student, teacher, TEMPERATURE)
