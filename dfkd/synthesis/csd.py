"""CSD: Customizing Synthetic Data for data-free student learning (Luo et al., ICME 2023, arXiv 2307.04542), its synthesis.

Once an epoch, a fresh generator and its latent are trained for one batch:

    min over G, z:  R_bn + CE(T(v), y) - csd CE(h(f_S(rot_k v)), 4y + k)

v is the random view of x = G(z), h the student's head that tells class and rotation at once: the images are of their
class, look to the teacher like its training data, and are those that the student does not understand yet. The head that
is used is the one that was trained in the epoch before (in the first epoch: an untrained one). The student's side is
`dfkd.distillation.csd`.
"""

from __future__ import annotations

import torch
from torch import nn

from dfkd.datasets.info import DatasetInfo
from dfkd.distillation.csd import CSDObjective
from dfkd.methods import CSDSettings
from dfkd.progress import StopRequest
from dfkd.runtime import Runtime
from dfkd.synthesis.inversion import GeneratorInversion
from dfkd.synthesis.synthesizer import Synthesis, Synthesizer, held


class CSD(Synthesizer):
    """Inverts one batch per call, against the student's rotation head."""

    shareable = True
    settings: CSDSettings
    objective: CSDObjective

    def __init__(
        self,
        teacher: nn.Module,
        student: nn.Module,
        info: DatasetInfo,
        settings: CSDSettings,
        runtime: Runtime,
        objective: CSDObjective,
    ) -> None:
        super().__init__(teacher, student, info, settings, runtime, objective)
        self.inversion = GeneratorInversion.of_method(teacher, info, settings, runtime, self.adversarial, "csd")

    def adversarial(self, views: torch.Tensor, labels: torch.Tensor, _logits: torch.Tensor) -> torch.Tensor:
        """- csd CE of the joint class × rotation head, with the gradient through student and head to the views."""
        return -self.settings.csd * self.objective.misunderstanding(views, labels)

    def synthesize(self, epoch: int, stop: StopRequest | None = None) -> Synthesis:
        """One batch against the student as it is; student and head are held meanwhile."""
        with held(self.student, self.objective.head):
            return self.inversion.synthesize(stop)
