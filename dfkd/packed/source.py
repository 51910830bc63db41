"""`source: packed:FILE`: packed images as a data set's source."""

from __future__ import annotations

from pathlib import Path

from dfkd.datasets.arrays import SourceData
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
    splits = {
        split: file.decoded(split, settings.image_size, settings.channels, settings.max_pixels) for split in file.meta.splits
    }
    if list(splits) == ["train"]:
        splits = {"all": splits["train"]}
    provenance = {
        "source": f"packed:{file.path.name}", "checksums": {file.path.name: file_sha256(file.path)},
        "packed_from": file.meta.source, "files_sha256": file.meta.files_sha256, "files": file.meta.images + file.meta.skipped,
        "skipped": file.meta.skipped, "skipped_first": file.meta.skipped_first, "size": file.meta.size,
    }  # fmt: skip
    return SourceData(file.meta.classes, splits, provenance)
