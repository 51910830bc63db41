"""Networks on one test split: what metrics are computed and pictures are drawn from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from dfkd.datasets.info import DatasetInfo
from dfkd.evaluation.checkpoints import Checkpoint
from dfkd.runtime import Runtime, derive_seed


@dataclass(frozen=True)
class Evaluated:
    """A student and, if it has one, its teacher on a test split. The mappings hold `teacher`, if any, and `student`."""

    info: DatasetInfo
    images: Tensor  # uint8 [N,C,H,W]
    labels: Tensor  # int64 [N]
    names: dict[str, str]  # architectures
    models: dict[str, nn.Module]  # in eval mode, their parameters frozen, where `runtime` placed them
    logits: dict[str, Tensor]  # float32 [N,K] on the CPU
    runtime: Runtime

    @classmethod
    def of(
        cls, networks: Mapping[str, Checkpoint], logits: Mapping[str, Tensor], images: Tensor, labels: Tensor, runtime: Runtime
    ) -> Evaluated:
        """Of checkpoints by role: `teacher`, if there is one, then `student`."""
        names = {role: one.card.architecture for role, one in networks.items()}
        models = {role: one.model for role, one in networks.items()}
        own = {role: logits[role] for role in networks}
        return cls(networks["student"].card.dataset, images, labels, names, models, own, runtime)

    @property
    def choices(self) -> dict[str, Tensor]:
        """The class that each network chooses, int64 [N]."""
        return {role: logits.argmax(1) for role, logits in self.logits.items()}

    def title(self, role: str) -> str:
        """`Teacher wrn402`, say."""
        return f"{role.capitalize()} {self.names[role]}"

    def marked(self) -> Tensor:
        """Images on which student and teacher disagree, bool [N]; without a teacher, those that the student has wrong."""
        choices = self.choices
        return choices["student"] != choices.get("teacher", self.labels)


def balanced_subset(labels: Tensor, count: int) -> Tensor:
    """Indices, ascending, of at most `count` images, as evenly over the classes as these allow; a function of the arguments."""
    generator = torch.Generator().manual_seed(derive_seed("balanced subset"))
    drawn = torch.randperm(len(labels), generator=generator)
    turns = torch.empty_like(drawn)  # the how-manieth drawn of its class an image is
    for label in labels.unique():
        own = labels[drawn] == label
        turns[own] = torch.arange(int(own.sum()))
    return drawn[turns.argsort(stable=True)[:count]].sort().values
