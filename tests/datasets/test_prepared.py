import fcntl

import h5py
import numpy as np
import pytest
import torch

from dfkd.datasets.info import DatasetInfo
from dfkd.datasets.prepared import read_info, read_provenance, read_split, split_names, write_prepared
from dfkd.errors import UserError

INFO = DatasetInfo(
    name="toy", classes=["a", "b", "ç"], image_size=4, channels=3, mean=[0.5] * 3, std=[0.25] * 3, crop_padding=1, flip=True
)


def arrays(count, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, 3, 4, 4), dtype=torch.uint8, generator=generator), torch.arange(count) % 3


@pytest.fixture
def written(tmp_path):
    path = tmp_path / "toy.h5"
    write_prepared(path, INFO, {"train": arrays(600), "test": arrays(7, 1)}, {"source": "made"})
    return path


def test_round_trip(written):
    assert read_info(written) == INFO
    assert read_provenance(written) == {"source": "made"}
    assert split_names(written) == ["test", "train"]
    for split, (images, labels) in {"train": arrays(600), "test": arrays(7, 1)}.items():
        read_images, read_labels = read_split(written, split)
        assert torch.equal(read_images, images)
        assert torch.equal(read_labels, labels)


def test_chunks_and_types_are_explicit(written):
    with h5py.File(written) as file:
        assert file["train/images"].chunks == (256, 3, 4, 4)
        assert file["train/labels"].chunks == (256,)
        assert file["test/images"].chunks == (7, 3, 4, 4)
        assert file["train/images"].dtype == np.uint8
        assert file["train/labels"].dtype == np.int64
        assert file.attrs["format"] == "dfkd-dataset"
        assert file.attrs["version"] == 1


def test_equal_content_gives_equal_bytes(written, tmp_path):
    again = tmp_path / "elsewhere" / "again.h5"
    write_prepared(again, INFO, {"test": arrays(7, 1), "train": arrays(600)}, {"source": "made"})
    assert again.read_bytes() == written.read_bytes()


def test_descriptions_may_be_long(tmp_path):
    path = tmp_path / "many.h5"
    info = INFO.model_copy(update={"classes": [f"class {number} of a great many" for number in range(10_000)]})
    write_prepared(path, info, {"test": arrays(3)}, {"note": "x" * 100_000})
    assert read_info(path) == info
    assert len(read_provenance(path)["note"]) == 100_000


def test_an_absent_split_is_named(tmp_path):
    path = tmp_path / "toy.test.h5"
    write_prepared(path, INFO, {"test": arrays(7)}, {})
    with pytest.raises(UserError, match=r"toy\.test\.h5: has no train split \(it holds: test\)"):
        read_split(path, "train")


@pytest.mark.parametrize("place", ["images", "labels"])
def test_a_changed_value_fails_the_checksum(written, place):
    with h5py.File(written, "r+") as file:
        first = file["train"][place][0]
        file["train"][place][0] = (first + 1) % 3
    read_split(written, "test")
    with pytest.raises(UserError, match=r"toy\.h5: the prepared data set is damaged .*checksum differs"):
        read_split(written, "train")


@pytest.mark.parametrize("share", [0.01, 0.3, 0.6, 0.99])
def test_a_truncated_file_is_refused(written, share):
    content = written.read_bytes()
    written.write_bytes(content[: int(share * len(content))])
    with pytest.raises(UserError, match=r"toy\.h5: .*(damaged or cut short|not a prepared data set)"):
        read_split(written, "train")


def test_files_of_others_are_refused(tmp_path):
    with pytest.raises(UserError, match=r"none\.h5: no such file"):
        read_info(tmp_path / "none.h5")
    text = tmp_path / "text.h5"
    text.write_text("not HDF5")
    with pytest.raises(UserError, match=r"text\.h5: not a prepared data set \(no HDF5 file\)"):
        read_info(text)
    other = tmp_path / "other.h5"
    with h5py.File(other, "w") as file:
        file["x"] = 1
    with pytest.raises(UserError, match=r"other\.h5: an HDF5 file, but not a prepared data set"):
        read_split(other, "test")


def test_another_version_is_refused(written):
    with h5py.File(written, "r+") as file:
        file.attrs["version"] = 2
    with pytest.raises(UserError, match="format version 2, this dfkd reads version 1"):
        read_info(written)


@pytest.mark.parametrize("change", ["images", "labels", "info"])
def test_missing_parts_are_damage(written, change):
    with h5py.File(written, "r+") as file:
        if change == "info":
            file.attrs["info"] = "{}"
        else:
            del file["train"][change]
    with pytest.raises(UserError, match="damaged or cut short"):
        read_split(written, "train")


def test_reading_needs_no_lock(written):
    with written.open("rb") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(BlockingIOError):
            h5py.File(written, "r", locking=True)
        assert read_info(written) == INFO


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (torch.zeros(2, 3, 5, 5, dtype=torch.uint8), torch.zeros(2, dtype=torch.int64), r"shape \(3, 5, 5\)"),
        (torch.zeros(2, 3, 4, 4), torch.zeros(2, dtype=torch.int64), "float32 images"),
        (torch.zeros(2, 3, 4, 4, dtype=torch.uint8), torch.zeros(3, dtype=torch.int64), "has 2 images, but"),
        (torch.zeros(2, 3, 4, 4, dtype=torch.uint8), torch.tensor([0, 3]), "labels 0 to 3 for 3 classes"),
        (torch.zeros(2, 3, 4, 4, dtype=torch.uint8), torch.tensor([-1, 0]), "labels -1 to 0 for 3 classes"),
        (torch.zeros(0, 3, 4, 4, dtype=torch.uint8), torch.zeros(0, dtype=torch.int64), "is empty"),
    ],
)
def test_arrays_that_do_not_fit_are_not_written(tmp_path, images, labels, message):
    with pytest.raises(UserError, match=message):
        write_prepared(tmp_path / "x.h5", INFO, {"test": (images, labels)}, {})
    assert list(tmp_path.iterdir()) == []
