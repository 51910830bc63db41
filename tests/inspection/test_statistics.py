import io
import json
import shutil

import numpy as np
import pytest
import torch
from rich.console import Console
from scipy.spatial.distance import pdist

from dfkd.bank.format import Block, encode
from dfkd.bank.reader import BankReader
from dfkd.bank.writer import BankWriter, write_bank
from dfkd.inspection.scores import scores_of
from dfkd.inspection.statistics import mean_squared_distance, statistics
from dfkd.inspection.statistics_view import statistics_table


def text_of(figures):
    console = Console(file=io.StringIO(), width=160)
    console.print(statistics_table(figures))
    return console.file.getvalue()


@pytest.fixture(scope="module")
def figures(tree, reference):
    return statistics(tree.init, None, reference)


def test_figures_of_each_class(tree, figures, reference):
    scores = scores_of(tree.init, None, reference)
    assert (figures["images"], figures["teacher"], figures["features"]) == (60, "wrn101", scores.features.shape[1])
    for label, name in enumerate(tree.info.classes):
        of, mask = figures["classes"][name], tree.labels.numpy() == label
        assert of["images"] == 20
        assert of["confidence"] == pytest.approx(scores.columns["confidence"][mask].mean(), rel=1e-6)
        assert of["entropy"] == pytest.approx(scores.columns["entropy"][mask].mean(), rel=1e-6)
        assert of["agreement"] == (scores.columns["prediction"][mask] == label).mean()
        assert of["bn_distance"] == scores.class_bn_distance[label]
        counts = np.histogram(tree.images[mask].numpy(), bins=256, range=(0, 256))[0]
        assert of["histogram"] == counts.tolist()
        pairs = pdist(scores.features[mask].astype(float), "sqeuclidean")
        assert of["mean_squared_distance"] == pytest.approx(pairs.mean(), rel=1e-9)
        assert of["rms_distance"] == pytest.approx(np.sqrt(pairs.mean()), rel=1e-9)
        assert of["accept_rate"] is None
    assert figures["all"]["bn_distance"] == scores.all_bn_distance
    assert sum(figures["all"]["histogram"]) == tree.images.numel()
    assert (figures["all"]["constant"], figures["all"]["duplicates"]) == (1, 1)
    assert figures["classes"][tree.info.classes[int(tree.labels[7])]]["constant"] == 1
    assert figures["classes"][tree.info.classes[int(tree.labels[11])]]["duplicates"] == 1
    assert figures["non_finite_scores"] == {"confidence": 0}
    assert json.loads(json.dumps(figures, allow_nan=False)) == figures


def test_diversity_of_few_images():
    assert mean_squared_distance(np.zeros((1, 3))) is None
    assert mean_squared_distance(np.array([[0, 0], [3, 4]], np.float16)) == 25
    far = np.full((5, 2), 60000, np.float16)  # large values cancel in the difference of squares, not here
    far[0] += 32
    assert mean_squared_distance(far) == pytest.approx(pdist(far.astype(float), "sqeuclidean").mean(), rel=1e-12)


def test_accept_rates_of_variations(tree, reference, tmp_path):
    meta = BankReader(tree.variations).meta
    extra = meta.extra | {"accept_rate_per_class": {"top": 0.25, "middle": None, "bottom": 1.0}}
    with BankWriter(tmp_path / "w.lmdb", meta.model_copy(update={"extra": extra})) as writer:
        writer.append_images(tree.images[:9], tree.labels[:9])
    figures = statistics(tmp_path / "w.lmdb", None, reference)
    assert [of["accept_rate"] for of in figures["classes"].values()] == [0.25, None, 1.0]
    assert figures["all"]["accept_rate"] == extra["accept_rate"]
    assert (figures["status"], figures["teacher"], figures["all"]["confidence"]) == ("writing", None, None)
    text = text_of(figures)
    assert "25.0%" in text
    assert "its teacher was not found" in text
    assert "entropy" not in text


def test_the_table(figures, tree):
    text = text_of(figures)
    top = figures["classes"]["top"]
    for words in (f"{top['confidence']:.3f}", f"{top['agreement']:.1%}", "of teacher wrn101", "over all pairs of images"):
        assert words in text
    assert "kept" not in text
    assert "NOT FINITE" not in text


def test_empty_classes_and_banks(tree, reference, tmp_path):
    with BankWriter(tree.init.parent / "empty.work", BankReader(tree.init).meta) as writer:
        try:
            empty = statistics(writer.path, None, reference)
            writer.append_images(tree.images[:1], tree.labels[:1])
            one = statistics(writer.path, None, reference)
        finally:
            for path in tree.init.parent.glob("empty.work*"):
                path.unlink()
    assert (empty["images"], empty["all"]["confidence"], empty["all"]["constant"]) == (0, None, 0)
    assert one["teacher"] == "wrn101"
    assert one["classes"]["top"]["confidence"] is not None
    assert (one["classes"]["top"]["rms_distance"], one["classes"]["bottom"]["confidence"]) == (None, None)
    assert one["classes"]["bottom"]["bn_distance"] is None
    json.dumps(one, allow_nan=False)
    assert "top" in text_of(empty)


def test_scores_that_something_else_wrote(tree, reference, tmp_path):
    """The writer refuses what is not finite; a bank made by other code can still hold it, and is told so."""
    meta = BankReader(tree.init).meta
    scores = {"confidence": torch.tensor([0.5, float("nan"), float("inf")])}
    write_bank(tmp_path / "odd.lmdb", meta, [encode(Block(tree.images[:3], tree.labels[:3], scores), 0)])
    shutil.copytree(tree.results / "teachers", tmp_path / "teachers")
    figures = statistics(tmp_path / "odd.lmdb", None, reference)
    assert figures["non_finite_scores"] == {"confidence": 2}
    assert figures["all"]["confidence"] is not None  # measured on the images
    assert "NOT FINITE: 2 values of score confidence" in text_of(figures)
