"""BatchNorm of a batch that several processes have a part of each: statistics and gradients are those of the whole.

PyTorch's SyncBatchNorm does the same on GPUs alone.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

if TYPE_CHECKING:
    from dfkd.parallel import Ranks


class Moments(torch.autograd.Function):
    """See `Ranks.moments`. What is done with the whole moments is done by every process, each with its share of the loss."""

    @staticmethod
    def forward(
        ctx: Any, variance: torch.Tensor, mean: torch.Tensor, count: int, ranks: Ranks
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Variance and mean [C] over `count` images of this part → over all."""
        spread, middle, shares, _ = ranks.combine(variance, mean, count)
        ctx.ranks, share = ranks, shares[ranks.rank].to(mean.dtype)
        ctx.save_for_backward(share, (mean - middle).to(mean.dtype))
        return spread.to(variance.dtype), middle.to(mean.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """The sum of what all processes make of the moments, brought to this part's own."""
        share, apart = ctx.saved_tensors
        of_variance, of_mean = ctx.ranks.sum(torch.stack(gradients))
        return share * of_variance, share * (of_mean + 2 * apart * of_variance), None, None


class _Normalise(torch.autograd.Function):
    """BatchNorm by the moments of the whole batch; gives also these moments and what they are of, without a graph."""

    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, epsilon: float, ranks: Ranks
    ) -> tuple[torch.Tensor, ...]:
        wide = x if x.dtype == torch.float64 else x.float()
        local = torch.var_mean(wide, dim=[0, *range(2, x.dim())], correction=0)
        variance, mean, _, total = ranks.combine(*local, x.numel() // x.shape[1])
        variance, mean = variance.to(wide.dtype), mean.to(wide.dtype)
        ctx.save_for_backward(x, weight, mean, variance, total)
        ctx.epsilon, ctx.ranks = epsilon, ranks
        ctx.mark_non_differentiable(mean, variance, total)
        return torch.native_batch_norm(x, weight, bias, mean, variance, False, 0.0, epsilon)[0], mean, variance, total

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, weight, mean, variance, total = ctx.saved_tensors
        direct, of_weight, of_bias = torch.ops.aten.native_batch_norm_backward(
            gradients[0], x, weight, mean, variance, None, None, False, ctx.epsilon, [True, True, True]
        )
        scale = (variance + ctx.epsilon).rsqrt()
        # d mean and d variance, which every image of the whole batch had a part in
        along, across = ctx.ranks.sum(torch.stack([of_weight, of_bias])) / total.to(of_weight.dtype)
        slope = -weight * scale.square() * along
        offset = -weight * scale * across - slope * mean
        shape = (1, -1, *[1] * (x.dim() - 2))
        own = direct + x * slope.view(shape) + offset.view(shape)
        return own.to(x.dtype), of_weight, of_bias, None, None


class SharedNorm(nn.modules.batchnorm._BatchNorm):
    """A BatchNorm layer whose statistics in training are those of all processes' images; in eval mode what it was."""

    ranks: Ranks

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[B,C,…], a part of the whole batch, normalised by the moments of all of it."""
        if not self.training and self.running_mean is not None:
            return super().forward(x)
        self._check_input_dim(x)
        one = x.new_ones(self.num_features, dtype=torch.promote_types(x.dtype, torch.float32))
        weight, bias = (one, 0 * one) if self.weight is None else (self.weight, self.bias)
        out, mean, variance, total = _Normalise.apply(x, weight, bias, self.eps, self.ranks)
        if self.training and self.track_running_stats:
            self._remember(mean, variance * (total / (total - 1)).to(variance.dtype))
        return out

    @torch.no_grad()
    def _remember(self, mean: torch.Tensor, variance: torch.Tensor) -> None:
        """Move the running statistics towards the batch's, as PyTorch does."""
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        self.num_batches_tracked.add_(1)
        momentum = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        for kept, fresh in ((self.running_mean, mean), (self.running_var, variance)):
            kept.mul_(1 - momentum).add_(fresh.to(kept.dtype), alpha=momentum)


def share_statistics(network: nn.Module, ranks: Ranks) -> None:
    """Have the BatchNorm layers of a network become `SharedNorm`s, in place."""
    for layer in network.modules():
        if isinstance(layer, nn.modules.batchnorm._BatchNorm) and not isinstance(layer, SharedNorm | nn.SyncBatchNorm):
            layer.__class__ = _shared(type(layer))  # type: ignore[assignment, arg-type]
            layer.ranks = ranks  # type: ignore[assignment]


@functools.cache
def _shared(kind: type[nn.Module]) -> type[nn.Module]:
    """The class of a layer of this class that shares its statistics: still one of it, with the same names in its state."""
    return type(f"Shared{kind.__name__}", (SharedNorm, kind), {})
