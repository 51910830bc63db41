"""CMI: Contrastive Model Inversion for data-free distillation (Fang et al., IJCAI 2021, arXiv 2105.08584).

Once an epoch, a fresh generator and its latent are trained for one batch:

    min over G, z, φ:  bn R_bn + oh CE(T(g), y) + adv L_adv(S(g), T(g)) + cr L_cr(g, l)
    L_adv = - mean_i [argmax s_i = argmax t_i] KL_1(t_i || s_i)

g is the global view (crop, flip), l the local one (a random box, enlarged) of x = G(z); L_cr asks for images that differ from
each other and from former ones (`dfkd.synthesis.contrastive`, with the deviations there). The images of the lowest loss go
to the image bank, from which the student imitates the teacher (KL_20).

`cmi` starts from nothing, `cmi-adversarial` from the init bank (the published one starts from 50,000 images that only a
download gives; their features are in no feature bank, there as here). `cmi-nonadversarial`, which synthesises nothing, is
`dfkd.synthesis.fixed`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from dfkd.datasets.info import DatasetInfo
from dfkd.distillation.objective import Objective
from dfkd.methods import CMISettings
from dfkd.progress import StopRequest
from dfkd.runtime import Runtime
from dfkd.synthesis.contrastive import Contrast
from dfkd.synthesis.inversion import GeneratorInversion
from dfkd.synthesis.priors import decision_adversarial
from dfkd.synthesis.synthesizer import Synthesis, Synthesizer, held


class CMI(Synthesizer):
    """Inverts one batch per call, against the student's decisions and unlike the batches before."""

    settings: CMISettings

    def __init__(
        self,
        teacher: nn.Module,
        student: nn.Module,
        info: DatasetInfo,
        settings: CMISettings,
        runtime: Runtime,
        objective: Objective,
    ) -> None:
        super().__init__(teacher, student, info, settings, runtime, objective)
        self.contrast = None
        if settings.cr:
            self.contrast = Contrast.of_method(teacher, info, settings, runtime, settings.cr)
        term = self.adversarial if settings.adv else None
        self.inversion = GeneratorInversion.of_method(teacher, info, settings, runtime, term, "adv", self.contrast)

    def adversarial(self, views: torch.Tensor, _labels: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
        """adv L_adv, with the gradient through student and teacher to the views."""
        with self.runtime.autocast():
            answers = self.student(views)
        return self.settings.adv * decision_adversarial(answers, logits)

    def synthesize(self, epoch: int, stop: StopRequest | None = None) -> Synthesis:
        """One batch against the student as it is, which is held meanwhile."""
        with held(self.student):
            return self.inversion.synthesize(stop)

    def parts(self) -> dict[str, Any]:
        """Head, its Adam and the feature bank."""
        return self.contrast.parts() if self.contrast else {}
