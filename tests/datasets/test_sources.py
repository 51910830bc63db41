import gzip
import hashlib
import pickle
import struct
import tarfile

import numpy as np
import pytest
import scipy.io
import torch
from torchvision import datasets

from dfkd.datasets.info import DatasetInfo
from dfkd.datasets.prepared import write_prepared
from dfkd.datasets.sources import SOURCES, TORCHVISION, load_source
from dfkd.errors import UserError
from dfkd.files import file_sha256
from dfkd.settings import DatasetSettings

NOWHERE = "http://127.0.0.1:9/"  # the port `discard`: refused at once
RANDOM = np.random.default_rng(0)


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    """torchvision's own code runs, but every address leads nowhere."""
    monkeypatch.setenv("no_proxy", "*")
    for kind in (datasets.MNIST, datasets.FashionMNIST):
        monkeypatch.setattr(kind, "mirrors", [NOWHERE])
    for kind in (datasets.CIFAR10, datasets.CIFAR100):
        monkeypatch.setattr(kind, "url", NOWHERE + kind.filename)
    split_list = {split: [NOWHERE + name, name, md5] for split, (_, name, md5) in datasets.SVHN.split_list.items()}
    monkeypatch.setattr(datasets.SVHN, "split_list", split_list)


def md5(path):
    return hashlib.md5(path.read_bytes()).hexdigest()


def load(source, downloads, **settings):
    return load_source(DatasetSettings(source=source, **settings), downloads)


@pytest.fixture
def tiny_mnist(tmp_path, monkeypatch):
    """Archives of MNIST's format, and their checksums where torchvision looks for those of the real ones."""
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    arrays, resources = {}, []
    for split, name, count in (("train", "train", 20), ("test", "t10k", 10)):
        images = RANDOM.integers(0, 256, (count, 28, 28), dtype=np.uint8)
        labels = np.arange(count, dtype=np.uint8) % 10
        arrays[split] = images, labels
        for file, array in ((f"{name}-images-idx3-ubyte", images), (f"{name}-labels-idx1-ubyte", labels)):
            header = struct.pack(f">I{array.ndim}I", 0x800 + array.ndim, *array.shape)
            path = raw / f"{file}.gz"
            path.write_bytes(gzip.compress(header + array.tobytes()))
            resources.append((path.name, md5(path)))
    monkeypatch.setattr(datasets.MNIST, "resources", resources)
    return raw, arrays


def test_mnist(tiny_mnist, tmp_path):
    raw, arrays = tiny_mnist
    data = load("torchvision:mnist", tmp_path)
    for split, (images, labels) in arrays.items():
        assert np.array_equal(data.splits[split][0].numpy(), images[:, None])
        assert data.splits[split][1].tolist() == labels.tolist()
    assert data.classes == [str(digit) for digit in range(10)]
    assert data.provenance["source"] == "torchvision:MNIST"
    assert data.provenance["checksums"] == {path.name: file_sha256(path) for path in raw.glob("*.gz")}
    assert len(data.provenance["checksums"]) == 4


def test_mnist_is_unpacked_anew(tiny_mnist, tmp_path):
    raw, arrays = tiny_mnist
    load("torchvision:MNIST", tmp_path)
    unpacked = raw / "train-images-idx3-ubyte"
    unpacked.write_bytes(unpacked.read_bytes()[:-28])  # as a killed run leaves it
    data = load("torchvision:MNIST", tmp_path)
    assert np.array_equal(data.splits["train"][0].numpy(), arrays["train"][0][:, None])


def test_a_damaged_archive_is_not_used(tiny_mnist, tmp_path):
    archive = tiny_mnist[0] / "t10k-labels-idx1-ubyte.gz"
    archive.write_bytes(archive.read_bytes()[:-1] + b"x")
    with pytest.raises(UserError, match=r"torchvision:MNIST': not in .* could not be downloaded"):
        load("torchvision:MNIST", tmp_path)


def test_cifar10(tmp_path, monkeypatch):
    folder = tmp_path / "made" / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    pixels = {
        name: RANDOM.integers(0, 256, (4, 3072), dtype=np.uint8) for name in ("data_batch_1", "data_batch_2", "test_batch")
    }
    for name, data in pixels.items():
        (folder / name).write_bytes(pickle.dumps({"data": data, "labels": [3, 1, 2, 0]}))
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": ["a", "b", "c", "d"]}))
    downloads = tmp_path / "downloads"
    downloads.mkdir()
    with tarfile.open(downloads / "cifar-10-python.tar.gz", "w:gz") as archive:
        archive.add(folder, folder.name)
    kind = datasets.CIFAR10
    monkeypatch.setattr(kind, "tgz_md5", md5(downloads / kind.filename))
    monkeypatch.setattr(kind, "train_list", [[name, md5(folder / name)] for name in ("data_batch_1", "data_batch_2")])
    monkeypatch.setattr(kind, "test_list", [["test_batch", md5(folder / "test_batch")]])
    monkeypatch.setattr(kind, "meta", {**kind.meta, "md5": md5(folder / "batches.meta")})

    data = load("torchvision:CIFAR10", downloads)
    expected = np.concatenate([pixels["data_batch_1"], pixels["data_batch_2"]]).reshape(-1, 3, 32, 32)
    assert np.array_equal(data.splits["train"][0].numpy(), expected)
    assert data.splits["train"][0].is_contiguous()
    assert data.splits["train"][1].tolist() == [3, 1, 2, 0] * 2
    assert np.array_equal(data.splits["test"][0].numpy(), pixels["test_batch"].reshape(-1, 3, 32, 32))
    assert data.classes == ["a", "b", "c", "d"]
    assert data.provenance["checksums"] == {kind.filename: file_sha256(downloads / kind.filename)}


def test_svhn_without_extra(tmp_path, monkeypatch):
    pixels = {split: RANDOM.integers(0, 256, (32, 32, 3, 5), dtype=np.uint8) for split in ("train", "test")}
    split_list = dict(datasets.SVHN.split_list)
    for split, data in pixels.items():
        path = tmp_path / f"{split}_32x32.mat"
        scipy.io.savemat(path, {"X": data, "y": np.array([[10], [1], [2], [10], [9]], dtype=np.uint8)})
        split_list[split] = [NOWHERE + path.name, path.name, md5(path)]
    monkeypatch.setattr(datasets.SVHN, "split_list", split_list)
    data = load("torchvision:svhn", tmp_path)
    assert sorted(data.splits) == ["test", "train"]
    assert np.array_equal(data.splits["train"][0].numpy(), pixels["train"].transpose(3, 2, 0, 1))
    assert data.splits["test"][1].tolist() == [0, 1, 2, 0, 9]  # the file says 10 for the digit 0
    assert sorted(data.provenance["checksums"]) == ["test_32x32.mat", "train_32x32.mat"]


@pytest.mark.parametrize(
    ("name", "files", "below"),
    [
        ("MNIST", ["train-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte.gz"], "MNIST/raw"),
        ("FashionMNIST", ["train-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte.gz"], "FashionMNIST/raw"),
        ("cifar10", ["cifar-10-python.tar.gz"], ""),
        ("CIFAR100", ["cifar-100-python.tar.gz"], ""),
        ("SVHN", ["train_32x32.mat", "test_32x32.mat"], ""),
    ],
)
def test_without_network_the_sentence_says_what_from_where_and_whereto(tmp_path, name, files, below):
    with pytest.raises(UserError) as caught:
        load(f"torchvision:{name}", tmp_path / "downloads")
    sentence = str(caught.value)
    for file in files:
        assert file in sentence
    assert f" from {NOWHERE} into {tmp_path / 'downloads' / below}" in sentence
    assert "Connection refused" in sentence
    assert sentence.endswith("run the same command again.")
    assert "\n" not in sentence


def test_digits(tmp_path):
    images, labels = load("sklearn:digits", tmp_path).splits["all"]
    assert images.shape == (1797, 1, 8, 8)
    assert images.dtype == torch.uint8
    assert sorted(set(images.flatten().tolist())) == [255 * level // 16 for level in range(17)]
    assert labels.bincount().tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]
    assert list(tmp_path.iterdir()) == []


def test_hdf5(tmp_path):
    info = DatasetInfo(
        name="x", classes=["a", "b"], image_size=4, channels=1, mean=[0.4], std=[0.3], crop_padding=0, flip=False
    )
    images, labels = torch.randint(0, 256, (6, 1, 4, 4), dtype=torch.uint8), torch.arange(6) % 2
    path = tmp_path / "x.h5"
    write_prepared(path, info, {"test": (images, labels)}, {})
    data = load(f"hdf5:{path}", tmp_path, channels=1)
    assert torch.equal(data.splits["test"][0], images)
    assert torch.equal(data.splits["test"][1], labels)
    assert data.normalisation == ([0.4], [0.3])
    assert data.provenance == {"source": "hdf5:x.h5", "checksums": {"x.h5": file_sha256(path)}}
    write_prepared(path, info, {"train": (images, labels)}, {})
    data = load(f"hdf5:{path}", tmp_path, channels=3)
    assert list(data.splits) == ["all"]
    assert data.normalisation is None


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("cifar10", "'cifar10': expected KIND:VALUE"),
        ("folder:", "'folder:': expected KIND:VALUE"),
        ("torchvison:CIFAR10", "unknown kind 'torchvison'; the nearest known: torchvision"),
        ("torchvision:CIFAR11", "torchvision:CIFAR11': unknown data set; the nearest known: cifar10"),
        ("sklearn:iris", "unknown data set; known: digits"),
        ("hdf5:/nowhere/x.h5", "/nowhere/x.h5: no such file"),
    ],
)
def test_unknown_sources_are_refused(tmp_path, source, message):
    with pytest.raises(UserError, match=message):
        load(source, tmp_path)


def test_registries():
    assert sorted(SOURCES) == ["folder", "hdf5", "packed", "sklearn", "torchvision"]
    assert sorted(TORCHVISION) == ["cifar10", "cifar100", "fashionmnist", "mnist", "svhn"]
