"""Settings of each objective of the literature, with its published weights. Imports no torch.

A class names its term and gives it a weight; formulas and sources are in the file of the same name in `dfkd.distillation.zoo`.
"""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field, model_validator

from dfkd.methods.kd import FeatureSettings, ObjectiveSettings
from dfkd.settings import Count, Rate, Weight


class VanillaSettings(ObjectiveSettings):
    """KD (Hinton et al., arXiv 1503.02531) with the recipe and the weights of the benchmark."""

    ce: Weight = 0.1
    kd: Weight = 0.9


class KDrefineSettings(ObjectiveSettings):
    """KDrefine. Without `blocks` of the student, its logits' standardisation and its rate alone."""

    lr: Rate = 0.01
    ce: Weight = 0.1
    kd: Weight = 0.9
    multiplier: Rate = Field(2.0, description="of the standardised logits; 4 in the code of December 2022")
    variance: Literal["unbiased", "biased"] = Field("unbiased", description="of the logits; `biased` in December 2022")
    standardise: Literal["both", "kd"] = Field("both", description="the logits of both terms, or of the imitation alone")

    @model_validator(mode="after")
    def _standardised(self) -> KDrefineSettings:
        if self.standardise == "kd" and not self.kd:
            raise ValueError("standardise 'kd' has no effect with kd 0: choose 'both', or give kd a weight")
        return self


class LogitStdSettings(ObjectiveSettings):
    """Logit standardisation; `temperature` is the base temperature."""

    temperature: Rate = 2.0
    ce: Weight = 0.1
    kd: Rate = Field(9.0, description="weight of the KL of the standardised logits, times the squared temperature")


class DKDSettings(ObjectiveSettings):
    """Decoupled distillation. The published `beta` differs from pair to pair."""

    term: ClassVar[str] = "dkd"
    looks_at_labels: ClassVar[bool] = True
    dkd: Weight = Field(1.0, description="weight of alpha TCKD + beta NCKD")
    alpha: Weight = Field(1.0, description="weight of TCKD, the label's probability against that of all other classes")
    beta: Weight = Field(8.0, description="weight of NCKD, the distribution over the other classes")
    ramp: int = Field(20, ge=0, description="first epochs over which the term grows to its weight; 0: there at once")

    @model_validator(mode="after")
    def _parts(self) -> DKDSettings:
        if not self.alpha and not self.beta:
            raise ValueError("alpha and beta are both 0: nothing of the method is left")
        return self


class FitNetSettings(FeatureSettings):
    """FitNet, trained jointly."""

    term: ClassVar[str] = "fitnet"
    fitnet: Weight = Field(100.0, description="weight of the squared distance of the hint")
    relu: bool = Field(True, description="whether the regressor ends with a ReLU, as in the benchmark; the paper's does not")


class ATSettings(FeatureSettings):
    """Attention transfer."""

    term: ClassVar[str] = "at"
    at: Weight = Field(1000.0, description="weight of the squared distance of the attention maps")


class SPSettings(FeatureSettings):
    """Similarity-preserving distillation."""

    term: ClassVar[str] = "sp"
    compares_images: ClassVar[bool] = True
    sp: Weight = Field(3000.0, description="weight of the squared distance of the images' similarities")


class CCSettings(ObjectiveSettings):
    """Correlation congruence. The weight is that of the published code; the paper's forms need one of their own."""

    term: ClassVar[str] = "cc"
    compares_images: ClassVar[bool] = True
    cc: Weight = Field(0.02, description="weight of the correlation")
    embedding_size: Count = Field(128, description="outputs of the linear maps that both networks' features go through")
    form: Literal["neighbours", "gaussian", "bilinear"] = Field(
        "neighbours",
        description="the published code's products of neighbours in a batch, or the kernel of the paper's congruence",
    )


class VIDSettings(FeatureSettings):
    """Variational information distillation."""

    term: ClassVar[str] = "vid"
    vid: Weight = Field(1.0, description="weight of minus the log-likelihood of the teacher's maps")


class RKDSettings(ObjectiveSettings):
    """Relational distillation."""

    term: ClassVar[str] = "rkd"
    compares_images: ClassVar[bool] = True
    rkd: Weight = Field(1.0, description="weight of both relations together")
    distance: Weight = Field(25.0, description="weight of the distances between two images")
    angle: Weight = Field(50.0, description="weight of the angles among three")

    @model_validator(mode="after")
    def _relations(self) -> RKDSettings:
        if not self.distance and not self.angle:
            raise ValueError("distance and angle are both 0: nothing of the method is left")
        return self


class PKTSettings(ObjectiveSettings):
    """Probabilistic knowledge transfer."""

    term: ClassVar[str] = "pkt"
    compares_images: ClassVar[bool] = True
    pkt: Weight = Field(30000.0, description="weight of the divergence of the images' similarities, a mean over all pairs")


class NSTSettings(FeatureSettings):
    """Neuron selectivity transfer."""

    term: ClassVar[str] = "nst"
    nst: Weight = Field(50.0, description="weight of the MMD² of the channels' activation patterns")


class SVDSettings(FeatureSettings):
    """Distillation by singular vectors."""

    term: ClassVar[str] = "svd"
    svd: Weight = Field(1.0, description="weight of the squared distance of the relations between neighbouring maps")


class SRRLSettings(ObjectiveSettings):
    """Regression of the feature and of what the teacher's classifier says of it."""

    term: ClassVar[str] = "srrl"
    kd: Weight = 1.0
    srrl: Weight = Field(1.0, description="weight of the two squared distances")
