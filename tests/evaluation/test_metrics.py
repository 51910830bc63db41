import math

import numpy as np
import pytest
import torch
from scipy.spatial.distance import jensenshannon
from scipy.stats import spearmanr
from sklearn.metrics import confusion_matrix, log_loss, top_k_accuracy_score
from torchmetrics.functional import kl_divergence
from torchmetrics.functional.classification import (
    multiclass_accuracy,
    multiclass_calibration_error,
    multiclass_confusion_matrix,
)

from dfkd.evaluation import metrics


def logits_of(*rows):
    """Logits whose softmax is the given probabilities."""
    return torch.tensor(rows, dtype=torch.float64).log()


@pytest.fixture
def sample():
    generator = torch.Generator().manual_seed(0)
    teacher = 4 * torch.randn(400, 10, generator=generator)
    student = teacher + 2 * torch.randn(400, 10, generator=generator)
    labels = torch.randint(0, 10, (400,), generator=generator)
    return student, teacher, labels


def test_loyalty_of_two_classes():
    student, teacher = logits_of([0.9, 0.1]), logits_of([0.8, 0.2])
    assert float(metrics.js_distance(student, teacher)) == pytest.approx(0.099832, abs=5e-7)
    assert metrics.probability_loyalty(student, teacher) == pytest.approx(0.684038, abs=5e-7)
    assert metrics.one_minus_js_distance(student, teacher) == pytest.approx(1 - 0.099832, abs=5e-7)


def test_loyalty_of_disjoint_one_hots():
    student = torch.tensor([[1e4, 0.0, 0.0]])
    teacher = torch.tensor([[0.0, 0.0, 1e4]])
    assert float(metrics.js_distance(student, teacher)) == pytest.approx(0.832555, abs=5e-7)
    assert metrics.probability_loyalty(student, teacher) == pytest.approx(0.087556, abs=5e-7)
    assert metrics.one_minus_js_distance(student, teacher) == pytest.approx(1 - math.sqrt(math.log(2)), abs=1e-12)


def test_loyalty_of_equal_logits_is_one(sample):
    student, _, _ = sample
    # the fourth root makes 1e-16 of rounding 1e-4: a shift of the logits, which leaves the softmax as it is, may do that
    assert metrics.probability_loyalty(student, student) == 1.0
    assert metrics.probability_loyalty(student, student + 3) == pytest.approx(1.0, abs=2e-4)
    assert metrics.one_minus_js_distance(student, student.clone()) == 1.0


def test_loyalty_equals_scipy(sample):
    student, teacher, _ = sample
    distance = jensenshannon(student.double().softmax(1).numpy(), teacher.double().softmax(1).numpy(), axis=1)
    assert metrics.js_distance(student, teacher).numpy() == pytest.approx(distance, abs=1e-9)
    assert metrics.probability_loyalty(student, teacher) == pytest.approx(np.mean(1 - np.sqrt(distance)), abs=1e-9)


def test_accuracy_equals_sklearn(sample):
    student, _, labels = sample
    for k in (1, 3, 5):
        expected = 100 * top_k_accuracy_score(labels.numpy(), student.numpy(), k=k)
        assert metrics.accuracy(student, labels, k) == pytest.approx(expected, abs=1e-12)


def test_everything_equals_torchmetrics(sample):
    student, teacher, labels = sample
    for k in (1, 2, 5):
        expected = multiclass_accuracy(student.double(), labels, num_classes=10, average="micro", top_k=k)
        assert metrics.accuracy(student, labels, k) == pytest.approx(100 * float(expected), abs=1e-4)  # it divides in float32
    expected = multiclass_calibration_error(student.double().softmax(1), labels, num_classes=10, n_bins=15)
    assert metrics.ece(student, labels) == pytest.approx(float(expected), abs=1e-6)
    assert metrics.confusion(student, labels) == multiclass_confusion_matrix(student, labels, num_classes=10).tolist()
    p, q = student.double().softmax(1), teacher.double().softmax(1)
    divergence = (kl_divergence(p, (p + q) / 2, reduction="none") + kl_divergence(q, (p + q) / 2, reduction="none")) / 2
    assert torch.allclose(metrics.js_distance(student, teacher), divergence.sqrt(), atol=1e-8)


def test_of_equal_logits_the_first_class_counts_as_the_larger():
    logits = torch.tensor([[1.0, 1.0, 0.0], [1.0, 1.0, 1.0]])
    labels = torch.tensor([1, 2])
    assert [metrics.accuracy(logits, labels, k) for k in (1, 2, 3)] == [0.0, 50.0, 100.0]
    matrix = metrics.confusion(logits, labels)
    assert sum(matrix[label][label] for label in range(3)) == 0  # one answer, whichever metric asks


def test_accuracy_is_a_ratio_of_counts():
    logits = torch.zeros(50, 3)
    logits[:8, 1] = 1
    logits[8:, 2] = 1
    assert metrics.accuracy(logits, torch.ones(50, dtype=torch.long)) == 16.0


def test_acc5_with_fewer_classes():
    logits = torch.tensor([[3.0, 2.0, 1.0], [1.0, 2.0, 3.0]])
    labels = torch.tensor([2, 0])
    assert metrics.accuracy(logits, labels, 5) == 100.0
    assert metrics.accuracy(logits, labels, 2) == 0.0


def test_agreement():
    student = torch.tensor([[2.0, 1.0], [0.0, 1.0], [5.0, 4.0], [1.0, 0.0]])
    teacher = torch.tensor([[9.0, 8.0], [3.0, 1.0], [5.0, 1.0], [4.0, 0.0]])
    assert metrics.agreement(student, teacher) == 75.0


def test_nll_equals_sklearn(sample):
    student, _, labels = sample
    expected = log_loss(labels.numpy(), student.double().softmax(1).numpy(), labels=list(range(10)))
    assert metrics.nll(student, labels) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("bins", [1, 10, 15])
@pytest.mark.parametrize("scale", [0.2, 1.0, 20.0])  # 20: many confidences are exactly 1 in float32
def test_ece_by_definition(sample, bins, scale):
    student, _, labels = sample
    confidence, choice = (scale * student).double().softmax(1).max(1)
    correct = (choice == labels).double()
    expected = 0.0
    for index in range(bins):
        within = (confidence > index / bins) & (confidence <= (index + 1) / bins)
        if within.any():
            gap = abs(float(correct[within].mean() - confidence[within].mean()))
            expected += gap * int(within.sum()) / len(labels)
    assert metrics.ece(scale * student, labels, bins) == pytest.approx(expected, abs=1e-6)


def test_calibration_bins():
    logits = logits_of([0.55, 0.45], [0.58, 0.42], [0.87, 0.13], [0.05, 0.95], [0.0, 1.0])
    found = metrics.calibration_bins(logits, torch.tensor([0, 1, 0, 1, 0]), bins=10)
    assert found.counts.tolist() == [0, 0, 0, 0, 0, 2, 0, 0, 1, 2]  # a confidence of 1 lies in the last bin
    assert found.accuracy[[5, 8, 9]].tolist() == [0.5, 1.0, 0.5]
    assert found.confidence[[5, 8, 9]].tolist() == pytest.approx([0.565, 0.87, 0.975])
    assert found.confidence[0] == found.accuracy[0] == 0


def test_rank_correlation_equals_scipy(sample):
    first = sample[0][:, 0].round()  # many are equal
    second = sample[1][:, 0]
    assert metrics.rank_correlation(first, second) == pytest.approx(spearmanr(first, second).statistic, abs=1e-12)
    assert metrics.rank_correlation(second, second.exp()) == pytest.approx(1.0)
    assert metrics.rank_correlation(second, -second) == pytest.approx(-1.0)
    assert metrics.rank_correlation(torch.ones(5), torch.arange(5.0)) is None


def test_confusion_and_per_class(sample):
    student, _, labels = sample
    matrix = metrics.confusion(student, labels)
    assert matrix == confusion_matrix(labels, student.argmax(1)).tolist()
    per_class = metrics.per_class_accuracy(matrix)
    assert per_class[3] == pytest.approx(100 * float((student.argmax(1) == 3)[labels == 3].double().mean()))


def test_class_without_images_is_none():
    logits = torch.tensor([[1.0, 0.0, 0.0], [0.0, 0.0, 1.0]])
    assert metrics.per_class_accuracy(metrics.confusion(logits, torch.tensor([0, 0]))) == [50.0, None, None]


def test_all_metrics_has_every_key(sample):
    found = metrics.all_metrics(*sample, bins=10)
    assert list(found) == ["acc1", "acc5", "agree1", "lp", "one_minus_js_distance", "nll", "ece", "per_class", "confusion"]
    assert found["ece"] == metrics.ece(sample[0], sample[2], 10)
    assert found["agree1"] == metrics.agreement(sample[0], sample[1])
