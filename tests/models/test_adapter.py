"""Networks without our interface: where their features are found, and what is refused."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import dfkd.config
from dfkd.datasets.info import DatasetInfo
from dfkd.distillation.objective import Batch
from dfkd.distillation.run import build_method
from dfkd.errors import UserError
from dfkd.methods import METHODS
from dfkd.models import build_model, count_macs
from dfkd.models.adapter import AdaptedClassifier, as_classifier
from dfkd.models.weights import WeightsCard, load_model, save_weights

INFO = DatasetInfo(
    name="noise", classes=["a", "b", "c"], image_size=8, channels=1, mean=[0.5], std=[0.5], crop_padding=0, flip=False
)


class Plain(nn.Module):
    """A shared, in-place ReLU, two sizes of maps, functional pooling, a hidden layer."""

    def __init__(self, classes=3, channels=1):
        super().__init__()
        self.layer1, self.norm = nn.Conv2d(channels, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.layer2 = nn.Conv2d(4, 6, 3, 2, 1)
        self.relu = nn.ReLU(inplace=True)
        self.head = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Dropout(0.5), nn.Linear(5, classes))

    def parts(self, x):
        first = self.norm(self.layer1(x))
        second = F.relu(self.layer2(F.relu(first)))
        hidden = self.head[:3](second.mean((2, 3)))
        return first, second, hidden, self.head[3](hidden)

    def forward(self, x):
        second = self.relu(self.layer2(self.relu(self.norm(self.layer1(x)))))
        return self.head(second.mean((2, 3)))


class Convolutional(nn.Module):
    """No linear layer at all."""

    def __init__(self, classes=3, channels=1):
        super().__init__()
        self.conv = nn.Conv2d(channels, classes, 3)

    def forward(self, x):
        return self.conv(x).amax((2, 3))


def linear(classes, channels, image_size):
    """Maps nowhere, no BatchNorm."""
    return nn.Sequential(nn.Flatten(), nn.Linear(channels * image_size**2, 7), nn.ReLU(), nn.Linear(7, classes))


def plain(classes, channels, image_size):
    return Plain(classes, channels)


def convolutional(classes, channels, image_size):
    return Convolutional(classes, channels)


@pytest.fixture(autouse=True)
def registered(monkeypatch):
    for name in ("plain", "linear", "convolutional"):
        monkeypatch.setitem(dfkd.config.MODELS, name, f"{__name__}:{name}")


def adapted(name):
    torch.manual_seed(0)
    return build_model(name, 3, 1, 8)


def test_features_are_those_of_the_network():
    model = adapted("plain").eval()
    images = torch.randn(4, 1, 8, 8)
    logits, features = model(images, return_features=True)
    _, second, hidden, expected = model.module.parts(images)
    assert torch.equal(logits, model(images))
    torch.testing.assert_close(logits, expected)
    assert [tuple(feature.shape) for feature in features] == [(4, 4, 8, 8), (4, 6, 4, 4), (4, 5)]
    torch.testing.assert_close(features[1], second)
    torch.testing.assert_close(features[2], hidden)
    assert (model.feature_channels, model.feature_dim) == ([4, 6], 5)


def test_gradients_pass_through_the_features():
    model = adapted("plain")
    model(torch.randn(4, 1, 8, 8), return_features=True)[1][-1].sum().backward()
    assert model.layer1.weight.grad is not None
    assert model.head[3].weight.grad is None


def test_it_is_built_in_training_mode_and_not_moved_by_the_probe():
    model = adapted("plain")
    assert all(module.training for module in model.modules())
    assert torch.equal(model.norm.running_mean, torch.zeros(4))
    assert not model._found
    model(torch.randn(2, 1, 8, 8))
    assert not model._found  # nothing is held beyond a forward pass


def test_names_are_the_modules_own(tmp_path):
    model = adapted("plain")
    state = model.state_dict()
    assert list(state) == list(Plain().state_dict())
    other = adapted("plain")
    for parameter in other.parameters():
        nn.init.zeros_(parameter)
    assert other.load_state_dict(state) == nn.modules.module._IncompatibleKeys([], [])
    assert all(torch.equal(one, state[name]) for name, one in other.state_dict().items())
    wrapped = nn.Sequential(other)
    wrapped.load_state_dict({f"0.{name}": tensor for name, tensor in state.items()})
    assert set(wrapped.state_dict()) == {f"0.{name}" for name in state}
    card = WeightsCard(architecture="plain", dataset=INFO, role="teacher", stage="t", stage_version=1, settings={}, seed=0)
    save_weights(tmp_path / "w.safetensors", model, card)
    loaded, _ = load_model(tmp_path / "w.safetensors")
    images = torch.randn(2, 1, 8, 8)
    assert torch.equal(loaded(images), model.eval()(images))


def test_a_copy_keeps_its_features_to_itself():
    model = adapted("plain").eval()
    other = copy.deepcopy(model)
    nn.init.zeros_(other.layer1.weight)
    images = torch.randn(2, 1, 8, 8)
    expected = model(images, return_features=True)[1]
    found = other(images, return_features=True)[1]
    assert not torch.equal(found[0], expected[0])
    assert not model._found
    assert count_macs(other, (1, 8, 8)) == 64 * 4 * 9 + 16 * 6 * 36 + 30 + 15


def test_attributes_are_the_modules():
    model = adapted("plain")
    assert model.layer2 is model.module.layer2
    with pytest.raises(AttributeError, match="layer9"):
        _ = model.layer9


@pytest.mark.parametrize(
    ("method", "teacher", "student", "message"),
    [
        ("csd", "wrn101", "linear", "csd needs feature maps; linear has none"),
        ("csd", "linear", "plain", "csd needs feature maps; linear has none"),
        ("csd", "wrn101", "convolutional", "csd needs penultimate features; convolutional has none"),
        ("adadfkd", "convolutional", "plain", "adadfkd needs penultimate features; convolutional has none"),
    ],
)
def test_what_a_method_cannot_find_is_refused_by_name(method, teacher, student, message, reference):
    card = WeightsCard(architecture=teacher, dataset=INFO, role="teacher", stage="t", stage_version=1, settings={}, seed=0)
    settings = METHODS[method].settings(precision="reference")
    with pytest.raises(UserError, match=message):
        build_method(method, adapted(teacher), adapted(student), card, settings, reference)


def test_features_that_are_not_there_are_refused_when_asked_for():
    model = adapted("convolutional")
    assert model(torch.randn(2, 1, 8, 8)).shape == (2, 3)
    assert model.feature_channels == [3]
    with pytest.raises(UserError, match="needs penultimate features; convolutional has none"):
        model(torch.randn(2, 1, 8, 8), return_features=True)


def test_a_method_that_needs_logits_alone_takes_any_network(reference):
    card = WeightsCard(architecture="linear", dataset=INFO, role="teacher", stage="t", stage_version=1, settings={}, seed=0)
    settings = METHODS["noise"].settings(precision="reference")
    synthesizer, objective = build_method("noise", adapted("linear"), adapted("convolutional"), card, settings, reference)
    before = objective.student.conv.weight.clone()
    objective.step(Batch(synthesizer.batch(4), torch.empty(0, dtype=torch.int64)))
    assert not torch.equal(objective.student.conv.weight, before)


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (
            nn.Sequential(nn.Flatten(), nn.Linear(64, 4)),
            r"gives \(1, 4\) for one image; it has to give logits of shape \(1, 3\)",
        ),
        (nn.Conv2d(1, 3, 3), r"gives \(1, 3, 6, 6\)"),
    ],
)
def test_what_gives_no_logits_is_refused(module, message):
    with pytest.raises(UserError, match=message):
        as_classifier(module, "mynet", 3, (1, 8, 8))


def test_ours_are_not_wrapped():
    assert not isinstance(build_model("wrn101", 3, 1, 8), AdaptedClassifier)
