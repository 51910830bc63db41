"""What every way of making images shares: the interface, the record of the best iterate, and networks held still."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import nn

from dfkd.datasets.info import DatasetInfo
from dfkd.datasets.views import normalise, to_unit
from dfkd.divergence import Divergence
from dfkd.progress import StopRequest
from dfkd.runtime import Runtime

if TYPE_CHECKING:
    from dfkd.distillation.objective import Objective
    from dfkd.methods import MethodSettings


@dataclass
class Synthesis:
    """What a synthesis made. A method that keeps no images leaves all but the terms away."""

    terms: dict[str, float]  # the losses: of the kept iterate, or of the last step
    images: torch.Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.uint8))  # uint8 [B,C,H,W], on the CPU
    labels: torch.Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.int64))  # [B], on the CPU
    scores: dict[str, torch.Tensor] = field(default_factory=dict)  # float32 [B] each
    count: int = 0  # images made, kept or not
    optimiser_steps: int = 0
    teacher_queries: int = 0  # images that the teacher classified


class Synthesizer(ABC):
    """How a method makes images. One object serves a whole run.

    The images of `synthesize` go to the run's bank, and the student's batches come from the bank, by random views; but for
    for a `FreshSynthesizer`.
    """

    shareable: ClassVar[bool] = False  # by processes: each makes its part of a batch, losses are of the whole

    def __init__(
        self,
        teacher: nn.Module,
        student: nn.Module,
        info: DatasetInfo,
        settings: MethodSettings,
        runtime: Runtime,
        objective: Objective,
    ) -> None:
        self.teacher, self.student, self.info, self.settings, self.runtime = teacher, student, info, settings, runtime
        self.objective = objective

    @abstractmethod
    def synthesize(self, epoch: int, stop: StopRequest | None = None) -> Synthesis:
        """One synthesis, against the student as it is. Draws from torch's global generator, which the caller seeds.

        Args:
            epoch: counted from 0.
            stop: asked between two steps; a synthesis that is stopped is lost and made again.
        """

    @property
    def generator(self) -> nn.Module | None:
        """The generator that lives for the whole run; None if there is none."""
        return None

    @property
    def rate(self) -> float | None:
        """The learning rate of the generator, or of the pixels, in the last synthesis; None if nothing is learnt."""
        rate: float | None = getattr(self.settings, "lr_g", None)
        return rate

    @property
    def notes(self) -> dict[str, str]:
        """What a reader of the results has to know of this run besides its settings; goes into the cards and the bank."""
        return {}

    def parts(self) -> dict[str, Any]:
        """All that a resumed run needs, as objects with `state_dict` and `load_state_dict`."""
        return {}


class FreshSynthesizer(Synthesizer):
    """One that keeps no images for the student: every batch is made afresh. Such a method reads no bank and has no labels."""

    @abstractmethod
    def sample(self, count: int) -> torch.Tensor:
        """Fresh images [count,C,H,W] in [0, 1], without a graph."""

    def batch(self, count: int) -> torch.Tensor:
        """A fresh batch of the student, [count,C,H,W]: `sample`, normalised. Of several processes each has its part."""
        return normalise(self.runtime.ranks.mine(self.sample(count)), self.info)


class Memory(dict[str, Any]):
    """Numbers and words that a resumed run needs; one of a synthesizer's `parts`."""

    def state_dict(self) -> dict[str, Any]:
        """The values."""
        return dict(self)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` gave."""
        self.update(state)


def clear_moments(optimiser: torch.optim.Optimizer) -> None:
    """Set an Adam's moments and step counts to zero, in their memory: as good as new."""
    for state in optimiser.state.values():
        for value in state.values():
            value.zero_()


@torch.no_grad()
def teacher_scores(
    teacher: nn.Module, images: torch.Tensor, labels: torch.Tensor, info: DatasetInfo, runtime: Runtime
) -> dict[str, torch.Tensor]:
    """What the teacher says of images as they are stored: uint8 [B,C,H,W], labels [B] → float32 [B] each, on the CPU."""
    with runtime.autocast():
        logits = teacher(runtime.images(normalise(to_unit(images), info)))
    log_p = logits.float().log_softmax(1)
    entropy = -(log_p.exp() * log_p).sum(1)
    own = log_p.gather(1, labels[:, None])[:, 0].exp()
    return {"confidence": log_p.max(1).values.exp().cpu(), "label_probability": own.cpu(), "entropy": entropy.cpu()}


class Best:
    """The iterate of the lowest loss, chosen on the device: nothing in the loop waits for the host."""

    def __init__(self) -> None:
        self._loss: torch.Tensor | None = None
        self._values: list[torch.Tensor] = []
        self._terms = torch.empty(0)
        self._names: list[str] = []

    def offer(self, loss: torch.Tensor, terms: Mapping[str, torch.Tensor], *values: torch.Tensor) -> None:
        """Keep `values` (images first) and the terms if `loss`, a scalar, is the lowest so far and finite."""
        loss = loss.detach()
        found = [value.detach() for value in values]
        stacked = torch.stack([loss, *(term.detach() for term in terms.values())])
        if self._loss is None:
            self._loss = torch.where(loss.isfinite(), loss, torch.inf)
            self._values, self._terms, self._names = [value.clone() for value in found], stacked, ["loss", *terms]
            return
        better = loss < self._loss
        self._loss = torch.where(better, loss, self._loss)
        self._terms = torch.where(better, stacked, self._terms)
        self._values = [torch.where(better, new, old) for new, old in zip(found, self._values, strict=True)]

    def take(self) -> tuple[list[torch.Tensor], dict[str, float]]:
        """The kept values and their terms.

        Raises:
            Divergence: no loss was finite.
        """
        if self._loss is None or not math.isfinite(self._loss.item()):
            raise Divergence("synthesis", -1, "loss", "lr_g")
        return self._values, dict(zip(self._names, self._terms.tolist(), strict=True))


@contextmanager
def held(*networks: nn.Module) -> Iterator[None]:
    """Within the block the networks are in eval mode and take no gradients; images still get theirs through them."""
    modes = [(network, network.training) for network in networks]
    free = [parameter for network in networks for parameter in network.parameters() if parameter.requires_grad]
    for network in networks:
        network.eval()
    for parameter in free:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for network, training in modes:
            network.train(training)
        for parameter in free:
            parameter.requires_grad_(True)
