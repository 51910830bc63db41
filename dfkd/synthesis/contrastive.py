"""The contrastive term of CMI: Contrastive Model Inversion (Fang et al., IJCAI 2021, arXiv 2105.08584).

Two views of every image, a global one (crop and flip, which the other terms see too) and a local one (a random box enlarged to
the full size), become instance features h, means over the pixels of what enters the teacher's layers. A head φ maps them to
the unit sphere. Images should be told apart from each other and from those of former syntheses, N new and M cached ones:

    a_i = φ(h of local view i),  b_i = stop-gradient φ(h of global view i),   i = 1 … N + M
    c_i = - log softmax_i (a_i b^T / τ),      L_cr = mean_{i ≤ N} c_i + mean_{i > N} c_i

The gradient reaches the images through the N current local rows alone; cached rows train φ, global projections nothing (the
published code's one-directional form). φ and its Adam (betas 0.9, 0.999) live for the whole run.

Deviations from the published code: the cached rows are drawn once per synthesis instead of anew in each of its steps (the
code spends more time on that copy than on the teacher); they are drawn also in the synthesis in which the ring is
exactly full (the code takes its write position, then 0, for the number of rows, and draws none); a ring that the batch does
not divide is refused with the right message (its assertion fails to print one); the ring lies on the device, in the
precision of the run's activations.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import nn
from torch.nn import functional as F

from dfkd.datasets.info import DatasetInfo
from dfkd.datasets.views import normalise, random_resized_views
from dfkd.errors import UserError
from dfkd.methods import CMISettings, DDASettings
from dfkd.runtime import Runtime

PROJECTION = 256  # length of φ's answer


class InstanceFeatures:
    """h of the teacher's last forward: the spatial means of layer inputs, concatenated, [B,D].

    `bn`: the inputs of all BatchNorm layers (wrn402: D = 2704, vgg11: 2752). `layers`: the inputs of layer1 … layer4 of a
    ResNet; the output of layer4 is not among them (resnet34: 64 + 64 + 128 + 256 = 512). `auto`: `layers` for a network
    that has these four, as the published code for resnet34, else `bn`.

    Raises:
        UserError: the teacher has no such layers.
    """

    def __init__(self, teacher: nn.Module, which: Literal["auto", "bn", "layers"]) -> None:
        groups = [getattr(teacher, f"layer{number}", None) for number in (1, 2, 3, 4)]
        resnet = all(isinstance(group, nn.Module) for group in groups)
        normed = [module for module in teacher.modules() if isinstance(module, nn.BatchNorm2d)]
        name = type(teacher).__name__
        if which == "layers" and not resnet:
            raise UserError(f"instance_features: the teacher ({name}) has no layer1 … layer4; choose bn.")
        by_layer = which == "layers" or (which == "auto" and resnet)
        self.layers: list[nn.Module] = [group for group in groups if group is not None] if by_layer else [*normed]
        if not self.layers:
            raise UserError(
                f"the contrastive term needs BatchNorm layers; the teacher ({name}) has none: choose another teacher or method."
            )
        self._found: list[torch.Tensor] = []

    def _hook(self, _layer: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        self._found.append(inputs[0].float().mean((2, 3)))

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Hook the layers for the forwards in the block."""
        handles = [layer.register_forward_pre_hook(self._hook) for layer in self.layers]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()
            self._found.clear()

    def take(self) -> torch.Tensor:
        """h [B,D] of the one forward since the last `take`, float32."""
        found = torch.cat(self._found, dim=1)
        self._found.clear()
        return found


class FeatureBank:
    """A ring of `size` pairs of local and global instance features on the device; the oldest go first."""

    def __init__(self, size: int, dimension: int, device: torch.device, dtype: torch.dtype = torch.float32) -> None:
        self.rows = torch.zeros(2, size, dimension, device=device, dtype=dtype)  # local, global
        self.position = self.filled = 0

    def append(self, local: torch.Tensor, whole: torch.Tensor) -> None:
        """Write [N,D] local and global features over the oldest rows; N divides the size."""
        size, count = self.rows.shape[1], len(local)
        self.rows[:, self.position : self.position + count] = torch.stack([local, whole]).to(self.rows.dtype)
        self.position = (self.position + count) % size
        self.filled = min(self.filled + count, size)

    def sample(self, count: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Local and global features of up to `count` different filled rows, [M,D] each, float32, drawn uniformly."""
        index = torch.randperm(self.filled)[:count].to(self.rows.device)
        local, whole = self.rows[:, index].float()
        return local, whole

    def state_dict(self) -> dict[str, Any]:
        """The filled rows and the place to write next."""
        return {"rows": self.rows[:, : self.filled].clone(), "position": self.position}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` gave."""
        self.filled, self.position = state["rows"].shape[1], state["position"]
        self.rows[:, : self.filled].copy_(state["rows"])


class Head(nn.Module):
    """φ: Linear(D,D) - ReLU - Linear(D,256) to the unit sphere."""

    def __init__(self, dimension: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(dimension, dimension), nn.ReLU(), nn.Linear(dimension, PROJECTION))

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """[B,D] -> [B,256], rows of unit norm, float32."""
        return F.normalize(self.layers(features).float(), dim=1)


def contrastive_loss(local: torch.Tensor, whole: torch.Tensor, current: int, temperature: float) -> torch.Tensor:
    """L_cr of unit projections a and b [N+M,256], of which the first `current` = N are of the batch in hand."""
    losses = F.cross_entropy(local @ whole.T / temperature, torch.arange(len(local), device=local.device), reduction="none")
    loss = losses[:current].mean()
    return loss + losses[current:].mean() if len(local) > current else loss


class Contrast:
    """The term, its head and its bank. Use it as `with contrast.synthesis(): …` around the steps of one synthesis.

    In each step: the teacher's forward of the global views, then `loss`, backward, `step`. After the last one
    `bank.append` with the features of the kept images.
    """

    def __init__(
        self,
        teacher: nn.Module,
        info: DatasetInfo,
        runtime: Runtime,
        *,
        weight: float,  # of L_cr in the synthesis
        temperature: float,
        lr: float,  # of the head's Adam
        batch_size: int,  # images per synthesis
        bank_size: int,
        bank_sample: int,
        instance_features: Literal["auto", "bn", "layers"] = "auto",
    ) -> None:
        if bank_size % batch_size:
            raise UserError(
                f"bank_size {bank_size} is no multiple of synthesis_batch_size {batch_size}; "
                f"choose {max(bank_size // batch_size, 1) * batch_size}."
            )
        self.teacher, self.info, self.runtime = teacher, info, runtime
        self.weight, self.temperature, self.bank_sample = weight, temperature, bank_sample
        self.features = InstanceFeatures(teacher, instance_features)
        dimension = self._dimension()
        self.head = runtime.place(Head(dimension))
        self.optimiser = torch.optim.Adam(self.head.parameters(), lr=lr, fused=runtime.precision == "fast", foreach=False)
        self.bank = FeatureBank(bank_size, dimension, runtime.device, runtime.dtype)
        self._cached = (torch.empty(0), torch.empty(0))

    @classmethod
    def of_method(
        cls, teacher: nn.Module, info: DatasetInfo, settings: CMISettings | DDASettings, runtime: Runtime, weight: float
    ) -> Contrast:
        """The term that a method's settings describe, with its weight."""
        return cls(
            teacher,
            info,
            runtime,
            weight=weight,
            temperature=settings.cr_temperature,
            lr=settings.lr_g,
            batch_size=settings.synthesis_batch_size,
            bank_size=settings.bank_size,
            bank_sample=settings.bank_sample,
            instance_features=settings.instance_features,
        )

    def _dimension(self) -> int:
        """D, found by a forward pass of one empty image."""
        with torch.no_grad(), self.runtime.autocast(), self.features.recording():
            self.teacher(self.runtime.images(torch.zeros(1, *self.info.shape)))
            return self.features.take().shape[1]

    @contextmanager
    def synthesis(self) -> Iterator[None]:
        """Draw the cached rows and record instance features for the steps in the block."""
        self._cached = self.bank.sample(self.bank_sample)
        with self.features.recording():
            yield

    def loss(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """L_cr of images [N,C,H,W] in [0, 1] whose global views the teacher has just seen, with a graph to them.

        Returns:
            The unweighted loss, the instance features of the local views and those of the global ones, [N,D], detached.
        """
        whole = self.features.take().detach()
        views = normalise(random_resized_views(images, self.info), self.info)
        with self.runtime.autocast():
            self.teacher(self.runtime.images(views))
        local = self.features.take()
        cached_local, cached_whole = self._cached
        with self.runtime.autocast():
            a = self.head(torch.cat([local, cached_local]))
            with torch.no_grad():
                b = self.head(torch.cat([whole, cached_whole]))
        return contrastive_loss(a, b, len(local), self.temperature), local.detach(), whole

    def step(self) -> None:
        """The head's own step, after the backward pass; its gradients are cleared for the next one."""
        self.optimiser.step()
        self.optimiser.zero_grad()

    def parts(self) -> dict[str, Any]:
        """Head, its Adam and the bank."""
        return {"contrast head": self.head, "contrast optimiser": self.optimiser, "contrast bank": self.bank}
