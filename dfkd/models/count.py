"""Parameters and multiply-adds of a network."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


def count_parameters(model: nn.Module) -> int:
    """Number of parameters, trainable or not; buffers (BN statistics) are not counted."""
    return sum(parameter.numel() for parameter in model.parameters())


@torch.no_grad()
def count_macs(model: nn.Module, shape: tuple[int, ...]) -> int:
    """Multiply-adds of the convolutions and linear layers for one input of `shape` (without the batch dimension).

    A block of branches counts as what it is in training: the branches. Deployed, it is a convolution like any other.
    The network runs once, in eval mode, on the device of its parameters (the meta device too); its mode is restored.
    """
    total = 0

    from dfkd.models.fold import Foldable

    def note(layer: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
        nonlocal total
        if isinstance(layer, Foldable):
            total += layer.macs(output)
        elif isinstance(layer, nn.Linear):
            total += output.numel() * layer.in_features
        elif isinstance(layer, nn.ConvTranspose2d):
            total += inputs[0].numel() * layer.weight[0].numel()
        elif isinstance(layer, nn.Conv2d):
            total += output.numel() * layer.weight[0].numel()

    counted = (Foldable, nn.Conv2d, nn.ConvTranspose2d, nn.Linear)
    layers = [layer for layer in model.modules() if isinstance(layer, counted)]
    handles = [layer.register_forward_hook(note) for layer in layers]
    was_training = [module.training for module in model.modules()]
    parameter = next(model.parameters())
    try:
        model.eval()(torch.zeros((1, *shape), device=parameter.device, dtype=parameter.dtype))
    finally:
        for handle in handles:
            handle.remove()
        for module, training in zip(model.modules(), was_training, strict=True):
            module.training = training
    return total
