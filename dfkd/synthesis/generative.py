"""Generators that live for the whole run and make every batch of the student afresh: what GAN-style methods share."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import torch
from torch import nn

from dfkd.datasets.info import DatasetInfo
from dfkd.datasets.views import normalise
from dfkd.distillation.objective import Objective
from dfkd.methods import GenerativeSettings
from dfkd.models.generators import GENERATORS
from dfkd.runtime import Runtime, StopRequest
from dfkd.synthesis.synthesizer import Synthesis, Synthesizer, held


class GenerativeSynthesizer(Synthesizer):
    """A persistent generator with a persistent Adam. A subclass gives `losses`.

    PyTorch's own initialisation, train mode in synthesis, eval mode (running statistics) in `sample`.
    """

    keeps_images = False
    betas = (0.5, 0.999)
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
        self.optimiser = torch.optim.Adam(
            self._generator.parameters(), lr=settings.lr_g, betas=self.betas, fused=runtime.precision == "fast", foreach=False
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

    def images(self, count: int) -> torch.Tensor:
        """Fresh images [count,C,H,W] in [0, 1], with a graph to the generator."""
        with self.runtime.autocast():
            return self._generator(self.latents(count)).float()

    def synthesize(self, epoch: int, stop: StopRequest | None = None) -> Synthesis:
        """`g_steps` steps of the generator against the student as it is."""
        count, found = self.settings.synthesis_batch_size, {}
        self._generator.train()
        with held(self.student):
            for _ in range(self.settings.g_steps):
                found = self._losses(self.runtime.images(normalise(self.images(count), self.info)))
                self.optimiser.zero_grad()
                found["loss"].backward()
                self.optimiser.step()
        terms = torch.stack([value.detach() for value in found.values()]).tolist()
        steps = self.settings.g_steps
        return Synthesis(
            dict(zip(found, terms, strict=True)), count=count * steps, optimiser_steps=steps, teacher_queries=count * steps
        )

    @torch.no_grad()
    def sample(self, count: int) -> torch.Tensor:
        """Fresh images [count,C,H,W] in [0, 1], from running statistics, without a graph."""
        self._generator.eval()
        return self.images(count)

    @property
    def generator(self) -> nn.Module:
        """The generator."""
        return self._generator

    def parts(self) -> dict[str, Any]:
        """Generator and its Adam."""
        return {"generator": self._generator, "optimiser": self.optimiser}
