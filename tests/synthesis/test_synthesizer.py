"""What the ways of making images share: the best iterate, networks held still, the teacher's scores, and a fit of halves."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from dfkd.datasets.views import normalise, to_unit
from dfkd.distillation import run as stage
from dfkd.distillation.kd import KD
from dfkd.errors import UserError
from dfkd.methods import METHODS, Method, MethodSettings
from dfkd.models import build_model
from dfkd.models.weights import load_model
from dfkd.synthesis.synthesizer import Best, FreshSynthesizer, Synthesis, Synthesizer, held, teacher_scores


def offered(*losses):
    """The images and terms kept of iterates with these losses; the images of the n-th are all n."""
    best = Best()
    for number, loss in enumerate(losses):
        value = torch.tensor(loss)
        best.offer(value, {"bn": 2 * value, "number": torch.tensor(float(number))}, torch.full((2, 1, 3, 3), float(number)))
    (images,), terms = best.take()
    return images, terms


@pytest.mark.parametrize(
    ("losses", "kept"),
    [
        ((3.0, 1.0, 2.0), 1),
        ((1.0, 2.0, 3.0), 0),
        ((3.0, 2.0, 1.0), 2),
        ((2.0, 1.0, 1.0, 1.0), 1),  # of equals the first
        ((-1.0, -2.0), 1),
        ((float("nan"), 5.0, 6.0), 1),  # a first that is not finite is no bar
        ((5.0, float("nan"), 6.0), 0),
        ((float("inf"), float("nan"), 7.0, 8.0), 2),
        ((5.0, float("nan"), 4.0), 2),
    ],
)
def test_the_iterate_of_the_lowest_finite_loss_is_kept(losses, kept):
    images, terms = offered(*losses)
    assert torch.equal(images, torch.full((2, 1, 3, 3), float(kept)))
    assert terms == {"loss": losses[kept], "bn": 2 * losses[kept], "number": kept}


@pytest.mark.parametrize("losses", [(float("nan"),), (float("inf"), float("nan"))])
def test_a_loss_that_was_never_finite_is_refused(losses):
    with pytest.raises(UserError, match=r"loss is not finite, .* in any step"):
        offered(*losses)
    with pytest.raises(UserError, match=r"loss is not finite, .* in any step"):
        Best().take()


def test_what_is_kept_is_a_copy_without_a_graph():
    best, images = Best(), torch.zeros(1, 1, 2, 2, requires_grad=True)
    best.offer(images.sum(), {}, images)
    with torch.no_grad():
        images += 1  # the optimiser's step, in place
    (kept,), _ = best.take()
    assert kept.abs().sum() == 0
    assert not kept.requires_grad


def networks():
    """One in train mode with a frozen layer, one in eval mode."""
    one = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3))
    one[0].bias.requires_grad_(False)
    return one.train(), nn.Linear(3, 2).eval()


def state(*networks):
    modes = [network.training for network in networks]
    return modes, [parameter.requires_grad for network in networks for parameter in network.parameters()]


def test_held_networks_stand_still_and_pass_gradients_on():
    one, other = networks()
    before = state(one, other)
    statistics = one[1].running_mean.clone()
    images = torch.randn(4, 3, requires_grad=True)
    with held(one, other):
        assert state(one, other) == ([False, False], [False] * 6)
        other(one(images)).sum().backward()
    assert state(one, other) == before
    assert images.grad.abs().sum() > 0
    assert all(parameter.grad is None for network in (one, other) for parameter in network.parameters())
    assert torch.equal(one[1].running_mean, statistics)


def test_held_networks_are_restored_after_an_exception():
    one, other = networks()
    before = state(one, other)
    with pytest.raises(RuntimeError, match="stop"), held(one, other):
        raise RuntimeError("stop")
    assert state(one, other) == before


def test_teacher_scores_are_the_softmax_of_the_stored_bytes(tiny_teacher, reference):
    teacher, card = load_model(tiny_teacher, reference)
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (5, 1, 8, 8), dtype=torch.uint8, generator=generator)
    labels = torch.tensor([0, 1, 2, 0, 1])
    scores = teacher_scores(teacher, images, labels, card.dataset, reference)
    p = teacher(normalise(to_unit(images), card.dataset)).double().softmax(1)
    torch.testing.assert_close(scores["confidence"].double(), p.max(1).values, rtol=1e-5, atol=0)
    torch.testing.assert_close(scores["label_probability"].double(), p[torch.arange(5), labels], rtol=1e-4, atol=1e-7)
    torch.testing.assert_close(scores["entropy"].double(), -(p * p.log()).sum(1), rtol=1e-4, atol=1e-6)
    assert all(value.dtype == torch.float32 and not value.requires_grad for value in scores.values())


class Kept(Synthesizer):
    """Its images would go to the bank."""

    def synthesize(self, epoch, stop=None):
        return Synthesis({})


class Fresh(FreshSynthesizer, Kept):
    """Keeps no images."""

    def sample(self, count):
        return torch.zeros(count, *self.info.shape)


def test_one_that_keeps_no_images_has_to_say_how_it_makes_them():
    class Silent(FreshSynthesizer, Kept):
        pass

    with pytest.raises(TypeError, match="sample"):
        Silent()


class Labelled(KD):
    """An objective that asks for labels."""

    needs_labels = True


@pytest.mark.parametrize(
    ("makes", "imitates", "fits"),
    [("Fresh", "Labelled", False), ("Kept", "Labelled", True), ("Fresh", "KD", True), ("Kept", "KD", True)],
)
def test_an_objective_with_labels_and_images_without_are_refused(
    tiny_teacher, tiny_data, reference, monkeypatch, makes, imitates, fits
):
    method = Method(MethodSettings, f"{__name__}:{makes}", f"{__name__}:{imitates}")
    monkeypatch.setattr(stage, "load", lambda where: globals()[where.partition(":")[2]])
    monkeypatch.setitem(METHODS, "stub", method)
    teacher, student = load_model(tiny_teacher, reference)[0], build_model("wrn101", 3, 1, 8)
    card = SimpleNamespace(dataset=tiny_data.info)
    arguments = ("stub", teacher, student, card, MethodSettings(), reference)
    if fits:
        synthesizer, objective = stage.build_method(*arguments)
        assert (type(synthesizer).__name__, type(objective).__name__) == (makes, imitates)
        assert synthesizer.objective is objective
    else:
        with pytest.raises(UserError, match="method stub: Labelled needs labelled images, and Fresh makes fresh ones without"):
            stage.build_method(*arguments)
