from __future__ import annotations

import numpy as np
import pytest
from PIL import Image
from test_bank_grid import flat_bank, rows_of

from dfkd.bank.families import ACCEPTED, REJECTED, family_sheet, verdict_sheet
from dfkd.bank.stages import stage_sheet
from dfkd.errors import UserError


@pytest.fixture
def parents(banks, tmp_path):
    return flat_bank(banks, tmp_path / "init.lmdb", [0, 0, 1], [10, 20, 30])


@pytest.fixture
def bank(banks, tmp_path):
    return flat_bank(
        banks, tmp_path / "bank.lmdb", [0, 0, 1, 0, 0], [21, 11, 31, 22, 23], parents=[1, 0, 2, 1, 1], kind="variations"
    )


def test_parents_stand_before_their_variations(banks, bank, parents, tmp_path):
    family_sheet(bank, parents, tmp_path / "grid.png", variations=2)
    assert rows_of(tmp_path / "grid.png", 32) == [[20, 21, 22, 10, 11], [30, 31], []]
    family_sheet(bank, parents, tmp_path / "grid.png", per_class=1, sequence=np.array([4, 3, 1]))
    assert rows_of(tmp_path / "grid.png", 32) == [[20, 23, 22], [], []]
    few = flat_bank(banks, tmp_path / "few.lmdb", [0], [10])
    with pytest.raises(UserError, match=r"few\.lmdb: does not hold the parents of"):
        family_sheet(bank, few, tmp_path / "grid.png")
    with pytest.raises(UserError, match=r"bank\.lmdb: does not hold the parents of .*few\.lmdb"):
        family_sheet(few, bank, tmp_path / "grid.png")
    grey = banks.make("grey.lmdb", dataset=banks.info.model_copy(update={"channels": 1}))
    with pytest.raises(UserError, match="another shape"):
        family_sheet(bank, grey, tmp_path / "grid.png")


def framed(path, colour):
    """The red values of the cells whose frame has this colour, row by row."""
    sheet = np.asarray(Image.open(path).convert("RGB")).astype(int)[20:]  # below the words, which have this colour too
    frame = np.pad((sheet == [int(colour[place : place + 2], 16) for place in (1, 3, 5)]).all(2), 1)
    corners = [(y, x) for y, x in zip(*np.nonzero(frame), strict=True) if not frame[y - 1, x] and not frame[y, x - 1]]
    for y, x in corners:
        square = frame[y : y + 38, x : x + 38]
        assert (square.sum(), square[3:-3, 3:-3].sum()) == (38 * 38 - 32 * 32, 0)
    return [int(sheet[y + 18, x + 18, 0]) for y, x in corners]


def test_what_was_kept_is_green_and_what_was_dropped_is_red(banks, bank, parents, tmp_path):
    rejected = flat_bank(banks, tmp_path / "rejected.lmdb", [0, 0], [12, 13], parents=[0, 0], kind="rejected")
    verdict_sheet(bank, rejected, parents, tmp_path / "grid.png", variations=2)
    assert framed(tmp_path / "grid.png", ACCEPTED) == [11, 21, 22, 31]  # parent 0 comes first: something of it was dropped
    assert framed(tmp_path / "grid.png", REJECTED) == [12, 13]


def test_a_parent_that_stands_for_itself_is_no_variation(banks, parents, tmp_path):
    bank = flat_bank(banks, tmp_path / "v.lmdb", [0, 0], [10, 21], scores=[-1.0, 0.0], parents=[0, 1], name="variation")
    rejected = flat_bank(banks, tmp_path / "rejected.lmdb", [0], [12], parents=[0], kind="rejected")
    verdict_sheet(bank, rejected, parents, tmp_path / "grid.png")
    assert framed(tmp_path / "grid.png", ACCEPTED) == [21]
    assert framed(tmp_path / "grid.png", REJECTED) == [12]


def test_stages_stand_side_by_side(banks, bank, parents, tmp_path):
    stage_sheet([parents, bank], tmp_path / "grid.png", per_class=2)
    sheet = np.asarray(Image.open(tmp_path / "grid.png"))
    assert (sheet[:18] < 128).any()  # the names of the stages
    Image.fromarray(sheet[20:]).save(tmp_path / "below.png")
    assert rows_of(tmp_path / "below.png", 32) == [[10, 20, 21, 11], [30, 31], []]
    wide = np.nonzero((sheet[20 + 2 + 16, :, 2] == 255) & (sheet[20 + 2 + 16, :, 1] == 0))[0]
    assert wide[32] - wide[31] == 3  # within a stage
    other = banks.make("other.lmdb", dataset=banks.info.model_copy(update={"classes": ["a", "b", "c"]}))
    with pytest.raises(UserError, match=r"other\.lmdb: its classes or images are not those of"):
        stage_sheet([parents, other], tmp_path / "grid.png")
