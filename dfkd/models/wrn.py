"""Wide residual networks for small images (Zagoruyko and Komodakis, 2016)."""

from __future__ import annotations

from torch import Tensor, nn

from dfkd.models.classifier import Classifier, Features, Layers, global_average, initialise_fan_out, relu_


class Block(nn.Module):
    """Pre-activation block BN-ReLU-conv-BN-ReLU-conv.

    Where the widths differ, the shortcut is a bare 1×1 convolution of the *activated* input; elsewhere it is the raw input.
    """

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.relu1, self.relu2 = relu_(), relu_()
        self.convShortcut = nn.Conv2d(inputs, outputs, 1, stride, bias=False) if inputs != outputs else None

    def forward(self, x: Tensor) -> Tensor:
        """[B,inputs,H,W] → [B,outputs,H/stride,W/stride]."""
        active = self.relu1(self.bn1(x))
        residual = self.conv2(self.relu2(self.bn2(self.conv1(active))))
        shortcut = x if self.convShortcut is None else self.convShortcut(active)
        return shortcut + residual


class Group(nn.Module):
    """`count` blocks of one width, of which the first may stride."""

    def __init__(self, count: int, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        blocks = [Block(inputs if i == 0 else outputs, outputs, stride if i == 0 else 1) for i in range(count)]
        self.layer = nn.Sequential(*blocks)

    def forward(self, x: Tensor) -> Tensor:
        """[B,inputs,H,W] → [B,outputs,H/stride,W/stride]."""
        return self.layer(x)


class WideResNet(Classifier):
    """WRN-depth-width with depth = 6n + 4, without dropout.

    Features: [block1, block2, block3 (before the last BN and ReLU: signed), pooled].
    """

    def __init__(self, depth: int, width: int, classes: int, channels: int) -> None:
        super().__init__()
        count = (depth - 4) // 6
        widths = [16 * width, 32 * width, 64 * width]
        self.conv1 = nn.Conv2d(channels, 16, 3, 1, 1, bias=False)
        self.block1 = Group(count, 16, widths[0], 1)
        self.block2 = Group(count, widths[0], widths[1], 2)
        self.block3 = Group(count, widths[1], widths[2], 2)
        self.bn1 = nn.BatchNorm2d(widths[2])
        self.relu = relu_()
        self.fc = nn.Linear(widths[2], classes)
        self.feature_channels, self.feature_dim, self.stride = widths, widths[2], 4
        blocks = ("block1", "block2", "block3")
        self.layers = Layers("conv1", blocks, ("block2.layer.0.bn1", "block3.layer.0.bn1", "bn1"), ("conv1", *blocks), "fc")
        initialise_fan_out(self)
        nn.init.zeros_(self.fc.bias)

    def extract(self, x: Tensor) -> Features:
        """Feature maps at 1, 1/2 and 1/4 of the image size, and the pooled feature."""
        map1 = self.block1(self.conv1(x))
        map2 = self.block2(map1)
        map3 = self.block3(map2)
        return [map1, map2, map3, global_average(self.relu(self.bn1(map3)))]

    def classify(self, pooled: Tensor) -> Tensor:
        """[B,feature_dim] → [B,K]."""
        return self.fc(pooled)


def wrn(depth: int, width: int, classes: int, channels: int, image_size: int) -> WideResNet:
    """WRN-depth-width; any image size."""
    return WideResNet(depth, width, classes, channels)
