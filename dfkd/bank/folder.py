"""A bank as a folder of PNG files, `<label>/<index>.png`, and back."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError

from dfkd.bank.format import BLOCK_IMAGES, BankMeta, Block, encode
from dfkd.bank.grid import to_pil
from dfkd.bank.reader import BankReader
from dfkd.bank.writer import write_bank
from dfkd.datasets.info import DatasetInfo
from dfkd.errors import UserError
from dfkd.files import atomic_path


def export_folder(path: str | Path, output: str | Path) -> int:
    """Write each image without loss as `<label>/<index>.png`, and labels, parents and scores as `images.csv`.

    Labels are padded with zeros, so that their order by name is their order. Returns the number of images.

    Raises:
        UserError: the bank cannot be read, or `output` is there and not empty.
    """
    output = Path(output)
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise UserError(f"{output}: is not empty; name a new folder.")
    reader = BankReader(path)
    digits, index = len(str(len(reader.meta.dataset.classes) - 1)), 0
    places = max(len(str(len(reader) - 1)), 6)
    try:
        for label in range(len(reader.meta.dataset.classes)):
            (output / f"{label:0{digits}d}").mkdir(parents=True, exist_ok=True)
        with atomic_path(output / "images.csv") as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
            table = csv.writer(file)
            for block in reader.blocks():
                if index == 0:
                    table.writerow(["file", "label", "class", "parent", *block.scores])
                parents = block.parents if block.parents is not None else torch.full((len(block),), -1)
                for place in range(len(block)):
                    label = int(block.labels[place])
                    name = f"{label:0{digits}d}/{index:0{places}d}.png"
                    to_pil(block.images[place]).save(output / name)
                    scores = [f"{values[place].item():.9g}" for values in block.scores.values()]
                    table.writerow([name, label, reader.meta.dataset.classes[label], int(parents[place]), *scores])
                    index += 1
    except OSError as error:
        raise UserError(f"{output}: could not be written ({error.strerror or error}); make space, then run again.") from error
    return index


def import_folder(folder: str | Path, output: str | Path, info: DatasetInfo, teacher_sha256: str) -> int:
    """Publish a bank of the images in `folder/<label or class name>/*.png`; a number is a label.

    The files' names give the order over all labels, as `export_folder` numbers them. Returns the number of images.

    Raises:
        UserError: a folder that is no class, no images at all, an image that cannot be read or has another size.
    """
    files = _files(Path(folder), info)
    meta = BankMeta(kind="init", dataset=info, teacher_sha256=teacher_sha256, stage="import", stage_version=1)

    def records() -> Iterator[bytes]:
        for number, start in enumerate(range(0, len(files), BLOCK_IMAGES)):
            part = files[start : start + BLOCK_IMAGES]
            images = torch.stack([_read_image(file, info) for file, _ in part])
            yield encode(Block(images, torch.tensor([label for _, label in part])), number)

    write_bank(output, meta, records())
    return len(files)


def _files(folder: Path, info: DatasetInfo) -> list[tuple[Path, int]]:
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; name one that holds a folder of PNG files for each class.")
    labels = {name: label for label, name in enumerate(info.classes)}
    found: list[tuple[Path, int]] = []
    for inner in sorted(path for path in folder.iterdir() if path.is_dir()):
        label = int(inner.name) if inner.name.isdecimal() else labels.get(inner.name, -1)  # a number is a label, as exported
        if not 0 <= label < len(info.classes):
            raise UserError(f"{inner}: neither a class of {info.name} nor a label from 0 to {len(info.classes) - 1}.")
        found += [(file, label) for file in inner.glob("*.png")]
    if not found:
        raise UserError(f"{folder}: holds no images; put PNG files into a folder named by label or class.")
    return sorted(found, key=lambda item: (item[0].name, item[1]))


def _read_image(file: Path, info: DatasetInfo) -> torch.Tensor:
    try:
        with Image.open(file) as picture:
            pixels = np.array(picture.convert("RGB" if info.channels == 3 else "L"))
    except (UnidentifiedImageError, OSError) as error:
        raise UserError(f"{file}: not an image that can be read ({type(error).__name__}); remove or mend it.") from None
    if pixels.shape[:2] != (info.image_size, info.image_size):
        height, width = pixels.shape[:2]
        raise UserError(f"{file}: {width}×{height} pixels, {info.name} has {info.image_size}×{info.image_size}; resize it.")
    return torch.from_numpy(pixels.reshape(*pixels.shape[:2], -1)).permute(2, 0, 1).contiguous()
