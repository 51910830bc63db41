"""Settings of the contrast with memory banks, of semantic calibration, and of the methods in two stages. Imports no torch."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import Field, model_validator

from dfkd.methods.kd import FeatureSettings, ObjectiveSettings
from dfkd.settings import Count, Rate, Weight


class CRDSettings(ObjectiveSettings):
    """Contrastive representation distillation. The default of `negatives` is for CIFAR's 50,000 images."""

    term: ClassVar[str] = "crd"
    looks_at_labels: ClassVar[bool] = True  # negatives are images of other classes
    crd: Weight = Field(0.8, description="weight of the contrast with the memory banks")
    crd_dim: Count = Field(128, description="length of the embeddings that are compared")
    negatives: Count = Field(16384, description="images of other classes that each image is held against, without repetition")
    positive: Literal["exact", "relax"] = Field("exact", description="the image itself, or any of its class")
    crd_temperature: Rate = Field(0.07, description="of the contrast")
    crd_momentum: float = Field(0.5, ge=0, lt=1, description="share of the old row when a row of a memory bank is renewed")


class CRDKDSettings(CRDSettings):
    """The same with the imitation of the answers."""

    kd: Weight = 1.0


class SemCKDSettings(FeatureSettings):
    """Semantic calibration, with the weights of SimKD's script."""

    term: ClassVar[str] = "semckd"
    batch_size: int = Field(64, ge=4, description="of a student step; the heads are built for it")
    kd: Weight = 1.0
    semckd: Weight = Field(400.0, description="weight of the calibrated distance of the feature maps")

    @model_validator(mode="after")
    def _pairs(self) -> SemCKDSettings:
        return self  # each map of the student meets each of the teacher: any numbers of them will do


class TwoStageSettings(FeatureSettings):
    """Methods that train something before the student's own run: an epoch of theirs is `kd_steps` steps, too."""

    first_epochs: Count = Field(30, description="epochs of the first stage")
    first_lr: Rate | None = Field(None, description="constant rate of the first stage; null: `lr`")

    # What the first stage looks at. It is trained anew when one of these changes, and for no other reason.
    first_stage_keys: ClassVar[tuple[str, ...]] = (
        "precision",
        "compile",
        "blocks",
        "store",
        "shuffle_buffer",
        "transfer_set",
        "kd_steps",
        "batch_size",
        "momentum",
        "weight_decay",
        "student_layers",
        "teacher_layers",
        "first_epochs",
        "first_lr",
    )

    def first_stage(self) -> dict[str, Any]:
        """The settings of the first stage, as plain values."""
        values = self.model_dump(mode="json", include=set(self.first_stage_keys))
        return values | {"first_lr": self.first_lr or self.lr}


class ABSettings(TwoStageSettings):
    """Activation boundaries: the first stage moves the student's pre-activations to the teacher's side of zero.

    The main stage is cross-entropy (and imitation, where `kd` has a weight) alone, so there is no weight of its own.
    """


class FSPSettings(TwoStageSettings):
    """Flow of the solution procedure: the first stage fits the Gram matrices between consecutive maps. No weight either."""

    form: Literal["code", "paper"] = Field("code", description="average pooling and mean squares; or max pooling and sums")
    first_stage_keys: ClassVar[tuple[str, ...]] = (*TwoStageSettings.first_stage_keys, "form")


class FTSettings(TwoStageSettings):
    """Factor transfer: the first stage trains a paraphraser of the teacher's last map."""

    term: ClassVar[str] = "ft"
    ft: Weight = Field(200.0, description="weight of the distance of the factors")
    first_lr: Rate | None = Field(0.01, description="constant rate of the paraphraser; null: `lr`")
    factor_rate: float = Field(0.5, gt=0, le=1, description="channels of a factor, as a share of the teacher's")
    form: Literal["code", "paper"] = Field("code", description="distance of attention maps of the factors; or of the factors")
    first_stage_keys: ClassVar[tuple[str, ...]] = (*TwoStageSettings.first_stage_keys, "factor_rate")
