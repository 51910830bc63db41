"""Fast and FastMeta: Up to 100× Faster Data-free Knowledge Distillation (Fang et al., AAAI 2022, arXiv 2112.06253).

One generator lives for the whole run, so that a synthesis takes 2, 5 or 10 steps. With the loss of `persistent`:

    fast        k Adam steps on the generator itself and on a fresh latent z, with fresh moments
    fastmeta    k Adam steps on a copy G' of the generator G and on z, then one Adam step on G, rate k · lr_g, with
                fomaml   the sum of the k gradients that G' met on its way
                reptile  67 (G - G')

The adversarial term begins with synthesis number `warmup`, counted from 1: as published, one before the student does. At
number warmup + `reset_after` FastMeta draws the first linear layer and the first BN scale of G anew, ~ N(0, 0.02): as
published, the scale's mean is 0, not 1. PyTorch's own initialisation otherwise; Adam's betas are (0.5, 0.999) everywhere.

Deviations from the published code: labels are sorted, which means nothing to independent latents; the running BN statistics
of G' are carried over to G (nothing in training reads them; the saved generator could not be sampled from without); it runs
on any device. Its flag `reset_bn` does nothing and is left away.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn

from dfkd.datasets.info import DatasetInfo
from dfkd.distillation.objective import Objective
from dfkd.methods import FastSettings
from dfkd.models.generators import GENERATORS
from dfkd.runtime import Runtime
from dfkd.synthesis.persistent import PersistentInversion
from dfkd.synthesis.priors import random_labels
from dfkd.synthesis.synthesizer import clear_moments

BETAS = (0.5, 0.999)
REPTILE = 67.0  # the published code's factor; Adam makes nothing of it but for its epsilon


class Fast(PersistentInversion):
    """The sequential form: every synthesis goes on with the generator that the last one left."""

    settings: FastSettings

    def __init__(
        self,
        teacher: nn.Module,
        student: nn.Module,
        info: DatasetInfo,
        settings: FastSettings,
        runtime: Runtime,
        objective: Objective,
    ) -> None:
        super().__init__(teacher, student, info, settings, runtime, objective)
        build = GENERATORS[settings.generator]
        self._generator = runtime.place(build(settings.latent_size, info.channels, info.image_size, settings.width)).train()
        runtime.ranks.share_statistics(self._generator)
        self.working = self.copied()
        self.latent = torch.zeros(
            settings.synthesis_batch_size, settings.latent_size, device=runtime.device, requires_grad=True
        )
        groups = [
            {"params": list(self.working.parameters()), "lr": settings.lr_g},
            {"params": [self.latent], "lr": settings.lr_z},
        ]
        self.optimiser = torch.optim.Adam(groups, betas=BETAS, fused=runtime.precision == "fast", foreach=False)
        self.memory["calls"] = 0

    def copied(self) -> nn.Module:
        """The network that the steps of a synthesis train: the generator itself."""
        return self._generator

    def begin(self, epoch: int) -> torch.Tensor:
        """Fresh latent and moments; random labels."""
        self.memory["calls"] += 1
        clear_moments(self.optimiser)
        with torch.no_grad():
            self.latent.copy_(torch.randn(self.latent.shape))
        return random_labels(len(self.latent), len(self.info.classes))

    def adversarial(self, epoch: int) -> bool:
        """From synthesis number `warmup` on."""
        return self.memory["calls"] >= self.settings.warmup

    def images(self, labels: torch.Tensor) -> torch.Tensor:
        """G'(z)."""
        return self.working(self.runtime.ranks.mine(self.latent))

    def step(self, loss: torch.Tensor) -> None:
        """One step of generator and latent."""
        self.optimiser.zero_grad()
        self.runtime.ranks.backward(loss, self.optimiser, self.share)
        self.optimiser.step()

    @property
    def generator(self) -> nn.Module:
        """The generator."""
        return self._generator

    def parts(self) -> dict[str, Any]:
        """The generator, the moving statistics, the number of syntheses. Adam starts anew in each."""
        return super().parts() | {"generator": self._generator}


class FastMeta(Fast):
    """The published method: the generator learns to be a good start for the next synthesis."""

    def __init__(
        self,
        teacher: nn.Module,
        student: nn.Module,
        info: DatasetInfo,
        settings: FastSettings,
        runtime: Runtime,
        objective: Objective,
    ) -> None:
        super().__init__(teacher, student, info, settings, runtime, objective)
        self.meta_optimiser = torch.optim.Adam(
            self._generator.parameters(),
            lr=settings.lr_g * settings.g_steps,
            betas=BETAS,
            fused=runtime.precision == "fast",
            foreach=False,
        )

    def copied(self) -> nn.Module:
        """A copy of the generator."""
        return copy.deepcopy(self._generator)

    def begin(self, epoch: int) -> torch.Tensor:
        """Copy G to G', in place; at its time, draw G's first layer anew before."""
        labels = super().begin(epoch)
        own = self.settings
        if own.reset_after and self.memory["calls"] == own.warmup + own.reset_after:
            reset_first_layer(self._generator)
        self.working.load_state_dict(self._generator.state_dict())
        for parameter in self._generator.parameters():
            parameter.grad = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad.zero_()
        return labels

    def step(self, loss: torch.Tensor) -> None:
        """One step of G' and latent; G gathers the gradient."""
        self.optimiser.zero_grad()
        self.runtime.ranks.backward(loss, self.optimiser, self.share)
        if self.settings.meta == "fomaml":
            for own, inner in self._pairs():
                assert own.grad is not None
                assert inner.grad is not None
                own.grad += inner.grad
        self.optimiser.step()

    def finish(self) -> None:
        """The meta step of G."""
        if self.settings.meta == "reptile":
            for own, inner in self._pairs():
                own.grad = REPTILE * (own.detach() - inner.detach())
        self.meta_optimiser.step()
        for kept, latest in zip(self._generator.buffers(), self.working.buffers(), strict=True):
            kept.copy_(latest)

    def _pairs(self) -> list[tuple[nn.Parameter, nn.Parameter]]:
        return list(zip(self._generator.parameters(), self.working.parameters(), strict=True))

    def parts(self) -> dict[str, Any]:
        """The generator and its Adam, the moving statistics, the number of syntheses."""
        return super().parts() | {"meta optimiser": self.meta_optimiser}


@torch.no_grad()
def reset_first_layer(generator: nn.Module) -> None:
    """Draw the weights of the first linear layer and of the first BatchNorm ~ N(0, 0.02), in place; their biases are 0."""
    for kind in (nn.Linear, nn.BatchNorm2d):
        layer = next(module for module in generator.modules() if isinstance(module, kind))
        layer.weight.copy_(0.02 * torch.randn(layer.weight.shape))
        layer.bias.zero_()
