"""Linear algebra of deployment: BatchNorms and blocks of branches become the one convolution that they are in eval mode.

All of it is in float64. Networks that were folded have the layout of their plain twin: the same names, convolutions with a
bias, the BatchNorms behind them gone. To load them takes nothing of the blocks' code (`dfkd.models.rep`).
"""

from __future__ import annotations

import copy
import inspect
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, fx, nn

from dfkd.errors import UserError
from dfkd.models.adapter import AdaptedClassifier
from dfkd.models.classifier import Layers

Folded = tuple[Tensor, Tensor]  # kernel [O,I/groups,k,k] and bias [O]


class Foldable(nn.Module, ABC):
    """A module that is one convolution in eval mode."""

    @abstractmethod
    def folded(self, dtype: torch.dtype = torch.float64) -> Folded:
        """Kernel and bias of that convolution, reckoned in `dtype`."""

    @abstractmethod
    def macs(self, output: Tensor) -> int:
        """Multiply-adds of its branches, each by itself, for an output [1,O,H,W]."""


def fold_norm(kernel: Tensor, bias: Tensor | None, norm: nn.BatchNorm2d) -> Folded:
    """Kernel [O,…] and bias [O] with the BatchNorm that follows, by its running statistics; in the dtype of `kernel`."""
    assert norm.running_mean is not None
    assert norm.running_var is not None
    scale = torch.rsqrt(norm.running_var.to(kernel.dtype) + norm.eps)
    if norm.weight is not None:
        scale = scale * norm.weight.to(kernel.dtype)
    mean = norm.running_mean.to(kernel.dtype)
    shift = -mean if bias is None else bias.to(kernel.dtype) - mean
    offset = shift * scale
    if norm.bias is not None:
        offset = offset + norm.bias.to(kernel.dtype)
    return kernel * scale.view(-1, *[1] * (kernel.dim() - 1)), offset


def norms_behind(model: nn.Module) -> dict[str, str]:
    """Name of a convolution or block → that of the BatchNorm that its output, and nothing else, goes into.

    Raises:
        UserError: the network's forward pass cannot be traced (it decides by values).
    """

    class Tracer(fx.Tracer):
        def is_leaf_module(self, module: nn.Module, name: str) -> bool:
            return isinstance(module, Foldable) or super().is_leaf_module(module, name)

    optional = list(inspect.signature(model.forward).parameters.values())[1:]
    fixed = {one.name: one.default for one in optional if one.default is not one.empty}
    try:
        graph = Tracer().trace(model, fixed)
    except Exception as error:  # the code of others runs here, on stand-ins for tensors
        raise UserError(
            f"{type(model).__name__}: its forward pass cannot be traced ({' '.join(str(error).split())}), so its BatchNorms "
            "cannot be folded; use a network without blocks and do not deploy it."
        ) from None
    calls = [node for node in graph.nodes if node.op == "call_module"]
    targets = [node.target for node in calls]
    layers = dict(model.named_modules())
    found = {}
    for node in calls:
        users = list(node.users)
        once = len(users) == 1 and users[0].op == "call_module" and targets.count(node.target) == 1
        if once and isinstance(layers[str(node.target)], (nn.Conv2d, Foldable)):
            norm = str(users[0].target)
            if type(layers[norm]) is nn.BatchNorm2d and targets.count(norm) == 1:
                found[str(node.target)] = norm
    return found


@torch.no_grad()
def folded_state(model: nn.Module) -> dict[str, Tensor]:
    """The state dict of the network's folded form; empty if there is nothing to fold. `model` is left as it was.

    Raises:
        UserError: see `norms_behind`.
    """
    module = model.module if isinstance(model, AdaptedClassifier) else model
    named: Layers = model.layers  # type: ignore[assignment]
    layers, tapped = dict(module.named_modules()), {named.stem, *named.maps, *named.preacts}
    norms = {name: norm for name, norm in norms_behind(module).items() if name not in tapped}  # whose outputs have a meaning
    blocks = {name: layer for name, layer in layers.items() if isinstance(layer, Foldable)}
    convolutions = {name: layers[name] for name in norms if name not in blocks}
    if not blocks and not convolutions:
        return {}
    gone = (*blocks, *convolutions, *norms.values())
    state = {key: value for key, value in module.state_dict().items() if not key.startswith(tuple(f"{name}." for name in gone))}
    for name, layer in (*blocks.items(), *convolutions.items()):
        kernel, bias = layer.folded() if isinstance(layer, Foldable) else (layer.weight.double(), layer.bias)
        if name in norms:
            kernel, bias = fold_norm(kernel, bias, layers[norms[name]])  # type: ignore[arg-type]
        assert bias is not None
        state[f"{name}.weight"], state[f"{name}.bias"] = kernel.float().contiguous(), bias.float().contiguous()
    return state


def fold_form(model: nn.Module, names: Collection[str]) -> nn.Module:
    """A plain network in the form whose state dict has `names`: with convolutions' biases, without BatchNorms, as they say."""
    for name, layer in list(model.named_modules()):
        if isinstance(layer, nn.Conv2d) and layer.bias is None and f"{name}.bias" in names:
            model.set_submodule(name, convolution_like(layer))
        elif isinstance(layer, nn.BatchNorm2d) and f"{name}.running_mean" not in names:
            model.set_submodule(name, nn.Identity())
    return model


def convolution_like(layer: nn.Conv2d) -> nn.Conv2d:
    """A convolution of the same geometry, with a bias."""
    return nn.Conv2d(
        layer.in_channels,
        layer.out_channels,
        layer.kernel_size,  # type: ignore[arg-type]
        layer.stride,  # type: ignore[arg-type]
        layer.padding,  # type: ignore[arg-type]
        layer.dilation,  # type: ignore[arg-type]
        layer.groups,
        padding_mode=layer.padding_mode,
    )


@contextmanager
def by_branches(model: nn.Module) -> Iterator[nn.Module]:
    """Within it, blocks in eval mode run branch by branch, as they train, instead of folded on the fly."""
    blocks = [layer for layer in model.modules() if isinstance(layer, Foldable) and not layer.training]
    for block in blocks:
        block.training = True  # of the block alone: its BatchNorms stay in eval mode
    try:
        yield model
    finally:
        for block in blocks:
            block.training = False


@torch.no_grad()
def fold_error(model: nn.Module, folded: nn.Module, shape: tuple[int, int, int], seed: int = 0) -> float:
    """Largest difference of the logits of two forms on a batch of noise, as a share of the largest logit.

    In float64 on the CPU. The first runs branch by branch. Both are left as they were.
    """
    images = torch.randn((4, *shape), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    with by_branches(_exact(model)) as exact:
        expected = exact(images)
    return _relative(_exact(folded)(images), expected)


def _exact(model: nn.Module) -> nn.Module:
    return copy.deepcopy(model).cpu().double().eval()


def _relative(found: Any, expected: Any) -> float:
    return ((found - expected).abs().max() / expected.abs().max().clamp(min=1e-30)).item()
