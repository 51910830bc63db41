"""A bank as one HDF5 file of plain arrays, and back."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import h5py
import numpy as np

from dfkd.bank.exchange import Note, Row, note_of, parse_note
from dfkd.bank.format import BLOCK_IMAGES
from dfkd.bank.reader import BankReader
from dfkd.datasets.info import DatasetInfo
from dfkd.errors import UserError
from dfkd.hdf5 import atomic_hdf5

FORMAT = "dfkd bank export 1"


def export_hdf5(path: str | Path, output: str | Path) -> int:
    """Write `images` uint8 [N,C,H,W], `labels` and `parents` int64 [N], `scores/<name>` float32 [N], chunked by 256 images.

    Attributes say data set, classes, kind and teacher; `bank` is the bank's whole metadata as JSON. Equal banks give equal
    bytes. Returns the number of images.

    Raises:
        UserError: the bank cannot be read, or the disk is full (the partial file is removed).
    """
    reader = BankReader(path, allow_incomplete=True)
    note, meta = note_of(reader), reader.meta
    count = len(reader)
    kinds: dict[str, tuple[tuple[int, ...], str]] = {"images": (meta.dataset.shape, "u1"), "labels": ((), "<i8")}
    kinds |= {"parents": ((), "<i8")} | {f"scores/{name}": ((), "<f4") for name in note.scores}
    with atomic_hdf5(output) as file:
        file.attrs.update({"format": FORMAT, "dataset": meta.dataset.name, "classes": meta.dataset.classes})
        file.attrs.update({"kind": meta.kind, "teacher_sha256": meta.teacher_sha256})
        file.create_dataset("bank", data=note.model_dump_json(), track_times=False)  # too long for an attribute
        for name, (shape, kind) in kinds.items():
            chunks = (min(BLOCK_IMAGES, count), *shape) if count else None
            file.create_dataset(name, (count, *shape), kind, chunks=chunks, track_times=False)
        start = 0
        for block in reader.blocks():
            part = slice(start, start := start + len(block))
            arrays = {"images": block.images, "labels": block.labels, "parents": block.parents}
            arrays |= {f"scores/{name}": values for name, values in block.scores.items()}
            for name, values in arrays.items():
                if values is not None:
                    file[name][part] = values.numpy()
    return count


def hdf5_note(path: Path) -> Note:
    """The note of an exported file. An HDF5 file of another kind is a `UserError`."""
    try:
        with h5py.File(path, "r", locking=False) as file:
            if file.attrs.get("format") != FORMAT:
                raise UserError(f"{path}: an HDF5 file, but not an exported bank; name one, or a folder of images.")
            return parse_note(file["bank"][()], path)
    except (OSError, RuntimeError, KeyError, TypeError) as error:
        raise UserError(f"{path}: not a whole HDF5 file ({error}); copy or export it again.") from None


def hdf5_rows(path: Path, info: DatasetInfo, note: Note | None) -> Iterator[Row]:
    """The images of an exported file in their order."""
    names = note.scores if note is not None else []
    try:
        with h5py.File(path, "r", locking=False) as file:
            for start in range(0, len(file["labels"]), BLOCK_IMAGES):
                part = slice(start, start + BLOCK_IMAGES)
                scores = np.array([file[f"scores/{name}"][part] for name in names])
                columns = scores.T.tolist() if names else [()] * len(file["labels"][part])
                labels, parents = file["labels"][part].tolist(), file["parents"][part].tolist()
                yield from map(Row, file["images"][part], labels, parents, map(tuple, columns))
    except (OSError, RuntimeError, KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path}: not a whole exported bank ({error}); copy or export it again.") from None
