import resource

import h5py
import numpy as np
import pytest

from dfkd.errors import UserError
from dfkd.hdf5 import atomic_hdf5


@pytest.fixture
def full_disk():
    """Limits the size of new files, which is to a writer what a full disk is: a write that fails."""
    former = resource.getrlimit(resource.RLIMIT_FSIZE)

    def limit(size):
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, former[1]))

    yield limit
    resource.setrlimit(resource.RLIMIT_FSIZE, former)


@pytest.mark.parametrize("size", [100, 5000, 50_000, 99_000])
def test_a_full_disk_is_one_sentence_and_leaves_nothing(tmp_path, full_disk, size):
    path = tmp_path / "x.h5"
    full_disk(size)
    with pytest.raises(UserError, match=r"x\.h5: could not be written \(File too large\); make space"):
        with atomic_hdf5(path) as file:
            file.create_dataset("a", data=np.ones(100_000, np.uint8), chunks=(1000,), track_times=False)
    assert list(tmp_path.iterdir()) == []
    full_disk(200_000)
    with atomic_hdf5(path) as file:
        file["a"] = np.arange(5)
    with h5py.File(path) as file:
        assert file["a"][()].tolist() == [0, 1, 2, 3, 4]


def test_an_error_in_the_block_leaves_the_former_file(tmp_path):
    path = tmp_path / "x.h5"
    path.write_text("former")
    with pytest.raises(ZeroDivisionError):
        with atomic_hdf5(path) as file:
            file["a"] = 1 / 0
    assert path.read_text() == "former"
    assert list(tmp_path.iterdir()) == [path]
