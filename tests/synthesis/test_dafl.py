"""DAFL's terms against their definitions."""

import pytest
import torch
from generative_tools import batch, built, entropy, one_hot

from dfkd.models.generators import LargeGenerator


def test_the_terms_are_the_papers(tiny_teacher, reference):
    method = built("dafl", tiny_teacher, reference, oh=0.7, act=0.3, balance=5.0)
    images = batch()
    found = method.losses(images)
    logits, features = method.teacher(images, return_features=True)
    act = -features[-1].double().abs().sum() / features[-1].numel()
    assert found["oh"].item() == pytest.approx(one_hot(logits).item(), rel=1e-4)
    assert found["act"].item() == pytest.approx(act.item(), rel=1e-5)
    assert found["balance"].item() == pytest.approx(-entropy(logits).item(), rel=1e-4)
    loss = 0.7 * one_hot(logits) + 0.3 * act - 5 * entropy(logits)
    assert found["loss"].item() == pytest.approx(loss.item(), rel=1e-4)
    gradients = [torch.autograd.grad(value, images, retain_graph=True)[0] for value in (found["loss"], loss)]
    torch.testing.assert_close(*gradients, rtol=1e-3, atol=1e-5)


def test_the_defaults_are_the_published_weights(tiny_teacher, reference):
    settings = built("dafl", tiny_teacher, reference).settings
    assert (settings.oh, settings.act, settings.balance, settings.temperature, settings.loss) == (1, 1e-3, 20, 1, "kl")
    assert type(settings)().latent_size == 512


def test_a_class_that_underflows_is_no_nan(tiny_teacher, reference):
    method = built("dafl", tiny_teacher, reference)
    found = method.losses(1000 * batch())
    assert all(value.isfinite() for value in found.values())


def test_it_does_not_ask_the_student(tiny_teacher, reference):
    method = built("dafl", tiny_teacher, reference)
    method.student.forward = None  # would fail
    assert method.synthesize(0).terms.keys() == {"loss", "oh", "act", "balance"}
    assert isinstance(method.generator, LargeGenerator)
