"""Weights on disk: round trip, damage, and the import of checkpoints with every refusal."""

import json
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import nn

from dfkd.datasets.info import DatasetInfo
from dfkd.errors import UserError
from dfkd.files import file_sha256
from dfkd.models import build_model, count_parameters
from dfkd.models.weights import WeightsCard, import_checkpoint, load_model, load_state, read_card, save_weights
from dfkd.runtime import Runtime


def info(classes: int = 10, channels: int = 3, name: str = "cifar10") -> DatasetInfo:
    names = [str(index) for index in range(classes)]
    half = [0.5] * channels
    return DatasetInfo(
        name=name, classes=names, image_size=32, channels=channels, mean=half, std=half, crop_padding=4, flip=True
    )


def card(architecture: str = "wrn161", role: str = "teacher", **changes: Any) -> WeightsCard:
    values = {
        "architecture": architecture, "dataset": info(), "role": role, "stage": "teacher", "stage_version": 1,
        "settings": {"lr": 0.1}, "seed": 0, "metrics": {"acc1": 91.25}, "lineage": {"data": "ab" * 32},
    }  # fmt: skip
    return WeightsCard.model_validate(values | changes)


@pytest.fixture
def model() -> nn.Module:
    torch.manual_seed(1)
    built = build_model("wrn161", 10)
    built(torch.randn(4, 3, 32, 32))  # moves the BN statistics off their start
    return built


@pytest.fixture
def saved(model: nn.Module, tmp_path: Path) -> Path:
    save_weights(tmp_path / "t.safetensors", model, card())
    return tmp_path / "t.safetensors"


def same(first: nn.Module, second: nn.Module) -> bool:
    a, b = first.state_dict(), second.state_dict()
    return list(a) == list(b) and all(torch.equal(a[name], b[name]) for name in a)


def test_round_trip(model: nn.Module, saved: Path) -> None:
    random_state = torch.get_rng_state()
    loaded, found = load_model(saved)
    assert same(model, loaded)
    assert torch.equal(random_state, torch.get_rng_state())
    assert not any(module.training for module in loaded.modules())
    assert not any(parameter.requires_grad for parameter in loaded.parameters())
    assert found == read_card(saved)
    assert found.sha256 == file_sha256(saved)
    assert found.params == count_parameters(model) == 175_066
    assert (found.metrics, found.lineage, found.settings) == ({"acc1": 91.25}, {"data": "ab" * 32}, {"lr": 0.1})
    assert found.versions["torch"] == torch.__version__.split("+")[0] or found.versions["torch"] == torch.__version__
    assert sorted(path.name for path in saved.parent.iterdir()) == ["t.json", "t.safetensors"]


def test_loading_places_by_the_runtime(saved: Path) -> None:
    loaded, _ = load_model(saved, Runtime(torch.device("cpu"), "fast", torch.float32, False))
    assert loaded.block1.layer[0].conv1.weight.is_contiguous(memory_format=torch.channels_last)


def test_equal_tensors_give_equal_bytes(model: nn.Module, saved: Path, tmp_path: Path) -> None:
    model.to(memory_format=torch.channels_last)
    assert not model.block1.layer[0].conv1.weight.is_contiguous()
    save_weights(tmp_path / "last.safetensors", model, card())
    assert (tmp_path / "last.safetensors").read_bytes() == saved.read_bytes()
    assert (tmp_path / "last.json").read_bytes() == saved.with_suffix(".json").read_bytes()


def test_any_flipped_byte_is_found(saved: Path) -> None:
    content = saved.read_bytes()
    for position in (0, 9, len(content) // 2, len(content) - 1):
        broken = bytearray(content)
        broken[position] ^= 1
        saved.write_bytes(broken)
        with pytest.raises(UserError, match=r"t\.safetensors: its SHA-256 .* damaged or replaced"):
            load_state(saved)
    saved.write_bytes(content[:-1])
    with pytest.raises(UserError, match="damaged or replaced"):
        load_model(saved)
    saved.write_bytes(content)
    assert len(load_state(saved)) == len(build_model("wrn161", 10).state_dict())


def test_missing_files_are_named(saved: Path) -> None:
    with pytest.raises(UserError, match=r"none\.safetensors: no such file"):
        load_model(saved.with_name("none.safetensors"))
    with pytest.raises(UserError, match=r"\.pth: weights are kept in \.safetensors"):
        load_model(saved.with_name("t.pth"))
    saved.with_suffix(".json").unlink()
    with pytest.raises(UserError, match=r"t\.json: no such file; weights are a .safetensors file with their card"):
        load_state(saved)


def test_foreign_cards_and_files_are_refused(saved: Path) -> None:
    path = saved.with_suffix(".json")
    content = json.loads(path.read_text())
    path.write_text('{"format": "pt"}')
    with pytest.raises(UserError, match=r"t\.json: not a card of this project's weights \(architecture: Field required\)"):
        read_card(saved)
    path.write_text("{")
    with pytest.raises(UserError, match=r"t\.json: not valid JSON"):
        read_card(saved)
    saved.write_bytes(b"no safetensors at all")
    path.write_text(json.dumps(content | {"sha256": file_sha256(saved)}))
    with pytest.raises(UserError, match=r"t\.safetensors: not a safetensors file"):
        load_state(saved)


def test_weights_that_do_not_fit_their_card_are_refused(model: nn.Module, tmp_path: Path) -> None:
    save_weights(tmp_path / "a.safetensors", model, card("wrn162"))
    with pytest.raises(UserError, match=r"a\.safetensors: .*names do not fit model 'wrn162': 1 missing \(first 'block1"):
        load_model(tmp_path / "a.safetensors")


def test_diffusion_weights_are_kept_but_are_no_classifier(tmp_path: Path) -> None:
    unet = nn.Conv2d(3, 3, 3)
    save_weights(tmp_path / "d.safetensors", unet, card("unet", "diffusion"))
    assert torch.equal(load_state(tmp_path / "d.safetensors")["weight"], unet.weight)
    with pytest.raises(UserError, match="weights of a diffusion model"):
        load_model(tmp_path / "d.safetensors")


WRAPPINGS: dict[str, Callable[[dict[str, torch.Tensor]], Any]] = {
    "bare": lambda state: state,
    "state_dict": lambda state: {"state_dict": state, "best_acc1": 95.2, "epoch": 200},
    "model": lambda state: {"model": state, "accuracy": torch.tensor(95.2)},
    "module": lambda state: {f"module.{name}": tensor for name, tensor in state.items()},
    "state_dict and module": lambda state: {"state_dict": {f"module.{name}": tensor for name, tensor in state.items()}},
    "half precision in channels_last": lambda state: {
        name: tensor.to(memory_format=torch.channels_last) if tensor.dim() == 4 else tensor for name, tensor in state.items()
    },
    "without batch counters": lambda state: {name: state[name] for name in state if "num_batches" not in name},
}


@pytest.mark.parametrize("form", WRAPPINGS)
@pytest.mark.parametrize("legacy", [False, True])
def test_checkpoints_of_the_usual_forms_are_imported(form: str, legacy: bool, model: nn.Module, tmp_path: Path) -> None:
    content = WRAPPINGS[form](model.state_dict())
    torch.save(content, tmp_path / "t.pth", _use_new_zipfile_serialization=not legacy)
    imported = import_checkpoint(tmp_path / "t.pth", "wrn161", info())
    if form == "without batch counters":
        assert imported.bn1.num_batches_tracked == 0
        imported.load_state_dict({k: v for k, v in model.state_dict().items() if "num_batches" in k}, strict=False)
    assert same(model, imported)
    assert all(parameter.requires_grad for parameter in imported.parameters())


def test_half_precision_is_widened(model: nn.Module, tmp_path: Path) -> None:
    torch.save({name: t.half() if t.is_floating_point() else t for name, t in model.state_dict().items()}, tmp_path / "t.pth")
    imported = import_checkpoint(tmp_path / "t.pth", "wrn161", info())
    assert imported.fc.weight.dtype == torch.float32
    assert torch.equal(imported.fc.weight, model.fc.weight.half().float())


@pytest.mark.parametrize(
    ("name", "own", "theirs"),
    [
        ("resnet18", ("linear.", "shortcut."), ("fc.", "downsample.")),
        ("resnet20", ("fc.", "downsample."), ("linear.", "shortcut.")),
    ],
)
def test_known_aliases_are_imported(name: str, own: tuple[str, ...], theirs: tuple[str, ...], tmp_path: Path) -> None:
    torch.manual_seed(0)
    source = build_model(name, 10)
    state = {}
    for key, tensor in source.state_dict().items():
        for ours, other in zip(own, theirs, strict=True):
            key = key.replace(ours, other)
        state[key] = tensor
    assert set(state) != set(source.state_dict())
    torch.save(state, tmp_path / "t.pth")
    assert same(source, import_checkpoint(tmp_path / "t.pth", name, info()))


# Names that the usual CIFAR code gives its tensors, with their shapes for 10 classes and 3 channels.
LAYOUTS = {
    "wrn402": {
        "conv1.weight": (16, 3, 3, 3), "block1.layer.0.convShortcut.weight": (32, 16, 1, 1), "block3.layer.5.bn2.bias": (128,),
        "block2.layer.0.conv1.weight": (64, 32, 3, 3), "bn1.running_var": (128,), "fc.weight": (10, 128),
    },
    "resnet34": {
        "conv1.weight": (64, 3, 3, 3), "bn1.weight": (64,), "layer1.2.conv2.weight": (64, 64, 3, 3),
        "layer2.0.shortcut.0.weight": (128, 64, 1, 1), "layer4.0.shortcut.1.running_mean": (512,), "linear.bias": (10,),
    },
    "resnet50": {"layer1.0.shortcut.0.weight": (256, 64, 1, 1), "layer4.2.conv3.weight": (2048, 512, 1, 1)},
    "vgg13": {
        "block0.0.weight": (64, 3, 3, 3), "block0.0.bias": (64,), "block0.1.running_mean": (64,),
        "block0.3.weight": (64, 64, 3, 3), "block4.4.bias": (512,), "classifier.weight": (10, 512),
    },
    "mobilenetv2": {
        "conv1.0.weight": (16, 3, 3, 3), "conv1.1.weight": (16,), "blocks.0.0.conv.3.weight": (16, 1, 3, 3),
        "blocks.6.0.conv.7.bias": (160,), "conv2.0.weight": (1280, 160, 1, 1), "classifier.0.weight": (10, 1280),
    },
    "resnet8x4": {
        "conv1.weight": (32, 3, 3, 3), "layer1.0.downsample.0.weight": (64, 32, 1, 1), "layer3.0.downsample.1.bias": (256,),
        "fc.weight": (10, 256),
    },
}  # fmt: skip


@pytest.mark.parametrize("name", LAYOUTS)
def test_tensors_are_named_as_in_the_usual_code(name: str) -> None:
    shapes = {key: tuple(tensor.shape) for key, tensor in build_model(name, 10).state_dict().items()}
    assert {key: shapes.get(key) for key in LAYOUTS[name]} == LAYOUTS[name]


class Harmful:
    """Runs code when it is unpickled by the pickle module."""

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (Path("harm"),)


def test_code_in_a_checkpoint_is_refused_and_not_run(model: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"state_dict": model.state_dict(), "options": Harmful()}, "zip.pth")
    torch.save({"state_dict": model.state_dict(), "options": Harmful()}, "legacy.pth", _use_new_zipfile_serialization=False)
    torch.save(model, "whole.pth")
    Path("plain.pth").write_bytes(pickle.dumps(Harmful(), protocol=2))
    for name in ("zip.pth", "legacy.pth", "whole.pth", "plain.pth"):
        with pytest.raises(UserError, match=f"{name}: holds Python objects besides tensors, .* save the state dict alone"):
            import_checkpoint(name, "wrn161", info())
    assert not Path("harm").exists()


def test_what_is_no_checkpoint_is_refused(model: nn.Module, tmp_path: Path) -> None:
    torch.save(model.state_dict(), tmp_path / "whole.pth")
    content = (tmp_path / "whole.pth").read_bytes()
    with zipfile.ZipFile(tmp_path / "zip.pth", "w") as archive:
        archive.writestr("readme", "hello")
    for name, data in {"text.pth": b"hello", "empty.pth": b"", "half.pth": content[: len(content) // 2]}.items():
        (tmp_path / name).write_bytes(data)
    for name in ("text.pth", "empty.pth", "half.pth", "zip.pth"):
        with pytest.raises(UserError, match=f"{name}: not a PyTorch checkpoint, or a damaged one"):
            import_checkpoint(tmp_path / name, "wrn161", info())
    with pytest.raises(UserError, match=r"none\.pth: no such file"):
        import_checkpoint(tmp_path / "none.pth", "wrn161", info())
    (tmp_path / "t.pth").write_bytes(safetensors.torch.save({"a": torch.zeros(2)}))
    with pytest.raises(UserError, match=r"t\.pth: not a PyTorch checkpoint"):
        import_checkpoint(tmp_path / "t.pth", "wrn161", info())


@pytest.mark.parametrize("content", [[torch.zeros(2)], {}, {"state_dict": {}}, 3])
def test_a_file_without_state_dict_is_refused(content: Any, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "t.pth")
    with pytest.raises(UserError, match="holds no state dict"):
        import_checkpoint(tmp_path / "t.pth", "wrn161", info())


def refusal(state: dict[str, Any], tmp_path: Path, architecture: str = "wrn161", dataset: DatasetInfo | None = None) -> str:
    torch.save(state, tmp_path / "t.pth")
    with pytest.raises(UserError) as caught:
        import_checkpoint(tmp_path / "t.pth", architecture, dataset or info())
    return str(caught.value).removeprefix(f"{tmp_path}/")


def test_names_that_do_not_fit_are_counted_and_the_first_is_named(model: nn.Module, tmp_path: Path) -> None:
    state = model.state_dict()
    less = {name: tensor for name, tensor in state.items() if not name.startswith("fc.")}
    assert "2 missing (first 'fc.weight');" in refusal(less, tmp_path)
    assert "1 unexpected (first 'total_ops');" in refusal(dict(state) | {"total_ops": torch.zeros(1)}, tmp_path)
    mixed = {f"module.{name}" if name == "conv1.weight" else name: tensor for name, tensor in state.items()}
    assert "1 missing (first 'conv1.weight') and 1 unexpected (first 'module.conv1.weight')" in refusal(mixed, tmp_path)
    found = refusal(state, tmp_path, "wrn221")
    assert found.startswith(
        "t.pth: the tensors' names do not fit model 'wrn221': 30 missing (first 'block1.layer.2.bn1.weight');"
    )
    assert "'epoch' is no tensor" in refusal(dict(state) | {"epoch": 3}, tmp_path)


def test_shapes_and_classes_that_do_not_fit_are_told(model: nn.Module, tmp_path: Path) -> None:
    state = model.state_dict()
    assert "'conv1.weight' has shape (16, 3, 3, 3), model 'wrn161' on data set mnist needs (16, 1, 3, 3) (1 such" in refusal(
        state, tmp_path, dataset=info(channels=1, name="mnist")
    )
    wide = refusal(build_model("vgg8", 10).state_dict(), tmp_path, "vgg8", info(channels=1, name="mnist"))
    assert "'block0.0.weight' has shape (64, 3, 3, 3)" in wide
    for name in ("wrn161", "resnet20", "vgg8", "mobilenetv2", "lenet5"):
        hundred = build_model(name, 100).state_dict()
        found = refusal(hundred, tmp_path, name)
        assert found.startswith("t.pth: has 100 classes, data set cifar10 has 10;")


def test_weights_that_are_not_finite_are_refused(model: nn.Module, tmp_path: Path) -> None:
    model.bn1.running_var[3] = float("nan")
    assert "'bn1.running_var' holds NaN or infinite values" in refusal(model.state_dict(), tmp_path)
