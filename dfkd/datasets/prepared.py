"""The prepared data set: one HDF5 file with images, labels, `DatasetInfo` and provenance.

Layout: attributes `format`, `version`, `info` (JSON), `provenance` (JSON); groups `train` and `test`, each with `images`
uint8 [N,C,H,W] and `labels` int64 [N], chunked by 256, and the SHA-256 of both arrays' bytes. Either group may be absent; the
attribute `packed_train` (JSON) names the packed file that holds the training images in that case.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from textwrap import shorten
from typing import Any

import h5py
import torch
from pydantic import ValidationError

from dfkd.datasets.arrays import Split
from dfkd.datasets.info import DatasetInfo
from dfkd.errors import UserError
from dfkd.hdf5 import atomic_hdf5

FORMAT = "dfkd-dataset"
VERSION = 1
CHUNK = 256  # images; h5py's own guess reads random batches ten times slower


def write_prepared(
    path: str | Path,
    info: DatasetInfo,
    splits: Mapping[str, Split],
    provenance: Mapping[str, Any],
    packed_train: Mapping[str, Any] | None = None,
) -> None:
    """Write images uint8 [N,C,H,W] and labels int64 [N] of each split, whole or not at all.

    `packed_train` names the packed file (`file`, `digest`) that holds the training images instead of this one.
    Equal arguments give equal bytes: the file holds no times and its objects are written in a fixed order.

    Raises:
        UserError: the arrays do not fit `info`, or the disk is full (the partial file is removed).
    """
    for split, (images, labels) in splits.items():
        fault = _misfit(images, labels, info)
        if fault:
            raise UserError(f"{path}: the {split} split {fault}.")
    with atomic_hdf5(path) as file:
        file.attrs["format"] = FORMAT
        file.attrs["version"] = VERSION
        file.attrs["info"] = info.model_dump_json()
        file.attrs["provenance"] = json.dumps(provenance, sort_keys=True, ensure_ascii=False)
        if packed_train is not None:
            file.attrs["packed_train"] = json.dumps(packed_train, sort_keys=True, ensure_ascii=False)
        for split in sorted(splits):
            group = file.create_group(split)
            arrays = dict(zip(("images", "labels"), splits[split], strict=True))
            for key, tensor in arrays.items():
                chunks = (min(CHUNK, len(tensor)), *tensor.shape[1:])
                group.create_dataset(key, data=tensor.contiguous().numpy(), chunks=chunks, track_times=False)
            group.attrs["sha256"] = _checksum(*splits[split])


def read_info(path: str | Path) -> DatasetInfo:
    """Name, classes, shape and normalisation of a prepared data set.

    Raises:
        UserError: the file is missing, damaged, of another format or of another version.
    """
    with _opened(path) as file:
        return _info_of(file)


def read_provenance(path: str | Path) -> dict[str, Any]:
    """Where a prepared data set comes from: source, checksums, split. Errors as in `read_info`."""
    with _opened(path) as file:
        return dict(json.loads(file.attrs["provenance"]))


def read_packed_train(path: str | Path) -> dict[str, str] | None:
    """`file` and `digest` of the packed file that holds the training images; None if this one does.

    Errors as in `read_info`.
    """
    with _opened(path) as file:
        return dict(json.loads(file.attrs["packed_train"])) if "packed_train" in file.attrs else None


def split_names(path: str | Path) -> list[str]:
    """The splits that a prepared data set holds, of `test` and `train`. Errors as in `read_info`."""
    with _opened(path) as file:
        return [split for split in ("test", "train") if split in file]


def read_split(path: str | Path, split: str) -> Split:
    """Images uint8 [N,C,H,W] and labels int64 [N] of `train` or `test`, checked against their SHA-256.

    Raises:
        UserError: the split is absent; or as in `read_info`.
    """
    with _opened(path) as file:
        if split == "train" and "packed_train" in file.attrs:
            name = json.loads(file.attrs["packed_train"])["file"]
            raise UserError(f"{path}: its training images lie in {name}, which what trains on them takes with --packed.")
        if split not in file:
            held = ", ".join(sorted(file)) or "none"
            raise UserError(f"{path}: has no {split} split (it holds: {held}); prepare the data set with one.")
        info = _info_of(file)
        group = file[split]
        images, labels = (torch.from_numpy(group[key][()]) for key in ("images", "labels"))
        fault = _misfit(images, labels, info)
        if fault:
            raise ValueError(f"the {split} split {fault}")
        if _checksum(images, labels) != group.attrs["sha256"]:
            raise ValueError(f"the {split} split's checksum differs")
    return images, labels


@contextlib.contextmanager
def _opened(path: str | Path) -> Iterator[h5py.File]:
    """The file, open for reading without a lock; whatever h5py finds wrong with it becomes one sentence."""
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: no such file; make it with `dfkd prepare`.")
    try:
        if not h5py.is_hdf5(path):
            raise UserError(f"{path}: not a prepared data set (no HDF5 file); make it with `dfkd prepare`.")
        # a lock would fail on network file systems and beside a writer; a finished file never changes
        with h5py.File(path, "r", locking=False) as file:
            _check_format(path, file)
            yield file
    except (OSError, KeyError, ValueError, TypeError, AttributeError, RuntimeError, ValidationError) as error:
        reason = shorten(str(error), 200)
        raise UserError(f"{path}: the prepared data set is damaged or cut short ({reason}); prepare it again.") from error


def _check_format(path: Path, file: h5py.File) -> None:
    if file.attrs.get("format") != FORMAT:
        raise UserError(f"{path}: an HDF5 file, but not a prepared data set of dfkd; make it with `dfkd prepare`.")
    version = int(file.attrs["version"])
    if version != VERSION:
        raise UserError(f"{path}: format version {version}, this dfkd reads version {VERSION}; prepare the data set again.")


def _info_of(file: h5py.File) -> DatasetInfo:
    return DatasetInfo.model_validate_json(file.attrs["info"])


def _misfit(images: torch.Tensor, labels: torch.Tensor, info: DatasetInfo) -> str:
    """What is wrong with the arrays of one split; empty if nothing is."""
    if images.dtype != torch.uint8 or tuple(images.shape[1:]) != info.shape:
        return f"has {images.dtype} images of shape {tuple(images.shape[1:])} where uint8 of {info.shape} is expected"
    if labels.dtype != torch.int64 or labels.shape != images.shape[:1]:
        return f"has {images.shape[0]} images, but {labels.dtype} labels of shape {tuple(labels.shape)}"
    if len(labels) == 0:
        return "is empty"
    if int(labels.min()) < 0 or int(labels.max()) >= len(info.classes):
        return f"has labels {int(labels.min())} to {int(labels.max())} for {len(info.classes)} classes"
    return ""


def _checksum(images: torch.Tensor, labels: torch.Tensor) -> str:
    digest = hashlib.sha256(images.contiguous().numpy().data)
    digest.update(labels.contiguous().numpy().data)
    return digest.hexdigest()
