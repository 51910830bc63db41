"""DDA, main stage: Diverse Diffusion Augmentation for data-free distillation (Li et al., ACM MM 2024, arXiv 2410.17606).

Its published code is CSD with twice the epochs and twice the synthesis batch, and so is this file; what the paper adds,
the diffusion of the init bank and the fidelity filter, is a stage of its own (`dfkd.diffusion`), whose bank the student
sees beside the init bank and the images made here. In every epoch

    synthesis   min over G, z:  R_bn + CE(T(v), y) - csd CE(h(f_S(rot_k v)), 4y + k)
    student     min over S, a:  KL_20(S || T) + CE(S(x), y) + 30 MSE(a(F_S), F_T)
    head        min over h:     CE(h(f_S(rot_k x)), 4y + k)
"""

from __future__ import annotations

from dfkd.synthesis.csd import CSD


class DDA(CSD):
    """CSD's synthesis."""
