"""Variations by a pretrained image-variation model: diffusers' StableDiffusionImageVariationPipeline.

The model re-samples an image from its CLIP embedding alone. Its training images were prepared by a bicubic resize without
antialiasing; its model card asks for the same here, as a 4-D tensor. The model has seen LAION: see docs/augmentation.md.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import functional as F
from torchvision.transforms.v2 import functional as transforms

from dfkd.datasets.info import DatasetInfo
from dfkd.datasets.views import to_bytes, to_unit
from dfkd.diffusion.backends import Backend, image_generators, image_noise
from dfkd.diffusion.pretrained import load_pretrained
from dfkd.errors import UserError
from dfkd.runtime import Runtime
from dfkd.settings import AugmentSettings, ImageVariationsSettings

# CLIP's own normalisation (Radford et al., ICML 2021)
CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)

SCHEDULERS: dict[str, str] = {
    "dpm++": "DPMSolverMultistepScheduler",
    "unipc": "UniPCMultistepScheduler",
    "ddim": "DDIMScheduler",
    "pndm": "PNDMScheduler",
    "euler": "EulerDiscreteScheduler",
    "lcm": "LCMScheduler",
}


def to_rgb(images: torch.Tensor) -> torch.Tensor:
    """[N,1,H,W] or [N,3,H,W] -> [N,3,H,W]."""
    return images.expand(-1, 3, -1, -1) if images.shape[1] == 1 else images


def clip_input(images: torch.Tensor, size: int) -> torch.Tensor:
    """uint8 [N,C,H,W] -> what a CLIP image encoder takes: [N,3,size,size], bicubic without antialiasing, normalised."""
    resized = transforms.resize(
        to_rgb(to_unit(images)), [size, size], interpolation=transforms.InterpolationMode.BICUBIC, antialias=False
    )
    return transforms.normalize(resized, list(CLIP_MEAN), list(CLIP_STD))


def bank_output(images: torch.Tensor, info: DatasetInfo) -> torch.Tensor:
    """Float [N,3,H,W] in [0, 1] -> uint8 in the bank's shape: averaged over areas, and over the channels of a grey bank."""
    small = F.interpolate(images.float(), size=(info.image_size, info.image_size), mode="area")
    return to_bytes(small.mean(1, keepdim=True) if info.channels == 1 else small)


def check_not_blank(images: torch.Tensor, ids: torch.Tensor, variation: int) -> None:
    """Refuse images without any contrast: what a safety checker or an overflow in half precision leaves behind.

    Raises:
        UserError: names the first such image.
    """
    flat = images.float().flatten(1)
    good = torch.isfinite(flat).all(1) & (flat.amax(1) - flat.amin(1) > 1 / 255)
    if not bool(good.all()):
        first = int(ids[int((~good).nonzero()[0])])
        raise UserError(
            f"augment: variation {variation} of image {first} came out blank, as a safety checker or an overflow leaves it; "
            "set augment.image_variations.dtype to float32, switch safety_checker off, or choose another scheduler."
        )


class ImageVariations(Backend):
    """StableDiffusionImageVariationPipeline at the bank's interface. Absent weights are refused when it is made."""

    def __init__(self, settings: AugmentSettings, info: DatasetInfo, runtime: Runtime) -> None:
        super().__init__(settings, info, runtime)
        self.own: ImageVariationsSettings = settings.image_variations
        if self.own.height < info.image_size:
            raise UserError(
                f"augment.image_variations.height: {self.own.height} pixels cannot be averaged down to the bank's "
                f"{info.image_size}; choose at least {info.image_size}."
            )
        if self.own.dtype == "auto":
            half = runtime.device.type == "cuda" and runtime.precision == "fast"
            self.dtype = torch.float16 if half else torch.float32
        else:
            self.dtype = getattr(torch, self.own.dtype)
        self.pipeline = self._load()

    def describe(self) -> dict[str, Any]:
        """Which networks made the images."""
        return {"model": self.own.model, "revision": self.own.revision, "dtype": str(self.dtype).removeprefix("torch.")}

    def _load(self) -> Any:
        import diffusers

        common: dict[str, Any] = {
            "alternative": "choose augment.backend: bank-diffusion, which needs no outside weights",
            "dtype": self.dtype,
        }
        options: dict[str, Any] = {}
        if self.own.decoder == "taesd":  # given as the pipeline's VAE, so that the full decoder is neither fetched nor loaded
            setting = "augment.image_variations.taesd"
            options["vae"] = load_pretrained(diffusers.AutoencoderTiny, self.own.taesd, setting, **common)
        if not self.own.safety_checker:
            options |= {"safety_checker": None, "requires_safety_checker": False}
        pipeline = load_pretrained(
            diffusers.StableDiffusionImageVariationPipeline,
            self.own.model,
            "augment.image_variations.model",
            revision=self.own.revision,
            **common,
            **options,
        )
        scheduler = getattr(diffusers, SCHEDULERS[self.own.scheduler])
        pipeline.scheduler = scheduler.from_config(pipeline.scheduler.config)
        pipeline.to(self.runtime.device)
        self.runtime.place(pipeline.unet)
        if self.runtime.compile:
            pipeline.unet.compile(dynamic=False)
        pipeline.set_progress_bar_config(disable=True)
        return pipeline

    @torch.inference_mode()
    def vary(self, images: torch.Tensor, labels: torch.Tensor, ids: torch.Tensor, variation: int) -> torch.Tensor:
        """Images re-sampled from the CLIP embedding of each parent; the labels play no part."""
        size = self.own.batch_size
        made = [self._batch(images[i : i + size], ids[i : i + size], variation) for i in range(0, len(images), size)]
        return torch.cat(made) if made else images.clone()

    def _batch(self, images: torch.Tensor, ids: torch.Tensor, variation: int) -> torch.Tensor:
        pipeline, height = self.pipeline, self.own.height
        generators = image_generators(self.settings.seed, ids, variation)
        side = height // pipeline.vae_scale_factor
        # drawn here in fp32, so that precision and device change the image by rounding alone
        latents = image_noise((pipeline.unet.config.in_channels, side, side), generators).to(self.runtime.device, self.dtype)
        result = pipeline(
            clip_input(images.to(self.runtime.device), pipeline.image_encoder.config.image_size).to(self.dtype),
            height=height,
            width=height,
            num_inference_steps=self.own.steps,
            guidance_scale=self.own.guidance,
            generator=generators,  # for schedulers that add noise on the way
            latents=latents,
            output_type="pt",
        )
        check_not_blank(result.images, ids, variation)
        return bank_output(result.images, self.info).cpu()
