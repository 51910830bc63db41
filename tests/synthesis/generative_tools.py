"""What the tests of methods with a lasting generator share."""

from types import SimpleNamespace

import torch

from dfkd.distillation.run import build_method
from dfkd.methods import METHODS
from dfkd.models import build_model
from dfkd.models.weights import load_model
from dfkd.runtime import seed_everything

NAMES = ("dafl", "zskt", "dfad", "dfq", "cudfkd", "adadfkd")
SMALL = {"batch_size": 6, "synthesis_batch_size": 6, "latent_size": 8, "width": 4, "lr": 0.05, "precision": "reference"}
OWN = {"adadfkd": {"queue": 24}, "cudfkd": {"adv": 0.5}}


def built(name, weights, runtime, student="wrn101", **changes):
    """A small synthesizer with its objective, teacher and student, seeded."""
    teacher, card = load_model(weights, runtime)
    return assembled(name, teacher, student, card.dataset, runtime, **changes)


def assembled(name, teacher, student, info, runtime, **changes):
    """The same of a teacher in hand."""
    settings = METHODS[name].settings(**{**SMALL, **OWN.get(name, {}), **changes})
    seed_everything(5)
    pupil = runtime.place(build_model(student, len(info.classes), info.channels, info.image_size))
    synthesizer, _ = build_method(name, teacher, pupil, SimpleNamespace(dataset=info), settings, runtime)
    return synthesizer


def batch(count=6):
    """Normalised images [count,1,8,8] with a gradient."""
    return torch.randn(count, 1, 8, 8, generator=torch.Generator().manual_seed(0)).requires_grad_()


def kl(student, teacher, temperature):
    """tau² · mean_i Σ_k p log(p / q), by definition, in float64."""
    p, q = ((logits.double() / temperature).softmax(1) for logits in (teacher, student))
    return temperature**2 * (p * (p / q).log()).sum(1).mean()


def entropy(logits, temperature=1.0):
    """Of the mean softmax, in float64."""
    p = (logits.double() / temperature).softmax(1).mean(0)
    return -(p * p.log()).sum()


def statistics_loss(teacher, images):
    """Σ over BatchNorm layers of ‖running_var − v‖ + ‖running_mean − μ‖, layer by layer, in float64."""
    found = []

    def hook(layer, inputs):
        pixels = inputs[0].double().transpose(0, 1).flatten(1)
        mean = pixels.mean(1)
        variance = ((pixels - mean[:, None]) ** 2).mean(1)
        found.append(((layer.running_var.double() - variance) ** 2).sum().sqrt())
        found.append(((layer.running_mean.double() - mean) ** 2).sum().sqrt())

    layers = [layer for layer in teacher.modules() if isinstance(layer, torch.nn.BatchNorm2d)]
    handles = [layer.register_forward_pre_hook(hook) for layer in layers]
    teacher(images)
    for handle in handles:
        handle.remove()
    assert len(found) == 2 * len(layers) > 0
    return torch.stack(found).sum()


def one_hot(logits):
    """− mean_i log max_k softmax: the cross-entropy with the answers themselves, in float64."""
    return -logits.double().softmax(1).max(1).values.log().mean()
