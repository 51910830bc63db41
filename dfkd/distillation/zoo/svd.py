"""KDSVD: relations between neighbouring maps' first singular vectors (Lee et al., ECCV 2018, "Self-supervised knowledge …").

    v: first right singular vector of a map [H·W,C] of the teacher; of the student's first four, the one nearest to it, with
       its sign
    R_ij = exp(−(v_i − v'_j)² / 8)        v' of the map before, all pairs of channels
    L    = mean_b Σ_maps≥2 Σ_ij (R_S − R_T)²

The published code's form: it keeps one vector, whose singular value is then divided by itself. A vector's sign is arbitrary,
and R depends on it: in the published code it is LAPACK's, which differs from image to image, here a teacher's vector has a
positive sum. Vectors are those of the smaller Gram matrix; their gradient leaves out the directions whose singular values are
not apart, where it is not defined.
Student and teacher need the same channels in every map.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import functional as F

from dfkd.distillation.objective import Batch
from dfkd.distillation.zoo.objective import FeatureObjective, Seen, Shape
from dfkd.errors import UserError

KEPT = 4  # vectors of the student among which the teacher's is sought
APART = 1e-5  # of the largest eigenvalue: what are closer count as equal


class TopEigenvectors(torch.autograd.Function):
    """The last `count` eigenvectors [B,N,count] of symmetric matrices [B,N,N], the largest eigenvalue first."""

    @staticmethod
    def forward(ctx: Any, matrices: torch.Tensor, count: int) -> torch.Tensor:
        """The vectors; their signs are arbitrary."""
        values, vectors = torch.linalg.eigh(matrices)
        ctx.save_for_backward(values, vectors)
        ctx.count = count
        return vectors[..., -count:].flip(-1)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None]:
        """Σ_j Σ_i (u_i·g_j) / (l_j − l_i) u_i u_jᵀ, made symmetric, without the pairs whose l are not apart."""
        values, vectors = ctx.saved_tensors
        chosen = slice(-ctx.count, None)
        gaps = values[:, None, chosen] - values[:, :, None]
        limit = (APART * values[:, -1:, None]).square() + torch.finfo(values.dtype).tiny
        inner = (vectors.mT @ gradients[0].flip(-1)) * gaps / (gaps.square() + limit)
        slope = vectors @ inner @ vectors[..., chosen].mT
        return (slope + slope.mT) / 2, None


def singular_vectors(maps: torch.Tensor, count: int) -> torch.Tensor:
    """[B,C,H,W] → the first right singular vectors [B,C,k] of [H·W,C], of unit norm; k = `count` or, if less, C or H·W."""
    rows = maps.flatten(2)
    pixels = rows.shape[2] < rows.shape[1]
    gram = rows.mT @ rows if pixels else rows @ rows.mT
    vectors = TopEigenvectors.apply(gram, min(count, gram.shape[1]))
    return F.normalize(rows @ vectors if pixels else vectors, dim=1)


def aligned(student: torch.Tensor, teacher: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Vectors [B,C] of a pair of maps [B,C,H,W]: the teacher's first, and the student's that is nearest to it."""
    theirs = singular_vectors(teacher, 1).squeeze(2)
    theirs = theirs * torch.where(theirs.sum(1, keepdim=True) < 0, -1.0, 1.0)
    candidates = singular_vectors(student, KEPT)
    with torch.no_grad():
        cosines = (theirs[:, None] @ candidates).squeeze(1)
        best = F.one_hot(cosines.abs().argmax(1), cosines.shape[1]) * cosines.sign()
    return (candidates * best[:, None]).sum(2), theirs


def relations(one: torch.Tensor, before: torch.Tensor) -> torch.Tensor:
    """R [B,C,C'] of vectors [B,C] and [B,C']."""
    return torch.exp((one[:, :, None] - before[:, None]).square() / -8)


def singular_loss(student: list[torch.Tensor], teacher: list[torch.Tensor]) -> torch.Tensor:
    """L of pairs of maps [B,C,H,W], two at least."""
    pairs = [aligned(ours, theirs) for ours, theirs in zip(student, teacher, strict=True)]
    terms = []
    for (ours, theirs), (ours_before, theirs_before) in zip(pairs[1:], pairs, strict=False):
        apart = relations(ours, ours_before) - relations(theirs, theirs_before)
        terms.append(apart.square().sum() / len(ours))
    return torch.stack(terms).sum()


class SVD(FeatureObjective):
    """Relations between the singular vectors of all maps."""

    def check(self, student: list[Shape], teacher: list[Shape]) -> None:
        """Two maps at least, of equal channels."""
        if len(student) < 2:
            raise UserError("SVD: it relates each map to the one before; there is one alone: name two layers or more.")
        for ours, theirs in zip(student, teacher, strict=True):
            if ours[0] != theirs[0]:
                raise UserError(
                    f"SVD: the student's map has {ours[0]} channels and the teacher's {theirs[0]}; it needs a pair with equal "
                    "channels, such as resnet56 and resnet20, or layers named that have them."
                )

    def own(self, student: Seen, teacher: Seen, batch: Batch) -> torch.Tensor:
        """The sum over the maps."""
        return singular_loss(student.maps, teacher.maps)
