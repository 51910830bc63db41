"""The image folder: `train/<class>/…` and `test/<class>/…`, or one folder of classes; any format that Pillow reads."""

from __future__ import annotations

import contextlib
import hashlib
import io
import itertools
import logging
import os
import unicodedata
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
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

Cut = Callable[[Image.Image], Image.Image]  # what is seen of an upright image, at the size that is wanted


def folder_source(value: str, settings: DatasetSettings, downloads: Path) -> SourceData:
    """Read the folder `value`, every image at the configured size and number of channels.

    Classes are the sorted names of the class folders; files in folders below them count too; hidden files do not. An
    image that is not square keeps its centre square.

    Raises:
        UserError: no such folder, no or differing class folders, an empty one, unreadable files.
    """
    root = Path(value).expanduser()
    folders = split_folders(root)
    classes = class_names(folders)
    files = {split: class_files(folder, classes) for split, folder in folders.items()}
    names = [item for listing in files.values() for item in listing]
    images, digests, faults = read_images(
        [path for path, _ in names], settings.image_size, settings.channels, settings.max_pixels
    )
    named = {path.relative_to(root).as_posix(): faults[index] for index, (path, _) in enumerate(names) if index in faults}
    report_unreadable(root, len(names), named, settings.skip_unreadable)

    splits: dict[str, Split] = {}
    start = 0
    for split, listing in files.items():
        kept = [index for index in range(start, start + len(listing)) if index not in faults]
        labels = torch.tensor([names[index][1] for index in kept], dtype=torch.int64)
        check_left(folders[split], classes, labels)
        whole = len(kept) == len(listing)
        part = images[start : start + len(listing)] if whole else images[kept]
        splits[split] = torch.from_numpy(part), labels
        start += len(listing)

    checksum = listing_sha256((path.relative_to(root), digest) for (path, _), digest in zip(names, digests, strict=True))
    provenance = {
        "source": f"folder:{root.resolve().name}", "files": len(names), "sha256": checksum,
        "skipped": len(named), "skipped_first": list(named)[:LISTED],
    }  # fmt: skip
    return SourceData(classes, splits, provenance)


def _subfolders(folder: Path) -> list[Path]:
    """The visible folders in a folder, sorted by name."""
    return sorted((path for path in folder.iterdir() if path.is_dir() and not path.name.startswith(".")), key=lambda p: p.name)


def split_folders(root: Path) -> dict[str, Path]:
    """Where each split's class folders lie; `all` if the folder does not divide into train and test.

    Raises:
        UserError: no such folder.
    """
    if not root.is_dir():
        raise UserError(f"{root}: no such folder; give the path of the images.")
    present = [name for name in SPLITS if (root / name).is_dir()]
    if not any(_subfolders(root / name) for name in present):  # `train` may be the name of a class
        return {"all": root}
    others = [path.name for path in _subfolders(root) if path.name not in SPLITS]
    if others:
        logger.warning("%s: only train/ and test/ are read; left out: %s", root, ", ".join(others))
    return {"all": root / "train"} if present == ["train"] else {name: root / name for name in present}


def class_names(folders: dict[str, Path]) -> list[str]:
    """The sorted names of the class folders, equal in all splits.

    Raises:
        UserError: none, other ones in each split, or two that look alike.
    """
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
    names = next(iter(found.values()))
    for first, second in itertools.pairwise(sorted(names, key=_looks)):
        if _looks(first) == _looks(second):
            raise UserError(
                f"{next(iter(folders.values()))}: the class folders {first!r} and {second!r} look alike; rename one."
            )
    return names


def _looks(name: str) -> str:
    """A class name as it is read: composed and decomposed accents are one."""
    return unicodedata.normalize("NFC", name)


def class_files(folder: Path, classes: list[str]) -> list[tuple[Path, int]]:
    """The visible files of every class with its label, in a fixed order."""
    listing = []
    for label, name in enumerate(classes):
        paths = sorted(visible_files(folder / name))
        if not paths:
            raise UserError(f"{folder / name}: the class folder is empty; put images into it or remove it.")
        listing += [(path, label) for path in paths]
    return listing


def listing_sha256(files: Iterable[tuple[Path, bytes]]) -> str:
    """SHA-256 of names, relative to a folder, and of the SHA-256 of each file's content, in hexadecimal."""
    total = hashlib.sha256()
    for name, digest in files:
        total.update(os.fsencode(name) + b"\0" + digest + b"\n")
    return total.hexdigest()


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
                faults[index] = why_unreadable(error)
        return len(indices)

    blocks = [range(start, min(start + BLOCK, len(paths))) for start in range(0, len(paths), BLOCK)]
    with pixel_limit(max_pixels), progress("reading images", len(paths)) as steps:
        with ThreadPoolExecutor(torch.get_num_threads()) as pool:
            try:
                for count in pool.map(read_block, blocks):
                    steps.advance(count)
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise
    return images, digests, faults


@contextlib.contextmanager
def pixel_limit(pixels: int) -> Iterator[None]:
    """Pillow's limit, which its decoders of nested pictures ask too, set for the block; beyond it an image is not decoded."""
    former = Image.MAX_IMAGE_PIXELS
    Image.MAX_IMAGE_PIXELS = pixels
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            yield
    finally:
        Image.MAX_IMAGE_PIXELS = former


def decode(content: bytes, size: int, channels: int, max_pixels: int = MAX_PIXELS, cut: Cut | None = None) -> np.ndarray:
    """One image file as uint8 [C,size,size]: upright, on white where transparent, its centre square or a `cut`, antialiased."""
    image = upright(content, channels, max_pixels)
    image = centre_square(image, size) if cut is None else cut(image)
    array = np.asarray(image)
    return array[None] if channels == 1 else array.transpose(2, 0, 1)


def centre_square(image: Image.Image, size: int, share: float = 1.0) -> Image.Image:
    """The centre square of an image at `size` × `size`, antialiased; its side is `share` of the image's shorter one."""
    if image.size == (size, size) and share == 1:
        return image
    return ImageOps.fit(image, (size, size), Image.Resampling.BILINEAR, bleed=(1 - share) / 2)


def upright(content: bytes, channels: int, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """One image file decoded in whole: upright, on white where transparent, grey (1 channel) or RGB (3)."""
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
        image.load()
        return image if image.mode == mode else image.convert(mode)


def _eight_bits(image: Image.Image) -> Image.Image:
    """A 16-bit grey image at 8 bits; Pillow's own conversion would clip everything above 255 to white."""
    if image.mode == "F":
        raise ValueError("floating-point pixels, whose range is not known")
    pixels = np.asarray(image)
    if pixels.min() < 0 or pixels.max() > 65535:
        raise ValueError("32-bit pixels, whose range is not known")
    return Image.fromarray((pixels // 257).astype(np.uint8))


def why_unreadable(error: Exception) -> str:
    """Why a file could not be decoded, in a few words."""
    if isinstance(error, Image.DecompressionBombWarning | Image.DecompressionBombError):
        return "more pixels than max_pixels allows"
    if isinstance(error, Image.UnidentifiedImageError):
        return "no image format that Pillow knows"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror.lower()
    return " ".join(str(error).split()) or type(error).__name__


def report_unreadable(
    root: Path, files: int, faults: Mapping[str, str], skip: bool, option: str = "set skip_unreadable: true"
) -> None:
    """Name the files of `root` that cannot be read, each with its reason: a warning if they are to be left out.

    Raises:
        UserError: there are some, and they are not.
    """
    if not faults:
        return
    named = [f"{name} ({reason})" for name, reason in itertools.islice(faults.items(), LISTED)]
    rest = f" and {len(faults) - LISTED} more" if len(faults) > LISTED else ""
    sentence = f"{root}: {len(faults)} of {files} files cannot be read: {', '.join(named)}{rest}"
    if not skip:
        raise UserError(f"{sentence}; mend or remove them, or {option}.")
    logger.warning("%s; left out", sentence)


def check_left(folder: Path, classes: list[str], labels: torch.Tensor) -> None:
    """Refuse a class of which no readable image is left."""
    counts = torch.bincount(labels, minlength=len(classes))
    for name, count in zip(classes, counts.tolist(), strict=True):
        if count == 0:
            raise UserError(f"{folder / name}: no readable image is left in the class folder; put images into it or remove it.")
