import math

import pytest
import torch
from torch.nn import functional as F

from dfkd.config import DistillSettings
from dfkd.datasets.views import rotations
from dfkd.distillation.dda import DDA, Aligner, RotationHead
from dfkd.models import build_model, count_parameters
from dfkd.models.weights import load_model
from dfkd.runtime import Runtime, seed_everything
from dfkd.synthesis.priors import kl_divergence, rotation_labels

SETTINGS = DistillSettings(synthesis_batch_size=6, g_steps=2, latent_size=8, width=4, batch_size=6)


def method(weights, runtime, **changes):
    teacher, card = load_model(weights, runtime)
    seed_everything(5)
    student = runtime.place(build_model("wrn101", 3, 1, 8))
    return DDA(teacher, student, card.dataset, SETTINGS.model_copy(update=changes), runtime)


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(0)
    return torch.randn(6, 1, 8, 8, generator=generator), torch.tensor([0, 0, 1, 1, 2, 2])


def test_aligner_has_the_published_size():
    assert count_parameters(Aligner(64, 128)) == 640_000


def test_aligner_pools_a_larger_student_map_to_the_teachers_size():
    assert Aligner(4, 6)(torch.randn(2, 4, 8, 8), torch.Size([4, 4])).shape == (2, 6, 4, 4)


@pytest.mark.parametrize(("classes", "low", "high"), [(10, 2.72, 4.69), (100, 4.99, 6.99)])
def test_unit_norm_logits_confine_the_cross_entropy(classes, low, high):
    count = 4 * classes
    angle = torch.linspace(0, 2 * math.pi, 100_001, dtype=torch.float64)
    target, rest = angle.cos(), angle.sin() / math.sqrt(count - 1)  # all logits of unit norm that treat the others alike
    extremes = (target.exp() + (count - 1) * rest.exp()).log() - target
    assert extremes.min().item() == pytest.approx(low, abs=0.006)
    assert extremes.max().item() == pytest.approx(high, abs=0.006)
    torch.manual_seed(0)
    logits = RotationHead(16, classes)(100 * torch.randn(64, 16))
    assert torch.allclose(logits.norm(dim=1), torch.ones(64), atol=1e-5)
    losses = F.cross_entropy(logits, torch.randint(count, (64,)), reduction="none")
    assert low < losses.min()
    assert losses.max() < high


def test_losses_are_the_papers_terms(tiny_teacher, reference, batch):
    dda = method(tiny_teacher, reference)
    images, labels = batch
    dda.student.train()
    dda.aligner.train()
    losses = dda._losses(images, labels)
    logits, features = dda.student(images, return_features=True)
    teacher_logits, teacher_features = dda.teacher(images, return_features=True)
    kd = kl_divergence(logits, teacher_logits, 20.0)
    ce = F.cross_entropy(logits, labels)
    feature = ((dda.aligner(features[-2], teacher_features[-2].shape[2:]) - teacher_features[-2]) ** 2).mean()
    assert losses["kd"].item() == pytest.approx(kd.item(), rel=1e-4)
    assert losses["ce"].item() == pytest.approx(ce.item(), rel=1e-5)
    assert losses["feature"].item() == pytest.approx(feature.item(), rel=1e-4)
    assert losses["loss"].item() == pytest.approx((kd + ce + 30 * feature).item(), rel=1e-4)


def test_student_step_moves_student_aligner_and_head_and_nothing_else(tiny_teacher, reference, batch):
    dda = method(tiny_teacher, reference)
    dda.begin_epoch(0.1)
    parts = {"teacher": dda.teacher, "student": dda.student, "aligner": dda.aligner, "head": dda.head}
    before = {name: [value.clone() for value in part.state_dict().values()] for name, part in parts.items()}
    terms = dda.step(*batch)
    assert terms.shape == (len(dda.terms),)
    moved = {
        name: any(not torch.equal(old, new) for old, new in zip(before[name], part.state_dict().values(), strict=True))
        for name, part in parts.items()
    }
    assert moved == {"teacher": False, "student": True, "aligner": True, "head": True}


def test_head_step_gives_the_student_no_gradient(tiny_teacher, reference, batch):
    dda = method(tiny_teacher, reference, lr=1e-12, weight_decay=0.0)
    dda.begin_epoch(1e-12)
    before = {name: value.clone() for name, value in dda.student.named_parameters()}
    for _ in range(3):
        dda.step(*batch)
    for name, value in dda.student.named_parameters():
        assert torch.allclose(before[name], value, atol=1e-8)


def test_adversarial_term_is_minus_the_weighted_cross_entropy_with_a_gradient_to_the_views_alone(
    tiny_teacher, reference, batch
):
    dda = method(tiny_teacher, reference)
    images, labels = batch
    images.requires_grad_()
    dda.student.eval()
    value = dda.adversarial(images, labels, torch.empty(0))
    features = dda.student(rotations(images), return_features=True)[1][-1]
    expected = -10 * F.cross_entropy(dda.head(features), rotation_labels(labels))
    assert value.item() == pytest.approx(expected.item(), rel=1e-5)
    dda.synthesize()
    assert all(parameter.grad is None for network in (dda.teacher, dda.student, dda.head) for parameter in network.parameters())
    assert all(parameter.requires_grad for network in (dda.student, dda.head) for parameter in network.parameters())
    (gradient,) = torch.autograd.grad(value, images)
    assert gradient.abs().sum() > 0


def test_synthesis_makes_images_that_the_head_fails_on(tiny_teacher, reference, batch):
    """The adversarial weight raises the head's loss on the images that are kept."""
    found = []
    for weight in (0.0, 100.0):
        dda = method(tiny_teacher, reference, csd=weight, g_steps=25, lr_g=1e-2, synthesis_batch_size=24)
        dda.begin_epoch(0.05)
        for _ in range(15):
            dda.step(*batch)
        seed_everything(2)
        made = dda.synthesize()
        found.append(-made.terms["csd"] / weight if weight else None)
        if not weight:
            from dfkd.datasets.views import normalise, to_unit

            dda.student.eval()
            features = dda._features(normalise(to_unit(made.images), dda.synthesizer.info))
            found[0] = F.cross_entropy(dda.head(features), rotation_labels(made.labels)).item()
    assert found[1] > found[0]


def test_the_head_is_reset_each_epoch_and_its_momentum_is_not(tiny_teacher, reference, batch):
    dda = method(tiny_teacher, reference)
    dda.begin_epoch(0.1)
    dda.step(*batch)
    momenta = [dda.head_optimiser.state[p]["momentum_buffer"].clone() for p in dda.head.parameters()]
    weights = dda.head.layers[0].weight.clone()
    dda.begin_epoch(0.05)
    assert not torch.equal(weights, dda.head.layers[0].weight)
    assert dda.head.layers[0].bias.abs().max() == 0
    for kept, parameter in zip(momenta, dda.head.parameters(), strict=True):
        assert torch.equal(kept, dda.head_optimiser.state[parameter]["momentum_buffer"])
    assert dda.optimiser.param_groups[0]["lr"] == 0.05
    assert dda.head_optimiser.param_groups[0]["lr"] == 0.1


def test_state_round_trip_continues_to_the_bit(tiny_teacher, reference, batch):
    one = method(tiny_teacher, reference)
    one.begin_epoch(0.1)
    one.step(*batch)
    state = {name: _copied(part) for name, part in one.state().items()}
    expected = one.step(*batch)
    other = method(tiny_teacher, reference)
    other.load_state(state)
    assert torch.equal(other.step(*batch), expected)


def _copied(value):
    import copy

    return copy.deepcopy(value)


def test_fast_step_agrees_with_reference(tiny_teacher, reference, batch):
    """Terms of the first three steps to 1e-3 relative (fp32 path; 3e-2 where bf16 is multiplied in hardware)."""
    fast = Runtime.create("fast", "cpu")
    runs = []
    for runtime in (reference, fast):
        dda = method(tiny_teacher, runtime)
        seed_everything(0)
        dda.begin_epoch(0.01)
        runs.append(torch.stack([dda.step(runtime.images(batch[0]), batch[1]) for _ in range(3)]))
    torch.testing.assert_close(runs[1], runs[0], rtol=1e-3 if fast.dtype == torch.float32 else 3e-2, atol=1e-4)


def test_chance_level_of_the_head():
    assert F.cross_entropy(torch.zeros(1, 40), torch.tensor([3])).item() == pytest.approx(math.log(40))
