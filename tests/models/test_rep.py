"""Blocks of branches: what they are, that they fold without loss, and what they cost."""

import copy
import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import dfkd.config
import dfkd.models
from dfkd.errors import UserError
from dfkd.models import build_model, count_macs, count_parameters
from dfkd.models.fold import by_branches, fold_error, fold_form, folded_state, norms_behind
from dfkd.models.rep import KERNELS, Block, Chain, with_blocks

SMALL = ["resnet8", "wrn161", "wrn162", "mobilenetv2", "shufflenetv1", "shufflenetv2"]


def shake(model: nn.Module) -> nn.Module:
    """BatchNorms as training leaves them: no statistic, weight or bias is trivial."""
    for layer in model.modules():
        if isinstance(layer, nn.BatchNorm2d):
            nn.init.uniform_(layer.weight, 0.5, 1.5)
            nn.init.normal_(layer.bias, 0, 0.2)
            nn.init.normal_(layer.running_mean, 0, 0.3)
            nn.init.uniform_(layer.running_var, 0.5, 2)
    return model


def block(kind: str, outputs: int, size: int = 3, stride: int = 1, groups: int = 1, padding: int = 1) -> Block:
    torch.manual_seed(0)
    layer = nn.Conv2d(4, outputs, size, stride, padding, groups=groups)
    return shake(Block(layer, kind, nn.BatchNorm2d(1), lambda _: None)).double()


def norm_of(norm: nn.BatchNorm2d, x: torch.Tensor, channels: torch.Tensor, training: bool) -> torch.Tensor:
    """What a BatchNorm's `channels` make of a branch of its own."""
    mean, var = norm.running_mean[channels].clone(), norm.running_var[channels].clone()
    return F.batch_norm(x, mean, var, norm.weight[channels], norm.bias[channels], training, 0.1, norm.eps)


def branch_by_branch(one: Block, x: torch.Tensor, training: bool) -> torch.Tensor:
    """The sum over the branches, each a convolution and a BatchNorm of its own."""
    count, groups, outputs = len(one.kernels), one.groups, one.outputs
    places = torch.arange(count * outputs).view(count, outputs)
    squares = iter(one.square.chunk(one.kernels.count("square")))
    total = torch.zeros(())
    for index, name in enumerate(one.kernels):
        kernel = next(squares) if name == "square" else getattr(one, name)
        pads = tuple(one.padding - (one.size - side) // 2 for side in kernel.shape[2:])
        out = F.conv2d(x, kernel, None, one.stride, pads, groups=groups)
        total = total + norm_of(one.norm, out, places[index], training)
    if one.identity is not None:
        total = total + norm_of(one.identity, x, torch.arange(outputs), training)
    return total


@pytest.mark.parametrize(("stride", "groups"), [(1, 1), (2, 1), (1, 2), (1, 4), (2, 4)])
@pytest.mark.parametrize("kind", ["actdb", "acb", "repvgg"])
def test_stacked_branches_are_the_branches(kind: str, stride: int, groups: int) -> None:
    one = block(kind, 4, stride=stride, groups=groups)
    x = torch.randn(3, 4, 9, 9, dtype=torch.float64)
    for training in (True, False):
        expected = branch_by_branch(one.train(training), x, training)
        with by_branches(one):
            found = one(x)
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    assert (one.identity is not None) == (kind == "repvgg" and stride == 1)


@pytest.mark.parametrize("average", [False, True])
@pytest.mark.parametrize("groups", [1, 2])
def test_a_chain_pads_with_what_its_first_norm_makes_of_zero(average: bool, groups: int) -> None:
    torch.manual_seed(0)
    layer = nn.Conv2d(4, 6, 3, 2, 1, groups=groups)
    chain = shake(Chain(layer, average, nn.BatchNorm2d(1), lambda _: None)).double().eval()
    x = torch.randn(2, 4, 8, 8, dtype=torch.float64)
    # A 1×1 convolution of the input that is padded first sees zeros at the border: its BatchNorm makes them its offset.
    inner = chain.norm1(chain.conv1(F.pad(x, [1] * 4)))
    second = F.avg_pool2d(inner, 3, 2) if average else F.conv2d(inner, chain.conv2.weight, stride=2, groups=groups)
    torch.testing.assert_close(chain(x), chain.norm2(second), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kind", KERNELS)
@pytest.mark.parametrize(
    ("stride", "groups", "size", "padding"), [(1, 1, 3, 1), (2, 1, 3, 1), (1, 4, 3, 1), (2, 4, 5, 2), (1, 2, 5, 0)]
)
def test_a_block_folds_exactly(kind: str, stride: int, groups: int, size: int, padding: int) -> None:
    one = block(kind, 8, size, stride, groups, padding).eval()
    x = torch.randn(2, 4, 9, 9, dtype=torch.float64)
    kernel, bias = one.folded()
    assert kernel.shape == (8, 4 // groups, size, size)
    with by_branches(one), torch.no_grad():
        expected = one(x)
    torch.testing.assert_close(F.conv2d(x, kernel, bias, stride, padding, groups=groups), expected, rtol=1e-11, atol=1e-11)
    torch.testing.assert_close(one(x), expected, rtol=1e-11, atol=1e-11)
    assert one.training is False


def deployed(model: nn.Module, name: str, channels: int, size: int = 32) -> nn.Module:
    state = folded_state(model)
    twin = build_model(name, 10, channels, size, folded=state.keys())
    twin.load_state_dict(state)
    return twin.eval()


# The large ones, and LeNet-5, whose plain form has nothing to fold, in one form.
CASES = [(name, kind) for name in SMALL for kind in ("plain", "actdb")]
CASES += [("vgg8", "actdb"), ("lenet5", "actdb")]
CASES += [(name, kind) for name in ("resnet8", "mobilenetv2") for kind in ("repvgg", "acb", "dbb")]


@pytest.mark.parametrize(("name", "kind"), CASES)
def test_a_folded_network_is_the_network(name: str, kind: str) -> None:
    torch.manual_seed(0)
    channels, size = (1, 32) if name == "lenet5" else (3, 16)
    model = shake(build_model(name, 10, channels, size, kind)).eval()
    before = copy.deepcopy(model.state_dict())
    twin = deployed(model, name, channels, size)
    images = torch.randn(2, channels, size, size)
    with torch.no_grad(), by_branches(model):
        expected, found = model(images), twin(images)
    assert ((found - expected).abs().max() / expected.abs().max()).item() <= 1e-6
    assert fold_error(model, twin, (channels, size, size)) <= 2e-7
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert [key for key, _ in twin.named_modules()] == [key for key, _ in build_model(name, 10, channels, size).named_modules()]
    left = [key for key, layer in twin.named_modules() if isinstance(layer, nn.BatchNorm2d)]
    if not name.startswith("wrn"):
        assert left == []
    else:  # whose norms behind a sum, a branching or the stem's named output stay
        assert all(key == "bn1" or key.endswith(".bn1") for key in left)
        assert "block1.layer.0.bn2" not in left


def test_the_fold_error_finds_a_wrong_fold() -> None:
    torch.manual_seed(0)
    model = shake(build_model("resnet8", 10, 3, 8, "actdb")).eval()
    twin = deployed(model, "resnet8", 3, 8)
    with torch.no_grad():
        twin.layer2[0].conv1.bias[3] += 0.1
    assert fold_error(model, twin, (3, 8, 8)) > 1e-4


# The reference's students with five-branch blocks: parameters in training and deployed, millions of multiply-adds of both,
# blocks, and the BatchNorms that it leaves at deployment, which here are folded too: their channels are the difference.
PUBLISHED = {
    "resnet20": (997_684, 277_636, 149.0, 40.8, 19, 2),
    "resnet32": (1_711_796, 471_620, 252.8, 69.1, 31, 2),
    "resnet8x4": (4_339_844, 1_232_612, 632.4, 177.1, 7, 3),
    "vgg8": (14_400_164, 3_962_084, 352.6, 96.2, 5, 0),
    "mobilenetv2": (928_292, 803_652, 8.8, 6.5, 18, 0),
    "shufflenetv1": (1_012_426, 947_284, 41.8, 38.7, 16, 33),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_costs_are_the_published_ones(name: str) -> None:
    train, deploy, train_macs, deploy_macs, blocks, norms = PUBLISHED[name]
    with torch.device("meta"):
        plain, other, third = (dfkd.models._builder(name)(100, 3, 32) for _ in range(3))
        model = with_blocks(other, "actdb", name)
        state = folded_state(model)
        twin = fold_form(third, state.keys())
    assert {key: value.shape for key, value in state.items()} == {key: value.shape for key, value in twin.state_dict().items()}
    assert sum(isinstance(layer, Block) for layer in model.modules()) == blocks
    assert count_parameters(model) == train
    kept = [layer.num_features for layer in model.modules() if type(layer) is nn.BatchNorm2d]
    inner = [len(layer.kernels) * layer.outputs for layer in model.modules() if isinstance(layer, Block)]
    others = sum(kept) - sum(inner)  # channels of the norms outside of blocks
    assert len(kept) - len(inner) == (norms or {"mobilenetv2": 35}.get(name, 0))
    # A BatchNorm's weight and bias become one bias: where the reference keeps the norm, here are as many parameters fewer.
    assert count_parameters(twin) == deploy - (others if norms else 0)
    assert count_macs(model, (3, 32, 32)) / 1e6 == pytest.approx(train_macs, abs=0.05001)
    assert count_macs(twin, (3, 32, 32)) == count_macs(plain, (3, 32, 32))
    assert count_macs(twin, (3, 32, 32)) / 1e6 == pytest.approx(deploy_macs, abs=0.05001)


def test_every_branch_is_drawn_as_the_network_draws_its_layers() -> None:
    torch.manual_seed(0)
    cnn, vgg = build_model("resnet20", 10, blocks="actdb"), build_model("vgg8", 10, blocks="actdb")
    for one in (cnn.layer3[1].conv1, vgg.block3[0]):
        for name, size in (("square", 9), ("vertical", 3), ("horizontal", 3)):
            weight = getattr(one, name)
            assert weight.std().item() == pytest.approx(math.sqrt(2 / (size * one.outputs)), rel=0.03)
        first, second, third = one.square.chunk(3)
        assert not torch.equal(first, second)
        assert not torch.equal(second, third)
    plain = build_model("resnet18", 10, blocks="repvgg").layer4[1].conv2.point  # PyTorch's default: uniform
    assert plain.abs().max().item() == pytest.approx(1 / math.sqrt(512), rel=0.01)


def test_a_wrn_keeps_its_own_norms() -> None:
    model = build_model("wrn161", 10, blocks="acb")
    assert isinstance(model.block2.layer[0].conv2, Block)
    assert [type(model.get_submodule(key)) for key in ("bn1", "block2.layer.0.bn1", "block2.layer.0.bn2")] == [
        nn.BatchNorm2d
    ] * 3
    assert norms_behind(model)["block2.layer.0.conv1"] == "block2.layer.0.bn2"
    assert "conv1" not in norms_behind(model)  # the stem's output goes into the shortcut as well


def test_branches_run_when_their_norms_are_hooked() -> None:
    """An inversion wants the statistics of BatchNorm inputs, in eval mode."""
    torch.manual_seed(0)
    model = shake(build_model("resnet8", 10, 3, 8, "actdb")).eval()
    seen = []
    handles = [one.norm.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].shape[1])) for one in model.modules()
               if isinstance(one, Block)]  # fmt: skip
    images = torch.randn(2, 3, 8, 8)
    with torch.no_grad():
        listened = model(images)
        for handle in handles:
            handle.remove()
        assert seen == [5 * 16, 5 * 16, 5 * 16, 5 * 32, 5 * 32, 5 * 64, 5 * 64]
        torch.testing.assert_close(model(images), listened, rtol=1e-4, atol=1e-5)
    assert len(seen) == 7


def test_blocks_learn_in_both_formats_and_precisions() -> None:
    torch.manual_seed(0)
    images = torch.randn(4, 3, 8, 8)
    for kind in KERNELS:
        model = build_model("resnet8", 10, 3, 8, kind)
        expected = copy.deepcopy(model)(images)
        model.to(memory_format=torch.channels_last)
        found = model(images.to(memory_format=torch.channels_last))
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)
        with torch.autocast("cpu", torch.bfloat16):
            rough = model(images)
            model.eval()(images)
        rough.float().square().sum().backward()
        assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in model.parameters())


class Undecided(nn.Module):
    """Its forward pass asks for a value."""

    def __init__(self, classes: int = 3) -> None:
        super().__init__()
        self.conv, self.norm, self.linear = nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.Linear(4, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.norm(self.conv(x))
        return self.linear((x if x.sum() > 0 else -x).mean((2, 3)))


def undecided(classes: int, channels: int, image_size: int) -> nn.Module:
    return Undecided(classes)


def linear(classes: int, channels: int, image_size: int) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(channels * image_size**2, classes))


def own(classes: int, channels: int, image_size: int) -> nn.Module:
    """Of others, without our interface: a convolution with its norm, nothing else to fold."""
    return nn.Sequential(
        nn.Conv2d(channels, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(1), nn.Linear(256, classes)
    )


def test_networks_of_others_take_blocks_if_they_can_be_traced(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("undecided", "linear", "own"):
        monkeypatch.setitem(dfkd.config.MODELS, name, f"{__name__}:{name}")
    torch.manual_seed(0)
    model = shake(build_model("own", 3, 1, 8, "actdb")).eval()
    state = folded_state(model)
    assert sorted(state) == ["0.bias", "0.weight", "4.bias", "4.weight"]
    twin = build_model("own", 3, 1, 8, folded=state.keys())
    twin.load_state_dict(state)
    assert fold_error(model, twin.eval(), (1, 8, 8)) < 2e-7
    with pytest.raises(UserError, match=r"Undecided: its forward pass cannot be traced .* do not deploy it"):
        build_model("undecided", 3, 1, 8, "actdb")
    with pytest.raises(UserError, match="model 'linear': has no convolution of 3×3 or 5×5 for blocks 'acb' to replace"):
        build_model("linear", 3, 1, 8, "acb")
