"""Batched crop, flip and normalisation on the device: what the networks see of an image."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch.nn import functional as F

from dfkd.datasets.info import DatasetInfo


def to_unit(images: torch.Tensor) -> torch.Tensor:
    """uint8 [N,C,H,W] -> float32 in [0, 1]."""
    return images.float().div_(255)


def to_bytes(images: torch.Tensor) -> torch.Tensor:
    """Float [N,C,H,W] in [0, 1] -> uint8, floor(255 x) (methods of the field truncate when they save an image)."""
    return images.mul(255).floor_().clamp_(0, 255).to(torch.uint8)


def normalise(images: torch.Tensor, info: DatasetInfo) -> torch.Tensor:
    """(x - mean) / std per channel, x in [0, 1], [N,C,H,W]."""
    mean = torch.tensor(info.mean, device=images.device, dtype=images.dtype).view(1, -1, 1, 1)
    std = torch.tensor(info.std, device=images.device, dtype=images.dtype).view(1, -1, 1, 1)
    return (images - mean) / std


def denormalise(images: torch.Tensor, info: DatasetInfo) -> torch.Tensor:
    """x std + mean per channel, clamped to [0, 1]: the image that normalised values [N,C,H,W] come nearest to."""
    mean = torch.tensor(info.mean, device=images.device, dtype=images.dtype).view(1, -1, 1, 1)
    std = torch.tensor(info.std, device=images.device, dtype=images.dtype).view(1, -1, 1, 1)
    return (images * std + mean).clamp(0, 1)


class _CropFlip(torch.autograd.Function):
    """Per-sample shift with zero fill, then per-sample flip. The gradient is the inverse shift, again a gather."""

    @staticmethod
    def forward(
        ctx: Any, images: torch.Tensor, dy: torch.Tensor, dx: torch.Tensor, flip: torch.Tensor, padding: int
    ) -> torch.Tensor:
        ctx.save_for_backward(dy, dx, flip)
        ctx.padding = padding
        i, j = _axes(images)
        columns = torch.where(flip[:, None], images.shape[3] - 1 - j, j)
        return _gather(images, dy[:, None] + i, dx[:, None] + columns, padding)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        (gradient,) = gradients
        dy, dx, flip = ctx.saved_tensors
        padding = ctx.padding
        i, j = _axes(gradient)
        columns = j + padding - dx[:, None]
        columns = torch.where(flip[:, None], gradient.shape[3] - 1 - columns, columns)
        return _gather(gradient, i + 2 * padding - dy[:, None], columns + padding, padding), None, None, None, None


def _axes(images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    height, width = images.shape[2:]
    return torch.arange(height, device=images.device)[None], torch.arange(width, device=images.device)[None]


def _gather(images: torch.Tensor, rows: torch.Tensor, columns: torch.Tensor, padding: int) -> torch.Tensor:
    """out[b, :, i, j] = zero-padded images[b, :, rows[b, i], columns[b, j]], indices counted in the padded image."""
    padded = F.pad(images, (padding,) * 4).permute(0, 2, 3, 1)
    batch = torch.arange(len(images), device=images.device)[:, None, None]
    return padded[batch, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def crop_flip(images: torch.Tensor, dy: torch.Tensor, dx: torch.Tensor, flip: torch.Tensor, padding: int) -> torch.Tensor:
    """Crop each image of [N,C,H,W] at its own offset of the zero-padded image, flip it where `flip`; differentiable.

    Args:
        dy, dx: int64 [N], 0 to 2 × padding; `padding` leaves the image where it is.
        flip: bool [N].
        padding: zeros on each side, pixels.
    """
    return _CropFlip.apply(images, dy, dx, flip, padding)


class Views(NamedTuple):
    """The training view of each of N images: offsets of its crop in the padded image, and whether it is flipped. On the CPU."""

    dy: torch.Tensor  # int64 [N], 0 to 2 × padding
    dx: torch.Tensor
    flip: torch.Tensor  # bool [N]

    def numbers(self, info: DatasetInfo) -> torch.Tensor:
        """int64 [N], from 0 to `views_of(info)` - 1: equal exactly where the views are."""
        places = self.dy * (2 * info.crop_padding + 1) + self.dx
        return 2 * places + self.flip if info.flip else places

    def part(self, rows: slice) -> Views:
        """Those of some of the images."""
        return Views(self.dy[rows], self.dx[rows], self.flip[rows])

    def apply(self, images: torch.Tensor, info: DatasetInfo) -> torch.Tensor:
        """These views of images [N,C,H,W] in [0, 1] or uint8, before normalisation, on any device."""
        if views_of(info) == 1:
            return images
        dy, dx, flip = (value.to(images.device) for value in self)
        return crop_flip(images, dy, dx, flip, info.crop_padding)


def views_of(info: DatasetInfo) -> int:
    """How many training views an image of the data set has: 162 of CIFAR's, 9 × 9 crops and the flip."""
    return (2 * info.crop_padding + 1) ** 2 * (2 if info.flip else 1)


def numbered_views(numbers: torch.Tensor, info: DatasetInfo) -> Views:
    """The views [N] that have these numbers: the inverse of `Views.numbers`."""
    side = 2 * info.crop_padding + 1
    places = numbers // 2 if info.flip else numbers
    flip = numbers % 2 == 1 if info.flip else torch.zeros_like(numbers, dtype=torch.bool)
    return Views(places // side, places % side, flip)


def draw_views(count: int, info: DatasetInfo, generator: torch.Generator | None = None) -> Views:
    """Random views, each image's its own. Draws from torch's global generator on the CPU, or from the given one."""
    none = torch.zeros(count, dtype=torch.bool)
    if views_of(info) == 1:
        return Views(none.long(), none.long(), none)
    dy, dx = torch.randint(0, 2 * info.crop_padding + 1, (2, count), generator=generator)
    return Views(dy, dx, torch.rand(count, generator=generator) < 0.5 if info.flip else none)


def random_views(images: torch.Tensor, info: DatasetInfo) -> torch.Tensor:
    """The training view of the data set: random crop (zero fill, black before normalisation) and flip, each image its own.

    [N,C,H,W] in [0, 1] or uint8, before normalisation. Draws from torch's global generator on the CPU, so that devices agree.
    """
    return draw_views(len(images), info).apply(images, info)


def resized_crop(
    images: torch.Tensor, top: torch.Tensor, left: torch.Tensor, height: torch.Tensor, width: torch.Tensor, flip: torch.Tensor
) -> torch.Tensor:
    """Cut a box out of each image of [N,C,H,W], enlarge it to H × W bilinearly, flip it where `flip`; differentiable.

    Two products with interpolation matrices, so that forward and gradient are the same on every run and device. Equals
    `F.interpolate(crop, (H, W), mode="bilinear", align_corners=False)` image by image.

    Args:
        top, left, height, width: int64 [N], pixels; the box lies inside the image.
        flip: bool [N].
    """
    rows = _interpolation(top, height, images.shape[2])
    columns = _interpolation(left, width, images.shape[3])
    columns = torch.where(flip[:, None, None], columns.flip(1), columns)
    return rows[:, None].to(images.dtype) @ images @ columns[:, None].to(images.dtype).mT


def _interpolation(start: torch.Tensor, length: torch.Tensor, size: int) -> torch.Tensor:
    """[N,size,size]: row i holds the weights of the pixels that output pixel i mixes."""
    pixels = torch.arange(size, device=start.device)
    place = (pixels + 0.5) * (length / size)[:, None] - 0.5
    place = torch.minimum(place.clamp(min=0), (length - 1)[:, None]) + start[:, None]
    return (1 - (place[:, :, None] - pixels).abs()).clamp(min=0)


def random_resized_views(
    images: torch.Tensor,
    info: DatasetInfo,
    scale: tuple[float, float] = (0.25, 1.0),
    aspect: tuple[float, float] = (3 / 4, 4 / 3),
) -> torch.Tensor:
    """The local view of CMI: a random box of each image enlarged to the full size, and the data set's flip.

    The box covers a share of the area uniform in `scale`, with an aspect log-uniform in `aspect`, in whole pixels; of ten
    proposals the first that fits is taken, the whole image if none does (as torchvision's RandomResizedCrop). [N,C,H,W] in
    [0, 1], before normalisation. Draws from torch's global generator on the CPU, so that devices agree.
    """
    count, (full_height, full_width) = len(images), images.shape[2:]
    area = full_height * full_width * torch.empty(10, count).uniform_(*scale)
    ratio = torch.empty(10, count).uniform_(math.log(aspect[0]), math.log(aspect[1])).exp()
    widths, heights = (area * ratio).sqrt().round().long(), (area / ratio).sqrt().round().long()
    fits = (widths >= 1) & (heights >= 1) & (widths <= full_width) & (heights <= full_height)
    first = fits.int().argmax(0)[None]  # the first of the largest
    found = fits.any(0)
    width = torch.where(found, widths.gather(0, first)[0], full_width)
    height = torch.where(found, heights.gather(0, first)[0], full_height)
    # multiplied in float64, where no product of a number below 1 rounds up to the bound
    top, left = (
        (torch.rand(count, dtype=torch.float64) * (free + 1)).long() for free in (full_height - height, full_width - width)
    )
    flip = torch.rand(count) < 0.5 if info.flip else torch.zeros(count, dtype=torch.bool)
    return resized_crop(images, *(value.to(images.device) for value in (top, left, height, width, flip)))


def rotations(images: torch.Tensor) -> torch.Tensor:
    """[N,C,H,W] -> [4N,C,H,W]: each image turned counter-clockwise by 0, 90, 180, 270 degrees, sample-major."""
    turned = torch.stack([torch.rot90(images, k, (2, 3)) for k in range(4)], dim=1)
    return turned.flatten(0, 1).contiguous(memory_format=memory_format_of(images))


def memory_format_of(images: torch.Tensor) -> torch.memory_format:
    """channels_last if the batch lies so, else contiguous."""
    last = images.is_contiguous(memory_format=torch.channels_last) and not images.is_contiguous()
    return torch.channels_last if last else torch.contiguous_format
