"""What is trained before a student's own run, for the methods in two stages. The driver is `dfkd.distillation.first_stage`."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar, Literal

import torch
from torch import nn

from dfkd.datasets.info import DatasetInfo
from dfkd.distillation.zoo.objective import DataObjective
from dfkd.models.classifier import Layers
from dfkd.runtime import Runtime

if TYPE_CHECKING:
    from dfkd.methods.kd_stages import TwoStageSettings


class FirstStage(ABC):
    """A loss without labels, what it trains, and what of that is kept.

    A subclass makes its networks in `__init__` and raises a `UserError` for a pair that it cannot take.

    Attributes:
        trained: the networks that the optimiser is given; in training mode while all others are held.
        kept: the network whose weights are the artefact.
    """

    role: ClassVar[Literal["student", "paraphraser"]] = "student"  # of what is kept
    trained: Sequence[nn.Module]
    kept: nn.Module

    def __init__(
        self, teacher: nn.Module, student: nn.Module, info: DatasetInfo, settings: TwoStageSettings, runtime: Runtime
    ) -> None:
        self.teacher, self.student, self.info, self.settings, self.runtime = teacher, student, info, settings, runtime

    @abstractmethod
    def loss(self, images: torch.Tensor) -> torch.Tensor:
        """What is minimised, a scalar, of normalised images [B,C,H,W]."""

    @property
    def notes(self) -> dict[str, str]:
        """What a reader of the artefact has to know besides its settings."""
        return {}


class AfterFirstStage(DataObjective):
    """The main stage of a student whose features were trained before: cross-entropy, and imitation where it has a weight."""


def trunk(network: nn.Module) -> list[nn.Module]:
    """The modules that lie before a network's last map; the whole network if it does not say."""
    names = getattr(network, "layers", Layers()).trunk
    return [network.get_submodule(name) for name in names] or [network]
