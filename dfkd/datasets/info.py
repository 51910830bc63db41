"""What every stage needs to know of a data set, short of its images. Imports no torch."""

from __future__ import annotations

from pydantic import ConfigDict

from dfkd.settings import CROP_RATIO, CROP_SCALE, Crop, PaddedCropUnsaid


class DatasetInfo(PaddedCropUnsaid):
    """Shape, classes, normalisation and augmentation of a data set.

    It travels with the teacher's weights and with every bank, so that nothing below the teacher opens the data for it.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    classes: list[str]
    image_size: int  # height = width, pixels
    channels: int
    mean: list[float]  # per channel, of pixels in [0, 1]
    std: list[float]
    crop_padding: int  # of the padded crop, pixels; 0: no crop
    flip: bool  # random horizontal flips
    crop: Crop = "padded"
    crop_scale: tuple[float, float] = CROP_SCALE  # resized: share of the area that a random box has
    crop_ratio: tuple[float, float] = CROP_RATIO  # and its width / height

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W)."""
        return self.channels, self.image_size, self.image_size
