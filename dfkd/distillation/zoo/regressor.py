"""The convolution that brings a student's map to the shape of the teacher's, as the benchmark chooses it."""

from __future__ import annotations

from torch import nn

from dfkd.distillation.zoo.objective import Shape
from dfkd.errors import UserError


def regressor(student: Shape, teacher: Shape, method: str, relu: bool = True) -> nn.Sequential:
    """Convolution with bias, BatchNorm and, with `relu`, ReLU: maps [B,C_S,H_S,W_S] → [B,C_T,H_T,W_T].

    At twice the teacher's size: 3×3 with stride 2; at half of it: transposed 4×4 with stride 2; at any other larger size: a
    kernel of 1 + the difference, 1×1 for equal sizes.

    Raises:
        UserError: the student's map is smaller than the teacher's in another way, in the words of `method`.
    """
    (channels, height, width), (outputs, high, broad) = student, teacher
    conv: nn.Module
    if (height, width) == (2 * high, 2 * broad):
        conv = nn.Conv2d(channels, outputs, 3, 2, 1)
    elif (2 * height, 2 * width) == (high, broad):
        conv = nn.ConvTranspose2d(channels, outputs, 4, 2, 1)
    elif height >= high and width >= broad:
        conv = nn.Conv2d(channels, outputs, (1 + height - high, 1 + width - broad))
    else:
        raise UserError(
            f"{method}: the student's map is {height}×{width} and the teacher's {high}×{broad}; "
            "pair layers whose maps have one size, or the teacher's half."
        )
    return nn.Sequential(conv, nn.BatchNorm2d(outputs), *([nn.ReLU()] if relu else []))
