"""Inputs of which the published code's losses are known: element i of a tensor is scale · sin(a i + p), float64."""

import math

import torch


def det(shape, a, p, scale=1.0):
    """A tensor without randomness."""
    return scale * torch.sin(a * torch.arange(math.prod(shape), dtype=torch.float64) + p).reshape(shape)


ZS, ZT = det((4, 10), 0.7, 0.1, 3), det((4, 10), 0.31, 0.5, 4)
Y = torch.tensor([3, 0, 9, 5])
FS = [det((4, 4, 8, 8), 0.11, 0.2), det((4, 6, 4, 4), 0.23, 0.4), det((4, 8, 2, 2), 0.37, 0.6)]
FT = [det((4, 8, 8, 8), 0.13, 0.3), det((4, 12, 4, 4), 0.29, 0.5), det((4, 16, 2, 2), 0.41, 0.7)]
FA = [det(value.shape, 0.07 + 0.02 * k, 0.3) for k, value in enumerate(FT)]
FP = [det((4, 4, 8, 8), 0.09, 0.1), det((4, 6, 4, 4), 0.12, 0.2), det((4, 8, 2, 2), 0.15, 0.3)]
FQ = [det((4, 4, 8, 8), 0.08, 0.4), det((4, 6, 4, 4), 0.14, 0.5), det((4, 8, 2, 2), 0.16, 0.6)]
ES, ET = det((4, 16), 0.17, 0.2), det((4, 16), 0.19, 0.9)
EXACT = {"rel": 0.0, "abs": 1e-9}
