"""Generators that live for the whole run and make every batch of the student afresh: what GAN-style methods share."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import torch
from torch import nn

from dfkd.datasets.info import DatasetInfo
from dfkd.datasets.views import normalise
from dfkd.distillation.objective import Objective
from dfkd.methods import GenerativeSettings, StatisticsSettings
from dfkd.models.generators import GENERATORS
from dfkd.progress import StopRequest
from dfkd.runtime import Runtime
from dfkd.synthesis.priors import BatchStatistics
from dfkd.synthesis.synthesizer import FreshSynthesizer, Synthesis, held


class GenerativeSynthesizer(FreshSynthesizer):
    """A persistent generator with a persistent Adam. A subclass gives `losses`.

    PyTorch's own initialisation, train mode in synthesis, eval mode (running statistics) in `sample`.
    """

    shareable = True
    student_trains = False  # the student's mode in a generator step
    settings: GenerativeSettings

    def __init__(
        self,
        teacher: nn.Module,
        student: nn.Module,
        info: DatasetInfo,
        settings: GenerativeSettings,
        runtime: Runtime,
        objective: Objective,
    ) -> None:
        super().__init__(teacher, student, info, settings, runtime, objective)
        self._generator = runtime.place(self.build())
        runtime.ranks.share_statistics(self._generator)
        self.share = runtime.ranks.share(settings.synthesis_batch_size)
        self.optimiser = torch.optim.Adam(
            self._generator.parameters(),
            lr=settings.lr_g,
            betas=settings.betas,
            fused=runtime.precision == "fast",
            foreach=False,
        )
        self._losses = runtime.compiled(self.losses)

    def build(self) -> nn.Module:
        """The generator: latents [B,latent_size] → images [B,C,H,W] in [0, 1]."""
        own = self.settings
        return GENERATORS[own.generator](own.latent_size, self.info.channels, self.info.image_size, own.width)

    @abstractmethod
    def losses(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        """The terms of a batch of normalised images [B,C,H,W], with a graph to them, as scalars; `loss` first."""

    def latents(self, count: int) -> torch.Tensor:
        """z ~ N(0, 1), [count,latent_size]. Drawn on the CPU, so that devices agree."""
        return torch.randn(count, self.settings.latent_size).to(self.runtime.device)

    def whole(self, values: torch.Tensor) -> torch.Tensor:
        """What all processes have of the batch of a step, [B,…], for a term that compares its images."""
        return self.runtime.ranks.gathered(values, self.share)

    def made(self, count: int) -> torch.Tensor:
        """What the generator makes of fresh latents, [count,C,H,W] in [0, 1], with a graph to it; this process's part."""
        with self.runtime.autocast():
            return self._generator(self.runtime.ranks.mine(self.latents(count))).float()

    def inputs(self, count: int) -> torch.Tensor:
        """Fresh images as the networks take them: normalised, [count,C,H,W], with a graph to the generator; likewise."""
        return normalise(self.made(count), self.info)

    def step(self) -> dict[str, torch.Tensor]:
        """One step of the generator; its terms."""
        found = self._losses(self.runtime.images(self.inputs(self.settings.synthesis_batch_size)))
        self.optimiser.zero_grad()
        self.runtime.ranks.backward(found["loss"], self.optimiser, self.share)
        self.optimiser.step()
        return found

    def synthesize(self, epoch: int, stop: StopRequest | None = None) -> Synthesis:
        """`g_steps` steps of the generator against the student as it is. They are few: none is lost to a `stop`."""
        steps, found = self.settings.g_steps, {}
        self._generator.train()
        with held(self.student):
            self.student.train(self.student_trains)
            for _ in range(steps):
                found = self.step()
        terms = self.runtime.ranks.mean(torch.stack([value.detach() for value in found.values()]), self.share).tolist()
        count = self.settings.synthesis_batch_size * steps
        return Synthesis(dict(zip(found, terms, strict=True)), count=count, optimiser_steps=steps, teacher_queries=count)

    @torch.no_grad()
    def sample(self, count: int) -> torch.Tensor:
        """Fresh images [count,C,H,W] in [0, 1], from running statistics, without a graph."""
        self._generator.eval()
        return self.runtime.ranks.whole(self.made(count), count)

    @torch.no_grad()
    def batch(self, count: int) -> torch.Tensor:
        """Such images, normalised; this process's part."""
        self._generator.eval()
        return normalise(self.made(count), self.info)

    @property
    def rate(self) -> float:
        """The generator's learning rate, which may fall over the epochs."""
        rate: float = self.optimiser.param_groups[0]["lr"]
        return rate

    @property
    def generator(self) -> nn.Module:
        """The generator."""
        return self._generator

    def parts(self) -> dict[str, Any]:
        """Generator and its Adam."""
        return {"generator": self._generator, "optimiser": self.optimiser}


class StatisticsSynthesizer(GenerativeSynthesizer):
    """One whose images are also held to the statistics of the teacher's BatchNorm layers, with the weight `bn`.

    Raises:
        UserError: `bn` is not 0 and the teacher has no such layers.
    """

    settings: StatisticsSettings

    def __init__(
        self,
        teacher: nn.Module,
        student: nn.Module,
        info: DatasetInfo,
        settings: StatisticsSettings,
        runtime: Runtime,
        objective: Objective,
    ) -> None:
        super().__init__(teacher, student, info, settings, runtime, objective)
        one_pass = runtime.precision == "fast" and not runtime.compile
        self.statistics = BatchStatistics(teacher, one_pass, runtime.ranks) if settings.bn else None

    def statistics_loss(self) -> torch.Tensor:
        """R_bn of the forward of the teacher that was recorded last; 0 if `bn` is 0."""
        return self.statistics.loss() if self.statistics else torch.zeros((), device=self.runtime.device)

    def synthesize(self, epoch: int, stop: StopRequest | None = None) -> Synthesis:
        """`g_steps` steps of the generator, the teacher's statistics recorded."""
        if self.statistics is None:
            return super().synthesize(epoch, stop)
        with self.statistics.recording():
            return super().synthesize(epoch, stop)
