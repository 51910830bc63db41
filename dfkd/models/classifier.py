"""What all classifiers share: the feature interface and the two initialisations of the field's code."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

from torch import Tensor, nn

Features = list[Tensor]


@dataclass(frozen=True)
class Layers:
    """Dotted names of the submodules whose outputs feature objectives look at; empty where a network does not say.

    What the names lead to is that of the distillation literature: f_0 of the stem, f_1 … f_n of the stages. The names hold in
    every form of a network: with blocks, folded, or plain.

    Attributes:
        stem: its output is f_0.
        maps: their outputs are the feature maps f_1 … f_n, in the order of `feature_channels`.
        preacts: their outputs are the maps before their activation, in the same order (a WRN's: after the BatchNorm that
            follows the map; MobileNetV2's, which have no activation: the maps themselves).
        trunk: all modules with parameters that lie before the last map; what stages that train the features alone train.
        classifier: the linear layer that makes the logits.
    """

    stem: str = ""
    maps: tuple[str, ...] = ()
    preacts: tuple[str, ...] = ()
    trunk: tuple[str, ...] = ()
    classifier: str = ""


class Classifier(nn.Module, ABC):
    """A network `extract → classify` whose intermediate features can be asked for.

    Attributes:
        feature_channels: channels of the feature maps, in the order of the feature list.
        feature_dim: length of the penultimate (pooled) feature.
        stride: how many input pixels, per axis, become one of the last feature map; smaller images are refused.
        layers: names of the submodules that give the features, for `dfkd.models.taps`.
    """

    feature_channels: list[int]
    feature_dim: int
    stride: int
    layers: Layers = Layers()

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


def relu_() -> nn.ReLU:
    """ReLU in place: for the output of a BatchNorm or of an addition, never for a tensor that a BatchNorm reads."""
    return nn.ReLU(inplace=True)


class Add(nn.Module):
    """The sum of two branches, as a module so that the sum can be tapped before its activation."""

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """x + y, of one shape."""
        return x + y


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
