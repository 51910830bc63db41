"""The stage `prepare`: a source's images, brought to one size and number of channels, as `data/{dataset}.h5`."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from dfkd.config import STAGE_VERSIONS
from dfkd.datasets.arrays import SourceData, Split, in_label_order, pixel_statistics, resize, stratified_split, to_channels
from dfkd.datasets.info import DatasetInfo
from dfkd.datasets.prepared import write_prepared
from dfkd.datasets.sources import load_source
from dfkd.errors import UserError
from dfkd.files import together
from dfkd.settings import DatasetSettings

logger = logging.getLogger(__name__)


def prepare(name: str, settings: DatasetSettings, output: Path, test_output: Path, download_folder: Path) -> None:
    """Write the data set `name` to `output` (train and test split) and its test split alone to `test_output`.

    A source with test images alone gives no train group. Only sources that download touch `download_folder` and the network.

    Raises:
        UserError: whatever is wrong with the settings or the source, in one sentence that names the data set.
    """
    if Path(output).resolve() == Path(test_output).resolve():
        raise UserError(f"{output}: both outputs have this name; give the test split a file of its own.")
    try:
        data = load_source(settings, Path(download_folder))
        splits, classes = _splits_and_classes(data, settings)
        info = _info(name, settings, data, splits, classes)
    except UserError as error:
        raise UserError(f"data set '{name}': {error}") from error
    provenance: dict[str, Any] = {**data.provenance, "stage_version": STAGE_VERSIONS["prepare"]}
    if "all" in data.splits:
        provenance["split"] = {"test_fraction": settings.test_fraction, "seed": settings.split_seed}
    with together():
        write_prepared(output, info, splits, provenance, data.packed_train)
        write_prepared(test_output, info, {"test": splits["test"]}, provenance)
    counts = ", ".join(f"{len(labels)} {split} images" for split, (_, labels) in splits.items())
    logger.info("%s: %s, %d classes, %d channels of %d pixels", name, counts, len(classes), info.channels, info.image_size)


def _splits_and_classes(data: SourceData, settings: DatasetSettings) -> tuple[dict[str, Split], list[str]]:
    classes = settings.classes or data.classes
    if len(classes) < 2:
        raise UserError(
            f"a classifier needs at least two classes, the source has {', '.join(classes) or 'none'}; check its path."
        )
    splits = in_label_order(data.classes, classes, _divided(data.splits, settings))
    shaped = {
        split: (to_channels(resize(images, settings.image_size), settings.channels), labels)
        for split, (images, labels) in splits.items()
    }
    return shaped, classes


def _divided(splits: dict[str, Split], settings: DatasetSettings) -> dict[str, Split]:
    """The splits with `all` divided into train and test."""
    if "all" not in splits:
        if settings.test_fraction is not None:
            raise UserError("test_fraction is set, but the source has a test split of its own; remove the key.")
        return splits
    if settings.test_fraction is None:
        raise UserError("the source has no test split; set test_fraction, for example 0.2.")
    images, labels = splits["all"]
    train, test = stratified_split(labels, settings.test_fraction, settings.split_seed)
    return {"train": (images[train], labels[train]), "test": (images[test], labels[test])}


def _info(name: str, settings: DatasetSettings, data: SourceData, splits: dict[str, Split], classes: list[str]) -> DatasetInfo:
    mean, std = settings.mean, settings.std
    if mean is None or std is None:
        if "train" in splits:
            computed = pixel_statistics(splits["train"][0])
        elif data.normalisation is not None:
            computed = data.normalisation
        else:
            raise UserError("without a training split mean and std cannot be computed; give both in the config.")
        mean, std = mean or computed[0], std or computed[1]
    if min(std) <= 0:
        raise UserError("a channel of the training split is constant, so its std is 0; check the images or give mean and std.")
    return _described(name, settings, classes, mean, std)


def info_from_settings(name: str, settings: DatasetSettings) -> DatasetInfo:
    """What the config alone says of a data set, for weights that are imported where its images are not at hand.

    Raises:
        UserError: `classes`, `mean` or `std` is not in the config.
    """
    classes, mean, std = settings.classes, settings.mean, settings.std
    if classes is None or mean is None or std is None:
        missing = [key for key, value in (("classes", classes), ("mean", mean), ("std", std)) if value is None]
        raise UserError(f"data set '{name}': without its images the config must give {' and '.join(missing)} as well.")
    return _described(name, settings, classes, mean, std)


def _described(name: str, settings: DatasetSettings, classes: list[str], mean: list[float], std: list[float]) -> DatasetInfo:
    return DatasetInfo(
        name=name, classes=classes, image_size=settings.image_size, channels=settings.channels,
        mean=mean, std=std, crop_padding=settings.crop_padding, flip=settings.flip,
        crop=settings.crop, crop_scale=settings.crop_scale, crop_ratio=settings.crop_ratio,
    )  # fmt: skip
