"""The transfer set: images from outside on which a student imitates its teacher. Only the teacher's own data have labels."""

from __future__ import annotations

import hashlib
import logging
import os
from pathlib import Path

import torch

from dfkd.datasets.arrays import Split
from dfkd.datasets.folder import read_images, visible_files
from dfkd.datasets.info import DatasetInfo
from dfkd.datasets.prepared import read_info, read_split
from dfkd.errors import UserError
from dfkd.files import file_sha256

logger = logging.getLogger(__name__)

UNLABELLED = -1


def read_transfer_set(path: Path, kind: str, info: DatasetInfo) -> Split:
    """Images uint8 [N,C,H,W] of the shape that the teacher takes, and labels int64 [N], all -1 where there are none.

    Args:
        path: a prepared data set, of which the training split is read, or a folder of images at any depth.
        kind: `train`: the teacher's own data set, with its labels; `dataset`: another one, without; `folder`.
        info: the teacher's data set.

    Raises:
        UserError: the data set has other classes (`train`), another size or other channels; the folder holds no image, or
            files that cannot be read.
    """
    if kind == "folder":
        return _read_folder(path, info)
    check_transfer_set(path, kind, info)
    images, labels = read_split(path, "train")
    return images, labels if kind == "train" else torch.full_like(labels, UNLABELLED)


def check_transfer_set(path: Path, kind: str, info: DatasetInfo) -> DatasetInfo:
    """What a prepared data set says of itself, if it fits the teacher's `info`; refusals as in `read_transfer_set`."""
    given = read_info(path)
    if kind == "train" and given.classes != info.classes:
        raise UserError(f"{path}: its classes are not those of the teacher's data set {info.name}; give that data set.")
    if given.shape != info.shape:
        raise UserError(
            f"{path}: its images are {_shape(given)}, the teacher takes {_shape(info)}; "
            "prepare the data set with that image_size and these channels under another name."
        )
    return given


def transfer_sha256(path: Path) -> str:
    """SHA-256 of a file, or of the names and the contents of a folder's files."""
    if not path.is_dir():
        return file_sha256(path)
    digest = hashlib.sha256()
    for file in sorted(visible_files(path)):
        digest.update(os.fsencode(file.relative_to(path)) + b"\0" + file_sha256(file).encode() + b"\n")
    return digest.hexdigest()


def _read_folder(folder: Path, info: DatasetInfo) -> Split:
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; name one with images in transfer_set.")
    paths = sorted(visible_files(folder))
    if not paths:
        raise UserError(f"{folder}: holds no image; put some into it or name another folder in transfer_set.")
    images, _, faults = read_images(paths, info.image_size, info.channels)
    if faults:
        index, reason = next(iter(sorted(faults.items())))
        raise UserError(
            f"{folder}: {len(faults)} of {len(paths)} files cannot be read, the first is "
            f"{paths[index].relative_to(folder)} ({reason}); mend or remove them."
        )
    logger.info("%s: %d images without labels, brought to %s where they were not", folder, len(paths), _shape(info))
    return torch.from_numpy(images), torch.full((len(paths),), UNLABELLED)


def _shape(info: DatasetInfo) -> str:
    return f"{info.image_size}×{info.image_size} with {info.channels} channel{'s' if info.channels > 1 else ''}"
