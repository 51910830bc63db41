"""What the pixels alone say of images: which are equal, which are blank, how their values are spread."""

from __future__ import annotations

import hashlib

import numpy as np
from torch import Tensor


def pixel_hashes(images: Tensor) -> list[bytes]:
    """BLAKE2b-128 of each image of uint8 [N,C,H,W]: equal pixels, equal hashes."""
    return [hashlib.blake2b(image.numpy().tobytes(), digest_size=16).digest() for image in images]


def first_copies(hashes: list[bytes]) -> np.ndarray:
    """Index of the first image with the same hash, int64 [N]; -1 where none is before it."""
    first: dict[bytes, int] = {}
    before = [first.setdefault(value, index) for index, value in enumerate(hashes)]
    return np.array([-1 if other == index else other for index, other in enumerate(before)], dtype=np.int64)


def is_constant(images: Tensor) -> Tensor:
    """Whether all values of an image are one, bool [N]."""
    flat = images.flatten(1)
    return (flat == flat[:, :1]).all(1)


def value_counts(images: Tensor, labels: Tensor, classes: int) -> np.ndarray:
    """How often each value 0 to 255 occurs in the images of each class, int64 [K,256]; channels are counted together."""
    flat = images.flatten(1).numpy().astype(np.int64) + 256 * labels.numpy()[:, None]
    return np.bincount(flat.ravel(), minlength=256 * classes).reshape(classes, 256)
