"""`source: packed:FILE`: packed images as a data set's source."""

from __future__ import annotations

from pathlib import Path

from dfkd.datasets.arrays import SourceData
from dfkd.errors import UserError
from dfkd.files import file_sha256
from dfkd.packed.file import PackedFile
from dfkd.settings import DatasetSettings


def packed_source(value: str, settings: DatasetSettings, downloads: Path) -> SourceData:
    """The images of a packed file, decoded in worker processes at the configured size and number of channels.

    They come in the file's own order. A packed folder and the folder itself give the same arrays but for that order,
    unless images were made smaller when they were packed.

    Raises:
        UserError: no such file, or a damaged one.
    """
    file = PackedFile(Path(value).expanduser())
    names = list(file.meta.splits)
    if settings.keep_packed:
        _check_kept(file, settings)
        names = ["test"]
    if settings.test_centre != 1 and "test" not in names:
        raise UserError("test_centre is of a test split, and the packed file has none; pack one with --test.")
    splits = {
        split: file.decoded(
            split,
            settings.image_size,
            settings.channels,
            settings.max_pixels,
            centre=settings.test_centre if split == "test" else 1.0,
        )
        for split in names
    }
    if list(splits) == ["train"]:
        splits = {"all": splits["train"]}
    provenance = {
        "source": f"packed:{file.path.name}", "checksums": {file.path.name: file_sha256(file.path)},
        "packed_from": file.meta.source, "files_sha256": file.meta.files_sha256, "files": file.meta.images + file.meta.skipped,
        "skipped": file.meta.skipped, "skipped_first": file.meta.skipped_first, "size": file.meta.size,
    }  # fmt: skip
    kept = {"file": file.path.name, "digest": file.digest} if settings.keep_packed else None
    return SourceData(file.meta.classes, splits, provenance, packed_train=kept)


def _check_kept(file: PackedFile, settings: DatasetSettings) -> None:
    if set(file.meta.splits) != {"train", "test"}:
        raise UserError(f"{file.path}: keep_packed needs a train and a test split; pack both, with --test if they lie apart.")
    if settings.mean is None or settings.std is None:
        raise UserError("with keep_packed the training images are not looked at; give mean and std in the config.")
    if settings.classes is not None and settings.classes != file.meta.classes:
        raise UserError("with keep_packed the classes are those of the packed file, in its order; leave the key out.")
