"""Networks on one test split: what metrics are computed and pictures are drawn from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from dfkd.bank.reader import BankReader
from dfkd.datasets.info import DatasetInfo
from dfkd.errors import UserError
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
    bank_images: Tensor  # of each class in the banks that the student was distilled on, int64 [K]
    runtime: Runtime

    @classmethod
    def of(
        cls,
        networks: Mapping[str, Checkpoint],
        logits: Mapping[str, Tensor],
        images: Tensor,
        labels: Tensor,
        bank_images: Tensor,
        runtime: Runtime,
    ) -> Evaluated:
        """Of checkpoints by role: `teacher`, if there is one, then `student`."""
        names = {role: one.card.architecture for role, one in networks.items()}
        models = {role: one.model for role, one in networks.items()}
        own = {role: logits[role] for role in networks}
        return cls(networks["student"].card.dataset, images, labels, names, models, own, bank_images, runtime)

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


def images_per_class(banks: Sequence[Path], classes: Sequence[str]) -> Tensor:
    """How many images the banks hold of each class, int64 [K].

    Raises:
        UserError: a bank cannot be read, or has other classes.
    """
    counts = torch.zeros(len(classes), dtype=torch.int64)
    for path in banks:
        reader = BankReader(path)
        if reader.meta.dataset.classes != list(classes):
            raise UserError(f"{path}: a bank of other classes than the networks; give the banks that the run used.")
        for block in reader.blocks():
            counts += torch.bincount(block.labels, minlength=len(classes))
    return counts


def balanced_subset(labels: Tensor, count: int) -> Tensor:
    """Indices, ascending, of at most `count` images, as evenly over the classes as these allow; a function of the arguments."""
    generator = torch.Generator().manual_seed(derive_seed("balanced subset"))
    drawn = torch.randperm(len(labels), generator=generator)
    return drawn[in_turns(labels[drawn])[:count]].sort().values


def in_turns(labels: Tensor) -> Tensor:
    """Places in `labels`, int64 [N], in the order in which the classes take turns: the first of each, the second of each, …"""
    turns = torch.empty_like(labels)
    for label in labels.unique():
        own = labels == label
        turns[own] = torch.arange(int(own.sum()))
    return turns.argsort(stable=True)
