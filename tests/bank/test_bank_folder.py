from __future__ import annotations

import csv

import numpy as np
import pytest
import torch
from PIL import Image

from dfkd.bank.convert import import_bank
from dfkd.bank.folder import export_folder
from dfkd.bank.reader import BankReader
from dfkd.errors import UserError


@pytest.mark.parametrize("channels", [1, 3])
def test_export_without_its_note_is_a_folder_of_images(banks, tmp_path, channels):
    info = banks.info.model_copy(update={"channels": channels, "classes": [f"c{index}" for index in range(12)]})
    bank = banks.make(blocks=range(3), count=200, dataset=info)
    assert export_folder(bank, tmp_path / "images") == 600
    (tmp_path / "images" / "bank.json").unlink()
    assert import_bank(tmp_path / "images", tmp_path / "again.lmdb", info, "cd" * 32).images == 600
    reader, arrays = BankReader(tmp_path / "again.lmdb", teacher_sha256="cd" * 32), BankReader(bank).load()
    assert torch.equal(reader.load().images, arrays.images)
    assert torch.equal(reader.load().labels, arrays.labels)
    assert (reader.meta.stage, reader.load().scores) == ("import", {})
    assert [len(block) for block in reader.blocks()] == [256, 256, 88]
    rows = list(csv.DictReader((tmp_path / "images" / "images.csv").open(encoding="utf-8")))
    row = rows[201]
    label = int(arrays.labels[201])
    assert row["file"] == f"{label:02d}/000201.png"
    assert (row["class"], int(row["parent"])) == (f"c{label}", 0)
    assert torch.tensor(float(row["bn"]), dtype=torch.float32) == arrays.scores["bn"][201]


def test_folders_of_others(banks, tmp_path):
    images = tmp_path / "images"
    for name, file, value in (("two", "cat.PNG", 9), ("0", "5.png", 5), ("1", "b.jpeg", 255), ("two", ".hidden.png", 7)):
        (images / name).mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 4), (value, value, value)).save(images / name / file, quality=100)
    (images / ".git").mkdir()
    (images / "0" / "notes.txt").write_text("x")
    import_bank(images, tmp_path / "bank.lmdb", banks.info, "ab" * 32)
    arrays = BankReader(tmp_path / "bank.lmdb").load()
    assert arrays.labels.tolist() == [0, 1, 2]
    assert arrays.images[:, 0, 0, 0].tolist() == [5, 255, 9]
    assert arrays.parents.tolist() == [-1, -1, -1]


def test_bad_folders(banks, tmp_path):
    images = tmp_path / "images"

    def refused(words, *teacher):
        with pytest.raises(UserError, match=words):
            import_bank(images, tmp_path / "bank.lmdb", *(teacher or (banks.info, "ab" * 32)))
        assert not (tmp_path / "bank.lmdb").exists()

    refused("images: no such file or folder")
    (images / "1").mkdir(parents=True)
    refused("images: holds no images")
    refused("images: says of no bank .* with --teacher", None, None)
    Image.new("RGB", (5, 4)).save(images / "1" / "a.png")
    refused(r"a\.png: 5×4 pixels, tiny has 4×4; resize it")
    Image.fromarray(np.full((4, 4), 60000, np.uint16)).save(images / "1" / "a.png")
    refused(r"a\.png: more than 8 bits a channel")
    (images / "1" / "a.png").write_bytes(b"no picture")
    refused(r"a\.png: not an image that can be read")
    (images / "three").mkdir()
    refused("three: neither a class of tiny nor a label from 0 to 2")


def test_export_does_not_write_into_a_folder_in_use(banks, tmp_path):
    bank = banks.make()
    with pytest.raises(UserError, match="is not empty; name a new folder"):
        export_folder(bank, tmp_path)
    (tmp_path / "empty").mkdir()
    assert export_folder(bank, tmp_path / "empty") == 20


def test_an_export_that_fails_leaves_nothing(banks, tmp_path, monkeypatch):
    bank = banks.make()
    before = sorted(tmp_path.iterdir())
    monkeypatch.setattr("dfkd.bank.folder.png_of", lambda image: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(UserError, match=r"images: could not be written \(No space left on device\)"):
        export_folder(bank, tmp_path / "images")
    assert sorted(tmp_path.iterdir()) == before


def test_a_changed_export_is_not_taken_for_the_bank(banks, tmp_path):
    bank, images = banks.make(), tmp_path / "images"
    export_folder(bank, images)
    first = sorted(images.glob("*/*.png"))[0]
    content, table = first.read_bytes(), (images / "images.csv").read_text()

    def refused(words):
        with pytest.raises(UserError, match=words):
            import_bank(images, tmp_path / "back.lmdb", None, None)
        assert not (tmp_path / "back.lmdb").exists()

    Image.new("RGB", (4, 4), (1, 2, 3)).save(first)
    refused("images: not what was exported, .* remove bank.json")
    first.unlink()
    refused(r"images\.csv: names 0/0000.*\.png, which is not in the folder")
    first.write_bytes(content)
    (images / "0" / "extra.png").write_bytes(content)
    refused(r"images\.csv: does not name 0/extra\.png")
    (images / "0" / "extra.png").unlink()
    outside = tmp_path / "outside.png"
    outside.write_bytes(content)
    (images / "images.csv").write_text(table.replace(f"0/{first.name}", "../outside.png"))
    refused(r"names \.\./outside\.png, which is not in the folder")
    (images / "images.csv").write_text(table.replace(",zero,", ",zero,9", 1))
    refused("not what was exported")
    (images / "images.csv").write_text("\n".join(table.splitlines()[:-1]))
    refused(r"images\.csv: does not name ./000019\.png")
    (images / "images.csv").write_text(table)
    (images / "bank.json").write_text('{"format": "dfkd bank export 2"}')
    refused(r"bank\.json: not the note of an exported bank \(format")
