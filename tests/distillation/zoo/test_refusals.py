"""Which layers an objective looks at, and what it refuses before anything is trained."""

import copy
from types import SimpleNamespace

import pytest
import torch
from pydantic import ValidationError

from dfkd.config import check_config, parse
from dfkd.distillation.objective import Batch
from dfkd.distillation.run import build_method
from dfkd.distillation.zoo.at import attention_loss
from dfkd.distillation.zoo.objective import Observer
from dfkd.errors import UserError
from dfkd.methods import METHODS
from dfkd.models import build_model
from dfkd.models.adapter import as_classifier
from dfkd.models.taps import Taps

IMAGES = torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(0))
LABELS = torch.tensor([0, 1, 2, 0])


def objective(method, tiny_data, reference, student="wrn101", teacher="wrn102", **changes):
    teacher, student = (build_model(own, 3, 1, 8) if isinstance(own, str) else own for own in (teacher, student))
    settings = METHODS[method].settings(precision="reference", **changes)
    card = SimpleNamespace(dataset=tiny_data.info)
    return build_method(method, teacher.eval().requires_grad_(False), student, card, settings, reference)[1]


def test_layers_can_be_named(tiny_data, reference):
    names = {"student_layers": ["block1", "block3"], "teacher_layers": ["block2", "block3"]}
    found = objective("kd-at", tiny_data, reference, **names)
    maps = []
    for network, layers in ((found.student, names["student_layers"]), (found.teacher, names["teacher_layers"])):
        with Taps(network, layers) as taps:
            network.train(network is found.student)(IMAGES)
            maps.append(list(taps.take().values()))
    assert found.losses(Batch(IMAGES, LABELS))["at"].item() == pytest.approx(attention_loss(*maps).item(), rel=1e-6)


@pytest.mark.parametrize(("method", "count"), [("kd-at", 3), ("kd-sp", 1), ("kd-fitnet", 1), ("kd-rkd", 0)])
def test_an_objective_looks_at_no_more_than_it_needs(tiny_data, reference, method, count):
    found = objective(method, tiny_data, reference)
    layers = found.student.layers.maps
    wanted = {3: layers, 1: layers[1:2] if method == "kd-fitnet" else layers[-1:], 0: ()}[count]
    assert found.observed["student"].taps.names == wanted
    assert found.observed["student"].pooled == (method == "kd-rkd")


def test_looking_at_shapes_leaves_a_network_as_it_was(tiny_data, reference):
    network = build_model("wrn101", 3, 1, 8).train()
    before = copy.deepcopy(network.state_dict())
    shapes = Observer(network, network.layers.maps, True).shapes(tiny_data.info, reference)
    assert shapes == [(16, 8, 8), (32, 4, 4), (64, 2, 2)]
    assert network.training
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())


def test_heads_are_told_of(tiny_data, reference):
    assert objective("kd-sp", tiny_data, reference).notes == {}
    size = 64 * 128 + 128 * 128 + 2 * 128
    assert objective("kd-cc", tiny_data, reference).notes == {"heads": f"{size} parameters trained with the student"}


def bare():
    """A classifier whose only map is pooled within one layer: nothing to look at."""
    layers = [torch.nn.Flatten(), torch.nn.Linear(64, 5), torch.nn.ReLU(), torch.nn.Linear(5, 3)]
    return as_classifier(torch.nn.Sequential(*layers), "bare", 3, (1, 8, 8))


@pytest.mark.parametrize(
    ("method", "changes", "sentence"),
    [
        ("kd-svd", {}, "SVD: the student's map has 16 channels and the teacher's 32; it needs a pair with equal channels"),
        ("kd-svd", {"student_layers": ["block3"], "teacher_layers": ["block3"]}, "there is one alone: name two layers or more"),
        ("kd-at", {"student": "vgg8", "teacher": "vgg8", "student_layers": ["nowhere"]}, "VGG has no layer 'nowhere'"),
        ("kd-at", {"student_layers": ["block1"]}, "the student has 1 feature maps and the teacher 3; name the layers to pair"),
        ("kd-at", {"student_layers": ["block1"], "teacher_layers": ["fc"]}, "a layer of the teacher gives (3,) for an image"),
        (
            "kd-at",
            {"student": bare},
            "kd-at needs feature maps; bare has none (it does not name such layers; name them in student",
        ),
        (
            "kd-fitnet",
            {"student_layers": ["block3"], "teacher_layers": ["block1"]},
            "FitNet: the student's map is 2×2 and the teacher's 8×8; pair layers whose maps have one size",
        ),
    ],
)
def test_a_pair_that_cannot_be_taken_is_refused(tiny_data, reference, method, changes, sentence):
    networks = {key: own() if callable(own) else own for key, own in changes.items()}
    with pytest.raises(UserError) as caught:
        objective(method, tiny_data, reference, **networks)
    assert sentence in str(caught.value)


@pytest.mark.parametrize(
    ("method", "values", "sentence"),
    [
        ("kd-rkd", {"student_layers": ["block3"]}, "unknown key 'student_layers'"),
        ("kd-vanilla", {"at": 1}, "unknown key 'at'"),
        ("kd-at", {"at": 0}, "at 0 leaves nothing of the method: choose kd-vanilla"),
        ("kd-vanilla", {"ce": 0, "kd": 0}, "ce and kd are both 0: nothing is left to learn from"),
        ("kd-logitstd", {"kd": 0}, "kd: Input should be greater than 0"),
        ("kdrefine", {"standardise": "kd", "kd": 0}, "standardise 'kd' has no effect with kd 0"),
        ("kd-dkd", {"alpha": 0, "beta": 0}, "alpha and beta are both 0"),
        ("kd-dkd", {"ce": 0, "transfer_set": "folder:x"}, "dkd needs labels, and the images of 'folder:x' have none"),
        ("kd-rkd", {"distance": 0, "angle": 0}, "distance and angle are both 0"),
        ("kd-at", {"transfer_set": "dataset:svhn"}, "ce has no effect on the images of 'dataset:svhn', which have no labels"),
        ("kd-at", {"student_layers": ["a", "b"], "teacher_layers": ["c"]}, "student_layers names 2, teacher_layers 1"),
        *((name, {"batch_size": 1}, "batch_size 1: the method compares") for name in ("kd-rkd", "kd-cc", "kd-pkt", "kd-sp")),
    ],
)
def test_settings_without_effect_are_refused(method, values, sentence):
    with pytest.raises(UserError) as caught:
        parse(METHODS[method].settings, values, "here")
    assert sentence in str(caught.value)


def test_a_method_is_refused_where_the_config_is_read():
    with pytest.raises(UserError, match="at 0 leaves nothing of the method"):
        check_config({"methods": {"kd-at": {"overrides": {"digits": {"at": 0}}}}}, "here")
    with pytest.raises(ValidationError, match="dkd needs labels"):
        METHODS["kd-dkd"].settings(ce=0, transfer_set="dataset:svhn")
