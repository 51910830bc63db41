"""Generators of the data-free literature: latent vector → image, and their re-initialisation."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from dfkd.errors import UserError


def _up(inputs: int, outputs: int, bias: bool = False) -> list[nn.Module]:
    """Nearest up-sampling by 2, 3×3 convolution, BatchNorm, leaky ReLU."""
    return [
        nn.Upsample(scale_factor=2.0, mode="nearest"),
        nn.Conv2d(inputs, outputs, 3, 1, 1, bias=bias),
        nn.BatchNorm2d(outputs),
        nn.LeakyReLU(0.2, inplace=True),
    ]


class _Generator(nn.Module):
    """A linear layer to `first` maps of a quarter of the image size, two up-sampling stages, a convolution, a sigmoid."""

    def __init__(self, latent_size: int, channels: int, image_size: int, first: int, width: int, bias: bool = False) -> None:
        super().__init__()
        if image_size < 4 or image_size % 4:
            raise UserError(f"image size {image_size}: a generator makes images whose size is a multiple of 4; choose another.")
        self.latent_size = latent_size
        side = image_size // 4
        self.start = nn.Sequential(nn.Linear(latent_size, first * side**2), nn.Unflatten(1, (first, side, side)))
        self.body = nn.Sequential(
            nn.BatchNorm2d(first),
            *_up(first, 2 * width, bias),
            *_up(2 * width, width, bias),
            nn.Conv2d(width, channels, 3, 1, 1),
        )

    def forward(self, z: Tensor) -> Tensor:
        """Latents [B,latent_size] → images [B,channels,image_size,image_size] in [0, 1], fp32 under autocast too."""
        return torch.sigmoid(self._unbounded(z))

    def _unbounded(self, z: Tensor) -> Tensor:
        """What the last convolution makes of latents, in fp32."""
        images = self.body(self.start(z))
        # bf16 has 8 significant bits: too few for the loss of an image that is kept with 8 bits.
        return images.to(torch.promote_types(images.dtype, torch.float32))


class Generator(_Generator):
    """The small generator of CMI, CSD, DDA and Fast: 2·width maps throughout, then width."""

    def __init__(self, latent_size: int, channels: int, image_size: int, width: int = 64) -> None:
        super().__init__(latent_size, channels, image_size, 2 * width, width)


class LargeGenerator(_Generator):
    """The generator of DAFL, ZSKT and DFQ: starts with 4·width maps."""

    def __init__(self, latent_size: int, channels: int, image_size: int, width: int = 64) -> None:
        super().__init__(latent_size, channels, image_size, 4 * width, width)


class GeneratorA(_Generator):
    """The 32-pixel generator of DFAD: the small one with biases, a tanh and a BatchNorm without weights at its end.

    Its images are what the networks take, zero mean and unit variance per channel of a batch, and not in [0, 1]; so it is no
    choice of the methods' `generator` setting.
    """

    def __init__(self, latent_size: int, channels: int, image_size: int, width: int = 64) -> None:
        super().__init__(latent_size, channels, image_size, 2 * width, width, bias=True)
        self.whiten = nn.BatchNorm2d(channels, affine=False)

    def forward(self, z: Tensor) -> Tensor:
        """Latents [B,latent_size] → normalised images [B,channels,image_size,image_size], fp32 under autocast too."""
        return self.whiten(torch.tanh(self._unbounded(z)))


GENERATORS: dict[str, Callable[[int, int, int, int], _Generator]] = {"small": Generator, "large": LargeGenerator}


@torch.no_grad()
def reset_n02(module: nn.Module) -> None:
    """Re-initialise in place: weights of convolutions and linear layers ~ N(0, 0.02), of BatchNorm2d ~ N(1, 0.02); biases 0.

    BN running statistics are kept. The draws are made in NCHW order, so that a seed gives the same weights in every
    memory format.
    """
    for layer in module.modules():
        if isinstance(layer, (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)):
            _draw(layer.weight, 0.0)
        elif isinstance(layer, nn.BatchNorm2d):
            _draw(layer.weight, 1.0)
        else:
            continue
        if layer.bias is not None:
            layer.bias.zero_()


def _draw(weight: Tensor, mean: float) -> None:
    weight.copy_(torch.empty(weight.shape, dtype=weight.dtype, device=weight.device).normal_(mean, 0.02))
