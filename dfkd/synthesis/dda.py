"""DDA, main stage: Diverse Diffusion Augmentation for data-free distillation (Li et al., ACM MM 2024, arXiv 2410.17606).

Its published code is CSD with twice the epochs and twice the synthesis batch, and so is this file; what the paper adds,
the diffusion of the init bank and the fidelity filter, is a stage of its own (`dfkd.diffusion`), whose bank the student
sees beside the init bank and the images made here. In every epoch

    synthesis   min over G, z:  R_bn + CE(T(v), y) - csd CE(h(f_S(rot_k v)), 4y + k)
    student     min over S, a:  KL_20(S || T) + CE(S(x), y) + 30 MSE(a(F_S), F_T)
    head        min over h:     CE(h(f_S(rot_k x)), 4y + k)

The paper's synthesis has, moreover, a contrastive loss with a memory bank, which its code leaves out: `contrastive` > 0 is
its weight, in CMI's form (`dfkd.synthesis.contrastive`).
"""

from __future__ import annotations

from typing import Any

from torch import nn

from dfkd.datasets.info import DatasetInfo
from dfkd.distillation.csd import CSDObjective
from dfkd.errors import UserError
from dfkd.methods import DDASettings
from dfkd.runtime import Runtime
from dfkd.synthesis.contrastive import Contrast
from dfkd.synthesis.csd import CSD


class DDA(CSD):
    """CSD's synthesis, on request with the contrastive term."""

    settings: DDASettings

    def __init__(
        self,
        teacher: nn.Module,
        student: nn.Module,
        info: DatasetInfo,
        settings: DDASettings,
        runtime: Runtime,
        objective: CSDObjective,
    ) -> None:
        super().__init__(teacher, student, info, settings, runtime, objective)
        if settings.contrastive and runtime.ranks.world > 1:
            raise UserError(
                "dda: its contrastive term compares images; set contrastive to 0, or run it on one GPU (--ranks 1)."
            )
        if settings.contrastive:
            self.inversion.contrast = Contrast.of_method(teacher, info, settings, runtime, settings.contrastive)

    def parts(self) -> dict[str, Any]:
        """The contrastive term's head, Adam and feature bank, if there is one."""
        contrast = self.inversion.contrast
        return super().parts() | (contrast.parts() if contrast else {})
