"""CuDFKD's generator step: its terms, its ramp, its generator."""

import pytest
import torch
from generative_tools import batch, built, entropy, kl, one_hot, statistics_loss

from dfkd.config import parse
from dfkd.errors import UserError
from dfkd.methods import METHODS, CuDFKDSettings
from dfkd.synthesis.cudfkd import ramped


def js(student, teacher):
    """½ KL(M ‖ P) + ½ KL(M ‖ Q) at temperature 3, all clamped to [0.01, 0.99] once M is formed, in float64."""
    p, q = ((logits.double() / 3).softmax(1) for logits in (student, teacher))
    p, q, m = (value.clamp(0.01, 0.99) for value in (p, q, (p + q) / 2))
    return 0.5 * (m * (m / p).log() + m * (m / q).log()).sum(1).mean()


@pytest.mark.parametrize("adversarial", ["kl", "js"])
def test_the_terms_are_the_published_ones(adversarial, tiny_teacher, reference):
    method = built(
        "cudfkd",
        tiny_teacher,
        reference,
        adversarial=adversarial,
        adv=2.0,
        entropy=7.0,
        act=0.3,
        oh=0.5,
        bn=0.25,
        temperature=5.0,
    )
    method.synthesize(0)  # sets the weight of the ramp
    method.student.eval()
    images = batch()
    with method.statistics.recording():
        found = method.losses(images)
    teacher, features = method.teacher(images, return_features=True)
    student = method.student(images)
    expected = {
        "entropy": -entropy(teacher, 5.0),
        "adv": -kl(student, teacher, 3.0) if adversarial == "kl" else -js(student, teacher),
        "oh": one_hot(teacher),
        "act": -features[-1].abs().mean().double(),
        "bn": statistics_loss(method.teacher, images),
    }
    for name, value in expected.items():
        assert found[name].item() == pytest.approx(value.item(), rel=1e-4, abs=1e-7), name
    weights = {"entropy": 7, "adv": 2, "oh": 0.5, "act": 0.3, "bn": 0.25}
    loss = sum(weights[name] * value for name, value in expected.items())
    assert found["loss"].item() == pytest.approx(loss.item(), rel=1e-4)
    gradients = [torch.autograd.grad(value, images)[0] for value in (found["loss"], loss)]
    torch.testing.assert_close(*gradients, rtol=1e-3, atol=1e-4)


def test_the_ramp_is_the_published_one():
    """Constant to a quarter of the epochs, up by 0.5 an epoch to three quarters: 62.5; what an epoch sets, the next has."""
    settings = CuDFKDSettings()
    assert (settings.epochs, settings.adv, settings.adv_growth) == (250, 0, 0.5)
    weights = [ramped(settings, epoch) for epoch in range(250)]
    assert weights[:64] == [0.0] * 64
    assert weights[64:67] == [0.5, 1.0, 1.5]
    assert weights[187:190] == [62.0, 62.5, 62.5]
    assert weights[-1] == 62.5
    assert weights == sorted(weights)
    constant = settings.model_copy(update={"adv": 1.0, "adv_growth": 0.0})
    assert {ramped(constant, epoch) for epoch in range(250)} == {1.0}


def test_while_the_weight_is_0_the_student_is_not_asked(tiny_teacher, reference):
    method = built("cudfkd", tiny_teacher, reference, adv=0.0, epochs=8)
    forward, method.student.forward = method.student.forward, None
    terms = method.synthesize(3).terms  # begin is epoch 2, whose weight is still 0
    assert terms["adv"] == 0
    method.student.forward = forward
    assert method.synthesize(4).terms["adv"] < 0
    assert method.adv.item() == 0.5


def test_the_generator_begins_at_n02(tiny_teacher, reference):
    method = built("cudfkd", tiny_teacher, reference, width=32)
    weight = method.generator.start[0].weight
    assert weight.std().item() == pytest.approx(0.02, rel=0.05)
    assert not method.generator.start[0].bias.any()
    assert method.generator.body[0].weight.std().item() == pytest.approx(0.02, rel=0.3)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"begin": 0.8, "end": 0.2}, "end 0.2 is before begin 0.8"),
        ({"curriculum": "soft", "pace": 0.0}, "pace 0: curriculum 'soft' needs one above 0"),
        ({"curriculum": "hardest"}, "curriculum"),
    ],
)
def test_settings_that_cannot_be_are_refused(change, sentence):
    with pytest.raises(UserError, match=sentence):
        parse(METHODS["cudfkd"].settings, change, "config")
