"""Layers by name: what the names lead to, and taps that collect it."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import dfkd.config
from dfkd.errors import UserError
from dfkd.models import build_model
from dfkd.models.taps import Taps

# One of each family; the others of a family are built by the same code.
NAMES = [
    "resnet8", "resnet8x4", "resnet18", "resnet50", "wrn162", "wrn161", "vgg8", "vgg11", "mobilenetv2", "lenet5",
]  # fmt: skip


def tapped(name: str, names: tuple[str, ...]) -> tuple[nn.Module, dict[str, torch.Tensor], list[torch.Tensor]]:
    """The network in eval mode with BN statistics that are not trivial, what its taps caught, and its features."""
    torch.manual_seed(0)
    channels = 1 if name.startswith("lenet") else 3
    model = build_model(name, 10, channels).eval()
    for layer in model.modules():
        if isinstance(layer, nn.BatchNorm2d):
            nn.init.normal_(layer.running_mean, 0, 0.1)
            nn.init.normal_(layer.bias, 0, 0.1)
    with torch.no_grad(), Taps(model, names) as taps:
        _, features = model(torch.randn(2, channels, 32, 32), return_features=True)
        return model, taps.take(), features


@pytest.mark.parametrize("name", NAMES)
def test_the_named_layers_give_the_features_and_what_lies_before_their_activation(name: str) -> None:
    layers = build_model(name, 10, 1 if name.startswith("lenet") else 3).layers
    model, found, features = tapped(name, (layers.stem, *layers.maps, *layers.preacts))
    assert len(layers.maps) == len(layers.preacts) == len(model.feature_channels)
    for key, before, feature in zip(layers.maps, layers.preacts, features[:-1], strict=True):
        assert torch.equal(found[key], feature)
        assert found[before].shape == feature.shape
        if name.startswith("wrn"):
            assert torch.equal(found[before], model.get_submodule(before)(feature))
        elif name != "mobilenetv2":
            assert torch.equal(found[before].relu(), feature)
        if name != "mobilenetv2":  # whose maps are signed and have no activation
            assert found[before].min() < 0


@pytest.mark.parametrize("name", NAMES)
def test_the_trunk_holds_the_parameters_below_the_last_map_and_the_classifier_gives_the_logits(name: str) -> None:
    model = build_model(name, 10, 1 if name.startswith("lenet") else 3).eval()
    named = {id(p) for part in model.layers.trunk for p in model.get_submodule(part).parameters()}
    images = torch.randn(2, 1 if name.startswith("lenet") else 3, 32, 32)
    with Taps(model, [model.layers.classifier]) as taps:
        logits, features = model(images, return_features=True)
        assert torch.equal(taps.take()[model.layers.classifier], logits)
    features[-2].sum().backward()
    assert {id(p) for p in model.parameters() if p.grad is not None} == named
    assert isinstance(model.get_submodule(model.layers.classifier), nn.Linear)


class Shared(nn.Module):
    """Of others: in-place activations behind the layer that is tapped, one of them a function; a layer that never runs."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.relu, self.idle = nn.Conv2d(1, 4, 3), nn.ReLU(inplace=True), nn.Linear(2, 2)
        self.pair = nn.LSTM(4, 4)
        self.head = nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = F.relu(self.relu(self.conv(x)), inplace=True).mean((2, 3))
        return self.head(self.pair(hidden)[0])


def test_a_tapped_output_is_not_altered_by_what_follows_and_carries_the_gradient() -> None:
    torch.manual_seed(0)
    model, images = Shared(), torch.randn(2, 1, 8, 8)
    expected, plain = model.conv(images), model(images)
    with Taps(model, ["conv", "relu"]) as taps:
        logits = model(images)
        found = taps.take()
    assert torch.equal(logits, plain)
    assert torch.equal(found["conv"], expected)
    assert torch.equal(found["relu"], expected.relu())
    found["conv"].sum().backward()
    assert model.conv.bias.grad.tolist() == [2 * 36] * 4


def test_taps_come_off_and_outputs_are_taken_once() -> None:
    model = build_model("resnet8", 3, 1, 8)
    before = copy.deepcopy(model.state_dict()).keys()
    taps = Taps(model, ["layer1", "layer1", "layer2.0.add"])
    model(torch.zeros(2, 1, 8, 8))
    assert list(taps.take()) == ["layer1", "layer2.0.add"]
    with pytest.raises(UserError, match="layer 'layer1' was not run in the forward pass"):
        taps.take()
    assert model.state_dict().keys() == before
    taps.remove()
    taps.remove()
    assert not any(layer._forward_hooks for layer in model.modules())


def test_layers_that_are_not_there_or_give_no_tensor_are_refused() -> None:
    model = build_model("resnet8", 3, 1, 8)
    with pytest.raises(UserError, match=r"ResNetCifar has no layer 'layer4'; the nearest known: .*layer1.*; `dict\(model"):
        Taps(model, ["layer1", "layer4"])
    assert not any(layer._forward_hooks for layer in model.modules())
    with pytest.raises(UserError, match="has no layer ''"):
        Taps(model, [""])
    shared = Shared()
    with Taps(shared, ["pair"]), pytest.raises(UserError, match="layer 'pair' gives no tensor but tuple"):
        shared(torch.zeros(1, 1, 8, 8))


def small(classes: int, channels: int, image_size: int) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(channels, 4, 3, 2, 1), nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(image_size**2, classes)
    )


def test_a_network_of_others_is_tapped_by_its_own_names(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(dfkd.config.MODELS, "small", f"{__name__}:small")
    torch.manual_seed(0)
    model = build_model("small", 3, 1, 8)
    assert (model.layers.maps, model.layers.classifier, model.layers.stem) == (("1",), "3", "")
    images = torch.randn(2, 1, 8, 8)
    with Taps(model, ["0", *model.layers.maps]) as taps:
        _, features = model(images, return_features=True)
        found = taps.take()
    assert torch.equal(found["0"], model.module[0](images))
    assert torch.equal(found["1"], features[0])


def test_taps_are_captured_by_the_compiler() -> None:
    torch.manual_seed(0)
    model, images = build_model("resnet8", 3, 1, 8).eval(), torch.randn(2, 1, 8, 8)
    torch._dynamo.reset()
    with torch.no_grad(), Taps(model, model.layers.preacts) as taps:
        expected = (model(images), taps.take())
        compiled = torch.compile(lambda x: (model(x), taps.take()), backend="eager", fullgraph=True)
        logits, found = compiled(images)
    assert torch.equal(logits, expected[0])
    assert all(torch.equal(found[name], expected[1][name]) for name in model.layers.preacts)
