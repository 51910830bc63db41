"""What each method can set, with the published values as defaults. Imports no torch.

Distillation on images that are there has its settings in `dfkd.methods.kd`.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from dfkd.settings import Blocks, Count, Rate, TrainingSettings, Weight

Share = Annotated[float, Field(ge=0, lt=1)]


class MethodSettings(TrainingSettings):
    """What every method sets: the student's recipe. An epoch is `rounds` times one synthesis and `kd_steps` student steps."""

    epochs: Count = 200
    rounds: Count = Field(1, description="syntheses per epoch")
    kd_steps: Count = Field(400, description="student steps per round, after its synthesis")
    warmup: int = Field(0, ge=0, description="first epochs that synthesise and leave the student alone")
    warmup_rounds: Count = Field(1, description="syntheses per epoch of the warm-up")
    batch_size: Count = 256
    lr: Rate = Field(0.1, description="student, cosine from here to min_lr over the epochs after the warm-up")
    min_lr: Weight = 0.0
    schedule: Literal["cosine", "multistep"] = "cosine"
    milestones: list[int] = Field([], description="multistep: epochs after which the rate is multiplied by gamma")
    gamma: Rate = 0.1
    momentum: float = Field(0.9, ge=0, lt=1)
    weight_decay: Weight = 1e-4
    temperature: Rate = Field(20.0, description="of the KL divergence")
    loss: Literal["kl", "l1", "mse"] = Field("kl", description="student against teacher: KL of softmaxes, L1 or MSE of logits")
    blocks: Blocks = Field(
        "plain", description="what the student's k×k convolutions are trained as: blocks of branches, folded by `dfkd deploy`"
    )


class SynthesisSettings(MethodSettings):
    """Methods that make images with a generator."""

    synthesis_batch_size: Count = 256
    g_steps: Count = Field(1, description="generator steps per synthesis")
    lr_g: Rate = 1e-3
    latent_size: Count = 256
    generator: Literal["small", "large"] = "large"
    width: Count = Field(64, description="maps of the generator's last stage; 64 in all of the field's code")


class SampledSettings(MethodSettings):
    """Methods whose images are made afresh for every student step; some go into the run's bank, to be looked at."""

    sample_every: Count = Field(10, description="epochs between two samples of such images that go into the run's bank")
    sample_images: Count = Field(256, description="images of such a sample")


class GenerativeSettings(SynthesisSettings, SampledSettings):
    """Methods whose generator lives for the whole run and whose images are made afresh for every student step."""

    temperature: Rate = 1.0
    rounds: Count = 80
    kd_steps: Count = 5
    betas: tuple[Share, Share] = Field((0.5, 0.999), description="of the generator's Adam")


class StatisticsSettings(GenerativeSettings):
    """Those among them whose images are also held to the teacher's BatchNorm statistics."""

    oh: Weight = 1.0
    bn: Weight = Field(1.0, description="weight of the BatchNorm statistics; 0 for a teacher without such layers")


class DAFLSettings(GenerativeSettings):
    """DAFL. `temperature` 1: the published rows' code ignored its `--T 20`."""

    latent_size: Count = 512
    oh: Weight = 1.0
    act: Weight = Field(1e-3, description="weight of the activation term")
    balance: Weight = Field(20.0, description="weight of the class balance")


class ZSKTSettings(GenerativeSettings):
    """ZSKT in the simplified form of the published tables. `temperature` 1: their code ignored `--T 20`."""

    adv: Weight = 1.0


class DFADSettings(GenerativeSettings):
    """DFAD's own CIFAR recipe."""

    epochs: Count = 500
    rounds: Count = 50
    betas: tuple[Share, Share] = (0.9, 0.999)
    weight_decay: Weight = 5e-4
    schedule: Literal["cosine", "multistep"] = Field("multistep", description="of the student's rate and the generator's")
    milestones: list[int] = Field([99, 199], description="epochs after which both rates are multiplied by gamma")
    loss: Literal["kl", "l1", "mse"] = "l1"
    generator: Literal["dfad"] = Field("dfad", description="DFAD's own, whose images are not in [0, 1]")  # type: ignore[assignment]
    log: bool = Field(False, description="generator minimises −log(1 + L1) instead of −L1 (the form for segmentation)")


class DFQSettings(StatisticsSettings):
    """DFQ in the simplified form of the published tables. `temperature` 1: their code ignored `--T 20`."""

    rounds: Count = 40
    kd_steps: Count = 10
    adv: Weight = 1.0
    balance: Weight = Field(20.0, description="weight of the class balance")


class DeepInversionSettings(MethodSettings):
    """DeepInversion, and its adversarial form ADI (`adv` > 0)."""

    synthesis_batch_size: Count = 256
    g_steps: Count = Field(1000, description="optimiser steps on the pixels of a batch")
    lr_g: Rate = 0.1
    adv: Weight = 1.0
    bn: Weight = 10.0
    oh: Weight = 1.0
    tv: Weight = Field(1e-3, description="weight of the total variation")
    jitter: int = Field(4, ge=0, description="pixels of the circular shift, one for the whole batch")
    keep: Literal["last", "best"] = Field("last", description="kept iterate; the published code means `best`, keeps `last`")


class InversionSettings(SynthesisSettings):
    """Methods that invert a batch with a fresh generator and keep it in a bank."""

    g_steps: Count = 200
    generator: Literal["small", "large"] = "small"
    bn: Weight = 1.0
    oh: Weight = 1.0


class CSDSettings(InversionSettings):
    """CSD's main stage."""

    epochs: Count = 100
    kd_steps: Count = 2000
    batch_size: Count = 128
    kd: Weight = Field(1.0, description="weight of KL(teacher || student)")
    ce: Weight = Field(1.0, description="weight of the cross-entropy with the bank's labels")
    feature: Weight = Field(30.0, description="weight of the feature MSE")
    head_lr: Rate = Field(0.1, description="rate of the joint class × rotation head, constant")
    synthesis_batch_size: Count = 200
    csd: Weight = Field(10.0, description="weight of − CE of the joint class × rotation head")


InstanceFeatures = Literal["auto", "bn", "layers"]
INSTANCE_FEATURES = (
    "what the contrastive term compares: means of the BN inputs, or of the inputs of a ResNet's layer1 to layer4 (without "
    "layer4's output); auto: layers for ResNets that have the four (published for resnet34), bn for all others"
)


class ContrastiveSettings(InversionSettings):
    """The contrastive term of CMI, which DDA's paper uses too."""

    cr: Weight = Field(0.8, description="weight of the contrastive loss; 0 switches it off")
    cr_temperature: Rate = 0.1
    bank_size: Count = Field(40960, description="rows of the feature bank, a multiple of synthesis_batch_size")
    bank_sample: Count = Field(4096, description="rows drawn from it for a synthesis")
    instance_features: InstanceFeatures = Field("auto", description=INSTANCE_FEATURES)


class CMISettings(ContrastiveSettings):
    """CMI from scratch."""

    batch_size: Count = 128
    adv: Weight = Field(0.5, description="weight of the decision-adversarial term")


class DDASettings(CSDSettings):
    """DDA's main stage: CSD with 200 epochs and synthesis batches of 400. `contrastive` > 0 adds the paper's L_c."""

    epochs: Count = 200
    synthesis_batch_size: Count = 400
    contrastive: Weight = Field(0.0, description="weight of the paper's contrastive loss, which its code does not have")
    cr_temperature: Rate = 0.1
    bank_size: Count = Field(40000, description="rows of the feature bank, a multiple of synthesis_batch_size")
    bank_sample: Count = Field(4096, description="rows drawn from it for a synthesis")
    instance_features: InstanceFeatures = Field("auto", description=INSTANCE_FEATURES)


class FastSettings(SynthesisSettings):
    """Fast and FastMeta, 2 steps, for the WRN pairs. With 5 steps: lr_z 0.01, lr_g 3e-3; with 10: 0.01, 2e-3."""

    epochs: Count = 220
    warmup: int = Field(20, ge=0)
    lr: Rate = 0.2
    min_lr: Weight = 2e-4
    g_steps: Count = 2
    generator: Literal["small", "large"] = "small"
    lr_g: Rate = 5e-3
    lr_z: Rate = 0.015
    adv: Weight = 1.1
    bn: Weight = 10.0
    oh: Weight = 0.4
    bn_momentum: float = Field(0.9, ge=0, lt=1, description="share of the running statistics in the BN term; 0 switches it off")
    meta: Literal["fomaml", "reptile"] = Field("fomaml", description="FastMeta: how the shared generator follows the inner one")
    reset_after: int = Field(120, ge=0, description="syntheses after the warm-up until the first layer is drawn anew; 0: never")


class CuDFKDSettings(StatisticsSettings):
    """CuDFKD; the recipe of CIFAR-10, resnet34 → resnet18."""

    epochs: Count = 250
    rounds: Count = 40
    kd_steps: Count = 10
    batch_size: Count = 512
    synthesis_batch_size: Count = 512
    temperature: Rate = 20.0
    loss: Literal["kl", "l1", "mse"] = "l1"
    betas: tuple[Share, Share] = (0.9, 0.99)
    latent_size: Count = Field(512, description="1024 in the published code for all data sets but CIFAR's")
    act: Weight = Field(0.0, description="weight of the activation term")
    entropy: Weight = Field(20.0, description="weight of − H(mean teacher answer at `temperature`)")
    adv: Weight = Field(0.0, description="weight of the adversarial term before its ramp")
    adv_growth: Weight = Field(0.5, description="what an epoch of the ramp adds to it")
    begin: float = Field(0.25, ge=0, le=1, description="share of the epochs after which the ramp begins")
    end: float = Field(0.75, ge=0, le=1, description="and after which it ends")
    adversarial: Literal["kl", "js"] = "kl"
    pace: float = Field(2.0, allow_inf_nan=False, description="λ_0 of the self-paced weight")
    pace_growth: Weight = Field(1e-4, description="what a student step adds to λ; 2e-5 in the published code but for CIFAR-10")
    curriculum: Literal["log", "hard", "soft", "none"] = Field("log", description="form of the self-paced weight")
    per_sample: bool = Field(False, description="weigh images one by one; the published code weighs the whole batch")

    @model_validator(mode="after")
    def _curriculum(self) -> CuDFKDSettings:
        if self.end < self.begin:
            raise ValueError(f"end {self.end:g} is before begin {self.begin:g}")
        if self.curriculum in ("hard", "soft") and self.pace <= 0:
            raise ValueError(f"pace {self.pace:g}: curriculum '{self.curriculum}' needs one above 0")
        return self


class AdaDFKDSettings(CuDFKDSettings):
    """AdaDFKD; the recipe of CIFAR-10, resnet34 → resnet18, with a queue that the batch divides."""

    epochs: Count = 300
    batch_size: Count = 768
    synthesis_batch_size: Count = 768
    loss: Literal["kl", "l1", "mse"] = "kl"
    pace: float = Field(2.2, allow_inf_nan=False)
    adv: Weight = 1.0
    adv_growth: Weight = 0.0
    hard: Weight = Field(0.1, description="weight of the contrast with the student's queue in the generator step")
    student_contrast: Weight = Field(0.1, description="weight of the in-batch InfoNCE in the student step")
    queue: Count = Field(4608, description="student features kept as negatives, a multiple of synthesis_batch_size")
    window: float = Field(0.9, gt=0, le=1, description="share of the queue used as negatives, sliding from easy to hard")
    contrast_temperature: Rate = Field(0.07, description="of both contrasts")
    projection: Literal["fresh", "fixed"] = Field(
        "fresh", description="the linear map between features of different sizes: random at every use, or drawn once"
    )

    @model_validator(mode="after")
    def _queue(self) -> AdaDFKDSettings:
        batch = self.synthesis_batch_size
        if self.queue % batch:
            near = max(round(self.queue / batch), 1) * batch
            raise ValueError(f"queue {self.queue} is not a multiple of synthesis_batch_size {batch}; {near} is")
        return self


class NAYERSettings(SynthesisSettings):
    """NAYER-100 on CIFAR-10."""

    epochs: Count = 120
    warmup: int = Field(20, ge=0)
    warmup_rounds: Count = 10
    rounds: Count = 2
    kd_steps: Count = 200
    batch_size: Count = 512
    lr: Rate = 0.2
    min_lr: Weight = 2e-4
    synthesis_batch_size: Count = 400
    g_steps: Count = 30
    latent_size: Count = Field(1000, description="outputs of a noisy layer")
    generator: Literal["small", "large"] = "small"
    lr_g: Rate = 4e-3
    adv: Weight = 1.33
    bn: Weight = 10.0
    oh: Weight = 0.5
    bn_momentum: float = Field(0.9, ge=0, lt=1)
    generator_life: Count = Field(10, description="epochs after which the generator is made anew")
    embedding: Literal["auto", "clip", "orthogonal"] = Field("auto", description="auto: CLIP's text encoder if it lies on disk")
    clip: str = Field("openai/clip-vit-base-patch32", description="hub id or local folder of the CLIP text encoder")
    prompt: str = Field("a image of {}", description="the text of a class, as the published code has it")


class FixedSettings(MethodSettings):
    """Plain distillation on images that are there: CMI's non-adversarial variant (50,000 images an epoch) and the controls."""

    kd_steps: Count = 390
    batch_size: Count = 128
    schedule: Literal["cosine", "multistep"] = "multistep"
    milestones: list[int] = Field([120, 150, 180])


class NoiseSettings(FixedSettings, SampledSettings):
    """The control `noise`: plain distillation on uniform noise."""
