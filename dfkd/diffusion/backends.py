"""The one interface of everything that makes variations of a bank's images, and the names it is chosen by."""

from __future__ import annotations

import importlib
from abc import ABC, abstractmethod
from typing import Any

import torch

from dfkd.checkpoint import Checkpoint
from dfkd.datasets.info import DatasetInfo
from dfkd.errors import UserError, nearest
from dfkd.history import History
from dfkd.progress import StopRequest
from dfkd.provenance import Cost
from dfkd.runtime import Runtime, derive_seed
from dfkd.settings import AugmentSettings

# name in `augment.backend` -> where the class is; imported when it is chosen, since diffusers takes seconds
BACKENDS: dict[str, str] = {
    "image-variations": "dfkd.diffusion.image_variations:ImageVariations",
    "bank-diffusion": "dfkd.diffusion.bank_diffusion:BankDiffusion",
    "none": "dfkd.diffusion.backends:NoVariations",
}

COST_FILE = "cost.json"  # in the checkpoint's folder: the cost of the attempts so far


class Backend(ABC):
    """Makes variations of uint8 images, one image of its own for each (seed, parent's id, variation).

    An output depends on the seed, the id, the variation and the parent's pixels; never on the batch or the shard it was
    made in (up to the rounding of the last bit, which a network's batched kernels do not fix).
    """

    def __init__(self, settings: AugmentSettings, info: DatasetInfo, runtime: Runtime) -> None:
        self.settings, self.info, self.runtime = settings, info, runtime

    def fit(  # noqa: B027 - most back ends have nothing to learn
        self,
        images: torch.Tensor,
        labels: torch.Tensor,
        checkpoint: Checkpoint,
        cost: Cost,
        stop: StopRequest,
        history: History,
    ) -> None:
        """Learn from the bank (uint8 [N,C,H,W], int64 [N]), if the back end learns at all; resumes from the checkpoint.

        The seconds and the optimiser steps go to `cost`, losses and rates to `history`, which counts in steps and is part
        of the state that is saved. When a signal asks to stop, the state is saved and `stop.stop()` leaves.
        """

    @property
    def learns(self) -> bool:
        """Whether `fit` needs the bank's images."""
        return False

    @abstractmethod
    def vary(self, images: torch.Tensor, labels: torch.Tensor, ids: torch.Tensor, variation: int) -> torch.Tensor:
        """Variation number `variation` of each image: uint8 [n,C,H,W] -> uint8 [n,C,H,W] on the CPU.

        Args:
            labels: int64 [n], the parents' classes.
            ids: int64 [n], the parents' indices in their bank: with the seed and `variation` they key the noise.
        """

    def describe(self) -> dict[str, Any]:
        """What a bank's metadata says of the generator, beyond the settings."""
        return {}


class NoVariations(Backend):
    """The control arm: no parent is varied."""

    def vary(self, images: torch.Tensor, labels: torch.Tensor, ids: torch.Tensor, variation: int) -> torch.Tensor:
        """No image at all: uint8 [0,C,H,W]."""
        return images[:0]


def create_backend(settings: AugmentSettings, info: DatasetInfo, runtime: Runtime) -> Backend:
    """The back end that `settings.backend` names.

    Raises:
        UserError: no such back end, or one that cannot start here (weights absent, a size that does not fit).
    """
    if settings.backend not in BACKENDS:
        raise UserError(f"unknown augment.backend '{settings.backend}'; {nearest(settings.backend, BACKENDS)}.")
    module, name = BACKENDS[settings.backend].split(":")
    backend: type[Backend] = getattr(importlib.import_module(module), name)
    return backend(settings, info, runtime)


def image_generators(seed: int, ids: torch.Tensor, variation: int) -> list[torch.Generator]:
    """One CPU generator per image, seeded by (seed, id, variation): the noise is the same on every device."""
    return [torch.Generator().manual_seed(derive_seed(seed, "augment", int(item), variation)) for item in ids]


def image_noise(shape: tuple[int, ...], generators: list[torch.Generator]) -> torch.Tensor:
    """Standard normal float32 [n, *shape], each image from its own generator."""
    return torch.stack([torch.randn(shape, generator=generator) for generator in generators])
