"""Random boxes cut out of whole photographs as they are decoded: torchvision's, drawn by pass and image alone."""

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import RandomResizedCrop
from torchvision.transforms.functional import InterpolationMode, resized_crop

from dfkd.datasets.info import DatasetInfo
from dfkd.distillation.stream import StreamedStore
from dfkd.packed import pack as packing
from dfkd.packed import stream as packed_stream
from dfkd.packed.pack import pack
from dfkd.packed.stream import PackedSource, draw_box, random_box
from dfkd.runtime import derive_seed

SCALE, RATIO = (0.08, 1.0), (3 / 4, 4 / 3)
INFO = DatasetInfo(
    name="pets", classes=["ant", "bee"], image_size=8, channels=3, mean=[0.5] * 3, std=[0.5] * 3, crop_padding=0, flip=True,
    crop="resized",
)  # fmt: skip


@pytest.fixture
def packed(tmp_path, monkeypatch):
    """14 photographs of seven shapes in blocks of five."""
    monkeypatch.setattr(packing, "BLOCK_IMAGES", 5)
    for number in range(14):
        pixels = np.random.default_rng(number).integers(0, 256, (20 + number % 7, 33 - 3 * (number % 7), 3), dtype=np.uint8)
        place = tmp_path / "pets" / ("ant", "bee")[number % 2] / f"{number}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(place)
    pack(tmp_path / "pets", tmp_path / "pets.lmdb")
    return tmp_path / "pets.lmdb"


def read(source, blocks, *key):
    counts = np.diff(source.starts)[blocks]
    images = np.empty((int(counts.sum()), 3, 8, 8), np.uint8)
    source.read(blocks, images, key)
    return images


def test_a_box_is_what_torchvision_makes_of_it(monkeypatch):
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (37, 50, 3), dtype=np.uint8))
    drawn = []
    monkeypatch.setattr(packed_stream, "draw_box", lambda *arguments: drawn.append(draw_box(*arguments)) or drawn[-1])
    for seed in range(5):
        found = random_box(image, INFO, seed)
        expected = resized_crop(image, *drawn[-1], [8, 8], InterpolationMode.BILINEAR, antialias=True)
        assert np.array_equal(np.asarray(found), np.asarray(expected))
    assert len(set(drawn)) == 5


def test_boxes_of_photographs_are_distributed_as_torchvision_draws_them():
    count = 2000
    boxes = torch.tensor([draw_box(375, 500, SCALE, RATIO, derive_seed("boxes", row)) for row in range(count)])
    top, left, height, width = boxes.double().unbind(1)
    assert (top + height).max() <= 375
    assert (left + width).max() <= 500
    share, ratio = height * width / (375 * 500), width / height
    assert 0.079 < share.min() < 0.09
    assert 0.74 < ratio.min() < 0.76
    assert 1.31 < ratio.max() < 1.35
    torch.manual_seed(0)
    image = torch.empty(3, 375, 500)
    theirs = torch.tensor([RandomResizedCrop.get_params(image, list(SCALE), list(RATIO)) for _ in range(count)]).double()
    pairs = [(top, theirs[:, 0]), (left, theirs[:, 1])]
    pairs += [(share, theirs[:, 2] * theirs[:, 3] / (375 * 500)), (ratio, theirs[:, 3] / theirs[:, 2])]
    for one, other in pairs:
        assert (one.mean() - other.mean()).abs() < 4 * (one.var() / count + other.var() / count).sqrt()
        assert one.std().item() == pytest.approx(other.std().item(), rel=0.08)


def test_what_fits_nowhere_is_the_centre_within_the_ratio():
    for height, width, box in ((30, 300, (0, 130, 30, 40)), (300, 30, (130, 0, 40, 30))):
        assert draw_box(height, width, (0.9, 1.0), RATIO, 3) == box
        theirs = RandomResizedCrop.get_params(torch.empty(3, height, width), [0.9, 1.0], list(RATIO))
        assert theirs == box


def test_a_box_depends_on_pass_and_image_alone(packed):
    found = []
    for workers in (0, 1, 2):
        source = PackedSource(packed, "all", INFO, workers)
        whole = read(source, [0, 1, 2], 3, "order", 0)
        assert np.array_equal(read(source, [1], 3, "order", 0), whole[5:10])  # whatever else its window holds
        found.append((whole, read(source, [0, 1, 2], 3, "order", 1), read(source, [0, 1, 2], 4, "order", 0)))
        source.close()
    for others in found[1:]:
        assert all(np.array_equal(one, other) for one, other in zip(found[0], others, strict=True))
    first, again, other = found[0]
    assert all((one != two).any() and (one != three).any() for one, two, three in zip(first, again, other, strict=True))


def test_decoding_leaves_the_random_numbers_of_the_run_alone(packed):
    source = PackedSource(packed, "all", INFO, 0)
    torch.manual_seed(0)
    before = torch.get_rng_state()
    read(source, [0, 1], 0)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_store_gives_the_boxes_of_its_pass(packed, reference):
    source = PackedSource(packed, "all", INFO, 0)
    store = StreamedStore([source], 0, INFO.shape, 6, reference)
    assert store.cropped
    order = store.passes(7, 5, "order", steps=4)
    for step in range(4):
        found = store.fetch(order, step)
        expected = read(source, [0, 1, 2], 5, "order", step // 2)
        assert np.array_equal(found.images.numpy(), expected[found.rows.numpy()])
    store.close()


def test_the_whole_photograph_is_seen_and_not_its_centre_square_alone(tmp_path):
    pixels = np.full((12, 40, 3), 255, np.uint8)
    pixels[:, 12:28] = 0  # the centre square is black, and what antialiasing takes in
    for name in INFO.classes:
        (tmp_path / "wide" / name).mkdir(parents=True)
        Image.fromarray(pixels).save(tmp_path / "wide" / name / "1.png")
    pack(tmp_path / "wide", tmp_path / "wide.lmdb")
    seen = {}
    for crop in ("padded", "resized"):
        info = INFO.model_copy(update={"crop": crop, "crop_scale": (0.08, 0.1)})
        source = PackedSource(tmp_path / "wide.lmdb", "all", info, 0)
        seen[crop] = np.concatenate([read(source, [0], number) for number in range(20)])
    assert not seen["padded"].any()
    whites = (seen["resized"] == 255).all((1, 2, 3))
    assert 0 < whites.sum() < len(whites)
