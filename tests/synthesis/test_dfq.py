"""DFQ's terms against their definitions."""

import pytest
import torch
from generative_tools import batch, built, entropy, kl, one_hot, statistics_loss

from dfkd.methods import DFQSettings


def test_the_terms_are_the_papers_and_their_gradient_goes_through_both_networks(tiny_teacher, reference):
    method = built("dfq", tiny_teacher, reference, adv=2.0, bn=0.5, oh=0.25, balance=3.0)
    method.student.eval()
    images = batch()
    with method.statistics.recording():
        found = method.losses(images)
    teacher, student = method.teacher(images), method.student(images)
    expected = {
        "adv": -kl(student, teacher, 1.0),
        "bn": statistics_loss(method.teacher, images),
        "oh": one_hot(teacher),
        "balance": -entropy(teacher),
    }
    for name, value in expected.items():
        assert found[name].item() == pytest.approx(value.item(), rel=1e-4), name
    loss = 2 * expected["adv"] + 0.5 * expected["bn"] + 0.25 * expected["oh"] + 3 * expected["balance"]
    assert found["loss"].item() == pytest.approx(loss.item(), rel=1e-4)
    gradients = [torch.autograd.grad(value, images)[0] for value in (found["loss"], loss)]
    torch.testing.assert_close(*gradients, rtol=1e-3, atol=1e-4)


def test_the_defaults_are_the_published_weights():
    settings = DFQSettings()
    assert (settings.adv, settings.bn, settings.oh, settings.balance, settings.temperature) == (1, 1, 1, 20, 1)
    assert (settings.latent_size, settings.generator, settings.lr_g) == (256, "large", 1e-3)


def test_l1_takes_the_place_of_the_divergence(tiny_teacher, reference):
    method = built("dfq", tiny_teacher, reference, loss="l1", bn=0.0)
    method.student.eval()
    images = batch()
    expected = (method.student(images) - method.teacher(images)).abs().mean()
    assert method.losses(images)["adv"].item() == pytest.approx(-expected.item(), rel=1e-5)
