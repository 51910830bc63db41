from pathlib import Path

import pytest
import torch
from PIL import Image

from dfkd.config import read_yaml
from dfkd.datasets.info import DatasetInfo
from dfkd.datasets.prepare import info_from_settings, prepare
from dfkd.datasets.prepared import read_info, read_provenance, read_split, split_names, write_prepared
from dfkd.datasets.sources import TORCHVISION
from dfkd.errors import UserError
from dfkd.settings import DatasetSettings

SHIPPED = read_yaml(Path(__file__).parents[2] / "config" / "datasets.yaml")


def run(folder, name, settings):
    output, test_output = folder / f"{name}.h5", folder / f"{name}.test.h5"
    prepare(name, settings, output, test_output, folder / "downloads")
    return output, test_output


def images_in(folder, splits=("train", "test"), blue=7):
    for split in splits:
        for label, name in enumerate(("a", "b")):
            for number in range(3):
                path = folder / split / name / f"{number}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.new("RGB", (6, 6), (100 * label, 10 * number, blue * number if split == "train" else 200)).save(path)
    return DatasetSettings(source=f"folder:{folder}", image_size=6)


def test_digits_of_the_shipped_config(tmp_path):
    settings = DatasetSettings.model_validate(SHIPPED["digits"])
    output, test_output = run(tmp_path, "digits", settings)
    train, train_labels = read_split(output, "train")
    test, test_labels = read_split(output, "test")
    assert train.shape == (1347, 1, 16, 16)
    assert test.shape == (450, 1, 16, 16)
    shares = test_labels.bincount() / (train_labels.bincount() + test_labels.bincount())
    assert (shares - 0.25).abs().max() < 0.005
    info = read_info(output)
    unit = train.double() / 255
    assert info.mean == pytest.approx([unit.mean().item()], rel=1e-12)
    assert info.std == pytest.approx([unit.std(correction=0).item()], rel=1e-12)
    assert (info.name, info.image_size, info.channels, info.crop_padding, info.flip) == ("digits", 16, 1, 2, False)
    assert read_provenance(output)["split"] == {"test_fraction": 0.25, "seed": 0}
    assert split_names(test_output) == ["test"]
    assert read_info(test_output) == info
    assert torch.equal(read_split(test_output, "test")[0], test)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["digits.h5", "digits.test.h5"]


def test_same_input_same_bytes_and_the_seed_moves_the_split(tmp_path):
    settings = DatasetSettings(source="sklearn:digits", image_size=8, channels=1, test_fraction=0.25)
    first = [path.read_bytes() for path in run(tmp_path / "one", "digits", settings)]
    assert [path.read_bytes() for path in run(tmp_path / "two", "digits", settings)] == first
    other = run(tmp_path / "three", "digits", settings.model_copy(update={"split_seed": 1}))
    assert not torch.equal(read_split(other[1], "test")[0], read_split(tmp_path / "one" / "digits.test.h5", "test")[0])


def test_folder_bytes_do_not_depend_on_where_it_lies(tmp_path):
    settings = [images_in(tmp_path / place / "pets") for place in ("here", "there")]
    written = [run(tmp_path / str(number), "pets", each) for number, each in enumerate(settings)]
    assert written[0][0].read_bytes() == written[1][0].read_bytes()
    assert str(tmp_path).encode() not in written[0][0].read_bytes()


def test_statistics_come_from_the_training_split_alone(tmp_path):
    info = read_info(run(tmp_path, "pets", images_in(tmp_path / "pets"))[0])
    assert info.mean == pytest.approx([50 / 255, 10 / 255, 7 / 255], rel=1e-12)


def test_constant_channels_need_a_given_std(tmp_path):
    settings = images_in(tmp_path / "pets", blue=0)
    with pytest.raises(UserError, match="data set 'pets': a channel of the training split is constant, so its std is 0"):
        run(tmp_path, "pets", settings)
    given = settings.model_copy(update={"std": [0.5, 0.5, 0.5]})
    info = read_info(run(tmp_path, "pets", given)[0])
    assert info.std == [0.5, 0.5, 0.5]
    assert info.mean[0] == pytest.approx(50 / 255)


def test_test_images_alone(tmp_path):
    settings = images_in(tmp_path / "pets", splits=("test",))
    with pytest.raises(UserError, match="without a training split mean and std cannot be computed; give both in the config"):
        run(tmp_path, "pets", settings)
    given = {"mean": [0.5, 0.5, 0.5], "std": [0.25, 0.25, 0.25]}
    output, test_output = run(tmp_path, "pets", settings.model_copy(update=given))
    assert split_names(output) == ["test"]
    assert output.read_bytes() == test_output.read_bytes()


def test_classes_choose_the_order_of_the_labels(tmp_path):
    settings = images_in(tmp_path / "pets").model_copy(update={"classes": ["b", "a"], "std": [1.0, 1.0, 1.0]})
    output, _ = run(tmp_path, "pets", settings)
    images, labels = read_split(output, "train")
    assert read_info(output).classes == ["b", "a"]
    assert labels.tolist() == [1, 1, 1, 0, 0, 0]
    assert images[:, 0, 0, 0].tolist() == [0, 0, 0, 100, 100, 100]


def test_hdf5_source_is_resized_and_keeps_its_normalisation(tmp_path):
    info = DatasetInfo(
        name="x", classes=["a", "b"], image_size=8, channels=3, mean=[0.1] * 3, std=[0.2] * 3, crop_padding=0, flip=False
    )
    board = (torch.arange(8)[:, None] + torch.arange(8)[None]).remainder(2).mul(255).to(torch.uint8)
    write_prepared(tmp_path / "x.h5", info, {"test": (board.expand(4, 3, 8, 8), torch.arange(4) % 2)}, {})
    settings = DatasetSettings(source=f"hdf5:{tmp_path / 'x.h5'}", image_size=4, crop_padding=2)
    (tmp_path / "out").mkdir()
    output, _ = run(tmp_path / "out", "y", settings)
    made = read_info(output)
    assert (made.mean, made.std, made.image_size, made.crop_padding) == ([0.1] * 3, [0.2] * 3, 4, 2)
    assert (read_split(output, "test")[0].int() - 127).abs().max() <= 12


def test_refusals_write_nothing(tmp_path):
    pets = images_in(tmp_path / "pets")
    out = tmp_path / "out"
    digits = DatasetSettings(source="sklearn:digits", channels=1)
    cases = [
        (digits, "no test split; set test_fraction"),
        (pets.model_copy(update={"test_fraction": 0.5}), "test_fraction is set, but the source has a test split"),
        (pets.model_copy(update={"classes": ["a", "c"]}), "not in the source: c; not in the config: b"),
        (DatasetSettings(source=f"folder:{tmp_path / 'none'}"), "no such folder"),
        (digits.model_copy(update={"test_fraction": 0.001}), "cannot be drawn"),
    ]
    for settings, message in cases:
        with pytest.raises(UserError, match=f"^data set 'toy': .*{message}"):
            run(out, "toy", settings)
    assert not out.exists()
    with pytest.raises(UserError, match="both outputs have this name"):
        prepare("toy", pets, out / "x.h5", out / "x.h5", out)
    for path in (tmp_path / "pets").glob("*/b/*"):
        path.unlink()
    for path in (tmp_path / "pets").glob("*/b"):
        path.rmdir()
    with pytest.raises(UserError, match="at least two classes, the source has a"):
        run(out, "toy", pets)


def test_info_from_settings():
    settings = DatasetSettings.model_validate(SHIPPED["cifar10"])
    info = info_from_settings("cifar10", settings)
    assert info.shape == (3, 32, 32)
    assert info.classes[3] == "cat"
    assert info.mean == [0.4914, 0.4822, 0.4465]
    with pytest.raises(UserError, match="data set 'digits': without its images the config must give mean and std as well"):
        info_from_settings("digits", DatasetSettings.model_validate(SHIPPED["digits"]))


def test_the_shipped_config():
    settings = {name: DatasetSettings.model_validate(entry) for name, entry in SHIPPED.items()}
    assert sorted(settings) == sorted([*TORCHVISION, "digits"])
    for name, kind in TORCHVISION.items():
        assert settings[name].source == f"torchvision:{kind.__name__}"
        assert len(set(settings[name].classes)) == (100 if name == "cifar100" else 10)
    assert settings["fashionmnist"].classes == TORCHVISION["fashionmnist"].classes
    assert settings["cifar100"].classes == sorted(settings["cifar100"].classes)
    unflipped = {name for name, entry in settings.items() if not entry.flip}
    assert unflipped == {"mnist", "svhn", "digits"}
