"""Banks into the formats of others and back: which formats there are, and which one a file or folder is in."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import h5py

from dfkd.bank.arrays import export_hdf5, hdf5_note, hdf5_rows
from dfkd.bank.exchange import NOTE_FILE, Note, Row, publish_new, restore
from dfkd.bank.folder import TABLE, export_folder, folder_note, folder_rows
from dfkd.bank.format import BankMeta
from dfkd.bank.parquet import export_parquet, parquet_note, parquet_rows
from dfkd.bank.webdataset import export_webdataset, webdataset_note, webdataset_rows
from dfkd.datasets.info import DatasetInfo
from dfkd.errors import UserError


class Format(NamedTuple):
    """How a bank is written in a format, and what is read back."""

    export: Callable[[str | Path, str | Path], int]
    note: Callable[[Path], Note | None]
    rows: Callable[[Path, DatasetInfo, Note | None], Iterator[Row]]


FORMATS = {
    "folder": Format(export_folder, folder_note, folder_rows),
    "webdataset": Format(export_webdataset, webdataset_note, webdataset_rows),
    "hf": Format(export_parquet, parquet_note, parquet_rows),
    "hdf5": Format(export_hdf5, hdf5_note, hdf5_rows),
}


def format_of(source: str | Path) -> str:
    """Which of `FORMATS` a file or folder is in, by what it holds.

    Raises:
        UserError: it does not exist, or is none of them.
    """
    path = Path(source)
    if path.is_dir():
        exported = (path / NOTE_FILE).is_file() and not (path / TABLE).is_file()
        if exported or any(path.glob("*.tar")):  # a bank without images has no tar file
            return "webdataset"
        return "hf" if any(path.glob("*.parquet")) or any(path.glob("data/*.parquet")) else "folder"
    if not path.exists():
        raise UserError(f"{path}: no such file or folder; name an export of a bank or a folder of images.")
    if path.suffix == ".parquet":
        return "hf"
    if h5py.is_hdf5(path):
        return "hdf5"
    raise UserError(f"{path}: neither a folder nor a Parquet or HDF5 file; name an export of a bank or a folder of images.")


def import_bank(source: str | Path, output: str | Path, info: DatasetInfo | None, teacher_sha256: str | None) -> BankMeta:
    """Publish the bank of an export, or a new one of images from elsewhere. Returns its meta.

    An export of `dfkd` says which bank it was: it comes back with its labels, parents, scores and metadata, byte for byte
    (with one version of liblmdb).

    Args:
        source: an export, or a folder of `<label or class name>/*.png`, tar files of samples, Parquet files.
        output: the bank to write.
        info: the teacher's data set; needed for images from elsewhere.
        teacher_sha256: of the teacher's weights; for an export it must be that of its bank.

    Raises:
        UserError: the source cannot be read, is not what was exported, or is from elsewhere and no teacher is named.
    """
    path = Path(source)
    kind = FORMATS[format_of(path)]
    note = kind.note(path)
    if note is not None:
        if teacher_sha256 not in (None, note.meta.teacher_sha256):
            raise UserError(
                f"{path}: exported from a bank of teacher {note.meta.teacher_sha256[:12]}, not of {teacher_sha256[:12]}; "  # type: ignore[index]
                "leave --teacher away to get that bank back."
            )
        return restore(output, note, kind.rows(path, note.meta.dataset, note), path)
    if info is None or teacher_sha256 is None:
        raise UserError(f"{path}: says of no bank that it was exported from; name the teacher of its images with --teacher.")
    return publish_new(output, info, teacher_sha256, kind.rows(path, info, None), path)
