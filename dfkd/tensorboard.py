"""What a stage passes to TensorBoard: scalars, and a few small grids of images."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

from dfkd.errors import UserError
from dfkd.history import SHOWN

SIDE = math.isqrt(SHOWN)  # images in a row of a grid, at most
CELL = 32  # pixels that a smaller image is enlarged to
WIDTH = 512  # pixels that a grid stays within


class Board:
    """One job's event files.

    Args:
        folder: where they lie.
        first: the counter that the job goes on with; what earlier files hold from there on counts no more.

    Raises:
        UserError: the disk is full or the folder cannot be written; so do the methods.
    """

    def __init__(self, folder: Path, first: int) -> None:
        self._folder = folder
        with self._told():
            self._writer = SummaryWriter(str(folder), purge_step=first)

    @contextlib.contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            reason = error.strerror or error
            raise UserError(
                f"{self._folder}: could not be written ({reason}); make space, then run the same command again."
            ) from error

    def scalars(self, values: dict[str, float], counter: int) -> None:
        """Figures by tag."""
        with self._told():
            for name, value in values.items():
                self._writer.add_scalar(name, value, counter)
            self._writer.flush()

    def grid(self, name: str, images: Tensor, counter: int, group: int = 1) -> None:
        """The first of uint8 images [N,C,H,W]; `group` of them that belong together stay in one row."""
        with self._told():
            self._writer.add_image(f"images/{name}", tile(images, group), counter)
            self._writer.flush()

    def close(self) -> None:
        """Close the event file."""
        with self._told():
            self._writer.close()


def tile(images: Tensor, group: int = 1) -> Tensor:
    """The first of [N,C,H,W] as one grid [C,H',W'] on the CPU, within 8 × 8 images and 512 pixels; small ones are enlarged."""
    scale = math.ceil(CELL / images.shape[-1])
    side = max(1, min(SIDE, WIDTH // (images.shape[-1] * scale), math.ceil(math.sqrt(len(images)))))
    side = math.ceil(side / group) * group if side < group else side // group * group
    shown = images[: side * side].cpu()
    shown = shown.repeat_interleave(scale, 2).repeat_interleave(scale, 3)
    shown = torch.nn.functional.pad(shown, (1, 1, 1, 1), value=255)
    missing = -len(shown) % side
    shown = torch.cat([shown, shown.new_full((missing, *shown.shape[1:]), 255)])
    return shown.unflatten(0, (-1, side)).permute(2, 0, 3, 1, 4).flatten(3, 4).flatten(1, 2)
