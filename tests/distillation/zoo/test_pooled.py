"""Objectives on pooled features: CC, RKD, PKT, SRRL."""

import math

import pytest
import torch
from golden import ES, ET, EXACT
from torch.nn import functional as F

from dfkd.distillation.objective import Batch
from dfkd.distillation.zoo.cc import congruence_loss, correlations, neighbour_loss
from dfkd.distillation.zoo.pkt import affinities, affinity_loss
from dfkd.distillation.zoo.rkd import RKD, angles, distances
from dfkd.distillation.zoo.srrl import SRRL
from dfkd.errors import UserError
from dfkd.methods import RKDSettings, SRRLSettings
from dfkd.models import build_model
from dfkd.models.adapter import as_classifier


def test_cc_is_that_of_the_published_code():
    assert neighbour_loss(ES, ET).item() == pytest.approx(10.675086959091592, **EXACT)


@pytest.mark.parametrize("kernel", ["gaussian", "bilinear"])
def test_cc_of_the_paper_compares_correlations(kernel):
    def value(a, b):
        inner = float(a @ b) / float(a.norm() * b.norm())
        if kernel == "bilinear":
            return inner
        return sum(math.exp(-0.8) * 0.8**p / math.factorial(p) * inner**p for p in range(3))

    wanted = sum((value(ES[i], ES[j]) - value(ET[i], ET[j])) ** 2 for i in range(4) for j in range(4)) / 16
    assert congruence_loss(ES, ET, kernel).item() == pytest.approx(wanted, rel=1e-9)
    assert congruence_loss(ES, 2 * ES, kernel).item() == pytest.approx(0, abs=1e-20)


def test_the_gaussian_kernel_is_near_the_exact_one():
    unit = F.normalize(ES, dim=1)
    exact = torch.exp(-0.4 * torch.cdist(unit, unit).square())
    assert torch.allclose(correlations(ES, "gaussian"), exact, atol=0.05)


def test_rkd_is_that_of_the_published_code():
    distance, angle = (F.smooth_l1_loss(f(ES), f(ET)).item() for f in (distances, angles))
    assert distance == pytest.approx(0.03108465408, abs=1e-10)
    assert angle == pytest.approx(0.0114227588, abs=1e-10)
    assert 25 * distance + 50 * angle == pytest.approx(1.348254292088060, **EXACT)


def test_rkd_knows_neither_scale_nor_place_nor_turn(tiny_data, reference):
    turned, _ = torch.linalg.qr(torch.randn(16, 16, generator=torch.Generator().manual_seed(0), dtype=torch.float64))
    moved = 3 * ES @ turned + 5
    assert torch.allclose(distances(moved), distances(ES), atol=1e-9)
    assert torch.allclose(angles(moved), angles(ES), atol=1e-9)
    corner = torch.tensor([[0.0, 0.0], [3.0, 0.0], [0.0, 4.0]])
    assert distances(corner)[0].tolist() == pytest.approx([0.0, 0.75, 1.0])
    assert angles(corner)[0, 1].tolist() == pytest.approx([0.0, 1.0, 0.0])
    assert angles(corner)[1, 0, 2].item() == pytest.approx(3 / 5)


def test_images_that_are_equal_leave_rkd_finite():
    features = torch.ones(3, 4, requires_grad=True)
    (distances(features).sum() + angles(features).sum()).backward()
    assert features.grad.isfinite().all()


@pytest.mark.parametrize("kept", ["distance", "angle"])
def test_one_relation_of_rkd_may_be_left_out(tiny_data, reference, kept):
    teacher, student = (build_model(name, 3, 1, 8) for name in ("wrn102", "wrn101"))
    weights = {"distance": 25.0, "angle": 50.0}
    settings = RKDSettings(precision="reference", **{name: weights[name] if name == kept else 0.0 for name in weights})
    objective = RKD(teacher.eval().requires_grad_(False), student, tiny_data.info, settings, reference)
    images = torch.randn(5, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    found = objective.losses(Batch(images, torch.tensor([0, 1, 2, 0, 1])))
    (ours, theirs) = (network(images, return_features=True)[1][-1] for network in (student, teacher))
    relation = {"distance": distances, "angle": angles}[kept]
    wanted = weights[kept] * F.smooth_l1_loss(relation(ours), relation(theirs))
    assert found["rkd"].item() == pytest.approx(wanted.item(), rel=1e-5)


def test_pkt_is_that_of_the_published_code():
    assert affinity_loss(ES, ET).item() == pytest.approx(0.0230532517278681, **EXACT)
    assert affinities(ES).sum(1).tolist() == pytest.approx([1.0] * 4)
    assert affinity_loss(2 * ET, ET).item() == pytest.approx(0, abs=1e-9)
    zero = torch.zeros(3, 4, requires_grad=True)
    affinity_loss(zero, ET[:3, :4].float()).backward()
    assert zero.grad.isfinite().all()


def srrl(teacher, tiny_data, reference):
    student = build_model("wrn101", 3, 1, 8)
    return SRRL(teacher.eval().requires_grad_(False), student, tiny_data.info, SRRLSettings(precision="reference"), reference)


def test_srrl_asks_the_teachers_own_classifier(tiny_data, reference):
    teacher = build_model("wrn102", 3, 1, 8)
    objective = srrl(teacher, tiny_data, reference)
    images, labels = torch.randn(5, 1, 8, 8), torch.tensor([0, 1, 2, 0, 1])
    found = objective.losses(Batch(images, labels))
    logits, features = teacher(images, return_features=True)
    connector = objective.heads["connector"]
    feature = connector(objective.student(images, return_features=True)[1][-1])
    again = teacher.classify(feature)
    wanted = (feature - features[-1]).square().mean() + (again - logits).square().mean()
    assert found["srrl"].item() == pytest.approx(wanted.item(), rel=1e-5)
    assert sum(p.numel() for p in connector.parameters()) == 64 * 128 + 2 * 128


def test_srrl_finds_the_classifier_of_a_module_of_others(tiny_data, reference):
    layers = [
        torch.nn.Conv2d(1, 4, 3),
        torch.nn.ReLU(),
        torch.nn.AdaptiveAvgPool2d(1),
        torch.nn.Flatten(),
        torch.nn.Linear(4, 3),
    ]
    teacher = as_classifier(torch.nn.Sequential(*layers), "own", 3, (1, 8, 8))
    assert srrl(teacher, tiny_data, reference).classifier is layers[4]
    last = torch.nn.Sequential(torch.nn.Conv2d(1, 3, 3), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten())
    with pytest.raises(UserError, match="needs a linear classifier; own has none"):
        srrl(as_classifier(last, "own", 3, (1, 8, 8)), tiny_data, reference)
