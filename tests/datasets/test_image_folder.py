import io
import logging

import numpy as np
import pytest
import torch
from PIL import Image

from dfkd.datasets.folder import decode, folder_source
from dfkd.errors import UserError
from dfkd.settings import DatasetSettings


def encoded(image, format="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def put(path, value=0, size=(8, 8), format="PNG"):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(encoded(Image.new("RGB", size, (value, value, value)), format))


def read(root, **settings):
    return folder_source(str(root), DatasetSettings(source=f"folder:{root}", image_size=8, **settings), root / "downloads")


@pytest.fixture
def divided(tmp_path):
    for number in range(3):
        put(tmp_path / f"train/cat/{number}.png", 10 + number)
        put(tmp_path / f"train/ant/{number}.bmp", 20 + number, format="BMP")
    put(tmp_path / "test/cat/x.jpg", 30, format="JPEG")
    put(tmp_path / "test/ant/below/x.tif", 40, format="TIFF")
    put(tmp_path / "train/cat/.hidden.png", 99)
    put(tmp_path / "train/.cache/x.png", 99)
    (tmp_path / "README.txt").write_text("not read")
    return tmp_path


def test_train_and_test_folders(divided):
    data = read(divided)
    assert data.classes == ["ant", "cat"]
    images, labels = data.splits["train"]
    assert images.shape == (6, 3, 8, 8)
    assert images[:, 0, 0, 0].tolist() == [20, 21, 22, 10, 11, 12]
    assert labels.tolist() == [0, 0, 0, 1, 1, 1]
    images, labels = data.splits["test"]
    assert images[:, 0, 0, 0].tolist() == [40, 30]
    assert labels.tolist() == [0, 1]
    assert data.provenance["files"] == 8
    assert data.provenance["source"] == f"folder:{divided.name}"


def test_one_folder_of_classes_and_train_as_a_class_name(tmp_path):
    for name in ("train", "bus"):
        put(tmp_path / name / "1.png")
    data = read(tmp_path)
    assert data.classes == ["bus", "train"]
    assert list(data.splits) == ["all"]


def test_train_alone_is_not_divided_and_test_alone_is_test(tmp_path, caplog):
    put(tmp_path / "one/train/a/1.png")
    put(tmp_path / "one/val/a/1.png")
    put(tmp_path / "two/test/a/1.png")
    with caplog.at_level(logging.WARNING):
        assert list(read(tmp_path / "one").splits) == ["all"]
    assert "left out: val" in caplog.text
    assert list(read(tmp_path / "two").splits) == ["test"]


def test_the_checksum_follows_the_content_not_the_place(divided):
    first = read(divided).provenance["sha256"]
    assert read(divided).provenance["sha256"] == first
    moved = divided.parent / "moved"
    divided.rename(moved)
    assert read(moved).provenance["sha256"] == first
    put(moved / "train/cat/0.png", 11)
    assert read(moved).provenance["sha256"] != first


def test_missing_folders_are_named(tmp_path):
    with pytest.raises(UserError, match="nowhere: no such folder"):
        read(tmp_path / "nowhere")
    with pytest.raises(UserError, match="no class folders; expected train/<class>"):
        read(tmp_path)
    put(tmp_path / "train/a/1.png")
    (tmp_path / "test").mkdir()
    with pytest.raises(UserError, match="test: no class folders"):
        read(tmp_path)


def test_an_empty_class_folder_is_named(divided):
    (divided / "train/bee").mkdir()
    (divided / "test/bee").mkdir()
    (divided / "train/bee/.keep").write_text("")
    with pytest.raises(UserError, match=r"train/bee: the class folder is empty"):
        read(divided)


def test_differing_classes_are_named(divided):
    put(divided / "train/dog/1.png")
    put(divided / "test/elk/1.png")
    with pytest.raises(UserError, match=r"different classes \(only in train/: dog; only in test/: elk\)"):
        read(divided)


def test_unreadable_files_stop_the_stage_by_name(divided):
    (divided / "train/ant/0.bmp").write_text("no image")
    whole = encoded(Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)), "JPEG")
    (divided / "train/cat/cut.jpg").write_bytes(whole[: len(whole) // 2])
    message = (
        r"2 of 9 files cannot be read: train/ant/0\.bmp \(no image format that Pillow knows\), train/cat/cut\.jpg \(.*truncated"
    )
    with pytest.raises(UserError, match=message) as caught:
        read(divided)
    assert "skip_unreadable: true" in str(caught.value)


def test_unreadable_files_can_be_left_out(divided, caplog):
    (divided / "train/ant/1.bmp").write_text("no image")
    with caplog.at_level(logging.WARNING):
        data = read(divided, skip_unreadable=True)
    images, labels = data.splits["train"]
    assert images[:, 0, 0, 0].tolist() == [20, 22, 10, 11, 12]
    assert labels.tolist() == [0, 0, 1, 1, 1]
    assert len(data.splits["test"][0]) == 2
    assert data.provenance["skipped"] == 1
    assert data.provenance["skipped_first"] == ["train/ant/1.bmp"]
    assert "train/ant/1.bmp" in caplog.text
    (divided / "test/cat/x.jpg").write_text("no image")
    with pytest.raises(UserError, match="test/cat: no readable image is left"):
        read(divided, skip_unreadable=True)


def test_ten_unreadable_files_are_named_and_the_rest_counted(tmp_path):
    put(tmp_path / "a/good.png")
    for number in range(13):
        (tmp_path / f"a/{number:02}.png").write_text("no image")
    with pytest.raises(UserError, match=r"13 of 14 files .*09\.png \([^)]*\) and 3 more") as caught:
        read(tmp_path)
    assert "10.png" not in str(caught.value)


@pytest.mark.parametrize("side", [5, 6, 8])  # Pillow itself warns above its limit and stops above twice the limit
def test_decompression_bombs_are_unreadable(tmp_path, side):
    put(tmp_path / "a/bomb.png", size=(side, side))
    with pytest.raises(UserError, match=r"bomb\.png \(more pixels than max_pixels allows\)"):
        read(tmp_path, max_pixels=24)
    assert len(read(tmp_path, max_pixels=side * side).splits["all"][1]) == 1


def test_a_bomb_is_refused_by_its_header(tmp_path):
    put(tmp_path / "a/flat.png", size=(12_000, 12_000))  # 144 million pixels in a few hundred kilobytes
    path = tmp_path / "a/flat.png"
    path.write_bytes(path.read_bytes()[:1000])  # decoding it would find that it is cut off
    former = Image.MAX_IMAGE_PIXELS
    with pytest.raises(UserError, match="more pixels than max_pixels allows"):
        read(tmp_path)
    with pytest.raises(UserError, match="truncated"):
        read(tmp_path, max_pixels=144_000_000)
    assert former == Image.MAX_IMAGE_PIXELS


def test_downsampling_is_antialiased():
    board = (np.indices((64, 64)).sum(0) % 2 * 255).astype(np.uint8)
    assert np.abs(decode(encoded(Image.fromarray(board)), 8, 1).astype(int) - 127).max() <= 4


def test_the_centre_square_is_kept():
    pixels = np.zeros((10, 30), np.uint8)
    pixels[:, 10:20] = 200
    for image in (pixels, pixels.T):
        assert (decode(encoded(Image.fromarray(image)), 10, 1) == 200).all()
        assert (decode(encoded(Image.fromarray(image)), 5, 1)[:, 1:-1, 1:-1] == 200).all()


def test_a_very_long_image_costs_no_memory():
    assert decode(encoded(Image.new("L", (60_000, 1), 7)), 256, 1).shape == (1, 256, 256)


def test_exif_orientation_is_respected():
    pixels = np.zeros((8, 8), np.uint8)
    pixels[:4] = 255
    exif = Image.Exif()
    exif[0x0112] = 3  # turned by 180°
    upright = decode(encoded(Image.fromarray(pixels), exif=exif), 8, 1)[0]
    assert (upright[:4] == 0).all()
    assert (upright[4:] == 255).all()


def test_palette_and_transparency_lie_on_white():
    palette = Image.new("P", (2, 2), 1)
    palette.putpalette([0, 0, 0, 10, 20, 30])
    assert decode(encoded(palette), 2, 3)[:, 0, 0].tolist() == [10, 20, 30]
    assert decode(encoded(palette, transparency=1), 2, 3)[:, 0, 0].tolist() == [255, 255, 255]
    half = Image.new("RGBA", (2, 2), (0, 0, 0, 128))
    assert decode(encoded(half), 2, 3)[:, 0, 0].tolist() == [127, 127, 127]
    clear = Image.new("LA", (2, 2), (0, 0))
    assert decode(encoded(clear), 2, 1).tolist() == [[[255, 255], [255, 255]]]


def test_sixteen_bits_are_scaled_not_clipped():
    pixels = np.array([[0, 257], [32896, 65535]], dtype=np.uint16)
    assert decode(encoded(Image.fromarray(pixels)), 2, 1)[0].tolist() == [[0, 1], [128, 255]]
    assert decode(encoded(Image.fromarray(pixels), "TIFF"), 2, 3)[2].tolist() == [[0, 1], [128, 255]]
    assert decode(encoded(Image.fromarray(pixels.astype(np.int32)), "TIFF"), 2, 1)[0].tolist() == [[0, 1], [128, 255]]


@pytest.mark.parametrize("pixels", [np.full((2, 2), 0.5, np.float32), np.full((2, 2), 70_000, np.int32)])
def test_pixels_of_unknown_range_are_refused(pixels):
    with pytest.raises(ValueError, match="whose range is not known"):
        decode(encoded(Image.fromarray(pixels), "TIFF"), 2, 1)


def test_grey_and_colour_convert():
    grey = encoded(Image.new("L", (2, 2), 9))
    assert decode(grey, 2, 3)[:, 0, 0].tolist() == [9, 9, 9]
    assert decode(encoded(Image.new("1", (2, 2), 1)), 2, 1).max() == 255
    assert decode(encoded(Image.new("RGB", (2, 2), (255, 0, 0))), 2, 1)[0, 0, 0] == 76
    cmyk = decode(encoded(Image.new("CMYK", (8, 8), (255, 0, 0, 0)), "JPEG", quality=100), 8, 3)[:, 0, 0]
    assert cmyk[0] < 5
    assert min(cmyk[1:]) > 250


def test_the_number_of_threads_changes_nothing(divided):
    threads = torch.get_num_threads()
    try:
        results = []
        for count in (1, 4):
            torch.set_num_threads(count)
            results.append(read(divided))
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(results[0].splits["train"][0], results[1].splits["train"][0])
    assert results[0].provenance == results[1].provenance
