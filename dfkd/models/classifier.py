"""What all classifiers share: the feature interface and the two initialisations of the field's code."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

import torch.nn.functional as F
from torch import Tensor, nn

Features = list[Tensor]


class Classifier(nn.Module, ABC):
    """A network `extract → classify` whose intermediate features can be asked for.

    Attributes:
        feature_channels: channels of the feature maps, in the order of the feature list.
        feature_dim: length of the penultimate (pooled) feature.
        stride: how many input pixels, per axis, become one of the last feature map; smaller images are refused.
    """

    feature_channels: list[int]
    feature_dim: int
    stride: int

    @abstractmethod
    def extract(self, x: Tensor) -> Features:
        """[B,C,H,W] → feature maps [B,C_i,H_i,W_i] and, last, the pooled feature [B,feature_dim]."""

    @abstractmethod
    def classify(self, pooled: Tensor) -> Tensor:
        """Pooled feature [B,feature_dim] → logits [B,K]."""

    def forward(self, x: Tensor, return_features: bool = False) -> Tensor | tuple[Tensor, Features]:
        """Logits [B,K] of normalised images [B,C,H,W]; with `return_features`, (logits, [map1, …, mapN, pooled])."""
        features = self.extract(x)
        logits = self.classify(features[-1])
        return (logits, features) if return_features else logits


def relu_(x: Tensor) -> Tensor:
    """ReLU in place: for the output of a BatchNorm or of an addition, never for a tensor that a BatchNorm reads."""
    return F.relu(x, inplace=True)


def global_average(x: Tensor) -> Tensor:
    """[B,C,H,W] → [B,C]."""
    return x.mean((2, 3))


def initialise_fan_out(module: nn.Module) -> None:
    """Convolutions ~ N(0, √(2 / (k·k·out))) with zero bias, BatchNorm 1 and 0; linear layers are left alone.

    The out channels are not divided by the groups (the field's code; it differs from Kaiming's fan-out for depthwise layers).
    """
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d):
            height, width = layer.kernel_size
            nn.init.normal_(layer.weight, 0.0, math.sqrt(2.0 / (height * width * layer.out_channels)))
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
        elif isinstance(layer, nn.BatchNorm2d):
            nn.init.ones_(layer.weight)
            nn.init.zeros_(layer.bias)
