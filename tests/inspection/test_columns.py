import shutil

import numpy as np
import pytest

from dfkd.bank.reader import BankReader
from dfkd.bank.writer import BankWriter
from dfkd.errors import UserError
from dfkd.inspection.columns import chosen, columns_of, ranking
from dfkd.inspection.scores import scores_of


def test_own_columns_need_no_teacher(tree, reference, tmp_path):
    bank = shutil.copy(tree.variations, tmp_path / "variations.lmdb")
    reader = BankReader(bank)
    columns = columns_of(reader, {"cosine", "index"}, None, reference)
    assert list(columns) == ["label", "parent", "cosine", "confidence", "variation"]
    stored = reader.load()
    assert np.array_equal(chosen(reader, "cosine < 0.5 and label == top", None, reference), _expected(stored))
    order = ranking(reader, "worst", "cosine", None, reference)
    assert np.array_equal(stored.scores["cosine"][order], stored.scores["cosine"].sort().values)
    order = ranking(reader, "best", "cosine", None, reference)
    assert stored.scores["cosine"][order][0] == stored.scores["cosine"].max()
    assert ranking(reader, "best", "index", None, reference)[0] == len(reader) - 1
    assert np.array_equal(ranking(reader, "first", None, None, reference), np.arange(len(reader)))


def _expected(stored):
    return ((stored.scores["cosine"] < 0.5) & (stored.labels == 0)).numpy()


def test_measured_columns_take_the_place_of_the_banks_own(tree, reference, caplog, tmp_path):
    reader = BankReader(tree.variations)
    scores = scores_of(tree.variations, None, reference)
    found = chosen(reader, "confidence < 0.9 or label != prediction", None, reference)
    wanted = (scores.columns["confidence"] < 0.9) | (scores.columns["label"] != scores.columns["prediction"])
    assert np.array_equal(found, wanted)
    assert 0 < found.sum() < len(found)
    alone = shutil.copy(tree.variations, tmp_path / "variations.lmdb")  # no teacher around: what the stage wrote has to do
    with caplog.at_level("INFO"):
        columns = columns_of(BankReader(alone), {"confidence"}, None, reference)
    assert np.array_equal(columns["confidence"], reader.load().scores["confidence"])
    assert "confidence as the bank's stage wrote it" in caplog.text
    with pytest.raises(UserError, match=r"its teacher .* --teacher"):
        columns_of(BankReader(alone), {"entropy", "confidence"}, None, reference)
    measured = columns_of(BankReader(alone), {"entropy"}, tree.teacher, reference)["entropy"]
    assert np.allclose(measured, scores.columns["entropy"], atol=1e-5)


@pytest.mark.parametrize(
    ("condition", "sentence"),
    [
        ("entropi > 1", "no column 'entropi'; the nearest known: entropy"),
        ("label == tob", "no column 'tob'"),
        ("cosine <", "cannot be read"),
    ],
)
def test_conditions_that_do_not_fit(tree, reference, condition, sentence):
    with pytest.raises(UserError, match=sentence):
        chosen(BankReader(tree.variations), condition, None, reference)


def test_an_order_needs_a_score(tree, reference):
    with pytest.raises(UserError, match="--order best: name the score that it goes by with --score"):
        ranking(BankReader(tree.init), "best", None, None, reference)


def test_a_bank_that_grew_meanwhile_keeps_its_length(tree, reference, tmp_path):
    with BankWriter(tmp_path / "bank.lmdb", BankReader(tree.init).meta) as writer:
        writer.append_images(tree.images[:10], tree.labels[:10])
        reader = writer.reader()
        writer.append_images(tree.images[10:30], tree.labels[10:30])
        assert len(columns_of(reader, {"entropy"}, tree.teacher, reference)["entropy"]) == 10
