"""Images as arrays: size, grey and colour, the stratified split, the order of classes, pixel statistics."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from dfkd.errors import UserError
from dfkd.runtime import derive_seed

Split = tuple[torch.Tensor, torch.Tensor]  # images uint8 [N,C,H,W], labels int64 [N]
BLOCK = 4096  # images handled at a time, so that intermediate copies stay small


@dataclass(frozen=True)
class SourceData:
    """What a source delivers: `splits` has `train` and `test`, `test` alone, or `all` where the source does not divide."""

    classes: list[str]  # in the order of the labels
    splits: dict[str, Split]
    provenance: dict[str, Any]  # checksums and counts; no times, no absolute paths
    normalisation: tuple[list[float], list[float]] | None = None  # mean and std that the source carries with it
    packed_train: dict[str, Any] | None = None  # `file` and `digest` of the packed file that keeps the training images


def resize(images: torch.Tensor, size: int) -> torch.Tensor:
    """Square uint8 images [N,C,H,H] at `size` × `size`, bilinear with antialiasing (what Pillow's `BILINEAR` does)."""
    if tuple(images.shape[-2:]) == (size, size):
        return images
    # imported here: `prepare` alone needs it, and it would cost every other stage two seconds
    from torchvision.transforms.v2 import InterpolationMode
    from torchvision.transforms.v2.functional import resize as resize_part

    blocks = [resize_part(part, [size, size], InterpolationMode.BILINEAR, antialias=True) for part in images.split(BLOCK)]
    return torch.cat(blocks)


def to_channels(images: torch.Tensor, channels: int) -> torch.Tensor:
    """uint8 [N,1|3,H,W] with the wanted number of channels: grey is repeated, RGB becomes ITU-R 601 luma."""
    if images.shape[1] == channels:
        return images
    if channels == 3:
        return images.repeat(1, 3, 1, 1)
    from torchvision.transforms.v2.functional import rgb_to_grayscale  # late, as in `resize`

    return torch.cat([rgb_to_grayscale(part) for part in images.split(BLOCK)])


def stratified_split(labels: torch.Tensor, test_fraction: float, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Indices (train, test), ascending and disjoint, with every class in the same proportion.

    Raises:
        UserError: a class or the test split would be too small.
    """
    from sklearn.model_selection import train_test_split

    numbers = np.arange(len(labels))
    random_state = derive_seed(seed, "split") % 2**32
    try:
        train, test = train_test_split(numbers, test_size=test_fraction, stratify=labels.numpy(), random_state=random_state)
    except ValueError as error:
        raise UserError(f"test_fraction {test_fraction} of {len(labels)} images cannot be drawn ({error}).") from None
    return torch.from_numpy(np.sort(train)), torch.from_numpy(np.sort(test))


def in_label_order(found: list[str], wanted: list[str], splits: dict[str, Split]) -> dict[str, Split]:
    """The splits with labels that follow `wanted` instead of `found`.

    Raises:
        UserError: the two do not name the same classes.
    """
    if sorted(found) != sorted(wanted):
        missing, unknown = sorted(set(wanted) - set(found)), sorted(set(found) - set(wanted))
        parts = [f"not in the source: {', '.join(missing[:10])}"] * bool(missing)
        parts += [f"not in the config: {', '.join(unknown[:10])}"] * bool(unknown)
        raise UserError(
            f"classes: {len(wanted)} in the config, {len(found)} in the source ({'; '.join(parts) or 'names are repeated'}); "
            "list the source's classes, or leave the key out."
        )
    place = torch.tensor([wanted.index(name) for name in found])
    return {split: (images, place[labels]) for split, (images, labels) in splits.items()}


def pixel_statistics(images: torch.Tensor) -> tuple[list[float], list[float]]:
    """Mean and population standard deviation per channel of uint8 images, as pixels in [0, 1].

    Computed from integer histograms, so the sums are exact and independent of order and threads.
    """
    means, deviations = [], []
    for channel in range(images.shape[1]):
        counts = np.zeros(256, dtype=np.int64)
        for part in images[:, channel].split(BLOCK):
            counts += np.bincount(part.reshape(-1).numpy(), minlength=256)
        weights = [int(count) for count in counts]
        total = sum(weights)
        first = sum(level * count for level, count in enumerate(weights))
        second = sum(level * level * count for level, count in enumerate(weights))
        means.append(first / (255 * total))
        deviations.append(math.sqrt(total * second - first * first) / (255 * total))
    return means, deviations
