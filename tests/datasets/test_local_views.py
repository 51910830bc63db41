"""The local view of CMI: a random box, enlarged."""

import pytest
import torch
from torch.nn import functional as F
from torchvision.transforms import RandomResizedCrop

from dfkd.datasets import views
from dfkd.datasets.info import DatasetInfo
from dfkd.datasets.views import random_resized_views, resized_crop


def info(**changes):
    values = {"name": "x", "classes": ["a", "b"], "image_size": 12, "channels": 3, "mean": [0.5] * 3, "std": [0.5] * 3}
    return DatasetInfo(**(values | {"crop_padding": 2, "flip": True} | changes))


def test_resized_crop_is_the_bilinear_enlargement_of_each_images_own_box():
    torch.manual_seed(0)
    images = torch.rand(5, 3, 12, 10, dtype=torch.float64)
    top, left = torch.tensor([0, 3, 5, 11, 2]), torch.tensor([0, 1, 9, 2, 0])
    height, width = torch.tensor([12, 6, 7, 1, 5]), torch.tensor([10, 8, 1, 3, 10])
    flip = torch.tensor([False, True, False, True, True])
    found = resized_crop(images, top, left, height, width, flip)
    for i in range(5):
        box = images[i : i + 1, :, top[i] : top[i] + height[i], left[i] : left[i] + width[i]]
        expected = F.interpolate(box, (12, 10), mode="bilinear", align_corners=False)[0]
        torch.testing.assert_close(found[i], expected.flip(2) if flip[i] else expected, rtol=0, atol=1e-6)


def test_resized_crop_has_the_right_gradient():
    torch.manual_seed(0)
    images = torch.rand(2, 1, 5, 5, dtype=torch.float64, requires_grad=True)
    box = (torch.tensor([1, 0]), torch.tensor([2, 1]), torch.tensor([3, 5]), torch.tensor([3, 2]), torch.tensor([True, False]))
    assert torch.autograd.gradcheck(lambda x: resized_crop(x, *box), images)


@pytest.fixture
def boxes(monkeypatch):
    """The arguments that `random_resized_views` chooses."""
    found = []
    monkeypatch.setattr(views, "resized_crop", lambda images, *arguments: found.append(arguments) or images)
    return found


def test_boxes_lie_inside_with_the_area_and_aspect_asked_for(boxes):
    torch.manual_seed(0)
    random_resized_views(torch.zeros(4000, 3, 32, 32), info(image_size=32))
    top, left, height, width, flip = boxes[0]
    assert min(top.min(), left.min()) == 0
    assert (top + height).max() == 32
    assert (left + width).max() == 32
    share, aspect = (height * width).double() / 1024, width.double() / height
    assert 0.23 < share.min() < 0.27  # whole pixels
    assert share.max() > 0.97
    assert 0.70 < aspect.min() < 0.78
    assert 1.28 < aspect.max() < 1.43
    image = torch.zeros(3, 32, 32)
    theirs = torch.tensor([RandomResizedCrop.get_params(image, [0.25, 1.0], [3 / 4, 4 / 3]) for _ in range(4000)]).double()
    for own, other in (
        (share, theirs[:, 2] * theirs[:, 3] / 1024),
        (aspect, theirs[:, 3] / theirs[:, 2]),
        (top.double(), theirs[:, 0]),
        (left.double(), theirs[:, 1]),
    ):
        error = (own.var() / 4000 + other.var() / 4000).sqrt()
        assert (own.mean() - other.mean()).abs() < 4 * error
        assert own.std().item() == pytest.approx(other.std().item(), rel=0.05)
    assert 0.45 < flip.double().mean() < 0.55


def test_a_data_set_without_flips_has_none_in_its_local_views(boxes):
    random_resized_views(torch.zeros(100, 3, 12, 12), info(flip=False))
    assert not boxes[0][-1].any()


def test_boxes_that_never_fit_become_the_whole_image(boxes):
    random_resized_views(torch.zeros(7, 3, 12, 12), info(), scale=(3.0, 4.0))
    top, left, height, width, _ = boxes[0]
    assert top.tolist() == left.tolist() == [0] * 7
    assert height.tolist() == width.tolist() == [12] * 7


def test_the_whole_box_is_the_image_itself_and_a_seed_gives_the_same_views():
    images = torch.rand(4, 3, 12, 12)
    plain = random_resized_views(images, info(flip=False), scale=(1.0, 1.0), aspect=(1.0, 1.0))
    torch.testing.assert_close(plain, images)
    torch.manual_seed(3)
    one = random_resized_views(images, info())
    torch.manual_seed(3)
    assert torch.equal(random_resized_views(images, info()), one)
    assert not torch.equal(one, images)
