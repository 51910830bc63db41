"""FSP: the student learns how the teacher's maps follow from each other (Yim et al., CVPR 2017, in the benchmark's form).

First stage, without labels, on the stem's output and all maps, g_0 … g_n, the larger of two pooled to the smaller:

    M_i = 1/HW Σ_hw g_{i+1}[d,hw] g_i[c,hw]      [B,C_{i+1},C_i]
    L   = Σ_i mean (M_i^S − M_i^T)²

`form: code` is that, with average pooling; `form: paper` pools by the maximum and sums a matrix's squares, mean over the batch.
It trains the student up to its last map. The main stage is cross-entropy (and imitation, if `kd` has a weight) from there: the
published code's weight of the term has no effect. Channels must agree at every map.
"""

from __future__ import annotations

import itertools
from typing import Literal

import torch
from torch import nn
from torch.nn import functional as F

from dfkd.datasets.info import DatasetInfo
from dfkd.distillation.zoo.first_stage import AfterFirstStage, FirstStage, trunk
from dfkd.distillation.zoo.objective import observers, shapes_of
from dfkd.errors import UserError
from dfkd.methods.kd_stages import FSPSettings
from dfkd.runtime import Runtime

Form = Literal["code", "paper"]


def flow(maps: list[torch.Tensor], form: Form = "code") -> list[torch.Tensor]:
    """[B,C_i,H_i,W_i] in their order → the matrices M_i [B,C_{i+1},C_i] between each and the next."""
    pool = F.adaptive_avg_pool2d if form == "code" else F.adaptive_max_pool2d
    found = []
    for before, after in itertools.pairwise(maps):
        size = min(before.shape[2], after.shape[2]), min(before.shape[3], after.shape[3])
        ours, next_ = (value if tuple(value.shape[2:]) == size else pool(value, size) for value in (before, after))
        found.append(next_.flatten(2) @ ours.flatten(2).transpose(1, 2) / (size[0] * size[1]))
    return found


def flow_loss(student: list[torch.Tensor], teacher: list[torch.Tensor], form: Form = "code") -> torch.Tensor:
    """L of the maps of both networks, which agree in channels."""
    squares = [(a - b).square() for a, b in zip(flow(student, form), flow(teacher, form), strict=True)]
    if form == "code":
        return torch.stack([square.mean() for square in squares]).sum()
    return torch.stack([square.sum((1, 2)).mean() for square in squares]).sum()


class Flow(FirstStage):
    """The first stage: the flow of the solution procedure."""

    settings: FSPSettings

    def __init__(
        self, teacher: nn.Module, student: nn.Module, info: DatasetInfo, settings: FSPSettings, runtime: Runtime
    ) -> None:
        """Raises a `UserError` for networks whose channels differ."""
        super().__init__(teacher, student, info, settings, runtime)
        self.observed = observers(teacher, student, settings, "stem")
        ours, theirs = ([shape[0] for shape in shapes] for shapes in shapes_of("FSP", self.observed, info, runtime))
        if ours != theirs:
            raise UserError(
                f"FSP: needs equal channels at every map; the student has {_listed(ours)} and the teacher {_listed(theirs)}: "
                "choose another student or method."
            )
        if len(ours) < 2:
            raise UserError("FSP: needs two maps at least; name more in student_layers and teacher_layers.")
        self.trained, self.kept = trunk(student), student

    def loss(self, images: torch.Tensor) -> torch.Tensor:
        """L of a batch; the matrices in fp32."""
        with self.runtime.autocast():
            with torch.no_grad():
                theirs = self.observed["teacher"](images).maps
            ours = self.observed["student"](images).maps
        return flow_loss(ours, theirs, self.settings.form)


def _listed(channels: list[int]) -> str:
    return ", ".join(map(str, channels))


class FSP(AfterFirstStage):
    """The main stage."""
