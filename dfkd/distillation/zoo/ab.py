"""AB: the student learns on which side of zero the teacher's neurons are (Heo et al., arXiv 1811.03233, the benchmark's form).

First stage, without labels, on the maps before their activation, a_i = connector_i(f_S,i) and t_i = f_T,i, margin 1:

    l_i = Σ [(a_i + 1)² where a_i > −1 and t_i ≤ 0] + [(a_i − 1)² where a_i ≤ 1 and t_i > 0]
    L   = Σ_i 2^(i−n+1) l_i · 3 / (1000 B),   i = 0 … n−1

It trains the student up to its last map and the connectors, which are not kept; the rest of the student stays as it was drawn.
The main stage is cross-entropy (and imitation, if `kd` has a weight) from there: the published code's weight of the term has no
effect. A WRN's BatchNorms see each batch once here (twice there).
"""

from __future__ import annotations

import torch
from torch import nn

from dfkd.datasets.info import DatasetInfo
from dfkd.distillation.zoo.first_stage import AfterFirstStage, FirstStage, trunk
from dfkd.distillation.zoo.objective import Shape, observers, shapes_of
from dfkd.distillation.zoo.regressor import regressor
from dfkd.methods.kd_stages import ABSettings
from dfkd.runtime import Runtime, wide

MARGIN = 1.0


def boundary_loss(student: list[torch.Tensor], teacher: list[torch.Tensor]) -> torch.Tensor:
    """L of pairs of maps of one shape [B,C,H,W], before their activation."""
    total, count = student[0].new_zeros(()), len(student)
    for level, (ours, theirs) in enumerate(zip(student, teacher, strict=True)):
        off = (ours + MARGIN).square() * ((ours > -MARGIN) & (theirs <= 0))
        on = (ours - MARGIN).square() * ((ours <= MARGIN) & (theirs > 0))
        total = total + 2.0 ** (level - count + 1) * (off + on).sum()
    return total * 3 / (1000 * len(student[0]))


def connector(student: Shape, teacher: Shape) -> nn.Module:
    """What brings maps [C,H,W] to the teacher's shape: a convolution and BatchNorm, or nothing for equal shapes."""
    return nn.Identity() if student == teacher else regressor(student, teacher, "AB", relu=False)


class Boundaries(FirstStage):
    """The first stage: activation boundaries."""

    def __init__(
        self, teacher: nn.Module, student: nn.Module, info: DatasetInfo, settings: ABSettings, runtime: Runtime
    ) -> None:
        super().__init__(teacher, student, info, settings, runtime)
        self.observed = observers(teacher, student, settings, "preacts")
        ours, theirs = shapes_of("AB", self.observed, info, runtime)
        self.connectors = runtime.place(nn.ModuleList(map(connector, ours, theirs)))
        self.trained, self.kept = [*trunk(student), self.connectors], student

    def loss(self, images: torch.Tensor) -> torch.Tensor:
        """L of a batch."""
        with self.runtime.autocast():
            with torch.no_grad():
                theirs = self.observed["teacher"](images).maps
            seen = self.observed["student"](images).maps
            ours = [head(maps) for head, maps in zip(self.connectors, seen, strict=True)]
        return boundary_loss([wide(maps) for maps in ours], theirs)

    @property
    def notes(self) -> dict[str, str]:
        """The size of the connectors, if there are any."""
        size = sum(parameter.numel() for parameter in self.connectors.parameters())
        return {"connectors": f"{size} parameters trained in the first stage"} if size else {}


class AB(AfterFirstStage):
    """The main stage."""
