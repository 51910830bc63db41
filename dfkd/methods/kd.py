"""Settings of distillation on images that are there: what it shares, and the plain form. Imports no torch.

Those of each objective of the literature are in `dfkd.methods.objectives`.

The objectives' defaults are the published recipe for CIFAR-100 (Tian et al., arXiv 1910.10699, and its scripts): 240 epochs of
one pass in batches of 64, SGD 0.05, MultiStep 150/180/210, T = 4. A weight is named after its term: L = ce CE + kd KL + at AT.
"""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field, model_validator

from dfkd.methods.settings import FixedSettings
from dfkd.settings import Count, Rate, Weight

TRANSFER_SET = (
    "the images: `train`, the data set's own; `dataset:NAME`, another's, or `folder:PATH`, without labels; "
    "`bank:init`, `bank:variations`, `bank:PATH`"
)


class TransferSettings(FixedSettings):
    """Methods that distil on images which `transfer_set` names."""

    transfer_set: str = Field("train", description=TRANSFER_SET)

    @model_validator(mode="after")
    def _known(self) -> TransferSettings:
        kind, value = self.transfer
        if not (self.transfer_set == "train" or (kind in ("dataset", "folder", "bank") and value)):
            raise ValueError(
                f"transfer_set '{self.transfer_set}': expected train, dataset:NAME, folder:PATH, bank:init, bank:variations "
                "or bank:PATH"
            )
        return self

    @property
    def transfer(self) -> tuple[str, str]:
        """Kind and value of the transfer set: `bank:init` is ("bank", "init")."""
        kind, _, value = self.transfer_set.partition(":")
        return kind, value

    @property
    def labelled(self) -> bool:
        """Whether the images of the transfer set have labels."""
        return self.transfer[0] in ("train", "bank")


class KDSettings(TransferSettings):
    """Vanilla distillation on a transfer set, as the field's script for it has it: temperature 1."""

    temperature: Rate = 1.0
    alpha: Weight = Field(1.0, description="weight of the imitation of the teacher")
    beta: Weight = Field(0.0, description="weight of the cross-entropy with the labels, of `train` or of a bank")

    @model_validator(mode="after")
    def _consistent(self) -> KDSettings:
        if self.beta and not self.labelled:
            raise ValueError(f"beta has no effect on the images of '{self.transfer_set}', which have no labels: set it to 0")
        if not self.alpha and not self.beta:
            raise ValueError("alpha and beta are both 0: nothing is left to learn from")
        return self


class ObjectiveSettings(TransferSettings):
    """What the objectives of the literature share: cross-entropy with labels, imitation of answers, a term of their own.

    `term` names that third one, and the field that is its weight; '' for an objective that has none. `looks_at_labels` and
    `compares_images` say of it what the names say.
    """

    term: ClassVar[str] = ""
    looks_at_labels: ClassVar[bool] = False
    compares_images: ClassVar[bool] = False  # with each other, so that a batch needs two

    epochs: Count = 240
    kd_steps: Count = 782
    batch_size: Count = 64
    lr: Rate = 0.05
    milestones: list[int] = Field([150, 180, 210])
    weight_decay: Weight = 5e-4
    temperature: Rate = 4.0
    ce: Weight = Field(1.0, description="weight of the cross-entropy with the labels, of `train` or of a bank")
    kd: Weight = Field(0.0, description="weight of KL(teacher || student) at `temperature`, times its square")

    @model_validator(mode="after")
    def _weights(self) -> ObjectiveSettings:
        if self.looks_at_labels and not self.labelled:
            raise ValueError(f"{self.term} needs labels, and the images of '{self.transfer_set}' have none")
        if self.ce and not self.labelled:
            raise ValueError(f"ce has no effect on the images of '{self.transfer_set}', which have no labels: set it to 0")
        if self.term and not getattr(self, self.term):
            raise ValueError(f"{self.term} 0 leaves nothing of the method: choose kd-vanilla, or give it a weight")
        if not (self.ce or self.kd or self.term):
            raise ValueError("ce and kd are both 0: nothing is left to learn from")
        if self.compares_images and self.batch_size < 2:
            raise ValueError("batch_size 1: the method compares the images of a batch with each other, and needs two")
        return self


class FeatureSettings(ObjectiveSettings):
    """Objectives on feature maps. Which layers these are can be said layer by layer, as pairs in their order."""

    student_layers: list[str] = Field([], description="layers of the student that give its maps; []: the model's own")
    teacher_layers: list[str] = Field([], description="and of the teacher")

    @model_validator(mode="after")
    def _pairs(self) -> FeatureSettings:
        if self.student_layers and self.teacher_layers and len(self.student_layers) != len(self.teacher_layers):
            counts = f"student_layers names {len(self.student_layers)}, teacher_layers {len(self.teacher_layers)}"
            raise ValueError(f"{counts}: give as many of the one as of the other")
        return self
