from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from dfkd.bank.format import Block
from dfkd.bank.grid import contact_sheet
from dfkd.bank.writer import BankWriter
from dfkd.errors import UserError


def flat_bank(banks, path, labels, values, scores=None, parents=None, name="bn", **changes):
    """A bank whose image i has one colour: values[i] in red, 255 in blue."""
    images = torch.zeros(len(labels), 3, 4, 4, dtype=torch.uint8)
    images[:, 0] = torch.tensor(values, dtype=torch.uint8)[:, None, None]
    images[:, 2] = 255
    named = {} if scores is None else {name: torch.tensor(scores)}
    block = Block(images, torch.tensor(labels), named, None if parents is None else torch.tensor(parents))
    with BankWriter(path.with_suffix(".work"), banks.meta(**changes)) as writer:
        writer.append(block)
        writer.publish(path)
    return path


def rows_of(path, cell):
    """The red values of the cells, row by row, found by their blue."""
    sheet = np.asarray(Image.open(path).convert("RGB")).astype(int)
    rows = []
    for top in range(2, sheet.shape[0] - cell, cell + 2):
        line = sheet[top + cell // 2]
        inside = (line[:, 2] == 255) & (line[:, 1] == 0)
        starts = [x for x in range(1, len(line)) if inside[x] and not inside[x - 1]]
        rows.append([int(line[x, 0]) for x in starts])
        assert all(inside[x : x + cell].all() and not inside[x + cell] for x in starts)
    return rows


def test_a_row_a_class_first_images_first(banks, tmp_path):
    bank = flat_bank(banks, tmp_path / "bank.lmdb", [2, 0, 2, 0, 2, 2], [10, 20, 30, 40, 50, 60])
    contact_sheet(bank, tmp_path / "grid.png", per_class=3)
    assert rows_of(tmp_path / "grid.png", 32) == [[20, 40], [], [10, 30, 50]]
    contact_sheet(bank, tmp_path / "again.png", per_class=3)
    assert (tmp_path / "again.png").read_bytes() == (tmp_path / "grid.png").read_bytes()
    contact_sheet(bank, tmp_path / "large.png", per_class=1, scale=10)
    assert rows_of(tmp_path / "large.png", 40) == [[20], [], [10]]


def test_pixels_are_repeated_not_smoothed(banks, tmp_path):
    bank = banks.make()
    contact_sheet(bank, tmp_path / "grid.png", per_class=1)
    sheet = np.asarray(Image.open(tmp_path / "grid.png"))
    labels = banks.block(0).labels
    image = banks.block(0).images[(labels == labels[0]).nonzero()[0, 0]].numpy()
    cell = np.kron(image, np.ones((1, 8, 8), dtype=np.uint8)).transpose(1, 2, 0)
    top = 2 + int(labels[0]) * 34
    lefts = [x for x in range(sheet.shape[1] - 32) if (sheet[top : top + 32, x : x + 32] == cell).all()]
    assert len(lefts) == 1
    assert (sheet[top : top + 32, : lefts[0]] < 128).any()  # the class's name


def test_a_sequence_chooses_and_orders(banks, tmp_path):
    bank = flat_bank(banks, tmp_path / "bank.lmdb", [0, 0, 0, 1], [10, 20, 30, 40])
    contact_sheet(bank, tmp_path / "grid.png", per_class=2, sequence=np.array([3, 2, 0, 1]))
    assert rows_of(tmp_path / "grid.png", 32) == [[30, 10], [40], []]
    contact_sheet(bank, tmp_path / "grid.png", sequence=np.array([1]))
    assert rows_of(tmp_path / "grid.png", 32) == [[20], [], []]


@pytest.mark.parametrize("numbers", [{"per_class": 0}, {"scale": 0}])
def test_a_sheet_without_images_is_refused(banks, tmp_path, numbers):
    with pytest.raises(UserError, match="a grid needs at least one image a class"):
        contact_sheet(banks.make(), tmp_path / "none.png", **numbers)
    assert not (tmp_path / "none.png").exists()


def test_grey_images_and_empty_banks(banks, tmp_path):
    grey = banks.info.model_copy(update={"channels": 1, "image_size": 40, "mean": [0.5], "std": [0.2]})
    bank = banks.make(blocks=range(2), dataset=grey)
    contact_sheet(bank, tmp_path / "grid.png")
    assert Image.open(tmp_path / "grid.png").height == 3 * 42 + 2
    contact_sheet(banks.make("empty.lmdb", blocks=range(0)), tmp_path / "empty.png")
    assert rows_of(tmp_path / "empty.png", 32) == [[], [], []]
