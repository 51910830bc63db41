"""DFAD: the distance of logits, images that are not in [0, 1], networks in train mode, rates that fall together."""

import pytest
import torch
from generative_tools import batch, built

from dfkd.config import parse
from dfkd.distillation.objective import Batch
from dfkd.errors import UserError
from dfkd.methods import METHODS, DFADSettings
from dfkd.models.generators import GeneratorA
from dfkd.runtime import seed_everything


@pytest.mark.parametrize("log", [False, True])
def test_the_loss_is_minus_the_distance_of_logits(log, tiny_teacher, reference):
    method = built("dfad", tiny_teacher, reference, log=log)
    images = batch()
    found = method.losses(images)
    distance = (method.student(images) - method.teacher(images)).double().abs().sum() / (6 * 3)
    assert found["l1"].item() == pytest.approx(distance.item(), rel=1e-5)
    expected = -(1 + distance).log() if log else -distance
    assert found["loss"].item() == pytest.approx(expected.item(), rel=1e-5)
    gradients = [torch.autograd.grad(value, images, retain_graph=True)[0] for value in (found["loss"], expected)]
    torch.testing.assert_close(*gradients, rtol=1e-3, atol=1e-6)


def test_the_student_minimises_the_same_distance(tiny_teacher, reference):
    method = built("dfad", tiny_teacher, reference)
    images = batch().detach()
    method.student.train()
    expected = (method.student(images) - method.teacher(images)).abs().mean()
    found = method.objective.losses(Batch(images, torch.empty(0, dtype=torch.int64)))
    assert found["loss"].item() == pytest.approx(expected.item(), rel=1e-5)


def test_networks_see_what_the_generator_makes(tiny_teacher, reference, monkeypatch):
    """Zero mean and unit variance in both steps, in train mode; no normalisation on top."""
    method = built("dfad", tiny_teacher, reference, synthesis_batch_size=16)
    assert isinstance(method.generator, GeneratorA)
    seen = []
    monkeypatch.setattr(method, "_losses", lambda images: seen.append(images) or method.losses(images))
    method.synthesize(0)
    method.generator.eval()
    seen.append(method.batch(16))
    for images in seen:
        assert images.mean().item() == pytest.approx(0, abs=1e-5)
        assert images.var(correction=0).item() == pytest.approx(1, abs=1e-2)
        assert images.min() < -1
    assert method.generator.training


def test_the_students_statistics_follow_the_generators_images(tiny_teacher, reference):
    method = built("dfad", tiny_teacher, reference, g_steps=3)
    layer = next(module for module in method.student.modules() if isinstance(module, torch.nn.BatchNorm2d))
    method.student.eval()
    method.synthesize(0)
    assert layer.num_batches_tracked == 3
    assert not method.student.training  # as it was


def test_samples_for_the_bank_are_the_nearest_images(tiny_teacher, reference):
    method = built("dfad", tiny_teacher, reference)
    seed_everything(1)
    raw = method.batch(8)
    seed_everything(1)
    images = method.sample(8)
    expected = (raw * method.info.std[0] + method.info.mean[0]).clamp(0, 1)
    torch.testing.assert_close(images, expected)
    assert (images == 0).any()  # the tails are cut: the student must not be given these


def test_the_generators_rate_falls_with_the_students(tiny_teacher, reference):
    method = built("dfad", tiny_teacher, reference, lr=0.1)
    rates = []
    for epoch in (0, 98, 99, 198, 199, 499):
        method.synthesize(epoch)
        rates.append(method.optimiser.param_groups[0]["lr"])
    assert rates == pytest.approx([1e-3, 1e-3, 1e-4, 1e-4, 1e-5, 1e-5])


def test_the_recipe():
    settings = DFADSettings()
    assert (settings.lr, settings.momentum, settings.weight_decay, settings.loss) == (0.1, 0.9, 5e-4, "l1")
    assert (settings.latent_size, settings.lr_g, settings.kd_steps, settings.rounds) == (256, 1e-3, 5, 50)


def test_another_generator_is_refused():
    with pytest.raises(UserError, match=r"generator: .*'dfad'"):
        parse(METHODS["dfad"].settings, {"generator": "large"}, "config")
