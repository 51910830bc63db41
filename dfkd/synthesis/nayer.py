"""NAYER: Noisy Layer Data Generation for data-free distillation (Tran et al., CVPR 2024, arXiv 2310.00258).

The generator starts from what a class is called, and its noise is a layer that is drawn anew for every synthesis:

    x = G(BN(e_y) W_b + c_b),      W_b ~ N(0, 1), c_b = 0 in every synthesis, then trained with G

e_y is the embedding of class y's name (`label_embedding`); block b of the batch, one image of every class, has a noisy layer
of its own. The loss is that of `persistent`, its adversarial term begins with the student. Adam, betas (0.5, 0.999), starts
anew in every synthesis, G itself every `generator_life` epochs, from PyTorch's own initialisation.

Deviations from the published code, which does not run as it is (its argument parser refuses the method's name, an import is
misspelt): the syntheses of an epoch are spread over it, each followed by its share of the student's steps, where the code
makes them all first; without CLIP's weights the embedding is random, and the run's bank and cards say which it was.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from dfkd.datasets.info import DatasetInfo
from dfkd.distillation.objective import Objective
from dfkd.methods import NAYERSettings
from dfkd.models.generators import GENERATORS
from dfkd.runtime import Runtime
from dfkd.synthesis.label_embedding import label_embedding
from dfkd.synthesis.persistent import PersistentInversion
from dfkd.synthesis.synthesizer import clear_moments


class NoisyLayer(nn.Module):
    """A linear layer for each block of `rows` rows of a batch."""

    def __init__(self, inputs: int, outputs: int, blocks: int, rows: int) -> None:
        super().__init__()
        self.rows = rows
        self.weight = nn.Parameter(torch.zeros(blocks, inputs, outputs))
        self.bias = nn.Parameter(torch.zeros(blocks, 1, outputs))

    @torch.no_grad()
    def renew(self) -> None:
        """Weights ~ N(0, 1), biases 0. Drawn on the CPU, so that devices agree."""
        self.weight.copy_(torch.randn(self.weight.shape))
        self.bias.zero_()

    def forward(self, features: torch.Tensor, first: int = 0) -> torch.Tensor:
        """[B,inputs] -> [B,outputs], rows `first` and following of a batch of at most blocks × rows."""
        blocks, end = len(self.weight), first + len(features)
        padded = F.pad(features, (0, 0, first, blocks * self.rows - end)).unflatten(0, (blocks, self.rows))
        return (padded @ self.weight + self.bias).flatten(0, 1)[first:end]


class NamedGenerator(nn.Module):
    """Labels [B] → images [B,C,H,W] in [0, 1]: label embedding, BatchNorm, noisy layer, generator."""

    embedding: torch.Tensor

    def __init__(self, embedding: torch.Tensor, batch_size: int, latent_size: int, generator: nn.Module) -> None:
        super().__init__()
        classes, size = embedding.shape
        self.register_buffer("embedding", embedding)
        self.norm = nn.BatchNorm1d(size)
        self.noise = NoisyLayer(size, latent_size, -(-batch_size // classes), classes)
        self.body = generator

    def forward(self, labels: torch.Tensor, first: int = 0) -> torch.Tensor:
        """[B] -> [B,C,H,W]; `labels` are those of row `first` and following of a batch."""
        return self.body(self.noise(self.norm(self.embedding[labels]), first))

    def restart(self) -> None:
        """PyTorch's own initialisation of all but the noisy layer, in place."""
        for layer in (*self.norm.modules(), *self.body.modules()):
            if isinstance(layer, (nn.Linear, nn.Conv2d, nn.BatchNorm1d, nn.BatchNorm2d)):
                layer.reset_parameters()


class NAYER(PersistentInversion):
    """One batch per call, of every class as many, each class from its name."""

    settings: NAYERSettings

    def __init__(
        self,
        teacher: nn.Module,
        student: nn.Module,
        info: DatasetInfo,
        settings: NAYERSettings,
        runtime: Runtime,
        objective: Objective,
    ) -> None:
        super().__init__(teacher, student, info, settings, runtime, objective)
        embedding, kind = label_embedding(settings, info)
        body = GENERATORS[settings.generator](settings.latent_size, info.channels, info.image_size, settings.width)
        self.network = runtime.place(
            NamedGenerator(embedding, settings.synthesis_batch_size, settings.latent_size, body)
        ).train()
        runtime.ranks.share_statistics(self.network)
        self.optimiser = torch.optim.Adam(
            self.network.parameters(), lr=settings.lr_g, betas=(0.5, 0.999), fused=runtime.precision == "fast", foreach=False
        )
        self.memory.update(life=-1, embedding=kind)

    def begin(self, epoch: int) -> torch.Tensor:
        """Fresh noisy layer and moments, at its time a fresh generator; every class equally often, the rest at random."""
        life = epoch // self.settings.generator_life
        if life != self.memory["life"]:
            self.network.restart()
            self.memory["life"] = life
        self.network.noise.renew()
        clear_moments(self.optimiser)
        count, classes = self.settings.synthesis_batch_size, len(self.info.classes)
        return torch.cat([torch.arange(classes).repeat(count // classes), torch.randint(classes, (count % classes,))])

    def adversarial(self, epoch: int) -> bool:
        """After the warm-up."""
        return epoch >= self.settings.warmup

    def images(self, labels: torch.Tensor) -> torch.Tensor:
        """x."""
        rows = self.runtime.ranks.part(len(labels))
        return self.network(labels[rows], rows.start)

    def step(self, loss: torch.Tensor) -> None:
        """One step of generator and noisy layer."""
        self.optimiser.zero_grad()
        self.runtime.ranks.backward(loss, self.optimiser, self.share)
        self.optimiser.step()

    @property
    def notes(self) -> dict[str, str]:
        """Which label embedding it is: `clip` or `orthogonal`."""
        return {"label_embedding": self.memory["embedding"]}

    def parts(self) -> dict[str, Any]:
        """Generator with embedding and noisy layer, the moving statistics, the generator's age. Adam starts anew each time."""
        return super().parts() | {"generator": self.network}
