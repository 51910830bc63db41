"""Every classifier: size, multiply-adds, feature interface, initialisation, and what it refuses."""

import importlib
import math
import sys

import pytest
import torch
from torch import nn

import dfkd.models
from dfkd.errors import UserError
from dfkd.models import MODELS, build_model, count_macs, count_parameters

# name: parameters with 10 and with 100 classes, BatchNorm layers, their channels, penultimate features, and millions of
# multiply-adds at 32×32 (as published, to one decimal) with the number of classes that they are given for.
TABLE = {
    "wrn161": (175_066, 180_916, 13, 464, 64, 26.7, 10),
    "wrn162": (691_674, 703_284, 13, 912, 128, 101.1, 10),
    "wrn401": (563_930, 569_780, 37, 1360, 64, 83.3, 10),
    "wrn402": (2_243_546, 2_255_156, 37, 2704, 128, 327.6, 10),
    "resnet18": (11_173_962, 11_220_132, 20, 4800, 512, 555.4, 10),
    "resnet34": (21_282_122, 21_328_292, 36, 8512, 512, 1159.4, 10),
    "resnet50": (23_520_842, 23_705_252, 53, 26560, 2048, 1297.8, 10),
    "vgg8": (3_918_858, 3_965_028, 5, 1472, 512, 96.2, 100),
    "vgg11": (9_231_114, 9_277_284, 8, 2752, 512, 209.4, 100),
    "vgg13": (9_416_010, 9_462_180, 10, 2944, 512, 284.9, 100),
    "vgg16": (14_728_266, 14_774_436, 13, 4224, 512, 398.2, 100),
    "vgg19": (20_040_522, 20_086_692, 16, 5504, 512, 511.4, 100),
    "mobilenetv2": (697_546, 812_836, 53, 9184, 1280, 6.4, 10),
    "resnet8": (78_042, 83_892, 9, 336, 64, 12.5, 100),
    "resnet20": (272_474, 278_324, 21, 784, 64, 40.8, 100),
    "resnet32": (466_906, 472_756, 33, 1232, 64, 69.1, 100),
    "resnet56": (855_770, 861_620, 57, 2128, 64, 125.8, 100),
    "resnet110": (1_730_714, 1_736_564, 111, 4144, 64, 253.2, 100),
    "resnet8x4": (1_210_410, 1_233_540, 10, 1376, 256, 177.1, 100),
    "resnet32x4": (7_410_730, 7_433_860, 34, 4960, 256, 1083.0, 100),
    "lenet5": (61_706, None, 0, 0, 120, 0.4, 10),
    "lenet5half": (15_738, None, 0, 0, 60, 0.1, 10),
}
SMALL = [name for name, row in TABLE.items() if row[0] < 1_000_000]


def channels_of(name: str) -> int:
    return 1 if name.startswith("lenet") else 3


def test_the_table_and_the_registry_cover_every_model() -> None:
    assert set(TABLE) == {*MODELS, "wrn161", "wrn162", "wrn401", "wrn402"}


@pytest.mark.parametrize("name", TABLE)
def test_size_equals_the_published_one(name: str) -> None:
    ten, hundred, norms, norm_channels, feature_dim, macs, classes = TABLE[name]
    channels = channels_of(name)
    models = {}
    # To draw the weights of the large networks would take longer than to reckon with shapes alone.
    with torch.device("meta" if ten > 2_000_000 else "cpu"):
        for count in (10, 100):
            models[count] = dfkd.models._builder(name)(count, channels, 32)
    assert count_parameters(models[10]) == ten
    assert hundred is None or count_parameters(models[100]) == hundred
    widths = [layer.num_features for layer in models[10].modules() if isinstance(layer, nn.BatchNorm2d)]
    assert (len(widths), sum(widths)) == (norms, norm_channels)
    assert models[10].feature_dim == feature_dim
    layers, names = models[10].layers, dict(models[10].named_modules())
    assert all(one in names for one in (layers.stem, *layers.maps, *layers.preacts, *layers.trunk, layers.classifier))
    assert count_macs(models[classes], (channels, 32, 32)) / 1e6 == pytest.approx(macs, abs=0.05001)


@pytest.mark.parametrize(("name", "parameters", "giga_macs"), [("resnet18", 11_271_432, 2.22), ("resnet34", 21_379_592, 4.64)])
def test_tiny_imagenet_sizes(name: str, parameters: int, giga_macs: float) -> None:
    with torch.device("meta"):
        model = dfkd.models._builder(name)(200, 3, 64)
    assert count_parameters(model) == parameters
    assert count_macs(model, (3, 64, 64)) / 1e9 == pytest.approx(giga_macs, abs=0.01)


# Channels and size of the feature maps at 32×32, where the literature takes them.
MAPS = {
    "wrn161": [(16, 32), (32, 16), (64, 8)],
    "wrn402": [(32, 32), (64, 16), (128, 8)],
    "resnet18": [(64, 32), (128, 16), (256, 8), (512, 4)],
    "resnet50": [(256, 32), (512, 16), (1024, 8), (2048, 4)],
    "vgg8": [(128, 16), (256, 8), (512, 4), (512, 4)],
    "vgg11": [(128, 16), (256, 8), (512, 4), (512, 4)],
    "mobilenetv2": [(12, 16), (16, 8), (48, 4), (160, 2)],
    "resnet20": [(16, 32), (32, 16), (64, 8)],
    "resnet8x4": [(64, 32), (128, 16), (256, 8)],
}


@pytest.mark.parametrize("name", MAPS)
@pytest.mark.parametrize(("channels", "size"), [(3, 32), (1, 16)])
def test_features_have_the_declared_shapes(name: str, channels: int, size: int) -> None:
    model = build_model(name, 7, channels, size).eval()
    with torch.no_grad():
        logits, features = model(torch.zeros(2, channels, size, size), return_features=True)
    expected = [(2, width, side * size // 32, side * size // 32) for width, side in MAPS[name]]
    assert [tuple(feature.shape) for feature in features[:-1]] == expected
    assert model.feature_channels == [c for c, _ in MAPS[name]]
    assert features[-1].shape == (2, model.feature_dim)
    assert logits.shape == (2, 7)


def test_lenet_features() -> None:
    with torch.no_grad():
        _, features = build_model("lenet5", 10, 3)(torch.zeros(2, 3, 32, 32), return_features=True)
    assert [tuple(feature.shape[1:]) for feature in features] == [(6, 14, 14), (16, 5, 5), (120, 1, 1), (120,)]


@pytest.mark.parametrize("name", ["wrn161", "resnet8", "vgg8", "mobilenetv2"])
@pytest.mark.parametrize("size", [28, 45, 96])  # above 64 pixels the check runs on the meta device
def test_other_sizes_are_taken(name: str, size: int) -> None:
    model = build_model(name, 10, 3, size)
    assert not any(parameter.is_meta for parameter in model.parameters())
    assert model.training
    with torch.no_grad():
        assert model.eval()(torch.zeros(1, 3, size, size)).shape == (1, 10)


def test_vgg_pools_after_the_fourth_block_from_64_pixels_on() -> None:
    with torch.no_grad():
        _, features = build_model("vgg8", 10, 3, 64).eval()(torch.zeros(1, 3, 64, 64), return_features=True)
    assert [feature.shape[-1] for feature in features[:4]] == [32, 16, 8, 4]


@pytest.mark.parametrize("name", SMALL)
def test_features_lead_to_the_logits(name: str) -> None:
    torch.manual_seed(0)
    model = build_model(name, 10, channels_of(name)).eval()
    images = torch.randn(2, channels_of(name), 32, 32)
    with torch.no_grad():
        logits, features = model(images, return_features=True)
        assert torch.equal(model(images), logits)
        assert torch.equal(model.classify(features[-1]), logits)
    assert logits.std() > 0


def test_last_wrn_map_is_taken_before_batch_norm() -> None:
    torch.manual_seed(0)
    model = build_model("wrn161", 10).eval()
    with torch.no_grad():
        _, features = model(torch.randn(2, 3, 32, 32), return_features=True)
        pooled = torch.relu(model.bn1(features[-2])).mean((2, 3))
    assert features[-2].min() < 0
    torch.testing.assert_close(features[-1], pooled)


@pytest.mark.parametrize("name", ["wrn162", "resnet18", "vgg11", "mobilenetv2", "resnet8x4"])
def test_inputs_of_batch_norm_survive_the_forward_pass(name: str) -> None:
    """In-place operations must not reach what the BN-statistics loss hooks."""
    torch.manual_seed(0)
    model = build_model(name, 10, 3, 16).eval()
    kept: list[tuple[torch.Tensor, torch.Tensor]] = []
    norms = [layer for layer in model.modules() if isinstance(layer, nn.BatchNorm2d)]
    for layer in norms:
        layer.register_forward_pre_hook(lambda _, inputs: kept.append((inputs[0], inputs[0].clone())))
    images = torch.randn(4, 3, 16, 16, requires_grad=True)
    logits = model(images)
    assert len(kept) == len(norms)
    assert all(torch.equal(now, then) for now, then in kept)
    loss = logits.square().mean() + sum(now.var((0, 2, 3), unbiased=False).sum() for now, _ in kept)
    loss.backward()
    assert images.grad is not None
    assert images.grad.isfinite().all()
    assert images.grad.abs().sum() > 0


def test_identity_shortcut_where_the_first_group_keeps_the_width() -> None:
    narrow, wide = build_model("wrn161", 10), build_model("wrn162", 10)
    assert [group.layer[0].convShortcut is None for group in (narrow.block1, narrow.block2, narrow.block3)] == [
        True,
        False,
        False,
    ]
    assert [group.layer[0].convShortcut is None for group in (wide.block1, wide.block2, wide.block3)] == [False] * 3


def test_wrn_has_no_dropout() -> None:
    assert not [layer for layer in build_model("wrn402", 10).modules() if isinstance(layer, nn.Dropout)]


@pytest.mark.parametrize("name", ["wrn402", "vgg13", "mobilenetv2"])
def test_convolutions_are_drawn_with_the_reference_deviation(name: str) -> None:
    torch.manual_seed(0)
    model = build_model(name, 10)
    checked = 0
    for layer in model.modules():
        if isinstance(layer, nn.Conv2d):
            if layer.weight.numel() >= 2000:
                expected = math.sqrt(2 / (layer.kernel_size[0] ** 2 * layer.out_channels))
                error = 5 * expected / math.sqrt(layer.weight.numel())  # of the mean; the deviation's is smaller
                assert layer.weight.std().item() == pytest.approx(expected, abs=error)
                assert layer.weight.mean().item() == pytest.approx(0, abs=error)
                checked += 1
            assert layer.bias is None or not layer.bias.any()
        elif isinstance(layer, nn.BatchNorm2d):
            assert (layer.weight == 1).all()
            assert not layer.bias.any()
    assert checked >= 9
    linear = [layer for layer in model.modules() if isinstance(layer, nn.Linear)][-1]
    assert not linear.bias.any()
    expected = 1 / math.sqrt(3 * linear.in_features) if name == "wrn402" else 0.01  # PyTorch's default, N(0, 0.01)
    assert linear.weight.std().item() == pytest.approx(expected, rel=0.08)


def test_resnet_cifar_uses_kaiming_fan_out() -> None:
    torch.manual_seed(0)
    model = build_model("resnet20", 10)
    assert model.layer3[1].conv1.weight.std().item() == pytest.approx(math.sqrt(2 / (9 * 64)), rel=0.02)


def test_channels_last_gives_the_same_logits() -> None:
    torch.manual_seed(0)
    images = torch.randn(4, 3, 32, 32)
    for name in ("wrn161", "resnet20", "vgg8", "mobilenetv2"):
        model = build_model(name, 10).eval()
        with torch.no_grad():
            expected = model(images)
            model.to(memory_format=torch.channels_last)
            found = model(images.to(memory_format=torch.channels_last))
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["wrn161", "vgg8"])
def test_forward_is_one_graph(name: str) -> None:
    """torch.compile captures the forward pass without a break (`fullgraph` raises at one), features included."""
    torch.manual_seed(0)
    model = build_model(name, 10, 3, 16).eval()
    images = torch.randn(2, 3, 16, 16)
    torch._dynamo.reset()
    with torch.no_grad():
        logits, features = torch.compile(model, backend="eager", fullgraph=True)(images, return_features=True)
        assert torch.equal(logits, model(images))
    assert len(features) == len(model.feature_channels) + 1


def test_building_is_decided_by_the_seed() -> None:
    torch.manual_seed(3)
    first = build_model("wrn161", 10)
    torch.manual_seed(3)
    second = build_model("wrn161", 10)
    assert all(torch.equal(a, b) for a, b in zip(first.state_dict().values(), second.state_dict().values(), strict=True))
    assert first.training


@pytest.mark.parametrize(
    ("name", "classes", "channels", "size", "message"),
    [
        ("wrn163x", 10, 3, 32, "unknown model 'wrn163x'; the nearest known: .*wrn16"),
        ("resnet19", 10, 3, 32, "unknown model 'resnet19'; the nearest known: .*resnet18"),
        ("wrn152", 10, 3, 32, "depth must be 6n\\+4"),
        ("mobilenetv2", 10, 3, 8, "'mobilenetv2' cannot take images of 3×8×8; of the usual sizes it takes 16, 28, 32"),
        ("vgg8", 10, 3, 4, "'vgg8' cannot take images of 3×4×4; of the usual sizes it takes 8, 16"),
        ("lenet5", 10, 1, 28, "'lenet5' cannot take images of 1×28×28; of the usual sizes it takes 32:"),
        ("wrn161", 1, 3, 32, "1 classes and 3 channels"),
        ("wrn161", 10, 0, 32, "10 classes and 0 channels"),
    ],
)
def test_what_cannot_be_built_is_refused(name: str, classes: int, channels: int, size: int, message: str) -> None:
    with pytest.raises(UserError, match=message):
        build_model(name, classes, channels, size)


def test_names_of_others_can_be_registered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(dfkd.models.MODELS, "mynet", "dfkd.models.lenet:lenet5half")
    assert count_parameters(build_model("mynet", 10, 1)) == 15_738


def test_importing_the_registry_imports_no_architecture(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dfkd, "models", dfkd.models)  # so that the import below is undone
    for name in [name for name in sys.modules if name.startswith("dfkd.models")]:
        monkeypatch.delitem(sys.modules, name)
    importlib.import_module("dfkd.models")
    assert {name for name in sys.modules if name.startswith("dfkd.models")} == {"dfkd.models", "dfkd.models.count"}


def test_macs_of_a_hand_counted_network() -> None:
    model = nn.Sequential(
        nn.Conv2d(4, 8, 3, padding=1, groups=2), nn.ConvTranspose2d(8, 2, 4, 2, 1), nn.Flatten(), nn.Linear(2 * 12 * 12, 5)
    ).train()
    model[0].eval()
    expected = 8 * 6 * 6 * (4 // 2) * 9 + 8 * 6 * 6 * 2 * 16 + 2 * 12 * 12 * 5
    assert count_macs(model, (4, 6, 6)) == expected
    assert [model.training, model[0].training, model[1].training] == [True, False, True]
    assert not any(layer._forward_hooks for layer in model)
