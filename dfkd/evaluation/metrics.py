"""How well a student does, and how close it is to its teacher: pure functions of logits [N,K] and labels [N].

Everything is computed in float64, from logits of any floating dtype. Percentages are 0 to 100.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F


def accuracy(logits: Tensor, labels: Tensor, k: int = 1) -> float:
    """Acc@k in percent: the label is among the k largest logits; of equal ones the class that comes first counts as larger.

    With fewer than k classes, k is their number.
    """
    own = logits.gather(1, labels[:, None])
    earlier = torch.arange(logits.shape[1], device=logits.device) < labels[:, None]
    before = (logits > own) | ((logits == own) & earlier)
    return 100 * int((before.sum(1) < k).sum()) / len(labels)


def agreement(student_logits: Tensor, teacher_logits: Tensor) -> float:
    """Agree@1 in percent: the student's first choice is the teacher's (AdaDFKD's evaluator)."""
    return 100 * int((student_logits.argmax(1) == teacher_logits.argmax(1)).sum()) / len(student_logits)


def js_distance(student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
    """Jensen-Shannon distance D = sqrt(JSD) of the two softmaxes, natural logarithm, per image: [N], 0 to sqrt(ln 2)."""
    student, teacher = student_logits.double().softmax(1), teacher_logits.double().softmax(1)
    mean = (student + teacher) / 2
    divergence = (_kl_divergence(student, mean) + _kl_divergence(teacher, mean)) / 2
    return divergence.clamp(min=0).sqrt()  # rounding can leave a tiny negative number where the two are equal


def _kl_divergence(p: Tensor, q: Tensor) -> Tensor:
    """KL(p || q) of each row, natural logarithm; 0 log 0 is 0."""
    return (torch.special.xlogy(p, p) - torch.special.xlogy(p, q)).sum(1)


def probability_loyalty(student_logits: Tensor, teacher_logits: Tensor) -> float:
    """L_p = mean(1 - JSD^(1/4)), 0.0876 to 1.

    AdaDFKD's evaluator takes the root of a distance that is a root already; kept, because the published figures are of
    this form. Deviation: it adds 1e-8 to the probabilities and drops NaNs; in float64 with a clamp there are none.
    """
    return float((1 - js_distance(student_logits, teacher_logits).sqrt()).mean())


def one_minus_js_distance(student_logits: Tensor, teacher_logits: Tensor) -> float:
    """mean(1 - sqrt(JSD)), 0.1674 to 1: what the name probability loyalty suggests."""
    return float((1 - js_distance(student_logits, teacher_logits)).mean())


def nll(logits: Tensor, labels: Tensor) -> float:
    """Negative log-likelihood of the labels, mean over the images, natural logarithm."""
    return float(F.cross_entropy(logits.double(), labels))


class CalibrationBins(NamedTuple):
    """Images sorted by the confidence in their first choice, into equal-width bins without their left end. Each [bins]."""

    counts: Tensor  # int64
    confidence: Tensor  # mean, 0 to 1, float64; 0 where a bin is empty
    accuracy: Tensor  # likewise


def calibration_bins(logits: Tensor, labels: Tensor, bins: int = 15) -> CalibrationBins:
    """Confidence and accuracy by bins of confidence (Guo et al., On Calibration of Modern Neural Networks, ICML 2017)."""
    confidence, choice = logits.double().softmax(1).max(1)
    place = torch.bucketize(confidence, torch.linspace(0, 1, bins + 1, dtype=confidence.dtype)[1:-1])
    counts = torch.bincount(place, minlength=bins)
    sums = (torch.bincount(place, weights, minlength=bins) for weights in (confidence, (choice == labels).double()))
    return CalibrationBins(counts, *(total / counts.clamp(min=1) for total in sums))


def ece(logits: Tensor, labels: Tensor, bins: int = 15) -> float:
    """Expected calibration error, 0 to 1: |accuracy - confidence| of the bins, weighted by their images (Guo et al., 2017)."""
    found = calibration_bins(logits, labels, bins)
    return float((found.counts * (found.accuracy - found.confidence).abs()).sum() / len(labels))


def confusion(logits: Tensor, labels: Tensor) -> list[list[int]]:
    """Confusion matrix [K][K]: row is the label, column the first choice, entry the number of images."""
    classes = logits.shape[1]
    matrix: list[list[int]] = (
        torch.bincount(labels * classes + logits.argmax(1), minlength=classes**2).view(classes, classes).tolist()
    )
    return matrix


def per_class_accuracy(matrix: list[list[int]]) -> list[float | None]:
    """Acc@1 in percent of each class, from the confusion matrix; None for a class without images."""
    return [100 * row[label] / sum(row) if sum(row) else None for label, row in enumerate(matrix)]


def rank_correlation(first: Tensor, second: Tensor) -> float | None:
    """Spearman's rank correlation of two rows of numbers [N], -1 to 1; equal numbers share their mean rank.

    None where it is not defined: all numbers of a row are equal.
    """
    ranks = torch.stack([_ranks(first), _ranks(second)])
    deviations = ranks - ranks.mean(1, keepdim=True)
    norms = deviations.norm(dim=1)
    return float((deviations[0] * deviations[1]).sum() / norms.prod()) if bool((norms > 0).all()) else None


def _ranks(values: Tensor) -> Tensor:
    _, place, counts = values.unique(return_inverse=True, return_counts=True)
    return (counts.cumsum(0) - (counts - 1) / 2).double()[place]


def all_metrics(student_logits: Tensor, teacher_logits: Tensor | None, labels: Tensor, bins: int = 15) -> dict[str, object]:
    """Every metric of the student under the key it has in a metrics file (docs/results-format.md); None for what compares it
    with a teacher where there is none.
    """
    student, labels = (torch.as_tensor(values).cpu() for values in (student_logits, labels))
    teacher = None if teacher_logits is None else torch.as_tensor(teacher_logits).cpu()
    matrix = confusion(student, labels)
    return {
        "acc1": accuracy(student, labels),
        "acc5": accuracy(student, labels, 5),
        "agree1": None if teacher is None else agreement(student, teacher),
        "lp": None if teacher is None else probability_loyalty(student, teacher),
        "one_minus_js_distance": None if teacher is None else one_minus_js_distance(student, teacher),
        "nll": nll(student, labels),
        "ece": ece(student, labels, bins),
        "per_class": per_class_accuracy(matrix),
        "confusion": matrix,
    }
