"""ZSKT: Zero-shot Knowledge Transfer via Adversarial Belief Matching (Micaelli and Storkey, NeurIPS 2019, arXiv 1905.09768).

    generator   min over G:  - adv KL(T || S)      on fresh images, the gradient through both networks
    student     min over S:    KL(T || S)          on fresh images, without views

One generator step, then five student steps. This is the simplified form that the field's tables print: the paper's attention
term and its ten student steps to a generator step are in none of their code. `temperature` 1: the scripts' 20 had no effect,
because the driver put a default KL in its place. `loss: l1` makes both sides an L1 distance of logits, as in one of the forks.

Fixed: in one fork the generator was handed the teacher as its student, so that the divergence was 0 and the generator never
learnt. Here it is the student, and a test holds that its images move apart.
"""

from __future__ import annotations

import torch

from dfkd.distillation.kd import imitation
from dfkd.methods import ZSKTSettings
from dfkd.synthesis.generative import GenerativeSynthesizer


class ZSKT(GenerativeSynthesizer):
    """Images on which student and teacher disagree."""

    settings: ZSKTSettings

    def losses(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        """The generator's terms; `adv` is the divergence with its sign turned, unweighted."""
        with self.runtime.autocast():
            teacher, student = self.teacher(images), self.student(images)
        adv = -imitation(student, teacher, self.settings)
        return {"loss": self.settings.adv * adv, "adv": adv}
