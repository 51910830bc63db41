"""CSD's synthesis, and DDA's, which is the same: images that the student's rotation head fails on."""

import pytest
import torch
from torch.nn import functional as F

from dfkd.datasets.views import normalise, rotations, to_unit
from dfkd.distillation.objective import Batch
from dfkd.distillation.run import build_method
from dfkd.distillation.schedule import count_syntheses
from dfkd.methods import METHODS, CSDSettings, DDASettings
from dfkd.models import build_model
from dfkd.models.weights import load_model
from dfkd.progress import Stopped, StopRequest
from dfkd.runtime import seed_everything
from dfkd.synthesis.priors import rotation_labels

SMALL = {"synthesis_batch_size": 6, "g_steps": 2, "latent_size": 8, "width": 4, "batch_size": 6}


def method(weights, runtime, name="dda", **changes):
    teacher, card = load_model(weights, runtime)
    seed_everything(5)
    student = runtime.place(build_model("wrn101", 3, 1, 8))
    return build_method(name, teacher, student, card, METHODS[name].settings(**(SMALL | changes)), runtime)


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(0)
    return torch.randn(6, 1, 8, 8, generator=generator), torch.tensor([0, 0, 1, 1, 2, 2])


def test_budgets_are_the_published_ones():
    csd, dda = CSDSettings(), DDASettings()
    assert count_syntheses(csd) == 100
    assert count_syntheses(dda) == 200
    assert count_syntheses(csd) * csd.synthesis_batch_size == 20_000
    assert count_syntheses(dda) * dda.synthesis_batch_size == 80_000
    changed = {
        key for key, value in dda.model_dump(include=set(CSDSettings.model_fields)).items() if value != getattr(csd, key)
    }
    assert changed == {"epochs", "synthesis_batch_size"}


def test_adversarial_term_is_minus_the_weighted_cross_entropy_with_a_gradient_to_the_views_alone(
    tiny_teacher, reference, batch
):
    dda, objective = method(tiny_teacher, reference)
    images, labels = batch
    images.requires_grad_()
    dda.student.eval()
    value = dda.adversarial(images, labels, torch.empty(0))
    features = dda.student(rotations(images), return_features=True)[1][-1]
    expected = -10 * F.cross_entropy(objective.head(features), rotation_labels(labels))
    assert value.item() == pytest.approx(expected.item(), rel=1e-5)
    dda.synthesize(0)
    networks = (dda.teacher, dda.student, objective.head)
    assert all(parameter.grad is None for network in networks for parameter in network.parameters())
    assert all(parameter.requires_grad for network in networks[1:] for parameter in network.parameters())
    (gradient,) = torch.autograd.grad(value, images)
    assert gradient.abs().sum() > 0


def test_synthesis_makes_images_that_the_head_fails_on(tiny_teacher, reference, batch):
    """The adversarial weight raises the head's loss on the images that are kept."""
    found = []
    for weight in (0.0, 100.0):
        dda, objective = method(tiny_teacher, reference, csd=weight, g_steps=25, lr_g=1e-2, synthesis_batch_size=24)
        objective.begin_epoch(0, 0.05)
        for _ in range(15):
            objective.step(Batch(*batch))
        seed_everything(2)
        made = dda.synthesize(1)
        dda.student.eval()
        with torch.no_grad():
            found.append(objective.misunderstanding(normalise(to_unit(made.images), dda.info), made.labels).item())
        if weight:  # of a random view, so not the very figure
            assert -made.terms["csd"] / weight == pytest.approx(found[1], rel=0.2)
    assert found[1] > found[0]


def test_a_synthesis_is_a_batch_with_its_cost(tiny_teacher, reference):
    for name in ("csd", "dda"):
        synthesizer, _ = method(tiny_teacher, reference, name)
        made = synthesizer.synthesize(0)
        assert made.images.shape == (6, 1, 8, 8)
        assert made.images.dtype == torch.uint8
        assert (made.count, made.optimiser_steps, made.teacher_queries) == (6, 2, 6 * 3)
        assert set(made.terms) == {"loss", "bn", "oh", "csd"}
        assert made.terms["loss"] == pytest.approx(sum(made.terms[name] for name in ("bn", "oh", "csd")), rel=1e-5)
        assert synthesizer.generator is None
        assert synthesizer.parts() == {}


def test_nothing_but_the_seed_and_the_networks_decides_a_batch(tiny_teacher, reference):
    """So a run that resumes makes what the uninterrupted one made: a used object and a new one agree to the bit."""
    used, _ = method(tiny_teacher, reference)
    used.synthesize(0)
    fresh, _ = method(tiny_teacher, reference)
    batches = []
    for synthesizer in (used, fresh):
        seed_everything(3)
        batches.append(synthesizer.synthesize(1).images)
    assert torch.equal(*batches)


def test_a_stopped_synthesis_leaves_the_student_free(tiny_teacher, reference):
    dda, objective = method(tiny_teacher, reference)
    dda.student.train()
    request = StopRequest()
    request.signal = 15
    with pytest.raises(Stopped):
        dda.synthesize(0, request)
    assert dda.student.training
    assert all(parameter.requires_grad for network in (dda.student, objective.head) for parameter in network.parameters())
