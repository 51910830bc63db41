"""LeNet-5 and its half, as the data-free literature uses them (LeCun et al., 1998; ReLU and max-pooling)."""

from __future__ import annotations

from torch import Tensor, nn

from dfkd.models.classifier import Classifier, Features, Layers


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
        self.pool1, self.pool2 = nn.MaxPool2d(2), nn.MaxPool2d(2)
        self.relu1, self.relu2, self.relu3, self.relu4 = (nn.ReLU() for _ in range(4))
        self.fc1 = nn.Linear(widths[2], hidden)
        self.fc2 = nn.Linear(hidden, classes)
        self.feature_channels, self.feature_dim, self.stride = list(widths), widths[2], 32
        preacts, convolutions = ("pool1", "pool2", "conv3"), ("conv1", "conv2", "conv3")
        self.layers = Layers("conv1", ("relu1", "relu2", "relu3"), preacts, convolutions, "fc2")

    def extract(self, x: Tensor) -> Features:
        """Maps of 14×14, 5×5 and 1×1, and the last one flattened."""
        # The maximum of activations is the activation of the maximum; pooled first, each map has its value before activation.
        map1 = self.relu1(self.pool1(self.conv1(x)))
        map2 = self.relu2(self.pool2(self.conv2(map1)))
        map3 = self.relu3(self.conv3(map2))
        return [map1, map2, map3, map3.flatten(1)]

    def classify(self, pooled: Tensor) -> Tensor:
        """[B,feature_dim] → [B,K], through the hidden linear layer."""
        return self.fc2(self.relu4(self.fc1(pooled)))


def lenet5(classes: int, channels: int, image_size: int) -> LeNet:
    """6, 16 and 120 channels, 84 hidden units; 32×32 pixels."""
    return LeNet((6, 16, 120), 84, classes, channels)


def lenet5half(classes: int, channels: int, image_size: int) -> LeNet:
    """3, 8 and 60 channels, 42 hidden units; 32×32 pixels."""
    return LeNet((3, 8, 60), 42, classes, channels)
