"""Networks on one test split: what metrics are computed and pictures are drawn from."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from dfkd.datasets.info import DatasetInfo
from dfkd.runtime import Runtime, derive_seed


@dataclass(frozen=True)
class Evaluated:
    """A student, and its teacher if it has one, on a test split. The mappings hold `teacher` (if there is one) and `student`."""

    info: DatasetInfo
    images: Tensor  # uint8 [N,C,H,W]
    labels: Tensor  # int64 [N]
    names: dict[str, str]  # architectures
    models: dict[str, nn.Module]  # in eval mode, their parameters frozen, where `runtime` placed them
    logits: dict[str, Tensor]  # float32 [N,K] on the CPU
    runtime: Runtime

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
