"""How well a student does, and how close it is to its teacher: pure functions of logits [N,K] and labels [N].

Everything is computed in float64, from logits of any floating dtype. Percentages are 0 to 100.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F
from torchmetrics.functional import kl_divergence
from torchmetrics.functional.classification import (
    multiclass_calibration_error,
    multiclass_confusion_matrix,
    multiclass_stat_scores,
)


def accuracy(logits: Tensor, labels: Tensor, k: int = 1) -> float:
    """Acc@k in percent: the label is among the k largest logits. With fewer than k classes, k is their number."""
    classes = logits.shape[1]
    # the counts, not torchmetrics' ready-made ratio: that one is float32 and prints 15.999999642 for 8 of 50
    counts = multiclass_stat_scores(logits.double(), labels, num_classes=classes, average="micro", top_k=min(k, classes))
    return 100 * int(counts[0]) / len(labels)


def agreement(student_logits: Tensor, teacher_logits: Tensor) -> float:
    """Agree@1 in percent: the student's first choice is the teacher's (AdaDFKD's evaluator)."""
    return 100 * int((student_logits.argmax(1) == teacher_logits.argmax(1)).sum()) / len(student_logits)


def js_distance(student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
    """Jensen-Shannon distance D = sqrt(JSD) of the two softmaxes, natural logarithm, per image: [N], 0 to sqrt(ln 2)."""
    student, teacher = student_logits.double().softmax(1), teacher_logits.double().softmax(1)
    mean = (student + teacher) / 2
    divergence = (kl_divergence(student, mean, reduction="none") + kl_divergence(teacher, mean, reduction="none")) / 2
    return divergence.clamp(min=0).sqrt()  # rounding can leave a tiny negative number where the two are equal


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


def ece(logits: Tensor, labels: Tensor, bins: int = 15) -> float:
    """Expected calibration error, 0 to 1: |accuracy - confidence| of equal-width confidence bins, weighted by their images."""
    # torchmetrics counts a confidence of exactly 1 into a bin of its own: keep it just below, in the last one
    probabilities = logits.double().softmax(1).float().clamp(max=1 - 2**-24)
    return float(multiclass_calibration_error(probabilities, labels, num_classes=logits.shape[1], n_bins=bins, norm="l1"))


def confusion(logits: Tensor, labels: Tensor) -> list[list[int]]:
    """Confusion matrix [K][K]: row is the label, column the first choice, entry the number of images."""
    matrix: Tensor = multiclass_confusion_matrix(logits, labels, num_classes=logits.shape[1])
    return matrix.long().tolist()


def per_class_accuracy(matrix: list[list[int]]) -> list[float | None]:
    """Acc@1 in percent of each class, from the confusion matrix; None for a class without images."""
    return [100 * row[label] / sum(row) if sum(row) else None for label, row in enumerate(matrix)]


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
