"""What every stage needs to know of a data set, short of its images. Imports no torch."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class DatasetInfo(BaseModel):
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
    crop_padding: int  # of the random crop, pixels; 0: no crop
    flip: bool  # random horizontal flips

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W)."""
        return self.channels, self.image_size, self.image_size
