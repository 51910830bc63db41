import numpy as np
import pytest

from dfkd.errors import UserError
from dfkd.inspection.where import LONGEST, select

COLUMNS = {
    "label": np.array([0, 1, 2, 1]),
    "prediction": np.array([0, 2, 2, 1]),
    "confidence": np.array([0.9, 0.2, 0.5, 0.7], dtype=np.float32),
}
CLASSES = ["cat", "aquarium fish", "dog"]


@pytest.mark.parametrize(
    ("condition", "expected"),
    [
        ("", [1, 1, 1, 1]),
        ("confidence < 0.6", [0, 1, 1, 0]),
        ("0.4 < confidence <= 0.7", [0, 0, 1, 1]),
        ("label == cat", [1, 0, 0, 0]),
        ("label == 'aquarium fish'", [0, 1, 0, 1]),
        ("label != prediction", [0, 1, 0, 0]),
        ("label in (cat, dog)", [1, 0, 1, 0]),
        ("label not in (0, 2)", [0, 1, 0, 1]),
        ("not label == dog and confidence > 0.5", [1, 0, 0, 1]),
        ("(label == cat or label == dog) and index >= 1", [0, 0, 1, 0]),
        ("confidence > -1", [1, 1, 1, 1]),
        ("1 == 1", [1, 1, 1, 1]),
        (" index in [3]", [0, 0, 0, 1]),
        ("not " * 240 + "index == 1", [0, 1, 0, 0]),
    ],
)
def test_conditions(condition, expected):
    chosen = select(condition, COLUMNS, CLASSES)
    assert chosen.dtype == bool
    assert chosen.astype(int).tolist() == expected


@pytest.mark.parametrize(
    ("condition", "sentence"),
    [
        ("confidence <", "cannot be read; write e.g. label == cat"),
        ("confidense < 1", "no column 'confidense'; the nearest known: confidence"),
        ("label == cta", "no column or class 'cta'; the nearest known: cat"),
        ("confidence", "is no comparison"),
        ("confidence is 3", "write =="),
        ("label in 3", "is no list"),
        ("confidence + 1 < 2", "neither a column nor a number"),
        ("__import__('os').system('true') == 0", "neither a column nor a number"),
        ("confidence < True", "neither a column nor a number"),
        ("x := 3", "cannot be read"),
        ("index == 1 and " * 200 + "index == 1", "shorten it"),
        ("(" * (LONGEST // 3) + "index == 1" + ")" * (LONGEST // 3), "cannot be read"),
    ],
)
def test_refusals(condition, sentence):
    with pytest.raises(UserError, match=sentence):
        select(condition, COLUMNS, CLASSES)
