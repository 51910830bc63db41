"""The terms that data-free methods share. Every one returns a scalar to be minimised, in float32."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from dfkd.errors import UserError
from dfkd.parallel import ALONE, Ranks
from dfkd.runtime import wide


class _ChannelMoments(torch.autograd.Function):
    """Biased variance and mean per channel of [B,C,H,W], in one pass forward and one backward.

    On the CPU, `torch.var_mean` over (0, 2, 3) of a channels_last batch took up to eight times as long, and its gradient
    walks the activations five times.
    """

    @staticmethod
    def forward(ctx: Any, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        mean, variance = torch.batch_norm_update_stats(images, None, None, 0.0)
        ctx.save_for_backward(images, mean)
        return variance, mean

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> torch.Tensor:
        of_variance, of_mean = gradients
        images, mean = ctx.saved_tensors
        count = images.numel() // images.shape[1]
        slope = of_variance * (2 / count)
        offset = of_mean / count - slope * mean
        return torch.addcmul(offset.view(1, -1, 1, 1), images, slope.view(1, -1, 1, 1))


def channel_moments(images: torch.Tensor, one_pass: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
    """(biased variance [C], mean [C]) over batch and pixels of [B,C,H,W], in float32; differentiable.

    `one_pass` is faster on the CPU and differs in the last digits (relative 1e-4).
    """
    images = images.float()
    if one_pass and images.device.type == "cpu":
        return _ChannelMoments.apply(images)
    return torch.var_mean(images, dim=(0, 2, 3), correction=0)


Recorded = tuple[torch.Tensor, torch.Tensor, nn.BatchNorm2d]  # biased variance [C], mean [C]


class BatchStatistics:
    """Collects mean and biased variance of every BatchNorm2d input of a frozen network, one forward at a time.

    Use it as `with statistics.recording(): model(x)`, then `loss()`. The hooks exist only while recording is asked for, so
    that other forwards of the teacher (distillation, evaluation) do not pay for them; a forward within `paused()` is not
    recorded either. Of a batch that several `ranks` share the statistics are those of the whole.

    Raises:
        UserError: the network has no BatchNorm layers.
    """

    def __init__(self, model: nn.Module, one_pass: bool = False, ranks: Ranks = ALONE) -> None:
        self.one_pass, self.ranks = one_pass, ranks
        self.layers = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
        if not self.layers:
            raise UserError(
                f"the method compares BatchNorm statistics and needs BatchNorm layers; the teacher ({type(model).__name__}) "
                "has none: choose another teacher, or a method without this term (dafl, zskt, dfad)."
            )
        self._paused = False
        self._found: list[Recorded] = []
        self._images = 0  # of the batch that was recorded last

    def _hook(self, layer: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        if self._paused:
            return
        assert isinstance(layer, nn.BatchNorm2d)
        variance, mean = channel_moments(inputs[0], self.one_pass)
        self._found.append((variance, mean, layer))
        self._images = len(inputs[0])

    @contextmanager
    def recording(self) -> Iterator[BatchStatistics]:
        """Hook the layers for the forwards in the block."""
        handles = [layer.register_forward_pre_hook(self._hook) for layer in self.layers]
        try:
            yield self
        finally:
            for handle in handles:
                handle.remove()

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Record nothing in the block: for another forward of the network between two that count."""
        self._paused = True
        try:
            yield
        finally:
            self._paused = False

    def loss(self) -> torch.Tensor:
        """R_bn = sum over layers of ||var_l - v||_2 + ||mean_l - mu||_2, of the forward that was recorded last.

        L2 norms, not squared, unweighted (the form that CMI, CSD, DDA, Fast and NAYER share; DeepInversion, eq. 4, squares
        nothing either but weights the first layer).
        """
        return self.distance(self.taken())

    @staticmethod
    def distance(found: Sequence[Recorded]) -> torch.Tensor:
        """R_bn of these statistics."""
        total = torch.zeros((), device=found[0][0].device)
        for variance, mean, layer in found:
            assert layer.running_var is not None
            assert layer.running_mean is not None
            total = total + torch.linalg.vector_norm(layer.running_var.float() - variance)
            total = total + torch.linalg.vector_norm(layer.running_mean.float() - mean)
        return total

    def taken(self) -> list[Recorded]:
        """What was recorded last, which is forgotten: the moments of all processes' images, by one exchange for all layers."""
        found = list(self._found)
        self._found.clear()
        if self.ranks.world == 1:
            return found
        variance, mean = torch.cat([own for own, _, _ in found]), torch.cat([own for _, own, _ in found])
        sizes = [len(own) for own, _, _ in found]
        variances, means = (values.split(sizes) for values in self.ranks.moments(variance, mean, self._images))
        return [(v, m, layer) for v, m, (_, _, layer) in zip(variances, means, found, strict=True)]


class MovingStatistics(BatchStatistics):
    """R_bn of statistics that remember former batches (Fast, NAYER): (1 - m) mu + m mu~ in the place of mu, likewise for v.

    `update()` at the end of a synthesis makes mu~ <- m mu~ + (1 - m) mu of the batch that was recorded last; the first one
    sets mu~ = mu, and before it R_bn is the plain one. The gradient goes through (1 - m) mu alone: m = 0.9 leaves a tenth.
    """

    def __init__(self, model: nn.Module, momentum: float, one_pass: bool = False, ranks: Ranks = ALONE) -> None:
        super().__init__(model, one_pass, ranks)
        self.momentum = momentum
        self._last: list[torch.Tensor] = []  # variance and mean of each layer in turn
        self._moving: list[torch.Tensor] = []  # likewise; empty before the first update

    def loss(self) -> torch.Tensor:
        """R_bn of the mixed statistics of the forward that was recorded last."""
        found = self.taken()
        self._last = [value.detach() for variance, mean, _ in found for value in (variance, mean)]
        if self._moving and self.momentum:
            for index, (variance, mean, layer) in enumerate(found):
                old_variance, old_mean = self._moving[2 * index : 2 * index + 2]
                mixed = torch.lerp(variance, old_variance, self.momentum), torch.lerp(mean, old_mean, self.momentum)
                found[index] = (*mixed, layer)
        return self.distance(found)

    def update(self) -> None:
        """Take in the statistics of the last recorded batch. Once per synthesis."""
        if not self._moving:
            self._moving = [value.clone() for value in self._last]
        for old, new in zip(self._moving, self._last, strict=True):
            old.lerp_(new, 1 - self.momentum)

    def state_dict(self) -> dict[str, Any]:
        """The moving statistics; none before the first update."""
        return {"moving": self._moving}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` gave."""
        device = next(layer.running_mean.device for layer in self.layers if layer.running_mean is not None)
        self._moving = [value.to(device, copy=True) for value in state["moving"]]


def one_hot(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Cross-entropy of the teacher's logits [B,K] with the labels the images are made for [B], batch mean."""
    return F.cross_entropy(logits.float(), labels)


def kl_divergence(student: torch.Tensor, teacher: torch.Tensor, temperature: float) -> torch.Tensor:
    """tau^2 KL(softmax(t / tau) || softmax(s / tau)), batch mean (Hinton et al. 2015). Logits [B,K]; neither is detached."""
    log_q = F.log_softmax(wide(student) / temperature, dim=1)
    log_p = F.log_softmax(wide(teacher) / temperature, dim=1)
    return F.kl_div(log_q, log_p, reduction="batchmean", log_target=True) * temperature**2


def rotation_labels(labels: torch.Tensor) -> torch.Tensor:
    """Joint class × rotation labels 4y + k of a batch that `rotations` turned, [B] -> [4B], sample-major (CSD)."""
    return (4 * labels[:, None] + torch.arange(4, device=labels.device)).flatten()


def random_labels(count: int, classes: int) -> torch.Tensor:
    """Uniform random labels [count], sorted, from torch's global generator."""
    return torch.randint(classes, (count,)).sort().values


def activation(features: torch.Tensor) -> torch.Tensor:
    """L_act = - mean |f| of penultimate features [B,C] (DAFL, eq. 6; a mean over all entries, as the published code has it)."""
    return -features.float().abs().mean()


def class_balance(logits: torch.Tensor, temperature: float = 1.0) -> torch.Tensor:
    """L_bal = SUM_k p_k log p_k, p the mean softmax of logits [B,K]: minus its entropy (DAFL, eq. 7).

    Computed from log-softmaxes, so that a class whose probability underflows gives 0 and not NaN.
    """
    log_p = torch.logsumexp((logits.float() / temperature).log_softmax(1), dim=0) - math.log(len(logits))
    return (log_p.exp() * log_p).sum()


def decision_adversarial(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    """L_adv = - mean_i [argmax s_i = argmax t_i] KL_1(t_i || s_i): only where both agree is the student pushed.

    Logits [B,K]; neither is detached; the mean is over all B (CMI, Fast, NAYER).
    """
    agree = student.argmax(1) == teacher.argmax(1)
    return -(pointwise_kl(student, teacher) * agree).mean()


def pointwise_kl(student: torch.Tensor, teacher: torch.Tensor, temperature: float = 1.0) -> torch.Tensor:
    """tau^2 KL(softmax(t / tau) || softmax(s / tau)) of each image, [B]. Logits [B,K]; neither is detached."""
    log_q = F.log_softmax(student.float() / temperature, dim=1)
    log_p = F.log_softmax(teacher.float() / temperature, dim=1)
    return F.kl_div(log_q, log_p, reduction="none", log_target=True).sum(1) * temperature**2


def js_divergence(student: torch.Tensor, teacher: torch.Tensor, temperature: float = 3.0) -> torch.Tensor:
    """The JS form of ADI's public code: (KL(M || P) + KL(M || Q)) / 2 of softmaxes at `temperature`, batch mean. Logits [B,K].

    Arguments reversed against the textbook's, P, Q and their mean M clamped to [0.01, 0.99] after M is formed, no tau^2.
    """
    p, q = F.softmax(student.float() / temperature, dim=1), F.softmax(teacher.float() / temperature, dim=1)
    middle = (p + q) / 2
    p, q, middle = (value.clamp(0.01, 0.99) for value in (p, q, middle))
    return 0.5 * sum(
        (F.kl_div(value.log(), middle, reduction="batchmean") for value in (p, q)), torch.zeros((), device=p.device)
    )


def total_variation(images: torch.Tensor) -> torch.Tensor:
    """Mean |difference| to the right, lower and both lower diagonal neighbours, summed; [B,C,H,W] (DeepInversion's L1 form)."""
    right = (images[..., :, 1:] - images[..., :, :-1]).abs().mean()
    down = (images[..., 1:, :] - images[..., :-1, :]).abs().mean()
    falling = (images[..., 1:, 1:] - images[..., :-1, :-1]).abs().mean()
    rising = (images[..., 1:, :-1] - images[..., :-1, 1:]).abs().mean()
    return right + down + falling + rising
