"""ZSKT's adversarial term against its definition."""

import pytest
import torch
from generative_tools import batch, built, kl


@pytest.mark.parametrize("temperature", [1.0, 20.0])
def test_the_loss_is_minus_the_divergence(temperature, tiny_teacher, reference):
    method = built("zskt", tiny_teacher, reference, adv=0.5, temperature=temperature)
    method.student.eval()
    images = batch()
    found = method.losses(images)
    expected = -kl(method.student(images), method.teacher(images), temperature)
    assert found["adv"].item() == pytest.approx(expected.item(), rel=1e-3)
    assert found["loss"].item() == pytest.approx(0.5 * expected.item(), rel=1e-3)


def test_the_gradient_comes_through_both_networks(tiny_teacher, reference):
    method = built("zskt", tiny_teacher, reference)
    method.student.eval()
    images = batch()
    (both,) = torch.autograd.grad(method.losses(images)["loss"], images)
    parts = []
    for held in (method.student, method.teacher):
        outputs = {network: network(images) for network in (method.student, method.teacher)}
        outputs[held] = outputs[held].detach()
        parts.append(torch.autograd.grad(-kl(outputs[method.student], outputs[method.teacher], 1.0), images)[0])
    assert all(part.abs().max() > 1e-6 for part in parts)
    torch.testing.assert_close(both, parts[0] + parts[1], rtol=1e-3, atol=1e-6)


def test_l1_is_the_distance_of_logits(tiny_teacher, reference):
    method = built("zskt", tiny_teacher, reference, loss="l1")
    method.student.eval()
    images = batch()
    expected = (method.student(images) - method.teacher(images)).abs().double().mean()
    assert method.losses(images)["loss"].item() == pytest.approx(-expected.item(), rel=1e-5)


def test_the_generator_is_given_the_student_and_not_the_teacher(tiny_teacher, reference):
    """Against a copy of the teacher there is nothing to disagree on."""
    method = built("zskt", tiny_teacher, reference)
    assert method.synthesize(0).terms["adv"] < -1e-3
    method.student = method.teacher
    assert method.synthesize(0).terms["adv"] == pytest.approx(0, abs=1e-6)
