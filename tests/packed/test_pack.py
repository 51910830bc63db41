"""A folder of images as one file: what is in it, that it gives what the folder gives, what is refused."""

import io
import json
import shutil

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from dfkd.bank.format import BankMeta
from dfkd.bank.reader import BankReader
from dfkd.bank.writer import write_bank
from dfkd.cli_data import data_app
from dfkd.datasets.folder import folder_source
from dfkd.datasets.info import DatasetInfo
from dfkd.datasets.prepare import prepare
from dfkd.datasets.prepared import read_info, read_provenance, read_split
from dfkd.errors import UserError
from dfkd.packed import pack as packing
from dfkd.packed.file import PackedFile
from dfkd.packed.pack import pack
from dfkd.packed.source import packed_source
from dfkd.packed.summary import packed_faults
from dfkd.settings import DatasetSettings


def noise(seed, width=20, height=14):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


@pytest.fixture
def folder(tmp_path):
    """Three classes, nine and six files; one has an orientation, one is grey, one a PNG."""
    root = tmp_path / "pets"
    for split, count in (("train", 3), ("test", 2)):
        for label, name in enumerate(("ant", "bee", "çat")):
            place = root / split / name
            place.mkdir(parents=True)
            for number in range(count):
                noise(100 * (split == "test") + 10 * label + number).save(place / f"{number}.jpg", quality=80)
    turned = Image.Exif()
    turned[0x0112] = 6
    noise(1).save(root / "train/ant/0.jpg", exif=turned)
    noise(2).convert("L").save(root / "train/bee/1.jpg")
    noise(3).save(root / "train/bee/2.png")
    (root / "train/bee/2.jpg").unlink()
    return root


@pytest.fixture
def small_blocks(monkeypatch):
    monkeypatch.setattr(packing, "BLOCK_IMAGES", 4)


def settings(size=8, **changes):
    return DatasetSettings(source="packed:x", image_size=size, **changes)


def test_files_are_kept_byte_by_byte_each_with_its_label(folder, tmp_path, small_blocks):
    meta = pack(folder, tmp_path / "pets.lmdb")
    file = PackedFile(tmp_path / "pets.lmdb")
    assert file.meta == meta
    assert meta.classes == ["ant", "bee", "çat"]
    assert {name: (split.images, split.blocks) for name, split in meta.splits.items()} == {"train": (9, 3), "test": (6, 2)}
    for split in ("train", "test"):
        names, labels = file.names(split), file.labels(split).tolist()
        contents = file.contents(list(file.split_images(split)))
        assert sorted(names) == sorted(str(path.relative_to(folder)) for path in (folder / split).glob("*/*"))
        assert names != sorted(names)  # or every block would hold one class
        assert [meta.classes[label] for label in labels] == [name.split("/")[1] for name in names]
        assert contents == [(folder / name).read_bytes() for name in names]
    assert file.contents([14, 0, 7]) == [file.contents([index])[0] for index in (14, 0, 7)]
    assert packed_faults(file.path) == []


def test_the_same_folder_gives_the_same_bytes(folder, tmp_path):
    pack(folder, tmp_path / "one.lmdb")
    moved = shutil.copytree(folder, tmp_path / "elsewhere" / "pets")
    pack(moved, tmp_path / "two.lmdb")
    assert (tmp_path / "one.lmdb").read_bytes() == (tmp_path / "two.lmdb").read_bytes()
    noise(9).save(moved / "test/ant/0.jpg")
    pack(moved, tmp_path / "three.lmdb")
    assert (tmp_path / "one.lmdb").read_bytes() != (tmp_path / "three.lmdb").read_bytes()


@pytest.mark.parametrize("workers", [0, 2])
def test_packed_images_are_decoded_as_those_of_the_folder(folder, tmp_path, small_blocks, workers):
    pack(folder, tmp_path / "pets.lmdb")
    file = PackedFile(tmp_path / "pets.lmdb")
    loose = folder_source(str(folder), settings(), tmp_path)
    for split in ("train", "test"):
        paths = [str(path.relative_to(folder)) for name in loose.classes for path in sorted((folder / split / name).iterdir())]
        order = [paths.index(name) for name in file.names(split)]
        images, labels = file.decoded(split, 8, 3, workers=workers)
        assert (images == loose.splits[split][0][order]).all()
        assert (labels == loose.splits[split][1][order]).all()
    assert file.meta.files_sha256 == loose.provenance["sha256"]


def test_prepare_reads_a_packed_file(folder, tmp_path):
    pack(folder, tmp_path / "pets.lmdb")
    chosen = settings(channels=1).model_copy(update={"source": f"packed:{tmp_path / 'pets.lmdb'}"})
    prepare("pets", chosen, tmp_path / "pets.h5", tmp_path / "pets.test.h5", tmp_path)
    assert read_info(tmp_path / "pets.h5").shape == (1, 8, 8)
    assert read_split(tmp_path / "pets.test.h5", "test")[0].shape == (6, 1, 8, 8)
    assert read_provenance(tmp_path / "pets.h5")["packed_from"] == "pets"


def test_one_folder_of_classes_is_left_to_test_fraction_and_two_folders_are_two_splits(folder, tmp_path):
    meta = pack(folder / "train", tmp_path / "all.lmdb")
    assert list(meta.splits) == ["all"]
    assert list(packed_source(str(tmp_path / "all.lmdb"), settings(), tmp_path).splits) == ["all"]
    (folder / "test").rename(tmp_path / "val")
    meta = pack(folder / "train", tmp_path / "both.lmdb", test=tmp_path / "val")
    assert {name: split.images for name, split in meta.splits.items()} == {"train": 9, "test": 6}
    assert PackedFile(tmp_path / "both.lmdb").names("test")[0].startswith("test/")


def test_larger_images_are_made_smaller_and_the_others_kept(folder, tmp_path):
    noise(5, 300, 200).save(folder / "train/ant/0.jpg")
    noise(6, 200, 300).convert("L").save(folder / "train/ant/1.jpg")
    meta = pack(folder, tmp_path / "small.lmdb", size=100, quality=70)
    assert meta.reencoded == 2
    file = PackedFile(tmp_path / "small.lmdb")
    found = dict(zip(file.names("train"), file.contents(list(file.split_images("train"))), strict=True))
    first, second = (Image.open(io.BytesIO(found[f"train/ant/{number}.jpg"])) for number in (0, 1))
    assert (first.size, first.mode, first.format) == ((150, 100), "RGB", "JPEG")
    assert (second.size, second.mode) == ((100, 150), "L")
    assert found["train/bee/2.png"] == (folder / "train/bee/2.png").read_bytes()


def test_unreadable_files_are_named_and_nothing_is_written(folder, tmp_path):
    (folder / "train/bee/0.jpg").write_bytes((folder / "train/bee/0.jpg").read_bytes()[:200])
    (folder / "test/ant/0.jpg").write_text("no image")
    noise(7, 60, 60).save(folder / "test/bee/0.jpg")
    with pytest.raises(UserError) as refused:
        pack(folder, tmp_path / "pets.lmdb", max_pixels=3000)
    sentence = str(refused.value)
    assert "3 of 15 files cannot be read" in sentence
    assert "train/bee/0.jpg (" in sentence
    assert "test/ant/0.jpg (no image format that Pillow knows)" in sentence
    assert "test/bee/0.jpg (more pixels than max_pixels allows)" in sentence
    assert "--skip-unreadable" in sentence
    assert [path.name for path in tmp_path.iterdir()] == ["pets"]
    meta = pack(folder, tmp_path / "pets.lmdb", max_pixels=3000, skip_unreadable=True)
    assert (meta.images, meta.skipped) == (12, 3)
    assert meta.skipped_first == ["train/bee/0.jpg", "test/ant/0.jpg", "test/bee/0.jpg"]


def test_class_folders_that_look_alike_or_differ_are_refused(folder, tmp_path):
    for split in ("train", "test"):
        (folder / split / "c\u0327at").mkdir()
    with pytest.raises(UserError, match="look alike; rename one"):
        pack(folder, tmp_path / "pets.lmdb")
    shutil.rmtree(folder / "test/ant")
    with pytest.raises(UserError, match=r"different classes \(only in train/: ant\)"):
        pack(folder, tmp_path / "pets.lmdb")
    with pytest.raises(UserError, match="absent: no such folder"):
        pack(folder, tmp_path / "pets.lmdb", test=tmp_path / "absent")
    assert not (tmp_path / "pets.lmdb").exists()


def test_damage_is_found_and_told(folder, tmp_path, small_blocks):
    pack(folder, tmp_path / "pets.lmdb")
    content = bytearray((tmp_path / "pets.lmdb").read_bytes())
    place = content.index((folder / "train/ant/1.jpg").read_bytes()[-60:])
    content[place] ^= 1
    (tmp_path / "pets.lmdb").write_bytes(content)
    file = PackedFile(tmp_path / "pets.lmdb")
    with pytest.raises(UserError, match=r"pets\.lmdb: block \d fails its checksum; copy or make the packed file again"):
        file.decoded("train", 8, 3, workers=1)
    assert packed_faults(file.path) == ["its bytes do not give the digest that was written with them"]
    (tmp_path / "pets.lmdb").write_bytes(content[:-5])
    with pytest.raises(UserError, match="truncated"):
        PackedFile(tmp_path / "pets.lmdb")


def test_banks_and_packed_images_are_told_apart(folder, tmp_path):
    info = DatasetInfo(
        name="pets", classes=["ant", "bee"], image_size=8, channels=3, mean=[0] * 3, std=[1] * 3, crop_padding=0, flip=False
    )
    meta = BankMeta(kind="init", dataset=info, teacher_sha256="0" * 64, stage="init-bank", stage_version=1)
    write_bank(tmp_path / "bank.lmdb", meta, [])
    pack(folder, tmp_path / "pets.lmdb")
    with pytest.raises(UserError, match="packed images, not an image bank"):
        BankReader(tmp_path / "pets.lmdb")
    with pytest.raises(UserError, match="an image bank, not packed images"):
        PackedFile(tmp_path / "bank.lmdb")
    with pytest.raises(UserError, match="no such file; pack a folder"):
        PackedFile(tmp_path / "absent.lmdb")


def test_the_commands_say_what_they_made(folder, tmp_path):
    run = CliRunner().invoke
    shutil.copy(folder / "train/ant/1.jpg", folder / "train/bee/9.jpg")
    output = tmp_path / "pets.lmdb"
    done = run(data_app, ["pack", str(folder), "-o", str(output)])
    assert done.exit_code == 0
    assert "16 images (10 train, 6 test), 3 classes" in done.output
    found = json.loads(run(data_app, ["info", str(output), "--json"]).output)
    assert found["images_by_class"] == {"train": [3, 4, 3], "test": [2, 2, 2]}
    assert found["repeated"] == 1
    shown = run(data_app, ["info", str(output)]).output
    assert "packed from pets" in shown
    assert "1 files have the content of another one" in shown
    assert "every byte" in run(data_app, ["verify", str(output)]).output
    with output.open("rb+") as file:
        file.seek(-60, 2)
        file.write(b"\xff")
    assert run(data_app, ["verify", str(output)]).exit_code == 1
