import shutil

import h5py
import numpy as np
import pytest
import torch
from torch.nn import functional as F

from dfkd.bank.format import BankMeta
from dfkd.bank.reader import BankReader
from dfkd.bank.writer import BankWriter
from dfkd.datasets.views import normalise, to_unit
from dfkd.errors import UserError
from dfkd.inspection.scores import measure, read_scores, scores_file, scores_of, write_scores
from dfkd.models import build_model
from dfkd.models.weights import load_model
from dfkd.synthesis.priors import BatchStatistics


@pytest.fixture(scope="module")
def scores(tree, reference):
    return scores_of(tree.init, None, reference, batch_size=7)


def test_answers_are_the_teachers(tree, scores, reference):
    model, _ = load_model(tree.teacher, reference)
    logits, features = model(normalise(to_unit(tree.images), tree.info), return_features=True)
    p = logits.softmax(1)
    assert np.array_equal(scores.columns["label"], tree.labels)
    assert np.array_equal(scores.columns["prediction"], logits.argmax(1))
    assert np.allclose(scores.columns["confidence"], p.amax(1), atol=1e-6)  # measured, not the random score of the bank
    assert np.allclose(scores.columns["label_probability"], p[range(60), tree.labels], atol=1e-6)
    assert np.allclose(scores.columns["entropy"], torch.distributions.Categorical(p).entropy(), atol=1e-5)
    assert np.array_equal(scores.top_classes, p.argsort(1, descending=True))  # of three classes all
    assert np.allclose(scores.top_probabilities, p.sort(1, descending=True).values, atol=1e-6)
    assert np.allclose(scores.features.astype(np.float32), features[-1], rtol=1e-3, atol=1e-3)


def test_bn_distance_of_an_image_a_class_and_all_is_the_term_of_the_inversion(tree, scores, reference):
    model, _ = load_model(tree.teacher, reference)
    statistics = BatchStatistics(model)

    def r_bn(images):
        with statistics.recording(), torch.no_grad():
            statistics._found.clear()
            model(normalise(to_unit(images), tree.info))
            return statistics.loss().item()

    assert np.allclose(scores.columns["bn_distance"][:5], [r_bn(tree.images[i : i + 1]) for i in range(5)], rtol=1e-4)
    by_class = [r_bn(tree.images[tree.labels == label]) for label in range(3)]
    assert np.allclose(scores.class_bn_distance, by_class, rtol=1e-4)
    assert scores.all_bn_distance == pytest.approx(r_bn(tree.images), rel=1e-4)
    assert scores.all_bn_distance < scores.class_bn_distance.min() < scores.columns["bn_distance"].min()


def test_pixels_blanks_and_twins(tree, scores):
    flat = tree.images.flatten(1).double()
    assert np.allclose(scores.columns["brightness"], flat.mean(1), rtol=1e-5)
    assert np.allclose(scores.columns["contrast"], flat.std(1, correction=0), rtol=1e-5)
    assert np.flatnonzero(scores.columns["constant"]).tolist() == [7]
    twins = np.flatnonzero(scores.columns["duplicate_of"] >= 0)
    assert (twins.tolist(), scores.columns["duplicate_of"][twins].tolist()) == ([11], [5])


def test_variations_keep_their_own_scores_and_parents(tree, reference):
    scores = scores_of(tree.variations, tree.teacher, reference)
    stored = BankReader(tree.variations).load()
    assert np.array_equal(scores.columns["cosine"], stored.scores["cosine"])
    assert np.array_equal(scores.columns["parent"], stored.parents)
    assert not np.array_equal(scores.columns["confidence"], stored.scores["confidence"])


def test_batch_size_does_not_matter(tree, scores, reference):
    other = scores_of(tree.init, tree.teacher, reference)
    assert list(other.columns) == list(scores.columns)
    assert all(np.allclose(other.columns[name], values, atol=1e-4) for name, values in scores.columns.items())
    assert np.allclose(other.class_bn_distance, scores.class_bn_distance)


def test_kept_scores_are_read_if_they_are_of_this_bank_and_teacher(tree, scores, reference, tmp_path, monkeypatch):
    bank, other = tmp_path / "init.lmdb", tmp_path / "other.lmdb"
    shutil.copy(tree.init, bank)
    shutil.copy(tree.variations, other)
    write_scores(scores_file(bank), scores)
    assert scores_file(bank) == tmp_path / "init.scores.h5"
    again = scores_of(bank, None, reference)  # the teacher is not needed, and not there
    assert all(np.array_equal(again.columns[name], values) for name, values in scores.columns.items())
    for name in ("features", "top_classes", "top_probabilities"):
        assert np.array_equal(getattr(again, name), getattr(scores, name))
    assert (again.teacher, again.all_bn_distance) == (scores.teacher, scores.all_bn_distance)
    first = scores_file(bank).read_bytes()
    write_scores(scores_file(bank), again)
    assert scores_file(bank).read_bytes() == first
    shutil.copy(scores_file(bank), scores_file(other))  # of another bank: measured anew, for which the teacher is missed
    with pytest.raises(UserError, match=r"its teacher \(SHA-256 .*--teacher"):
        scores_of(other, None, reference)
    assert len(scores_of(other, tree.teacher, reference)) == len(BankReader(other))


def test_a_damaged_file_is_measured_anew(tree, scores, reference, tmp_path):
    bank = tmp_path / "init.lmdb"
    shutil.copy(tree.init, bank)
    scores_file(bank).write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(100))
    with pytest.raises(UserError, match="not a whole scores file"):
        read_scores(scores_file(bank))
    with h5py.File(tmp_path / "else.h5", "w") as file:
        file.attrs["format"] = "something else"
    with pytest.raises(UserError, match="not scores of this version"):
        read_scores(tmp_path / "else.h5")
    again = scores_of(bank, tree.teacher, reference)
    assert np.allclose(again.columns["entropy"], scores.columns["entropy"], atol=1e-5)


def test_a_growing_bank_is_scored_and_not_kept(tree, reference, tmp_path):
    meta = BankReader(tree.init).meta
    with BankWriter(tmp_path / "bank.lmdb", BankMeta(**meta.model_dump())) as writer:
        assert len(scores_of(writer.path, tree.teacher, reference)) == 0
        writer.append_images(tree.images[:10], tree.labels[:10])
        scores = scores_of(writer.path, tree.teacher, reference)
    assert len(scores) == 10
    assert scores.digest is None
    with pytest.raises(ValueError, match="growing"):
        write_scores(tmp_path / "bank.scores.h5", scores)


def test_a_network_without_batchnorm_has_no_bn_distance(tree, reference):
    scores = measure(BankReader(tree.init), _Plain(), "plain", "0" * 64, reference)
    assert "bn_distance" not in scores.columns
    assert np.isnan(scores.all_bn_distance)
    assert np.isnan(scores.class_bn_distance).all()


class _Plain(torch.nn.Module):
    def forward(self, x, return_features=False):
        pooled = F.adaptive_avg_pool2d(x, 2).flatten(1)
        logits = pooled[:, :3]
        return (logits, [pooled]) if return_features else logits


def test_a_teacher_of_other_images_is_refused(tree, reference, tmp_path):
    from dfkd.models.weights import save_weights

    model = build_model("wrn101", 5, 1, 8)
    info = tree.info.model_copy(update={"classes": list("abcde")})
    save_weights(
        tmp_path / "weights.safetensors", model, tree.card.model_copy(update={"dataset": info, "architecture": "wrn101"})
    )
    with pytest.raises(UserError, match="its images or classes are not those of"):
        scores_of(tree.init, tmp_path / "weights.safetensors", reference)
