from __future__ import annotations

import csv

import pytest
import torch
from PIL import Image

from dfkd.bank.folder import export_folder, import_folder
from dfkd.bank.reader import BankReader
from dfkd.errors import UserError


@pytest.mark.parametrize("channels", [1, 3])
def test_export_and_import_give_the_same_images(banks, tmp_path, channels):
    info = banks.info.model_copy(update={"channels": channels, "classes": [f"c{index}" for index in range(12)]})
    bank = banks.make(blocks=range(3), count=200, dataset=info)
    assert export_folder(bank, tmp_path / "images") == 600
    assert import_folder(tmp_path / "images", tmp_path / "again.lmdb", info, "cd" * 32) == 600
    reader, arrays = BankReader(tmp_path / "again.lmdb", teacher_sha256="cd" * 32), BankReader(bank).load()
    assert torch.equal(reader.load().images, arrays.images)
    assert torch.equal(reader.load().labels, arrays.labels)
    assert [len(block) for block in reader.blocks()] == [256, 256, 88]
    rows = list(csv.DictReader((tmp_path / "images" / "images.csv").open(encoding="utf-8")))
    row = rows[201]
    label = int(arrays.labels[201])
    assert row["file"] == f"{label:02d}/000201.png"
    assert (row["class"], int(row["parent"])) == (f"c{label}", 0)
    assert torch.tensor(float(row["bn"]), dtype=torch.float32) == arrays.scores["bn"][201]


def test_class_names_are_folder_names_too(banks, tmp_path):
    for name, value in (("two", 9), ("0", 5)):
        (tmp_path / "images" / name).mkdir(parents=True)
        Image.new("RGB", (4, 4), (value, value, value)).save(tmp_path / "images" / name / f"{value}.png")
    import_folder(tmp_path / "images", tmp_path / "bank.lmdb", banks.info, "ab" * 32)
    arrays = BankReader(tmp_path / "bank.lmdb").load()
    assert arrays.labels.tolist() == [0, 2]
    assert arrays.images[:, 0, 0, 0].tolist() == [5, 9]


def test_bad_folders(banks, tmp_path):
    def refused(words):
        with pytest.raises(UserError, match=words):
            import_folder(tmp_path / "images", tmp_path / "bank.lmdb", banks.info, "ab" * 32)
        assert not (tmp_path / "bank.lmdb").exists()

    refused("images: no such folder")
    (tmp_path / "images" / "1").mkdir(parents=True)
    refused("images: holds no images")
    Image.new("RGB", (5, 4)).save(tmp_path / "images" / "1" / "a.png")
    refused(r"a\.png: 5×4 pixels, tiny has 4×4")
    (tmp_path / "images" / "1" / "a.png").write_bytes(b"no picture")
    refused(r"a\.png: not an image that can be read")
    (tmp_path / "images" / "three").mkdir()
    refused("three: neither a class of tiny nor a label from 0 to 2")


def test_export_does_not_write_into_a_folder_in_use(banks, tmp_path):
    with pytest.raises(UserError, match="is not empty; name a new folder"):
        export_folder(banks.make(), tmp_path)
