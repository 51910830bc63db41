"""CMI: its loss, what learns, what is kept, its variants' budgets; and DDA with the contrastive term."""

import copy
from pathlib import Path

import pytest
import torch

from dfkd.config import load_config
from dfkd.datasets.views import random_resized_views
from dfkd.distillation.run import build_method
from dfkd.distillation.schedule import count_syntheses, count_turns, rate_at
from dfkd.errors import UserError
from dfkd.methods import METHODS
from dfkd.models import build_model
from dfkd.models.weights import load_model
from dfkd.runtime import seed_everything
from dfkd.synthesis import contrastive
from dfkd.synthesis.synthesizer import Best

SMALL = {"synthesis_batch_size": 6, "g_steps": 3, "latent_size": 8, "width": 4, "batch_size": 6, "bank_size": 12}
SMALL |= {"bank_sample": 5}
CONFIG = load_config(Path(__file__).resolve().parents[2] / "config")


def method(weights, runtime, name="cmi", **changes):
    teacher, card = load_model(weights, runtime)
    seed_everything(5)
    student = runtime.place(build_model("wrn101", 3, 1, 8))
    return build_method(name, teacher, student, card, METHODS[name].settings(**(SMALL | changes)), runtime)[0]


def budget(name):
    settings = CONFIG.stage("distill", "cifar10", "wrn402", "wrn161", name)
    syntheses = count_syntheses(settings)
    return settings, syntheses, count_turns(settings) - syntheses


def test_budgets_are_the_published_ones():
    settings, syntheses, student_steps = budget("cmi")
    assert (syntheses * settings.synthesis_batch_size, syntheses * settings.g_steps, student_steps) == (51_200, 40_000, 80_000)
    assert (settings.bank_size, settings.bank_sample, settings.cr, settings.cr_temperature) == (40_960, 4096, 0.8, 0.1)
    settings, syntheses, student_steps = budget("cmi-adversarial")
    assert (syntheses * settings.synthesis_batch_size, syntheses * settings.g_steps, student_steps) == (10_240, 8_000, 80_000)
    assert (settings.oh, settings.adv, settings.batch_size) == (0.5, 0.5, 128)
    settings, _, student_steps = budget("cmi-nonadversarial")
    assert student_steps == 78_000
    rates = [rate_at(settings, epoch) for epoch in (0, 119, 120, 150, 180, 199)]
    assert rates == pytest.approx([0.1, 0.1, 0.01, 1e-3, 1e-4, 1e-4])
    assert [METHODS[name].banks for name in ("cmi", "cmi-adversarial", "cmi-nonadversarial")] == [(), ("init",), ("init",)]


def test_the_loss_is_the_weighted_sum_of_its_terms(tiny_teacher, reference):
    cmi = method(tiny_teacher, reference, bn=2.0, oh=3.0)
    seed_everything(0)
    terms = cmi.synthesize(0).terms
    assert list(terms) == ["loss", "bn", "oh", "adv", "cr"]
    expected = 2 * terms["bn"] + 3 * terms["oh"] + terms["adv"] + 0.8 * terms["cr"]
    assert terms["loss"] == pytest.approx(expected, rel=1e-5)


def test_terms_of_weight_zero_are_left_away(tiny_teacher, reference):
    cmi = method(tiny_teacher, reference, cr=0.0, adv=0.0)
    assert list(cmi.synthesize(0).terms) == ["loss", "bn", "oh"]
    assert cmi.parts() == {}


def test_the_adversarial_term_counts_only_where_student_and_teacher_decide_alike(tiny_teacher, reference):
    cmi = method(tiny_teacher, reference, adv=0.5)
    views = torch.randn(24, 1, 8, 8, requires_grad=True)
    cmi.student.eval()
    logits, answers = cmi.teacher(views), cmi.student(views)
    value = cmi.adversarial(views, torch.zeros(24, dtype=torch.int64), logits)
    p, q = logits.softmax(1), answers.softmax(1)
    agree = logits.argmax(1) == answers.argmax(1)
    assert 0 < agree.sum() < 24
    expected = -0.5 * ((p * (p.log() - q.log())).sum(1) * agree).sum() / 24
    assert value.item() == pytest.approx(expected.item(), rel=1e-4)
    (gradient,) = torch.autograd.grad(value, views)
    moved = gradient.flatten(1).abs().sum(1) > 0
    assert torch.equal(moved, agree)


def test_a_synthesis_trains_the_head_and_neither_network(tiny_teacher, reference):
    cmi = method(tiny_teacher, reference)
    watched = {"teacher": cmi.teacher, "student": cmi.student, "head": cmi.contrast.head}
    before = {name: [value.clone() for value in part.state_dict().values()] for name, part in watched.items()}
    made = cmi.synthesize(0)
    moved = {
        name: any(not torch.equal(old, new) for old, new in zip(before[name], part.state_dict().values(), strict=True))
        for name, part in watched.items()
    }
    assert moved == {"teacher": False, "student": False, "head": True}
    assert all(value.grad is None for network in (cmi.teacher, cmi.student) for value in network.parameters())
    assert all(value.requires_grad for value in cmi.student.parameters())
    assert (made.count, made.optimiser_steps, made.teacher_queries) == (6, 3, 6 * (3 * 2 + 1))
    assert made.images.shape == (6, 1, 8, 8)


def test_the_kept_iterates_features_go_to_the_feature_bank(tiny_teacher, reference, monkeypatch):
    """Those of the step with the lowest loss; one batch per synthesis, around the ring."""
    cmi = method(tiny_teacher, reference, lr_g=0.3)  # so large a rate that the last step is not the best
    given, offered = [], []
    loss = cmi.contrast.loss
    monkeypatch.setattr(cmi.contrast, "loss", lambda images: given.append(loss(images)) or given[-1])
    keep = Best.offer

    def offer(self, value, terms, *values):
        offered.append(value.item())
        keep(self, value, terms, *values)

    monkeypatch.setattr(Best, "offer", offer)
    for number in range(3):
        given.clear()
        offered.clear()
        seed_everything(number)
        cmi.synthesize(0)
        best = min(range(3), key=offered.__getitem__)
        start = 6 * (number % 2)
        assert torch.equal(cmi.contrast.bank.rows[0, start : start + 6], given[best][1])
        assert torch.equal(cmi.contrast.bank.rows[1, start : start + 6], given[best][2])
    assert cmi.contrast.bank.filled == 12


def test_cached_rows_are_drawn_once_per_synthesis(tiny_teacher, reference, monkeypatch):
    cmi = method(tiny_teacher, reference)
    drawn = []
    sample = cmi.contrast.bank.sample
    monkeypatch.setattr(cmi.contrast.bank, "sample", lambda count: drawn.append(count) or sample(count))
    cmi.synthesize(0)
    cmi.synthesize(1)
    assert drawn == [5, 5]
    assert cmi.contrast._cached[0].shape[0] == 5


def test_the_global_view_is_cropped_and_the_local_one_a_box(tiny_teacher, reference, monkeypatch):
    seen = []
    monkeypatch.setattr(
        contrastive, "random_resized_views", lambda images, info: seen.append(images) or random_resized_views(images, info)
    )
    cmi = method(tiny_teacher, reference)
    cmi.synthesize(0)
    assert [tuple(images.shape) for images in seen] == [(6, 1, 8, 8)] * 3
    assert all(images.min() >= 0 and images.max() <= 1 for images in seen)


@pytest.mark.parametrize("name", ["cmi", "dda"])
def test_a_resumed_run_makes_what_the_uninterrupted_one_makes(tiny_teacher, reference, name):
    changes = {"contrastive": 0.8} if name == "dda" else {}
    one, other = (method(tiny_teacher, reference, name, **changes) for _ in range(2))
    for epoch in range(2):
        seed_everything(epoch)
        one.synthesize(epoch)
    state = copy.deepcopy({key: part.state_dict() for key, part in one.parts().items()})
    for key, part in other.parts().items():
        part.load_state_dict(state[key])
    found = []
    for run in (one, other):
        seed_everything(2)
        found.append(run.synthesize(2))
    assert torch.equal(found[0].images, found[1].images)
    assert found[0].terms == found[1].terms
    assert torch.equal(_bank(one).rows, _bank(other).rows)
    heads = [run.inversion.contrast.head.parameters() for run in (one, other)]
    assert all(torch.equal(a, b) for a, b in zip(*heads, strict=True))  # after all steps, the worse ones too


def _bank(synthesizer):
    return synthesizer.inversion.contrast.bank


def test_dda_has_the_contrastive_term_on_request(tiny_teacher, reference):
    plain = method(tiny_teacher, reference, "dda")
    assert plain.parts() == {}
    dda = method(tiny_teacher, reference, "dda", contrastive=0.4, csd=10.0)
    terms = dda.synthesize(0).terms
    assert list(terms) == ["loss", "bn", "oh", "csd", "cr"]
    assert terms["loss"] == pytest.approx(terms["bn"] + terms["oh"] + terms["csd"] + 0.4 * terms["cr"], rel=1e-5)
    assert _bank(dda).filled == 6


def test_what_cmi_cannot_take_is_refused(tiny_teacher, reference):
    with pytest.raises(UserError, match="bank_size 13 is no multiple of synthesis_batch_size 6; choose 12"):
        method(tiny_teacher, reference, bank_size=13)
    _, card = load_model(tiny_teacher, reference)
    teacher, student = build_model("lenet5", 10, 1, 32), build_model("lenet5half", 10, 1, 32)
    card = card.model_copy(update={"dataset": card.dataset.model_copy(update={"image_size": 32})})
    with pytest.raises(UserError, match="BatchNorm layers; the teacher \\(LeNet\\) has none"):
        build_method("cmi", teacher, student, card, METHODS["cmi"].settings(**SMALL), reference)
