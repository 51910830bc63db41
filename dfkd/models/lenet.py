"""LeNet-5 and its half, as the data-free literature uses them (LeCun et al., 1998; ReLU and max-pooling)."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from dfkd.models.classifier import Classifier, Features


class LeNet(Classifier):
    """Three 5×5 convolutions without padding and two linear layers: exactly 32×32 pixels.

    Features: [first map after pooling, second map after pooling, third map (1×1), the same flattened]; the flattened one
    is the field's penultimate feature, though a hidden linear layer follows.
    """

    def __init__(self, widths: tuple[int, int, int], hidden: int, classes: int, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, widths[0], 5)
        self.conv2 = nn.Conv2d(widths[0], widths[1], 5)
        self.conv3 = nn.Conv2d(widths[1], widths[2], 5)
        self.fc1 = nn.Linear(widths[2], hidden)
        self.fc2 = nn.Linear(hidden, classes)
        self.feature_channels, self.feature_dim, self.stride = list(widths), widths[2], 32

    def extract(self, x: Tensor) -> Features:
        """Maps of 14×14, 5×5 and 1×1, and the last one flattened."""
        map1 = F.max_pool2d(F.relu(self.conv1(x)), 2)
        map2 = F.max_pool2d(F.relu(self.conv2(map1)), 2)
        map3 = F.relu(self.conv3(map2))
        return [map1, map2, map3, map3.flatten(1)]

    def classify(self, pooled: Tensor) -> Tensor:
        """[B,feature_dim] → [B,K], through the hidden linear layer."""
        return self.fc2(F.relu(self.fc1(pooled)))


def lenet5(classes: int, channels: int, image_size: int) -> LeNet:
    """6, 16 and 120 channels, 84 hidden units; 32×32 pixels."""
    return LeNet((6, 16, 120), 84, classes, channels)


def lenet5half(classes: int, channels: int, image_size: int) -> LeNet:
    """3, 8 and 60 channels, 42 hidden units; 32×32 pixels."""
    return LeNet((3, 8, 60), 42, classes, channels)
