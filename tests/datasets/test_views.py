import pytest
import torch
from torch.nn import functional as F

from dfkd.datasets.info import DatasetInfo
from dfkd.datasets.views import (
    crop_flip,
    draw_views,
    normalise,
    numbered_views,
    random_views,
    rotations,
    to_bytes,
    to_unit,
    views_of,
)

INFO = DatasetInfo(
    name="toy",
    classes=["a", "b"],
    image_size=8,
    channels=3,
    mean=[0.1, 0.2, 0.3],
    std=[0.5, 0.6, 0.7],
    crop_padding=2,
    flip=True,
)


def slow_crop_flip(images, dy, dx, flip, padding):
    """One image at a time, as the PIL transforms do it."""
    padded = F.pad(images, (padding,) * 4)
    height, width = images.shape[2:]
    out = []
    for image, y, x, turned in zip(padded, dy.tolist(), dx.tolist(), flip.tolist(), strict=True):
        crop = image[:, y : y + height, x : x + width]
        out.append(crop.flip(2) if turned else crop)
    return torch.stack(out)


@pytest.mark.parametrize("padding", [0, 2, 4])
def test_crop_flip_equals_the_slow_way(padding):
    torch.manual_seed(0)
    images = torch.randint(0, 256, (40, 3, 8, 6), dtype=torch.uint8)
    dy, dx = torch.randint(0, 2 * padding + 1, (2, 40))
    flip = torch.rand(40) < 0.5
    assert torch.equal(crop_flip(images, dy, dx, flip, padding), slow_crop_flip(images, dy, dx, flip, padding))


def test_gradient_of_crop_flip_is_that_of_the_slow_way():
    torch.manual_seed(1)
    images = torch.rand(12, 2, 5, 7, dtype=torch.float64, requires_grad=True)
    dy, dx = torch.randint(0, 5, (2, 12))
    flip = torch.rand(12) < 0.5
    weights = torch.rand(12, 2, 5, 7, dtype=torch.float64)
    (fast,) = torch.autograd.grad((crop_flip(images, dy, dx, flip, 2) * weights).sum(), images)
    (slow,) = torch.autograd.grad((slow_crop_flip(images, dy, dx, flip, 2) * weights).sum(), images)
    assert torch.equal(fast, slow)
    assert fast.count_nonzero() < fast.numel()  # some pixels were cropped away


def test_padding_is_black_before_normalisation():
    images = torch.full((1, 3, 8, 8), 255, dtype=torch.uint8)
    corner = torch.zeros(1, dtype=torch.int64)
    view = normalise(to_unit(crop_flip(images, corner, corner, torch.tensor([False]), 2)), INFO)
    assert view[0, :, 0, 0].tolist() == pytest.approx([-0.1 / 0.5, -0.2 / 0.6, -0.3 / 0.7])
    assert view[0, :, 7, 7].tolist() == pytest.approx([0.9 / 0.5, 0.8 / 0.6, 0.7 / 0.7])


def test_random_views_take_every_offset_and_flip_half():
    torch.manual_seed(0)
    image = torch.arange(64, dtype=torch.uint8).reshape(1, 1, 8, 8).repeat(4000, 3, 1, 1)
    views = random_views(image, INFO)
    centre = views[:, 0, 4, 4].long()
    row, column = centre // 8, centre % 8
    assert sorted(row.unique().tolist()) == [2, 3, 4, 5, 6]
    flipped = views[:, 0, 4, 3] > views[:, 0, 4, 4]
    assert 0.46 < flipped.float().mean() < 0.54
    assert sorted(column[~flipped].unique().tolist()) == [2, 3, 4, 5, 6]


def test_without_crop_and_flip_views_are_the_images():
    plain = INFO.model_copy(update={"crop_padding": 0, "flip": False})
    images = torch.rand(3, 3, 8, 8)
    assert random_views(images, plain) is images


def test_rotations_are_counter_clockwise_and_sample_major():
    images = torch.arange(8.0).reshape(2, 1, 2, 2)
    turned = rotations(images)
    assert turned.shape == (8, 1, 2, 2)
    assert turned[0, 0].tolist() == [[0, 1], [2, 3]]
    assert turned[1, 0].tolist() == [[1, 3], [0, 2]]
    assert turned[4, 0].tolist() == [[4, 5], [6, 7]]


def test_bytes_are_floored_and_clamped():
    values = torch.tensor([-0.1, 0.0, 0.0039, 0.004, 0.9999, 1.0, 1.2]).reshape(1, 1, 1, 7)
    assert to_bytes(values).flatten().tolist() == [0, 0, 0, 1, 254, 255, 255]
    every = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16)
    unit = to_unit(every)
    assert torch.equal(unit, every / 255)
    assert unit.max() == 1


@pytest.mark.parametrize(("padding", "flip"), [(2, True), (2, False), (0, True), (0, False)])
def test_views_have_numbers(padding, flip):
    info = INFO.model_copy(update={"crop_padding": padding, "flip": flip})
    count = views_of(info)
    assert count == (2 * padding + 1) ** 2 * (1 + flip)
    views = numbered_views(torch.arange(count), info)
    assert torch.equal(views.numbers(info), torch.arange(count))
    image = torch.arange(64, dtype=torch.uint8).reshape(1, 1, 8, 8).repeat(count, 3, 1, 1) + 1
    assert len(views.apply(image, info).unique(dim=0)) == count  # no two look alike
    drawn = draw_views(5000, info)
    assert sorted(drawn.numbers(info).unique().tolist()) == list(range(count))


def test_views_are_drawn_as_they_always_were():
    """The draws of a seed, in their order: results depend on them."""
    images = torch.randint(0, 256, (30, 3, 8, 8), dtype=torch.uint8)
    torch.manual_seed(4)
    dy, dx = torch.randint(0, 5, (2, 30))
    flip = torch.rand(30) < 0.5
    after = torch.rand(1)
    torch.manual_seed(4)
    assert torch.equal(random_views(images, INFO), slow_crop_flip(images, dy, dx, flip, 2))
    assert torch.rand(1) == after
    torch.manual_seed(4)
    own = torch.Generator().manual_seed(4)
    views = draw_views(30, INFO, own)
    assert torch.equal(views.dy, dy)
    assert torch.rand(1, generator=own) == after
    assert torch.get_rng_state().equal(torch.Generator().manual_seed(4).get_state())  # the global one was not touched
