import numpy as np
import pytest
import scipy.linalg
import torch

from dfkd.bank.reader import BankReader
from dfkd.datasets.prepared import read_split
from dfkd.datasets.views import normalise, to_unit
from dfkd.errors import UserError
from dfkd.inspection.distances import PenultimateFeatures, _measure, distances
from dfkd.models.weights import load_model


@pytest.fixture(scope="module")
def features(tree, reference):
    return PenultimateFeatures(load_model(tree.teacher, reference)[0], tree.info, reference)


def of(tree, reference, images):
    model, _ = load_model(tree.teacher, reference)
    return model(normalise(to_unit(images), tree.info), return_features=True)[1][-1].double().numpy()


def frechet(x, y):
    """||m - m'||² + Tr(C + C' - 2 (C C')^½), the matrix root by scipy."""
    root = scipy.linalg.sqrtm(np.cov(x.T) @ np.cov(y.T)).real
    return ((x.mean(0) - y.mean(0)) ** 2).sum() + np.trace(np.cov(x.T) + np.cov(y.T) - 2 * root)


def unbiased_mmd(x, y):
    """Of the kernel (x·y / D + 1)³ over all pairs."""
    k = [(a @ b.T / x.shape[1] + 1) ** 3 for a, b in ((x, x), (y, y), (x, y))]
    n, m = len(x), len(y)
    within = (k[0].sum() - np.trace(k[0])) / (n * (n - 1)) + (k[1].sum() - np.trace(k[1])) / (m * (m - 1))
    return within - 2 * k[2].mean()


def test_features_are_the_teachers_penultimate_ones(tree, features, reference):
    wanted = of(tree, reference, tree.images)
    assert features.num_features == wanted.shape[1]
    assert np.allclose(features(tree.images), wanted, atol=1e-6)
    assert features(tree.images).dtype == torch.float64


def test_fid_and_kid_by_another_computation(tree, features, reference):
    ours, theirs = tree.images, BankReader(tree.variations).load().images[:60]
    measured = _measure(features, iter(ours.split(7)), iter(theirs.split(13)), 120, 60)
    x, y = of(tree, reference, ours), of(tree, reference, theirs)
    assert measured["fid"] == pytest.approx(frechet(x, y), rel=1e-4)
    assert measured["fid"] > 0.1
    assert measured["kid"] == pytest.approx(unbiased_mmd(x, y), rel=1e-6)  # all images in every subset
    assert measured["kid_std"] == pytest.approx(0, abs=1e-9)


def test_each_image_goes_through_the_teacher_once(tree, reference, monkeypatch):
    seen = []
    original = PenultimateFeatures.forward
    monkeypatch.setattr(PenultimateFeatures, "forward", lambda self, images: seen.append(len(images)) or original(self, images))
    distances(tree.init, tree.variations, None, reference)
    assert sum(seen) == 1 + 60 + len(BankReader(tree.variations))  # 1: to learn how many features there are


def test_against_banks_and_data_sets(tree, tiny_data, reference):
    state = torch.get_rng_state()
    found = distances(tree.init, tree.variations, None, reference)
    assert torch.equal(torch.get_rng_state(), state)
    variations = BankReader(tree.variations).load().images
    assert found["fid"] == pytest.approx(frechet(of(tree, reference, tree.images), of(tree, reference, variations)), rel=1e-4)
    assert (found["images"], found["split"], found["kid_subset_size"]) == ([60, len(variations)], None, 30)
    assert distances(tree.init, tree.variations, tree.teacher, reference) == found  # the subsets are seeded
    train, test = (distances(tree.init, path, None, reference) for path in (tiny_data.data, tiny_data.test))
    assert (train["split"], train["images"]) == ("train", [60, 120])
    assert (test["split"], test["images"]) == ("test", [60, 60])
    images, _ = read_split(tiny_data.data, "train")
    assert train["fid"] == pytest.approx(frechet(of(tree, reference, tree.images), of(tree, reference, images)), rel=1e-4)
    assert test["fid"] < found["fid"]  # the bank is the test split but for two images


def test_refusals(tree, reference, tmp_path):
    import shutil

    from dfkd.bank.writer import BankWriter

    alone = shutil.copy(tree.init, tmp_path / "init.lmdb")
    with pytest.raises(UserError, match="its teacher is not in the results around it; name it with --teacher"):
        distances(alone, tree.init, None, reference)
    with pytest.raises(UserError, match=r"absent\.lmdb: no such bank"):
        distances(tree.init, tmp_path / "absent.lmdb", None, reference)
    with BankWriter(tmp_path / "few.lmdb", BankReader(tree.init).meta) as writer:
        writer.append_images(tree.images[:3], tree.labels[:3])
    with pytest.raises(UserError, match="hold 60 and 3 images; FID and KID need four on each side"):
        distances(tree.init, tmp_path / "few.lmdb", None, reference)
    info = tree.info.model_copy(update={"channels": 3, "mean": [0.5] * 3, "std": [0.2] * 3})
    with BankWriter(tmp_path / "rgb.lmdb", BankReader(tree.init).meta.model_copy(update={"dataset": info})) as writer:
        writer.append_images(tree.images.repeat(1, 3, 1, 1), tree.labels)
    with pytest.raises(UserError, match=r"rgb\.lmdb: its images are \(3, 8, 8\), those of teacher"):
        distances(tree.init, tmp_path / "rgb.lmdb", None, reference)
