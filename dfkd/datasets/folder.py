"""The image folder: `train/<class>/…` and `test/<class>/…`, or one folder of classes; any format that Pillow reads."""

from __future__ import annotations

import contextlib
import hashlib
import io
import logging
import os
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps

from dfkd.datasets.arrays import SourceData, Split
from dfkd.errors import UserError
from dfkd.progress import progress
from dfkd.settings import MAX_PIXELS, DatasetSettings

logger = logging.getLogger(__name__)

SPLITS = ("train", "test")
LISTED = 10  # unreadable files that are named; the rest is counted
BLOCK = 64  # files that a thread takes at a time


def folder_source(value: str, settings: DatasetSettings, downloads: Path) -> SourceData:
    """Read the folder `value`, every image at the configured size and number of channels.

    Classes are the sorted names of the class folders; files in folders below them count too; hidden files do not. An
    image that is not square keeps its centre square.

    Raises:
        UserError: no such folder, no or differing class folders, an empty one, unreadable files.
    """
    root = Path(value).expanduser()
    if not root.is_dir():
        raise UserError(f"{root}: no such folder; give the path of the images in `source`.")
    folders = _layout(root)
    classes = _classes(folders)
    files = {split: _files(folder, classes) for split, folder in folders.items()}
    names = [(path, label) for listing in files.values() for path, label in listing]
    images, digests, faults = read_images(
        [path for path, _ in names], settings.image_size, settings.channels, settings.max_pixels
    )
    _report(root, [path for path, _ in names], faults, settings.skip_unreadable)

    splits: dict[str, Split] = {}
    start = 0
    for split, listing in files.items():
        kept = [index for index in range(start, start + len(listing)) if index not in faults]
        labels = torch.tensor([names[index][1] for index in kept], dtype=torch.int64)
        _check_left(folders[split], classes, labels)
        whole = len(kept) == len(listing)
        part = images[start : start + len(listing)] if whole else images[kept]
        splits[split] = torch.from_numpy(part), labels
        start += len(listing)

    total = hashlib.sha256()
    for index, (path, _) in enumerate(names):
        total.update(os.fsencode(path.relative_to(root)) + b"\0" + digests[index] + b"\n")
    skipped = [names[index][0].relative_to(root).as_posix() for index in sorted(faults)]
    provenance = {
        "source": f"folder:{root.resolve().name}", "files": len(names), "sha256": total.hexdigest(),
        "skipped": len(skipped), "skipped_first": skipped[:LISTED],
    }  # fmt: skip
    return SourceData(classes, splits, provenance)


def _subfolders(folder: Path) -> list[Path]:
    """The visible folders in a folder, sorted by name."""
    return sorted((path for path in folder.iterdir() if path.is_dir() and not path.name.startswith(".")), key=lambda p: p.name)


def _layout(root: Path) -> dict[str, Path]:
    """Where each split's class folders lie; `all` if the folder does not divide into train and test."""
    present = [name for name in SPLITS if (root / name).is_dir()]
    if not any(_subfolders(root / name) for name in present):  # `train` may be the name of a class
        return {"all": root}
    others = [path.name for path in _subfolders(root) if path.name not in SPLITS]
    if others:
        logger.warning("%s: only train/ and test/ are read; left out: %s", root, ", ".join(others))
    return {"all": root / "train"} if present == ["train"] else {name: root / name for name in present}


def _classes(folders: dict[str, Path]) -> list[str]:
    found = {split: [path.name for path in _subfolders(folder)] for split, folder in folders.items()}
    for split, names in found.items():
        if not names:
            raise UserError(
                f"{folders[split]}: no class folders; "
                "expected train/<class>/… and test/<class>/…, or <class>/… with test_fraction."
            )
    if len(found) == 2 and found["train"] != found["test"]:
        only = {split: sorted(set(found[split]) - set(found[other])) for split, other in (SPLITS, SPLITS[::-1])}
        parts = [f"only in {split}/: {', '.join(names[:LISTED])}" for split, names in only.items() if names]
        raise UserError(
            f"{folders['train'].parent}: train/ and test/ hold different classes ({'; '.join(parts)}); make them equal."
        )
    return next(iter(found.values()))


def _files(folder: Path, classes: list[str]) -> list[tuple[Path, int]]:
    """The visible files of every class with its label, in a fixed order."""
    listing = []
    for label, name in enumerate(classes):
        paths = sorted(visible_files(folder / name))
        if not paths:
            raise UserError(f"{folder / name}: the class folder is empty; put images into it or remove it.")
        listing += [(path, label) for path in paths]
    return listing


def visible_files(folder: Path) -> Iterator[Path]:
    """The files below a folder that are not hidden, nor in a hidden folder."""
    for place, below, names in os.walk(folder):
        below[:] = [name for name in below if not name.startswith(".")]
        yield from (Path(place, name) for name in names if not name.startswith("."))


def read_images(
    paths: list[Path], size: int, channels: int, max_pixels: int = MAX_PIXELS
) -> tuple[np.ndarray, list[bytes], dict[int, str]]:
    """Decode files in a thread pool; one of more than `max_pixels` pixels counts as unreadable.

    Returns:
        images uint8 [N,C,size,size] (undefined where unreadable), SHA-256 of each file, why by index of unreadable ones.
    """
    images = np.empty((len(paths), channels, size, size), dtype=np.uint8)
    digests = [b""] * len(paths)
    faults: dict[int, str] = {}

    def read_block(indices: range) -> int:
        for index in indices:
            try:
                content = paths[index].read_bytes()
                digests[index] = hashlib.sha256(content).digest()
                images[index] = decode(content, size, channels, max_pixels)
            except Exception as error:  # Pillow's decoders have no common class for damaged files
                faults[index] = _reason(error)
        return len(indices)

    blocks = [range(start, min(start + BLOCK, len(paths))) for start in range(0, len(paths), BLOCK)]
    with _pixel_limit(max_pixels), progress("reading images", len(paths)) as steps:
        with ThreadPoolExecutor(torch.get_num_threads()) as pool:
            try:
                for count in pool.map(read_block, blocks):
                    steps.advance(count)
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise
    return images, digests, faults


@contextlib.contextmanager
def _pixel_limit(pixels: int) -> Iterator[None]:
    """Pillow's limit, which its decoders of nested pictures ask too, set for the block; beyond it an image is not decoded."""
    former = Image.MAX_IMAGE_PIXELS
    Image.MAX_IMAGE_PIXELS = pixels
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            yield
    finally:
        Image.MAX_IMAGE_PIXELS = former


def decode(content: bytes, size: int, channels: int, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """One image file as uint8 [C,size,size]: upright, on white where transparent, its centre square, antialiased."""
    with Image.open(io.BytesIO(content)) as opened:
        if opened.width * opened.height > max_pixels:
            raise Image.DecompressionBombError
        ImageOps.exif_transpose(opened, in_place=True)
        image: Image.Image = opened
        if image.mode.startswith(("I", "F")):
            image = _eight_bits(image)
        mode = "L" if channels == 1 else "RGB"
        if image.has_transparency_data:
            image = image.convert("RGBA")
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
        image = image if image.mode == mode else image.convert(mode)
        if image.size != (size, size):
            image = ImageOps.fit(image, (size, size), Image.Resampling.BILINEAR)
        array = np.asarray(image)
    return array[None] if channels == 1 else array.transpose(2, 0, 1)


def _eight_bits(image: Image.Image) -> Image.Image:
    """A 16-bit grey image at 8 bits; Pillow's own conversion would clip everything above 255 to white."""
    if image.mode == "F":
        raise ValueError("floating-point pixels, whose range is not known")
    pixels = np.asarray(image)
    if pixels.min() < 0 or pixels.max() > 65535:
        raise ValueError("32-bit pixels, whose range is not known")
    return Image.fromarray((pixels // 257).astype(np.uint8))


def _reason(error: Exception) -> str:
    if isinstance(error, Image.DecompressionBombWarning | Image.DecompressionBombError):
        return "more pixels than max_pixels allows"
    if isinstance(error, Image.UnidentifiedImageError):
        return "no image format that Pillow knows"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror.lower()
    return " ".join(str(error).split()) or type(error).__name__


def _report(root: Path, paths: list[Path], faults: dict[int, str], skip: bool) -> None:
    if not faults:
        return
    named = [f"{paths[index].relative_to(root)} ({faults[index]})" for index in sorted(faults)[:LISTED]]
    rest = f" and {len(faults) - LISTED} more" if len(faults) > LISTED else ""
    sentence = f"{root}: {len(faults)} of {len(paths)} files cannot be read: {', '.join(named)}{rest}"
    if not skip:
        raise UserError(f"{sentence}; mend or remove them, or set skip_unreadable: true.")
    logger.warning("%s; left out", sentence)


def _check_left(folder: Path, classes: list[str], labels: torch.Tensor) -> None:
    counts = torch.bincount(labels, minlength=len(classes))
    for name, count in zip(classes, counts.tolist(), strict=True):
        if count == 0:
            raise UserError(f"{folder / name}: no readable image is left in the class folder; put images into it or remove it.")
