"""The crop that a data set's training views have: what says it, what it is on the device, what stays unsaid."""

import json

import pytest
import torch
from pydantic import ValidationError

from dfkd.datasets.info import DatasetInfo
from dfkd.datasets.prepare import info_from_settings
from dfkd.datasets.views import random_resized_views, random_views
from dfkd.schema import config_schema
from dfkd.settings import DatasetSettings

WHOLE = {"name": "x", "classes": ["a", "b"], "image_size": 12, "channels": 1, "mean": [0.5], "std": [0.5]}
PADDED = DatasetInfo(**WHOLE, crop_padding=2, flip=True)
RESIZED = DatasetInfo(**WHOLE, crop_padding=0, flip=True, crop="resized", crop_scale=(0.3, 0.9), crop_ratio=(0.5, 2.0))


def settings(**changes):
    return DatasetSettings(**({"source": "packed:x.lmdb"} | changes))


def test_files_of_data_sets_with_the_padded_crop_are_what_they_were():
    assert json.loads(PADDED.model_dump_json()) == {**WHOLE, "crop_padding": 2, "flip": True}
    assert list(PADDED.model_dump()) == [*WHOLE, "crop_padding", "flip"]
    said = settings().model_dump(mode="json")
    assert not {"crop", "crop_scale", "crop_ratio", "test_centre"} & set(said)
    assert DatasetSettings(**said) == settings()


def test_what_is_said_is_read_again():
    assert DatasetInfo.model_validate_json(RESIZED.model_dump_json()) == RESIZED
    chosen = settings(crop="resized", crop_scale=[0.2, 1], test_centre=0.875, mean=[0.5] * 3, std=[0.5] * 3, classes=["a", "b"])
    assert DatasetSettings(**chosen.model_dump(mode="json")) == chosen
    info = info_from_settings("x", chosen)
    assert (info.crop, info.crop_padding, info.crop_scale, info.crop_ratio) == ("resized", 0, (0.2, 1.0), (3 / 4, 4 / 3))
    keys = config_schema()["$defs"]["DatasetSettings"]["properties"]
    assert keys["crop"]["enum"] == ["padded", "resized"]


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"crop": "resized", "crop_padding": 28}, "crop_padding 28 has no effect with crop: resized"),
        ({"crop_scale": [0.2, 1]}, "crop_scale has no effect without crop: resized"),
        ({"crop_ratio": [0.5, 2]}, "crop_ratio has no effect without crop: resized"),
        ({"test_centre": 0.875}, "test_centre has no effect without crop: resized"),
        ({"crop": "resized", "test_centre": 0.875, "source": "folder:x"}, "test_centre needs a packed source"),
        ({"crop": "resized", "crop_scale": [0.5, 0.2]}, r"crop_scale: \[0.5, 0.2\] is no range"),
        ({"crop": "resized", "crop_scale": [0.5, 1.2]}, "crop_scale: 1.2 is more than the whole image"),
        ({"crop": "resized", "crop_ratio": [0, 1]}, "crop_ratio"),
    ],
)
def test_what_has_no_effect_or_no_sense_is_refused(changes, sentence):
    with pytest.raises(ValidationError, match=sentence):
        settings(**changes)


def test_images_on_the_device_are_cropped_there():
    images = torch.randint(0, 256, (6, 1, 12, 12), dtype=torch.uint8)
    torch.manual_seed(1)
    views = random_views(images, RESIZED)
    torch.manual_seed(1)
    exact = random_resized_views(images.double(), RESIZED, (0.3, 0.9), (0.5, 2.0))
    assert views.dtype == torch.uint8
    assert (views.double() - exact).abs().max() <= 0.5 + 1e-3
    assert all((one != other).any() for one, other in zip(views, images, strict=True))


def test_images_that_were_cropped_as_they_were_decoded_are_flipped_alone():
    images = torch.randint(0, 256, (40, 1, 12, 12), dtype=torch.uint8)
    views = random_views(images, RESIZED, cropped=True)
    same = (views == images).flatten(1).all(1)
    turned = (views == images.flip(3)).flatten(1).all(1)
    assert (same ^ turned).all()
    assert 5 < same.sum() < 35
