"""Typed settings of the stages, every key with its range, default and meaning. Imports no torch."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, SerializerFunctionWrapHandler, model_serializer, model_validator

Count = Annotated[int, Field(ge=1)]
Weight = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Rate = Annotated[float, Field(gt=0, allow_inf_nan=False)]

# What the k×k convolutions of a network are trained as (dfkd/models/rep.py).
Blocks = Literal["plain", "actdb", "repvgg", "acb", "dbb"]

# How training images are cropped: shifted over zero padding, or random boxes brought to the image size.
Crop = Literal["padded", "resized"]
CROP_SCALE, CROP_RATIO = (0.08, 1.0), (3 / 4, 4 / 3)  # of a box, published: Szegedy et al., arXiv 1409.4842, section 6

MAX_PIXELS = 89_478_485  # of one image file: Pillow's own limit, a quarter of a gigabyte in RGB


class Settings(BaseModel):
    """Base of all settings: immutable, unknown keys refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


OnDivergencePolicy = Literal["stop", "rollback"]
ON_DIVERGENCE = "DFKD_ON_DIVERGENCE"  # how the workflow hands the policy to the stages: it changes no result that is there


class StageSettings(Settings):
    """What every computing stage can set."""

    precision: Literal["fast", "reference"] = Field(
        "fast",
        description="`fast`: bf16 where the hardware multiplies it, channels_last; `reference`: fp32, eager, deterministic",
    )
    compile: bool = Field(False, description="torch.compile the inner loop where a compiler is found; pays for long runs")


class TrainingSettings(StageSettings):
    """What every stage that trains on a store of images can set."""

    store: Literal["auto", "resident", "streamed"] = Field(
        "auto",
        description="images on the device, or read from their file window by window as they are needed; `auto`: on the device "
        "if they take at most half of its memory. The order of the images differs",
    )
    shuffle_buffer: Count = Field(16384, description="streamed: images of a window, within which the order is shuffled")


class PaddedCropUnsaid(BaseModel):
    """Says nothing of the crop where it is the padded one, so that files of before it could be chosen keep their bytes."""

    @model_serializer(mode="wrap")
    def _without_crop(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        content: dict[str, Any] = handler(self)
        if getattr(self, "crop", "") == "padded":
            for key in ("crop", "crop_scale", "crop_ratio", "test_centre"):
                content.pop(key, None)
        return content


class DatasetSettings(Settings, PaddedCropUnsaid):
    """One entry of config/datasets.yaml."""

    source: str = Field(description="`torchvision:NAME`, `sklearn:digits`, `folder:PATH`, `packed:FILE` or `hdf5:PATH`")
    image_size: int = Field(32, ge=4, le=1024, description="height and width in pixels; images are resized with antialiasing")
    channels: Literal[1, 3] = Field(3, description="1 (grey) or 3 (RGB)")
    classes: list[str] | None = Field(None, description="class names in label order; from the source when absent")
    mean: list[float] | None = Field(None, description="per channel, of pixels in [0, 1]; from the training split when absent")
    std: list[float] | None = Field(None, description="per channel, likewise")
    crop_padding: int = Field(4, ge=0, description="zero padding of the random crop in training; 0 switches it off")
    crop: Crop = Field(
        "padded",
        description="of training images: `padded`, shifted within `crop_padding`, or `resized`, random boxes brought to "
        "`image_size` (RandomResizedCrop, the recipe of ImageNet)",
    )
    crop_scale: tuple[Rate, Rate] = Field(CROP_SCALE, description="resized: share of the area that a box has, uniform")
    crop_ratio: tuple[Rate, Rate] = Field(CROP_RATIO, description="resized: width / height of a box, log-uniform")
    test_centre: float = Field(
        1.0,
        gt=0.25,
        le=1,
        description="packed, with crop: resized: share of the short side that the centre square of a test image has; 0.875 "
        "for the usual 224 of 256",
    )
    flip: bool = Field(True, description="random horizontal flips in training")
    test_fraction: float | None = Field(None, gt=0, lt=1, description="for a source without a test split: stratified share")
    split_seed: int = Field(0, ge=0, description="seed of that split")
    skip_unreadable: bool = Field(False, description="image folder: leave out unreadable files instead of stopping")
    keep_packed: bool = Field(
        False,
        description="packed: leave the training images in the packed file; they are decoded as a network is trained on them",
    )
    max_pixels: int = Field(
        MAX_PIXELS,
        ge=1,
        description="image folder: a file with more pixels is refused before it is decoded (decompression bombs)",
    )

    @model_validator(mode="before")
    @classmethod
    def _one_crop(cls, values: Any) -> Any:
        if isinstance(values, dict) and values.get("crop") == "resized":
            return {"crop_padding": 0, **values}
        return values

    @model_validator(mode="after")
    def _boxes(self) -> DatasetSettings:
        if self.crop == "resized" and self.crop_padding:
            raise ValueError(f"crop_padding {self.crop_padding} has no effect with crop: resized; leave it away")
        for key in ("crop_scale", "crop_ratio", "test_centre"):
            if self.crop == "padded" and key in self.model_fields_set:
                raise ValueError(f"{key} has no effect without crop: resized")
        if self.test_centre != 1 and not self.source.startswith("packed:"):
            raise ValueError("test_centre needs a packed source (`packed:FILE`)")
        for key in ("crop_scale", "crop_ratio"):
            low, high = getattr(self, key)
            if low > high:
                raise ValueError(f"{key}: [{low:g}, {high:g}] is no range; give the lesser number first")
        if self.crop_scale[1] > 1:
            raise ValueError(f"crop_scale: {self.crop_scale[1]:g} is more than the whole image, which is 1")
        return self

    @model_validator(mode="after")
    def _lengths(self) -> DatasetSettings:
        if self.keep_packed and not self.source.startswith("packed:"):
            raise ValueError("keep_packed needs a packed source (`packed:FILE`)")
        for key in ("mean", "std"):
            values = getattr(self, key)
            if values is not None and len(values) != self.channels:
                raise ValueError(f"{key} has {len(values)} values for {self.channels} channels")
        if self.std is not None and min(self.std) <= 0:
            raise ValueError("std must be positive")
        return self


class TeacherSettings(TrainingSettings):
    """The CIFAR recipe of the field's public code: SGD, MultiStep, crop and flip."""

    seed: int = Field(0, ge=0)
    epochs: Count = 200
    batch_size: Count = 256
    lr: Rate = 0.1
    momentum: float = Field(0.9, ge=0, lt=1)
    weight_decay: Weight = 1e-4
    milestones: list[int] = Field([120, 150, 180], description="epochs after which the rate is multiplied by gamma")
    gamma: Rate = 0.1
    schedule: Literal["multistep", "cosine"] = "multistep"
    nesterov: bool = False
    blocks: Blocks = Field("plain", description="what its k×k convolutions are trained as; a student from scratch's above all")
    label_smoothing: float = Field(0.0, ge=0, lt=1)


class InitBankSettings(StageSettings):
    """Generator inversion (CSD/DDA bank initialisation with `csd: 0`)."""

    seed: int = Field(0, ge=0)
    batches: Count = Field(400, description="generators trained one after the other; images = batches × batch_size")
    batch_size: Count = 200
    steps: Count = Field(500, description="optimiser steps per batch")
    lr: Rate = 1e-3
    latent_size: Count = 256
    generator: Literal["small", "large"] = "small"
    width: Count = Field(64, description="maps of the generator's last stage; 64 in all of the field's code")
    bn: Weight = Field(1.0, description="weight of the BN-statistics loss")
    oh: Weight = Field(1.0, description="weight of the one-hot loss")


class ImageVariationsSettings(Settings):
    """diffusers' StableDiffusionImageVariationPipeline."""

    model: str = Field("lambdalabs/sd-image-variations-diffusers", description="hub id or local folder")
    revision: str = "v2.0"
    scheduler: Literal["dpm++", "unipc", "ddim", "pndm", "euler", "lcm"] = "dpm++"
    steps: Count = 20
    guidance: float = Field(3.0, ge=0, allow_inf_nan=False)
    height: int = Field(256, ge=8, multiple_of=8, description="pixels of the generated square image before downsampling")
    decoder: Literal["taesd", "full"] = Field("taesd", description="TAESD (small) or the model's own VAE decoder")
    taesd: str = Field("madebyollin/taesd", description="hub id or local folder of the small decoder")
    dtype: Literal["auto", "float32", "float16", "bfloat16"] = Field("auto", description="auto: float16 on a GPU, else float32")
    safety_checker: bool = Field(False, description="run the model's own checker; an image it blacks out stops the stage")
    batch_size: Count = 32


class BankDiffusionSettings(Settings):
    """A small class-conditional UNet trained on the init bank; variations by SDEdit."""

    strength: float = Field(0.5, gt=0, le=1, description="share of the noising trajectory that is undone and redone")
    channels: list[Annotated[int, Field(ge=4, multiple_of=4)]] = Field(
        [64, 128, 128], min_length=1, description="UNet widths from the finest level down, multiples of 4"
    )
    layers_per_block: Count = 1
    patch: Count = Field(1, description="side of the pixel squares folded into channels before the UNet; 2 quarters its work")
    train_steps: Count = 20000
    batch_size: Count = 128
    lr: Rate = 2e-4
    ema: float = Field(0.999, ge=0, lt=1)
    sampling_steps: int = Field(
        50, ge=1, le=1000, description="DDIM steps of the full trajectory; strength × this many are run"
    )
    sampling_batch_size: Count = 200


class AugmentSettings(StageSettings):
    """Diffusion variations of the init bank and the fidelity filter (DDA)."""

    seed: int = Field(0, ge=0)
    backend: Literal["image-variations", "bank-diffusion", "none"] = "image-variations"
    variations: int = Field(1, ge=1, le=256, description="variations per chosen parent")
    share: float = Field(1.0, gt=0, le=1, description="share of the bank's images that are varied, drawn by the seed")
    threshold: float = Field(0.7, ge=-1, le=1, description="a variation is kept iff cosine(variation, parent) ≥ threshold")
    embedding: Literal["teacher", "clip"] = Field(
        "teacher", description="where the cosine is taken: penultimate features or CLIP"
    )
    clip: str = Field("openai/clip-vit-base-patch32", description="hub id or local folder of the CLIP image encoder")
    image_variations: ImageVariationsSettings = ImageVariationsSettings()
    bank_diffusion: BankDiffusionSettings = BankDiffusionSettings()


class EvaluateSettings(StageSettings):
    """Metrics of a student against its teacher on the test split."""

    precision: Literal["fast", "reference"] = Field(
        "reference",
        description="`reference`: fp32, so that no figure depends on the hardware's bf16; `fast`: as in the other stages",
    )
    batch_size: Count = 500
    ece_bins: Count = Field(15, description="equal-width confidence bins of the expected calibration error")
