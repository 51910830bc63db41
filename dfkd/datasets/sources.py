"""Where images come from. A source is a function; `source: KIND:VALUE` in config/datasets.yaml chooses it from `SOURCES`."""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from textwrap import shorten
from typing import Any

import numpy as np
import torch
from torchvision import datasets

from dfkd.config import SOURCES
from dfkd.datasets.arrays import SourceData, Split
from dfkd.datasets.prepared import read_info, read_split, split_names
from dfkd.errors import UserError, nearest
from dfkd.files import file_sha256
from dfkd.plugins import load
from dfkd.settings import DatasetSettings

Source = Callable[[str, DatasetSettings, Path], SourceData]
DIGITS = [str(digit) for digit in range(10)]
TORCHVISION: dict[str, type[Any]] = {
    "mnist": datasets.MNIST,
    "fashionmnist": datasets.FashionMNIST,
    "cifar10": datasets.CIFAR10,
    "cifar100": datasets.CIFAR100,
    "svhn": datasets.SVHN,
}
# torchvision has no names for SVHN, and writes MNIST's as "0 - zero"
CLASS_NAMES = {"mnist": DIGITS, "svhn": DIGITS}
NETWORK_TIMEOUT = 60.0  # seconds without a byte; torchvision itself would wait for ever


def torchvision_source(value: str, settings: DatasetSettings, downloads: Path) -> SourceData:
    """A data set of torchvision, downloaded into `downloads` if its archives are not there, checked by torchvision's MD5.

    Raises:
        UserError: an unknown name, or no network: the sentence says what to fetch, from where, and where to put it.
    """
    name = value.lower()
    if name not in TORCHVISION:
        raise UserError(f"source 'torchvision:{value}': unknown data set; {nearest(name, TORCHVISION)}.")
    kind = TORCHVISION[name]
    _remove_unpacked(kind, downloads)
    arguments = ({"split": "train"}, {"split": "test"}) if name == "svhn" else ({"train": True}, {"train": False})
    try:
        downloads.mkdir(parents=True, exist_ok=True)
        with _network_timeout():
            train, test = (kind(downloads, download=True, **choice) for choice in arguments)
    # what urllib, torchvision's checksum test, tarfile, gzip and the readers of damaged files raise
    except (OSError, RuntimeError, http.client.HTTPException, EOFError, ValueError) as error:
        files = archives(kind, downloads)
        address, place = next(iter(files.values())).rpartition("/")[0], next(iter(files)).parent
        raise UserError(
            f"source 'torchvision:{value}': not in {downloads} and could not be downloaded ({shorten(str(error), 200)}); "
            f"fetch {', '.join(path.name for path in files)} from {address}/ into {place}, then run the same command again."
        ) from error
    checksums = {path.name: file_sha256(path) for path in archives(kind, downloads) if path.exists()}
    classes = CLASS_NAMES.get(name) or list(train.classes)
    splits = {"train": arrays_of(train), "test": arrays_of(test)}
    return SourceData(classes, splits, {"source": f"torchvision:{kind.__name__}", "checksums": checksums})


def arrays_of(dataset: Any) -> Split:
    """Images uint8 [N,C,H,W] and labels int64 [N] of a torchvision data set object, whichever way it keeps them."""
    images = torch.as_tensor(dataset.data)
    if images.ndim == 3:  # MNIST: N, H, W
        images = images[:, None]
    elif images.shape[-1] == 3:  # CIFAR: N, H, W, C; SVHN is N, C, H, W
        images = images.permute(0, 3, 1, 2)
    labels = dataset.targets if hasattr(dataset, "targets") else dataset.labels
    return images.contiguous(), torch.as_tensor(labels, dtype=torch.int64)


def archives(kind: type[Any], downloads: Path) -> dict[Path, str]:
    """Where torchvision keeps the archives of a data set, and the address of each."""
    if issubclass(kind, datasets.MNIST):
        folder = downloads / kind.__name__ / "raw"
        return {folder / name: f"{kind.mirrors[0]}{name}" for name, _ in kind.resources}
    if issubclass(kind, datasets.SVHN):
        return {downloads / name: url for url, name, _ in (kind.split_list[split] for split in ("train", "test"))}
    return {downloads / kind.filename: kind.url}


def _remove_unpacked(kind: type[Any], downloads: Path) -> None:
    """Have MNIST's archives unpacked anew: torchvision checks their MD5, but takes half-unpacked files for whole."""
    if issubclass(kind, datasets.MNIST):
        for archive in archives(kind, downloads):
            if archive.exists():
                archive.with_suffix("").unlink(missing_ok=True)


@contextlib.contextmanager
def _network_timeout() -> Iterator[None]:
    former = socket.getdefaulttimeout()
    socket.setdefaulttimeout(NETWORK_TIMEOUT)
    try:
        yield
    finally:
        socket.setdefaulttimeout(former)


def sklearn_source(value: str, settings: DatasetSettings, downloads: Path) -> SourceData:
    """scikit-learn's handwritten digits: 1,797 grey images of 8×8 pixels with 17 levels, not divided into splits."""
    if value.lower() != "digits":
        raise UserError(f"source 'sklearn:{value}': unknown data set; known: digits.")
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = np.floor(digits.images * (255 / 16)).astype(np.uint8)
    labels = digits.target.astype(np.int64)
    checksum = hashlib.sha256(images.tobytes() + labels.tobytes()).hexdigest()
    everything = torch.from_numpy(images)[:, None], torch.from_numpy(labels)
    return SourceData(DIGITS, {"all": everything}, {"source": "sklearn:digits", "sha256": checksum})


def hdf5_source(value: str, settings: DatasetSettings, downloads: Path) -> SourceData:
    """A prepared data set of this project, e.g. to give it another size or to take its test split alone."""
    path = Path(value).expanduser()
    info = read_info(path)
    splits = {split: read_split(path, split) for split in split_names(path)}
    if list(splits) == ["train"]:
        splits = {"all": splits["train"]}
    normalisation = (info.mean, info.std) if info.channels == settings.channels else None
    provenance = {"source": f"hdf5:{path.name}", "checksums": {path.name: file_sha256(path)}}
    return SourceData(info.classes, splits, provenance, normalisation)


def load_source(settings: DatasetSettings, downloads: Path) -> SourceData:
    """What `settings.source` names.

    Raises:
        UserError: an unknown kind of source, or what the source itself refuses.
    """
    kind, separator, value = settings.source.partition(":")
    if not separator or not value:
        raise UserError(f"source '{settings.source}': expected KIND:VALUE, for example folder:/path/to/images.")
    if kind not in SOURCES:
        raise UserError(f"source '{settings.source}': unknown kind '{kind}'; {nearest(kind, SOURCES)}.")
    source: Source = load(SOURCES[kind])
    return source(value, settings, downloads)
