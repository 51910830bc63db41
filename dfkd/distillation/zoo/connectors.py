"""Convolutions that bring a student's map to the shape of a teacher's, chosen by the two sizes as in the benchmark's code."""

from __future__ import annotations

from torch import nn

from dfkd.errors import UserError

Shape = tuple[int, ...]


def connector(student: Shape, teacher: Shape) -> nn.Module:
    """[C_S,H,W] → [C_T,H',W']: nothing where channels and height agree, else a convolution with bias, then BatchNorm.

    Raises:
        UserError: the sizes fit none of the rules (equal or larger, half, double).
    """
    inputs, height, width = student
    outputs, wanted, wide = teacher
    if (inputs, height) == (outputs, wanted):
        return nn.Identity()
    layer: nn.Module
    if height == 2 * wanted:
        layer = nn.Conv2d(inputs, outputs, 3, 2, 1)
    elif 2 * height == wanted:
        layer = nn.ConvTranspose2d(inputs, outputs, 4, 2, 1)
    elif height >= wanted:
        layer = nn.Conv2d(inputs, outputs, (1 + height - wanted, 1 + width - wide))
    else:
        raise UserError(
            f"a map of the student is {height}×{width} and the teacher's {wanted}×{wide}: no convolution is defined for that; "
            "name other layers in student_layers and teacher_layers."
        )
    return nn.Sequential(layer, nn.BatchNorm2d(outputs))
