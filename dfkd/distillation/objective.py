"""What a student minimises: the interface of an objective and its plain step."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import torch
from torch import nn

from dfkd.datasets.info import DatasetInfo
from dfkd.runtime import Runtime

if TYPE_CHECKING:
    from dfkd.distillation.stream import Store
    from dfkd.methods import MethodSettings


class Batch(NamedTuple):
    """What a student step sees."""

    images: torch.Tensor  # normalised [B,C,H,W]
    labels: torch.Tensor  # int64 [B]; -1 for an image that has none, [0] for a batch that has none
    rows: torch.Tensor | None = None  # int64 [B]: which rows of the store these are views of; None for fresh images
    answers: torch.Tensor | None = None  # the teacher's logits [B,K], where they are known already
    share: float = 1.0  # of the whole batch that this is, where several processes have a part of it each


class Objective(ABC):
    """The student's side of a method: its losses, its optimiser, its step.

    A subclass gives `losses`; one with networks of its own (an aligner, a head) makes them before `super().__init__`, passes
    those that the student's optimiser trains as `trained`, and adds them to `parts`.
    """

    terms: ClassVar[tuple[str, ...]]  # names of the losses, in order; the first is `loss`, the sum that is minimised
    optimiser_steps: ClassVar[int] = 1  # that one `step` takes
    needs_labels: ClassVar[bool] = False  # takes part in nothing that has no labels
    needs_features: ClassVar[bool] = False  # asks the teacher for more than `teacher_answers`: none are kept for it
    shareable: ClassVar[bool] = False  # by processes: losses are means over images, or of the `whole` batch

    def __init__(
        self,
        teacher: nn.Module,
        student: nn.Module,
        info: DatasetInfo,
        settings: MethodSettings,
        runtime: Runtime,
        trained: tuple[nn.Module, ...] = (),
    ) -> None:
        self.teacher, self.student, self.info, self.settings, self.runtime = teacher, student, info, settings, runtime
        self.optimiser = torch.optim.SGD(
            [parameter for network in (student, *trained) for parameter in network.parameters()],
            lr=settings.lr,
            momentum=settings.momentum,
            weight_decay=settings.weight_decay,
            fused=runtime.precision == "fast",
        )
        runtime.ranks.share_statistics(student, *trained)
        self._losses = runtime.compiled(self.losses)

    @abstractmethod
    def losses(self, batch: Batch) -> dict[str, torch.Tensor]:
        """The terms of a batch, as scalars, `loss` first."""

    def start_from(self, state: dict[str, torch.Tensor]) -> None:
        """Take what the first stage of a method in two stages has kept: the student's weights, unless the method keeps others.

        Called once, before `begin`, and for such methods alone.
        """
        self.student.load_state_dict(state)

    def begin(self, store: Store) -> None:
        """Called once, when the images that were given lie in the store and before a state is loaded."""
        self.store = store

    def begin_epoch(self, epoch: int, rate: float) -> None:
        """Set the student's rate. Called before the first student step of an epoch (counted from 0), after its synthesis."""
        for group in self.optimiser.param_groups:
            group["lr"] = rate

    def step(self, batch: Batch) -> torch.Tensor:
        """One student step; returns the terms [len(terms)] of the whole batch, detached."""
        self.student.train()
        losses = self._losses(batch)
        self.optimiser.zero_grad()
        self.runtime.ranks.backward(losses["loss"], self.optimiser, batch.share)
        self.optimiser.step()
        return self.runtime.ranks.mean(torch.stack([value.detach() for value in losses.values()]), batch.share)

    def whole(self, values: torch.Tensor, batch: Batch) -> torch.Tensor:
        """What all processes have of a batch, [B,…], for a loss that compares its images."""
        return self.runtime.ranks.gathered(values, batch.share)

    def teacher_answers(self, batch: Batch) -> torch.Tensor:
        """The teacher's logits [B,K], without a graph: those that the batch carries, or its own."""
        if batch.answers is not None:
            return batch.answers
        with torch.no_grad(), self.runtime.autocast():
            return self.teacher(batch.images)

    @property
    def notes(self) -> dict[str, str]:
        """What a reader of the results has to know of this run besides its settings; goes into the cards and the bank."""
        return {}

    def parts(self) -> dict[str, Any]:
        """All that a resumed run needs, as objects with `state_dict` and `load_state_dict`."""
        return {"student": self.student, "optimiser": self.optimiser}
