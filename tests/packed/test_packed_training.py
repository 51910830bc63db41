"""A network is trained on images that stay in the packed file."""

import numpy as np
import pytest
import torch
from PIL import Image

from dfkd.datasets.prepare import prepare
from dfkd.datasets.prepared import read_split
from dfkd.distillation.stream import StreamedStore
from dfkd.distillation.teacher import train_teacher
from dfkd.errors import UserError
from dfkd.packed import pack as packing
from dfkd.packed.file import PackedFile
from dfkd.packed.pack import pack
from dfkd.packed.stream import PackedSource
from dfkd.settings import DatasetSettings, TeacherSettings


@pytest.fixture
def packed(tmp_path, monkeypatch):
    """Dark and bright images, 24 and 8."""
    monkeypatch.setattr(packing, "BLOCK_IMAGES", 5)
    draw = np.random.default_rng(0)
    for split, count in (("train", 12), ("test", 4)):
        for label, name in enumerate(("bright", "dark")):
            place = tmp_path / "files" / split / name
            place.mkdir(parents=True)
            for number in range(count):
                pixels = draw.integers(0, 90, (10, 12, 3)) + 150 * (1 - label)
                Image.fromarray(pixels.astype(np.uint8)).save(place / f"{number}.jpg")
    pack(tmp_path / "files", tmp_path / "light.lmdb")
    return tmp_path / "light.lmdb"


def entry(packed, **changes):
    values = {"source": f"packed:{packed}", "image_size": 8, "crop_padding": 1, "mean": [0.5] * 3, "std": [0.3] * 3}
    return DatasetSettings(**(values | {"keep_packed": True} | changes))


def prepared(packed, folder, **changes):
    folder.mkdir(exist_ok=True)
    prepare("light", entry(packed, **changes), folder / "light.h5", folder / "light.test.h5", folder)
    return folder / "light.h5"


@pytest.mark.parametrize("workers", [0, 2])
def test_a_window_holds_what_prepare_would_store(packed, tmp_path, reference, workers):
    from dfkd.datasets.prepared import read_info

    whole = prepared(packed, tmp_path / "whole", keep_packed=False)
    images, labels = read_split(whole, "train")
    source = PackedSource(packed, "train", read_info(whole), workers)
    assert torch.equal(source.labels, labels)
    assert source.starts == [0, 5, 10, 15, 20, 24]
    store = StreamedStore([source], 0, (3, 8, 8), 10, reference)
    passes = store.passes(6, 0, "order", steps=4)
    rows = []
    for step in range(4):
        found = store.fetch(passes, step)
        assert torch.equal(found.images, images[found.rows])
        assert torch.equal(found.labels, labels[found.rows])
        rows += found.rows.tolist()
    assert sorted(rows) == list(range(24))
    store.close()
    source.close()


def test_a_teacher_learns_from_the_packed_file(packed, tmp_path, reference):
    data = prepared(packed, tmp_path / "data")
    assert len(read_split(data, "test")[1]) == 8
    with pytest.raises(UserError, match=r"training images lie in light\.lmdb"):
        read_split(data, "train")
    settings = TeacherSettings(precision="reference", epochs=4, batch_size=6, lr=0.05, milestones=[], shuffle_buffer=10)
    arguments = (data, "wrn101", settings, tmp_path / "t" / "w.safetensors", tmp_path / "c", reference)
    card = train_teacher(*arguments, packed=packed)
    assert card.metrics["acc1"] > 80
    assert card.notes["store"] == "streamed, shuffle buffer of 10 images"
    with pytest.raises(UserError, match=r"training images lie in the packed file light\.lmdb; give it with --packed"):
        train_teacher(*arguments)
    Image.new("RGB", (9, 9)).save(tmp_path / "files/train/dark/0.jpg")
    pack(tmp_path / "files", tmp_path / "other.lmdb")
    with pytest.raises(UserError, match=r"other\.lmdb: is not the light\.lmdb that .* was prepared from"):
        train_teacher(*arguments, packed=tmp_path / "other.lmdb")
    assert PackedFile(packed).digest != PackedFile(tmp_path / "other.lmdb").digest


def test_what_keep_packed_needs(packed, tmp_path, tiny_data, reference):
    with pytest.raises(UserError, match="give mean and std in the config"):
        prepared(packed, tmp_path / "data", mean=None)
    with pytest.raises(UserError, match="classes are those of the packed file"):
        prepared(packed, tmp_path / "data", classes=["dark", "bright"])
    with pytest.raises(ValueError, match="keep_packed needs a packed source"):
        DatasetSettings(source="folder:x", keep_packed=True)
    pack(tmp_path / "files" / "train", tmp_path / "all.lmdb")
    with pytest.raises(UserError, match="needs a train and a test split"):
        prepared(tmp_path / "all.lmdb", tmp_path / "data")
    arguments = (tiny_data.data, "wrn101", TeacherSettings(), tmp_path / "w.safetensors", tmp_path / "c", reference)
    with pytest.raises(UserError, match="holds its training images itself; leave --packed away"):
        train_teacher(*arguments, packed=packed)
