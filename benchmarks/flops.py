"""Floating-point operations that a step needs, per image: 2 for a multiply-add, convolutions and linear layers only.

A backward pass costs a forward for the gradient of the input and another for that of the weights. What a variant does
beyond need (weight gradients of a frozen network) is not counted: the fraction of the peak is of useful work.
"""

from __future__ import annotations

import torch
from torch import nn

from benchmarks.settings import INFO, LATENT_SIZE
from dfkd.distillation.csd import Aligner
from dfkd.models import count_macs
from dfkd.models.generators import GENERATORS


def forward_flops(model: nn.Module, shape: tuple[int, ...] = INFO.shape) -> int:
    """Of the forward pass of one input."""
    return 2 * count_macs(model, shape)


def generator_flops() -> int:
    """Of the small generator's forward pass."""
    return forward_flops(GENERATORS["small"](LATENT_SIZE, INFO.channels, INFO.image_size), (LATENT_SIZE,))


def synthesis_flops(teacher: nn.Module) -> int:
    """Teacher: forward and gradient of the input; generator: forward and both gradients."""
    return 2 * forward_flops(teacher) + 3 * generator_flops()


@torch.no_grad()
def aligner_flops(teacher: nn.Module, student: nn.Module) -> int:
    """Of the forward pass of DDA's aligner."""
    size = teacher(torch.zeros(1, *INFO.shape), return_features=True)[1][-2].shape[2:]
    channels = student.feature_channels[-1], teacher.feature_channels[-1]  # type: ignore[index]
    aligner = Aligner(*channels)  # type: ignore[arg-type]
    return forward_flops(aligner.layers, (channels[0], *size))  # type: ignore[arg-type]


def student_flops(teacher: nn.Module, student: nn.Module) -> int:
    """Teacher: forward; student and aligner: forward and both gradients; head: the student's forward of 4 rotations."""
    return forward_flops(teacher) + (3 + 4) * forward_flops(student) + 3 * aligner_flops(teacher, student)
