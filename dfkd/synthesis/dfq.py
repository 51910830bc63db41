"""DFQ: Data-Free Network Quantization with Adversarial Knowledge Distillation (Choi et al., CVPR-W 2020, arXiv 2005.04136).

    generator   min over G:  - adv KL_1(T || S) + bn R_bn + oh CE(t, argmax t) + balance L_bal
    student     min over S:    KL_1(T || S)      on fresh images, without views

One generator step, then ten student steps. This is the form of the field's tables: nothing is quantised, R_bn is the L2
distance of the statistics where the paper has a KL of Gaussians, and a single generator and student are trained where the paper
has several. `temperature` 1: the scripts' 20 had no effect. `loss: l1` makes the first term and the student's an L1 distance of
logits, as one of the forks does. Ours: L_bal by log-softmaxes, which no class that underflows makes NaN.

Fixed: in one fork the generator was handed the teacher as its student, and the first term was 0.
"""

from __future__ import annotations

import torch

from dfkd.distillation.kd import imitation
from dfkd.methods import DFQSettings
from dfkd.synthesis.generative import StatisticsSynthesizer
from dfkd.synthesis.priors import class_balance, one_hot


class DFQ(StatisticsSynthesizer):
    """Images that look to the teacher like its training data, spread over the classes, on which the student disagrees."""

    settings: DFQSettings

    def losses(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        """The generator's terms, unweighted but for `loss`."""
        own = self.settings
        with self.runtime.autocast():
            teacher, student = self.teacher(images), self.student(images)
        bn = self.statistics_loss()
        adv = -imitation(student, teacher, own)
        oh = one_hot(teacher, teacher.argmax(1))
        balance = class_balance(self.whole(teacher))
        loss = own.adv * adv + own.bn * bn + own.oh * oh + own.balance * balance
        return {"loss": loss, "adv": adv, "bn": bn, "oh": oh, "balance": balance}
