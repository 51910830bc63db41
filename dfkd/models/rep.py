"""Re-parameterised students: k×k convolutions trained as blocks of parallel branches, each with its BatchNorm.

In eval mode a block is one convolution (`dfkd.models.fold`); branches are for training alone. Which there are:

* `actdb`: three k×k, k×1, 1×k ("ACTDB", later "AMBB", of the KDrefine code, a student's block trained by plain distillation).
* `acb`: k×k, k×1, 1×k (ACNet, Ding et al., 2019).
* `repvgg`: k×k, 1×1, and the identity where the shape is kept (RepVGG, Ding et al., 2021).
* `dbb`: k×k, 1×1, 1×1 before k×k, 1×1 before the mean over k×k (Diverse Branch Block, Ding et al., 2021).

Every branch is drawn by the network's own initialisation and not scaled: with n branches of unit BatchNorms, a block's output
begins with n times the variance of a plain layer, as in the published code. Of DBB, the first 1×1 of a chain is drawn likewise
(the published code begins with the identity), and depthwise layers have all four branches (there: k×k and the mean).
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dfkd.errors import UserError
from dfkd.models.classifier import Classifier
from dfkd.models.fold import Foldable, Folded, fold_norm, norms_behind

Draw = Callable[[nn.Module], None]

# Branches that are one kernel on the block's input, and as such are run as one convolution: k×k, k×1, 1×k, 1×1.
KERNELS: dict[str, tuple[str, ...]] = {
    "actdb": ("square", "square", "square", "vertical", "horizontal"),
    "acb": ("square", "vertical", "horizontal"),
    "repvgg": ("square", "point"),
    "dbb": ("square", "point"),
}


class Block(Foldable):
    """The branches of a convolution; in eval mode the convolution that they are, folded at each pass.

    All branches that are one kernel run as one convolution and one BatchNorm of n·O channels, summed by n: the smaller ones
    set into zeros at each pass. Their parameters are `square` [n·O,I/g,k,k], `vertical` [O,I/g,k,1], `horizontal`
    [O,I/g,1,k] and `point` [O,I/g,1,1]; the channels of `norm` are the branches' behind each other.
    """

    square: nn.Parameter

    def __init__(self, layer: nn.Conv2d, kind: str, norm: nn.BatchNorm2d, draw: Draw) -> None:
        """In place of `layer` and a BatchNorm with the constants of `norm`; `draw` initialises a convolution."""
        super().__init__()
        self.size: int = layer.kernel_size[0]
        self.stride: int = layer.stride[0]
        self.padding: int = layer.padding[0]  # type: ignore[assignment]
        self.inputs, self.outputs, self.groups = layer.in_channels, layer.out_channels, layer.groups
        self.kernels = KERNELS[kind]
        shapes = {"square": (self.size, self.size), "vertical": (self.size, 1), "horizontal": (1, self.size), "point": (1, 1)}
        drawn: dict[str, list[Tensor]] = {}
        for name in self.kernels:
            fresh = nn.Conv2d(self.inputs, self.outputs, shapes[name], groups=self.groups, bias=False)
            draw(fresh)
            drawn.setdefault(name, []).append(fresh.weight.detach())
        for name, weights in drawn.items():
            self.register_parameter(name, nn.Parameter(torch.cat(weights)))
        self.norm = _norm(len(self.kernels) * self.outputs, norm)
        keeps = self.inputs == self.outputs and self.stride == 1 and self.padding == self.size // 2
        self.identity = _norm(self.outputs, norm) if kind == "repvgg" and keeps else None
        chains = (False, True) if kind == "dbb" else ()
        self.chains = nn.ModuleList(Chain(layer, average, norm, draw) for average in chains)

    def forward(self, x: Tensor) -> Tensor:
        """[B,I,H,W] → [B,O,H',W']."""
        if not self.training and not self._listened():
            kernel, bias = (part.to(x.dtype) for part in self.folded(torch.promote_types(x.dtype, torch.float32)))
            return F.conv2d(x, kernel, bias, self.stride, self.padding, groups=self.groups)
        count = len(self.kernels)
        # With groups each branch has a copy of the input, so that its channels lie together: to gather them costs far more.
        copies, groups = (x, 1) if self.groups == 1 else (x.repeat(1, count, 1, 1), self.groups * count)
        branches = self.norm(F.conv2d(copies, self._stacked(), None, self.stride, self.padding, groups=groups)).chunk(count, 1)
        out = functools.reduce(torch.add, branches)
        if self.identity is not None:
            out = out + self.identity(x)
        for chain in self._chains():
            out = out + chain(x)
        return out

    def folded(self, dtype: torch.dtype = torch.float64) -> Folded:
        """Kernel [O,I/g,k,k] and bias [O]."""
        kernel, bias = fold_norm(self._stacked().to(dtype), None, self.norm)
        kernel, bias = (part.unflatten(0, (len(self.kernels), -1)).sum(0) for part in (kernel, bias))
        others = [chain.folded(dtype) for chain in self._chains()]
        if self.identity is not None:
            others.append(fold_norm(self._identity_kernel(kernel), None, self.identity))
        for other, offset in others:
            kernel, bias = kernel + other, bias + offset
        return kernel, bias

    def macs(self, output: Tensor) -> int:
        """Multiply-adds of the branches' own kernels, without the zeros around them."""
        weights = sum(parameter.numel() for parameter in self.parameters(recurse=False))
        places = output.shape[2] * output.shape[3]
        return weights * places + sum(chain.macs(output) for chain in self._chains())

    def _listened(self) -> bool:
        """Whether somebody hooks a BatchNorm within, such as an inversion that wants its statistics: then the branches run."""
        norms = [layer for layer in self.modules() if isinstance(layer, nn.BatchNorm2d)]
        return any(layer._forward_pre_hooks or layer._forward_hooks for layer in norms)

    def _chains(self) -> list[Chain]:
        return list(self.chains)  # type: ignore[arg-type]

    def _stacked(self) -> Tensor:
        """All kernels as one, [n·O,I/g,k,k]."""
        squares = iter(self.square.chunk(self.kernels.count("square")))
        return torch.cat([next(squares) if name == "square" else self._embedded(getattr(self, name)) for name in self.kernels])

    def _embedded(self, kernel: Tensor) -> Tensor:
        """A smaller kernel in the middle of k×k zeros."""
        down, right = (self.size - kernel.shape[2]) // 2, (self.size - kernel.shape[3]) // 2
        return F.pad(kernel, (right, right, down, down))

    def _identity_kernel(self, like: Tensor) -> Tensor:
        kernel, places = torch.zeros_like(like), torch.arange(self.outputs, device=like.device)
        kernel[places, places % like.shape[1], self.size // 2, self.size // 2] = 1
        return kernel


class Chain(nn.Module):
    """1×1 convolution, BatchNorm, k×k convolution or mean over k×k, BatchNorm.

    Between the two the border is not zero but what the first BatchNorm makes of zero: only then is the chain one convolution of
    the zero-padded input (identity III of the paper).
    """

    def __init__(self, layer: nn.Conv2d, average: bool, norm: nn.BatchNorm2d, draw: Draw) -> None:
        super().__init__()
        inputs, outputs, self.groups = layer.in_channels, layer.out_channels, layer.groups
        self.size, self.stride = layer.kernel_size[0], layer.stride[0]
        self.padding: int = layer.padding[0]  # type: ignore[assignment]
        inner = outputs if average else inputs
        self.conv1 = nn.Conv2d(inputs, inner, 1, groups=self.groups, bias=False)
        self.norm1, self.norm2 = _norm(inner, norm), _norm(outputs, norm)
        self.conv2 = None if average else nn.Conv2d(inner, outputs, self.size, self.stride, groups=self.groups, bias=False)
        draw(self)

    def forward(self, x: Tensor) -> Tensor:
        """[B,I,H,W] → [B,O,H',W']."""
        inner = self.norm1(self.conv1(x))
        if self.padding:
            sides = [self.padding] * 4
            frame = F.pad(inner.new_zeros(inner.shape[2:]), sides, value=1.0)
            inner = F.pad(inner, sides) + self._border().to(inner.dtype).view(1, -1, 1, 1) * frame
        outer = F.avg_pool2d(inner, self.size, self.stride) if self.conv2 is None else self.conv2(inner)
        return self.norm2(outer)

    def folded(self, dtype: torch.dtype) -> Folded:
        """Kernel [O,I/g,k,k] and bias [O]."""
        first, offset = fold_norm(self.conv1.weight.to(dtype), None, self.norm1)  # [inner,I/g,1,1]
        if self.conv2 is None:
            kernel = first.expand(-1, -1, self.size, self.size) / self.size**2
            bias = offset
        else:
            second = self.conv2.weight.to(dtype).unflatten(0, (self.groups, -1))  # [g,O/g,inner/g,k,k]
            parts = first.flatten(1).unflatten(0, (self.groups, -1))  # [g,inner/g,I/g]
            kernel = torch.einsum("gomhw,gmi->goihw", second, parts).flatten(0, 1)
            bias = torch.einsum("gomhw,gm->go", second, offset.unflatten(0, (self.groups, -1))).flatten()
        return fold_norm(kernel, bias, self.norm2)

    def macs(self, output: Tensor) -> int:
        """Multiply-adds of the convolutions; the 1×1 runs on every place of the input."""
        places = output.shape[2] * output.shape[3]
        second = 0 if self.conv2 is None else self.conv2.weight.numel() * places
        return self.conv1.weight.numel() * places * self.stride**2 + second

    def _border(self) -> Tensor:
        """What the first BatchNorm, by its running statistics, makes of zero; no gradient goes through it."""
        with torch.no_grad():
            return fold_norm(torch.zeros_like(self.conv1.weight), None, self.norm1)[1]


def with_blocks(model: nn.Module, kind: str, name: str) -> nn.Module:
    """`model` with each k×k convolution, 1 < k < 7, and the BatchNorm directly behind it replaced by a block, in place.

    Of a network whose BatchNorms lie before the convolutions (a WRN) the convolutions alone are replaced: the block has
    BatchNorms within, and the network's own stay where they are.

    Args:
        kind: one of `KERNELS`.
        name: of the model, for the sentence of a refusal.

    Raises:
        UserError: the network has no such convolution, or cannot be traced.
    """
    draw = model.initialise if isinstance(model, Classifier) else _as_drawn
    layers = dict(model.named_modules())
    norms = {} if getattr(model, "preactivation", False) else norms_behind(model)
    chosen = [one for one, layer in layers.items() if isinstance(layer, nn.Conv2d) and replaceable(layer)]
    if not chosen:
        raise UserError(f"model '{name}': has no convolution of 3×3 or 5×5 for blocks '{kind}' to replace; leave blocks plain.")
    for one in chosen:
        norm = layers[norms[one]] if one in norms else nn.BatchNorm2d(1)
        model.set_submodule(one, Block(layers[one], kind, norm, draw))  # type: ignore[arg-type]
        if one in norms:
            model.set_submodule(norms[one], nn.Identity())
    return model


def replaceable(layer: nn.Conv2d) -> bool:
    """Whether a block can stand in for a convolution: square and odd, 1 < k < 7, one stride and zero padding for both axes."""
    height, width = layer.kernel_size
    return (
        height == width in (3, 5)
        and layer.stride[0] == layer.stride[1]
        and isinstance(layer.padding, tuple)
        and layer.padding[0] == layer.padding[1]
        and layer.dilation == (1, 1)
        and layer.padding_mode == "zeros"
        and not isinstance(layer, nn.LazyConv2d)
    )


def _norm(channels: int, like: nn.BatchNorm2d) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, like.eps, like.momentum)


def _as_drawn(_module: nn.Module) -> None:
    """PyTorch's default initialisation."""
