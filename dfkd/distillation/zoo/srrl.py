"""SRRL: the student's feature is as good as the teacher's for the teacher's classifier (Yang et al., ICLR 2021).

    h = ReLU(BN(W e_S)) [B,D_T],  e the pooled feature, W without bias
    L = mean_{b,d} (h − e_T)² + mean_{b,k} (T's classifier of h − T's logits)²

Paper: "Knowledge distillation via softmax regression representation learning"; weights are those of SimKD's scripts, which
run it beside CE and KD. The code of KDrefine lists this method and stops on it.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from dfkd.datasets.info import DatasetInfo
from dfkd.distillation.objective import Batch
from dfkd.distillation.zoo.objective import FeatureObjective, Seen, Shape
from dfkd.methods.objectives import SRRLSettings
from dfkd.models.adapter import AdaptedClassifier, MissingFeatures
from dfkd.models.classifier import Layers
from dfkd.runtime import Runtime, wide


def classifier_of(teacher: nn.Module) -> nn.Linear:
    """The linear layer that makes the teacher's logits. A `UserError` where it names none."""
    name = getattr(teacher, "layers", Layers()).classifier
    module = teacher.module if isinstance(teacher, AdaptedClassifier) else teacher
    layer = module.get_submodule(name) if name else None
    if not isinstance(layer, nn.Linear):
        own = getattr(teacher, "name", type(teacher).__name__)
        raise MissingFeatures(own, "a linear classifier", "it does not name the layer that makes its logits")
    return layer


class SRRL(FeatureObjective):
    """Regression of the pooled feature, and of the logits that the teacher's own classifier makes of it."""

    sees = ""
    pooled = True

    def __init__(
        self, teacher: nn.Module, student: nn.Module, info: DatasetInfo, settings: SRRLSettings, runtime: Runtime
    ) -> None:
        self.classifier = classifier_of(teacher)
        super().__init__(teacher, student, info, settings, runtime)

    def build(self, student: list[Shape], teacher: list[Shape]) -> nn.ModuleDict:
        """The connector; a 1×1 convolution of a vector is a linear map."""
        inputs, outputs = (self.observed[role].feature_dim for role in ("student", "teacher"))
        connector = nn.Sequential(nn.Linear(inputs, outputs, bias=False), nn.BatchNorm1d(outputs), nn.ReLU())
        return nn.ModuleDict({"connector": connector})

    def own(self, student: Seen, teacher: Seen, batch: Batch) -> torch.Tensor:
        """The two squared distances."""
        feature = self.through("connector", student.pooled)
        bias = self.classifier.bias
        logits = F.linear(feature, wide(self.classifier.weight), None if bias is None else wide(bias))
        return F.mse_loss(feature, teacher.pooled) + F.mse_loss(logits, teacher.logits)
