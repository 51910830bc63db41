"""The self-paced weight and the objectives of CuDFKD and AdaDFKD."""

import math

import pytest
import torch
from torch.nn import functional as F

from dfkd.distillation.kd import imitation
from dfkd.distillation.objective import Batch
from dfkd.distillation.self_paced import Projection, Relational, SelfPaced, info_nce, paced_weight, pointwise_imitation
from dfkd.methods import AdaDFKDSettings, CuDFKDSettings
from dfkd.models import build_model
from dfkd.models.weights import load_model
from dfkd.runtime import seed_everything

NONE = torch.empty(0, dtype=torch.int64)


def objective(kind, weights, runtime, student="wrn101", **changes):
    teacher, card = load_model(weights, runtime)
    own = (AdaDFKDSettings if kind is Relational else CuDFKDSettings)(**{"batch_size": 6, "lr": 0.05, **changes})
    seed_everything(5)
    return kind(teacher, runtime.place(build_model(student, 3, 1, 8)), card.dataset, own, runtime)


@pytest.fixture
def images():
    return torch.randn(6, 1, 8, 8, generator=torch.Generator().manual_seed(0))


def answers(found, images):
    """Logits and features of student (train mode) and teacher, in float64."""
    found.student.train()
    outputs = [network(images, return_features=True) for network in (found.student, found.teacher)]
    return [(logits.double(), features[-1].double()) for logits, features in outputs]


def test_the_weights_by_definition():
    losses = [0.0, 1.0, 2.0, 2.2, 4.0, 8.0]
    pace = torch.tensor(2.2)
    found = {form: paced_weight(torch.tensor(losses), pace, form).tolist() for form in ("log", "hard", "soft", "none")}
    assert found["log"] == pytest.approx([(1 + math.exp(-2.2)) / (1 + math.exp(loss - 2.2)) for loss in losses], rel=1e-5)
    assert found["log"][:3] + found["log"][4:] == pytest.approx([1, 0.854, 0.610, 0.157, 0.0034], rel=0.02)
    assert found["hard"] == [1, 1, 1, 0, 0, 0]
    assert found["soft"] == pytest.approx([max(1 - loss / 2.2, 0) for loss in losses], abs=1e-6)
    assert found["none"] == [1] * 6
    assert paced_weight(torch.tensor(1e4), pace, "log") == 0  # and no infinity on the way


@pytest.mark.parametrize("loss", ["kl", "l1", "mse"])
def test_the_mean_over_images_is_the_batches_imitation(loss):
    torch.manual_seed(0)
    student, teacher = torch.randn(5, 4), torch.randn(5, 4)
    settings = CuDFKDSettings(loss=loss, temperature=4.0)
    each = pointwise_imitation(student, teacher, settings)
    assert each.shape == (5,)
    assert each.mean().item() == pytest.approx(imitation(student, teacher, settings).item(), rel=1e-5)
    one = pointwise_imitation(student[2:3], teacher[2:3], settings)
    assert each[2].item() == pytest.approx(one.item(), rel=1e-5)


def test_the_batch_is_weighed_as_a_whole(tiny_teacher, reference, images):
    found = objective(SelfPaced, tiny_teacher, reference, pace=1.3)
    (student, _), (teacher, _) = answers(found, images)
    distance = (student - teacher).abs().mean()
    weight = (1 + math.exp(-1.3)) / (1 + math.exp(distance.item() - 1.3))
    losses = found.losses(Batch(images, NONE))
    assert tuple(losses) == found.terms
    assert losses["imitation"].item() == pytest.approx(distance.item(), rel=1e-4)
    assert losses["weight"].item() == pytest.approx(weight, rel=1e-4)
    assert losses["loss"].item() == pytest.approx(weight * distance.item(), rel=1e-4)
    assert 0.05 < weight < 0.98


def test_image_by_image_hard_ones_count_less(tiny_teacher, reference, images):
    found = objective(SelfPaced, tiny_teacher, reference, pace=0.5, per_sample=True, loss="kl", temperature=1.0)
    (student, _), (teacher, _) = answers(found, images)
    p = teacher.softmax(1)
    each = (p * (p.log() - student.log_softmax(1))).sum(1)
    weights = (1 + math.exp(-0.5)) / (1 + (each - 0.5).exp())
    losses = found.losses(Batch(images, NONE))
    assert losses["loss"].item() == pytest.approx((weights * each).mean().item(), rel=1e-4)
    assert losses["weight"].item() == pytest.approx(weights.mean().item(), rel=1e-4)
    assert weights.max() - weights.min() > 0.01


@pytest.mark.parametrize("per_sample", [False, True])
def test_the_weight_has_no_gradient(per_sample, tiny_teacher, reference, images):
    found = objective(SelfPaced, tiny_teacher, reference, per_sample=per_sample)
    layer = next(reversed(list(found.student.parameters())))
    found.student.train()
    (gradient,) = torch.autograd.grad(found.losses(Batch(images, NONE))["loss"], layer)
    logits, expected = found.student(images), found.teacher(images)
    each = (logits - expected).abs().mean(1)
    each = each if per_sample else each.mean()
    weight = paced_weight(each, found.pace(), "log").detach()
    (expected,) = torch.autograd.grad((weight * each).mean(), layer)
    torch.testing.assert_close(gradient, expected, rtol=1e-4, atol=1e-7)


def test_the_pace_grows_by_student_step_and_is_saved(tiny_teacher, reference, images):
    found = objective(SelfPaced, tiny_teacher, reference, pace=2.0, pace_growth=0.25)
    paces = []
    for _ in range(4):
        paces.append(found.pace().item())
        found.step(Batch(images, NONE))
    assert paces == [2.0, 2.25, 2.5, 2.75]
    state = {name: part.state_dict() for name, part in found.parts().items()}
    other = objective(SelfPaced, tiny_teacher, reference, pace=2.0, pace_growth=0.25)
    for name, part in other.parts().items():
        part.load_state_dict(state[name])
    assert other.pace().item() == 3.0
    assert torch.equal(other.step(Batch(images, NONE)), found.step(Batch(images, NONE)))


@pytest.mark.parametrize("kind", [SelfPaced, Relational])
def test_a_step_moves_the_student_and_nothing_else(kind, tiny_teacher, reference, images):
    found = objective(kind, tiny_teacher, reference, student="wrn102")
    parts = {"teacher": found.teacher, "student": found.student}
    before = {name: [value.clone() for value in part.parameters()] for name, part in parts.items()}
    assert found.step(Batch(images, NONE)).shape == (len(found.terms),)
    moved = {
        name: any(not torch.equal(a, b) for a, b in zip(before[name], part.parameters(), strict=True))
        for name, part in parts.items()
    }
    assert moved == {"teacher": False, "student": True}
    trained = {id(parameter) for group in found.optimiser.param_groups for parameter in group["params"]}
    assert trained == {id(parameter) for parameter in found.student.parameters()}


def test_the_contrast_within_a_batch_by_definition():
    torch.manual_seed(0)
    queries, keys = (F.normalize(torch.randn(4, 3, dtype=torch.float64), dim=1) for _ in range(2))
    found = info_nce(queries, keys, 0.07)
    for row in range(4):
        scores = [math.exp((queries[row] @ key).item() / 0.07) for key in keys]
        assert found[row].item() == pytest.approx(-math.log(scores[row] / sum(scores)), rel=1e-9)


@pytest.mark.parametrize("per_sample", [False, True])
@pytest.mark.parametrize("student", ["wrn101", "wrn102"])
def test_the_relations_are_added_before_the_weight(per_sample, student, tiny_teacher, reference, images):
    found = objective(
        Relational, tiny_teacher, reference, student, student_contrast=0.2, per_sample=per_sample, loss="l1", pace=0.9
    )
    (logits, seen), (expected, features) = answers(found, images)
    if student == "wrn102":
        seen = seen @ found.projection.layer.weight.double().T + found.projection.layer.bias.double()
    contrast = info_nce(F.normalize(features, dim=1), F.normalize(seen, dim=1), 0.07)
    distance = (logits - expected).abs().mean(1)
    total = distance + 0.2 * contrast
    total = total if per_sample else total.mean()
    weight = (1 + math.exp(-0.9)) / (1 + (total - 0.9).exp())
    losses = found.losses(Batch(images, NONE))
    assert tuple(losses) == found.terms
    assert losses["imitation"].item() == pytest.approx(distance.mean().item(), rel=1e-4)
    assert losses["contrast"].item() == pytest.approx(contrast.mean().item(), rel=1e-4)
    assert losses["weight"].item() == pytest.approx(weight.mean().item(), rel=1e-4)
    assert losses["loss"].item() == pytest.approx((weight * total).mean().item(), rel=1e-4)


def test_a_fresh_projection_follows_the_seed():
    layers = [Projection(8, 4) for _ in range(2)]
    for projection in layers:
        seed_everything("projection")
        projection.redraw()
    assert torch.equal(layers[0].layer.weight, layers[1].layer.weight)
    assert torch.equal(layers[0].layer.bias, layers[1].layer.bias)
    layers[1].redraw()
    assert not torch.equal(layers[0].layer.weight, layers[1].layer.weight)
    assert not layers[0].layer.weight.requires_grad
    same = torch.randn(2, 4)
    assert torch.equal(Projection(4, 4)(same), same)
