"""Writing HDF5 whole or not at all, on a full disk too."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py

from dfkd.files import atomic_path


class _PatientFile(io.FileIO):
    """A file whose failed writes are kept for later: an error in the middle of its own makes the HDF5 library crash."""

    failure: OSError | None = None

    def write(self, data: Any) -> int:
        view = memoryview(data).cast("B")
        done = 0
        while done < len(view) and self.failure is None:
            try:
                done += super().write(view[done:]) or 0
            except OSError as error:
                self.failure = error
        return len(view)

    def truncate(self, size: int | None = None) -> int:
        if self.failure is None:
            try:
                return super().truncate(size)
            except OSError as error:
                self.failure = error
        return size or 0


@contextlib.contextmanager
def atomic_hdf5(path: str | Path) -> Iterator[h5py.File]:
    """A new HDF5 file that appears as `path` when the block ends without an error.

    Give `track_times=False` to the data sets made in it, and equal content makes equal bytes.

    Raises:
        UserError: the disk is full or the folder cannot be written; the partial file is removed.
    """
    with atomic_path(path) as temporary, _PatientFile(temporary, "w+") as raw:
        with h5py.File(raw, "w", libver="earliest") as file:
            yield file
        if raw.failure is not None:
            raise raw.failure
