import numpy as np
import pytest
import torch
from PIL import Image

from dfkd.datasets.arrays import in_label_order, pixel_statistics, resize, stratified_split, to_channels
from dfkd.errors import UserError


def test_downsampling_is_antialiased():
    checkerboard = (torch.arange(64)[:, None] + torch.arange(64)[None]).remainder(2).mul(255).to(torch.uint8)
    small = resize(checkerboard[None, None], 8)
    assert small.shape == (1, 1, 8, 8)
    assert small.dtype == torch.uint8
    assert ((small.int() - 127).abs() <= 4).all()


@pytest.mark.parametrize(("channels", "before", "after"), [(1, 8, 16), (3, 48, 32), (1, 28, 32)])
def test_resize_agrees_with_pillow(channels, before, after):
    images = torch.randint(0, 256, (5, channels, before, before), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    ours = resize(images, after)
    for image, result in zip(images, ours, strict=True):
        pixels = image.permute(1, 2, 0).numpy() if channels == 3 else image[0].numpy()
        theirs = np.asarray(Image.fromarray(pixels).resize((after, after), Image.Resampling.BILINEAR))
        mine = result.permute(1, 2, 0).numpy() if channels == 3 else result[0].numpy()
        assert np.abs(mine.astype(int) - theirs).max() <= 1


def test_resize_of_the_right_size_changes_nothing():
    images = torch.randint(0, 256, (3, 1, 8, 8), dtype=torch.uint8)
    assert resize(images, 8) is images


def test_channels():
    grey = torch.tensor([0, 100, 255], dtype=torch.uint8).reshape(3, 1, 1, 1)
    assert torch.equal(to_channels(grey, 3), grey.expand(3, 3, 1, 1))
    assert to_channels(grey, 1) is grey
    rgb = torch.tensor([[255, 0, 0], [0, 255, 0], [0, 0, 255], [9, 9, 9]], dtype=torch.uint8).reshape(4, 3, 1, 1)
    luma = to_channels(rgb, 1)
    assert luma.shape == (4, 1, 1, 1)
    assert (luma.flatten().int() - torch.tensor([76, 150, 29, 9])).abs().max() <= 1


def test_split_is_stratified_disjoint_and_seeded():
    labels = torch.tensor([0] * 40 + [1] * 80 + [2] * 120)[torch.randperm(240, generator=torch.Generator().manual_seed(1))]
    train, test = stratified_split(labels, 0.25, 0)
    assert labels[train].bincount().tolist() == [30, 60, 90]
    assert labels[test].bincount().tolist() == [10, 20, 30]
    assert sorted(train.tolist() + test.tolist()) == list(range(240))
    again = stratified_split(labels, 0.25, 0)
    assert torch.equal(train, again[0])
    assert torch.equal(test, again[1])
    assert not torch.equal(test, stratified_split(labels, 0.25, 1)[1])


@pytest.mark.parametrize("labels", [[0, 0, 0, 1], [0, 0, 1, 1, 2, 2]])
def test_split_of_too_few_images_is_refused(labels):
    with pytest.raises(UserError, match=r"test_fraction 0.2 of \d images cannot be drawn"):
        stratified_split(torch.tensor(labels), 0.2, 0)


def test_statistics_are_exact():
    images = torch.zeros(5000, 2, 2, 2, dtype=torch.uint8)
    images[:2500, 0] = 255
    images[:, 1] = 51
    mean, std = pixel_statistics(images)
    assert mean == [0.5, 0.2]
    assert std == [0.5, 0.0]


def test_statistics_agree_with_float64():
    images = torch.randint(0, 256, (5000, 3, 4, 4), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    mean, std = pixel_statistics(images)
    unit = images.double() / 255
    assert mean == pytest.approx(unit.mean((0, 2, 3)).tolist(), rel=1e-13)
    assert std == pytest.approx(unit.std((0, 2, 3), correction=0).tolist(), rel=1e-13)


def test_labels_follow_the_wanted_order():
    images = torch.zeros(3, 1, 1, 1, dtype=torch.uint8)
    ordered = in_label_order(["a", "b", "c"], ["c", "a", "b"], {"test": (images, torch.tensor([0, 1, 2]))})
    assert ordered["test"][1].tolist() == [1, 2, 0]


def test_other_class_names_are_refused():
    with pytest.raises(UserError, match=r"2 in the config, 3 in the source \(not in the source: x; not in the config: b, c\)"):
        in_label_order(["a", "b", "c"], ["a", "x"], {})
    with pytest.raises(UserError, match="names are repeated"):
        in_label_order(["a", "b"], ["a", "b", "b"], {})
