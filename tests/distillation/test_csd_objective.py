"""The student's side of CSD and DDA: imitation of answers and features, labels, and the rotation head."""

import copy
import math

import pytest
import torch
from torch.nn import functional as F

from dfkd.datasets.views import rotations
from dfkd.distillation.csd import Aligner, CSDObjective, RotationHead
from dfkd.distillation.objective import Batch
from dfkd.methods import DDASettings
from dfkd.models import build_model, count_parameters
from dfkd.models.weights import load_model
from dfkd.runtime import Runtime, seed_everything
from dfkd.synthesis.priors import kl_divergence, rotation_labels


def objective(weights, runtime, **changes):
    teacher, card = load_model(weights, runtime)
    seed_everything(5)
    student = runtime.place(build_model("wrn101", 3, 1, 8))
    return CSDObjective(teacher, student, card.dataset, DDASettings(batch_size=6, **changes), runtime)


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
    csd = objective(tiny_teacher, reference)
    images, labels = batch
    csd.student.train()
    csd.aligner.train()
    losses = csd.losses(Batch(images, labels))
    logits, features = csd.student(images, return_features=True)
    teacher_logits, teacher_features = csd.teacher(images, return_features=True)
    kd = kl_divergence(logits, teacher_logits, 20.0)
    ce = F.cross_entropy(logits, labels)
    feature = ((csd.aligner(features[-2], teacher_features[-2].shape[2:]) - teacher_features[-2]) ** 2).mean()
    assert losses["kd"].item() == pytest.approx(kd.item(), rel=1e-4)
    assert losses["ce"].item() == pytest.approx(ce.item(), rel=1e-5)
    assert losses["feature"].item() == pytest.approx(feature.item(), rel=1e-4)
    assert losses["loss"].item() == pytest.approx((kd + ce + 30 * feature).item(), rel=1e-4)


def test_student_step_moves_student_aligner_and_head_and_nothing_else(tiny_teacher, reference, batch):
    csd = objective(tiny_teacher, reference)
    csd.begin_epoch(0, 0.1)
    parts = {"teacher": csd.teacher, "student": csd.student, "aligner": csd.aligner, "head": csd.head}
    before = {name: [value.clone() for value in part.state_dict().values()] for name, part in parts.items()}
    terms = csd.step(Batch(*batch))
    assert terms.shape == (len(csd.terms),)
    moved = {
        name: any(not torch.equal(old, new) for old, new in zip(before[name], part.state_dict().values(), strict=True))
        for name, part in parts.items()
    }
    assert moved == {"teacher": False, "student": True, "aligner": True, "head": True}


def test_the_terms_of_a_step_are_its_losses_before_it_and_the_heads(tiny_teacher, reference, batch):
    csd = objective(tiny_teacher, reference)
    csd.begin_epoch(0, 1e-12)
    csd.student.train()
    losses = csd.losses(Batch(*batch))
    terms = dict(zip(csd.terms, csd.step(Batch(*batch)).tolist(), strict=True))
    for name, value in losses.items():
        assert terms[name] == pytest.approx(value.item(), rel=1e-5)
    assert terms["head"] == pytest.approx(math.log(12), abs=1.0)  # a fresh head knows nothing, its logits lie in [-1, 1]


def test_head_step_gives_the_student_no_gradient(tiny_teacher, reference, batch):
    csd = objective(tiny_teacher, reference, lr=1e-12, weight_decay=0.0)
    csd.begin_epoch(0, 1e-12)
    before = {name: value.clone() for name, value in csd.student.named_parameters()}
    for _ in range(3):
        csd.step(Batch(*batch))
    for name, value in csd.student.named_parameters():
        assert torch.allclose(before[name], value, atol=1e-8)


def test_misunderstanding_is_the_joint_cross_entropy_of_the_four_rotations(tiny_teacher, reference, batch):
    csd = objective(tiny_teacher, reference)
    images, labels = batch
    csd.student.eval()
    features = csd.student(rotations(images), return_features=True)[1][-1]
    expected = F.cross_entropy(csd.head(features), rotation_labels(labels))
    assert csd.misunderstanding(images, labels).item() == pytest.approx(expected.item(), rel=1e-5)


def test_the_head_is_reset_each_epoch_and_its_momentum_is_not(tiny_teacher, reference, batch):
    csd = objective(tiny_teacher, reference)
    csd.begin_epoch(0, 0.1)
    csd.step(Batch(*batch))
    momenta = [csd.head_optimiser.state[p]["momentum_buffer"].clone() for p in csd.head.parameters()]
    weights = csd.head.layers[0].weight.clone()
    csd.begin_epoch(1, 0.05)
    assert not torch.equal(weights, csd.head.layers[0].weight)
    assert csd.head.layers[0].bias.abs().max() == 0
    for kept, parameter in zip(momenta, csd.head.parameters(), strict=True):
        assert torch.equal(kept, csd.head_optimiser.state[parameter]["momentum_buffer"])
    assert csd.optimiser.param_groups[0]["lr"] == 0.05
    assert csd.head_optimiser.param_groups[0]["lr"] == 0.1


def test_state_round_trip_continues_to_the_bit(tiny_teacher, reference, batch):
    one = objective(tiny_teacher, reference)
    one.begin_epoch(0, 0.1)
    one.step(Batch(*batch))
    state = {name: copy.deepcopy(part.state_dict()) for name, part in one.parts().items()}
    expected = one.step(Batch(*batch))
    other = objective(tiny_teacher, reference)
    for name, part in other.parts().items():
        part.load_state_dict(state[name])
    assert torch.equal(other.step(Batch(*batch)), expected)


def test_fast_step_agrees_with_reference(tiny_teacher, reference, batch):
    """Terms of the first three steps to 1e-3 relative (fp32 path; 3e-2 where bf16 is multiplied in hardware)."""
    fast = Runtime.create("fast", "cpu")
    runs = []
    for runtime in (reference, fast):
        csd = objective(tiny_teacher, runtime)
        seed_everything(0)
        csd.begin_epoch(0, 0.01)
        runs.append(torch.stack([csd.step(Batch(runtime.images(batch[0]), batch[1])) for _ in range(3)]))
    torch.testing.assert_close(runs[1], runs[0], rtol=1e-3 if fast.dtype == torch.float32 else 3e-2, atol=1e-4)


def test_chance_level_of_the_head():
    assert F.cross_entropy(torch.zeros(1, 40), torch.tensor([3])).item() == pytest.approx(math.log(40))
