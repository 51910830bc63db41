"""The 6n+2 residual networks for CIFAR (He et al., 2016, section 4.2) and the distillation literature's wide "x4" forms."""

from __future__ import annotations

from torch import Tensor, nn

from dfkd.models.classifier import Add, Classifier, Features, Layers, global_average, relu_


class BasicBlock(nn.Module):
    """Two 3×3 convolutions; a 1×1 convolution with BatchNorm as shortcut where the shape changes."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.relu1, self.add, self.relu2 = relu_(), Add(), relu_()
        self.downsample: nn.Sequential | None = None
        if stride != 1 or inputs != outputs:
            self.downsample = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        """[B,inputs,H,W] → [B,outputs,H/stride,W/stride]."""
        out = self.bn2(self.conv2(self.relu1(self.bn1(self.conv1(x)))))
        return self.relu2(self.add(out, x if self.downsample is None else self.downsample(x)))


class ResNetCifar(Classifier):
    """Three layers of n = (depth − 2) / 6 blocks at 1, 1/2 and 1/4 of the image size.

    `widths` are the stem's and the three layers' channels. Features: [layer1, layer2, layer3, pooled].
    """

    def __init__(self, depth: int, widths: list[int], classes: int, channels: int) -> None:
        super().__init__()
        count = (depth - 2) // 6

        def layer(index: int, stride: int) -> nn.Sequential:
            rest = [BasicBlock(widths[index], widths[index], 1) for _ in range(count - 1)]
            return nn.Sequential(BasicBlock(widths[index - 1], widths[index], stride), *rest)

        self.conv1 = nn.Conv2d(channels, widths[0], 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(widths[0])
        self.relu = relu_()
        self.layer1, self.layer2, self.layer3 = layer(1, 1), layer(2, 2), layer(3, 2)
        self.fc = nn.Linear(widths[3], classes)
        self.feature_channels, self.feature_dim, self.stride = widths[1:], widths[3], 4
        maps = ("layer1", "layer2", "layer3")
        preacts = tuple(f"{name}.{count - 1}.add" for name in maps)
        self.layers = Layers("relu", maps, preacts, ("conv1", "bn1", *maps), "fc")
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def extract(self, x: Tensor) -> Features:
        """The outputs of the three layers and the pooled feature."""
        map1 = self.layer1(self.relu(self.bn1(self.conv1(x))))
        map2 = self.layer2(map1)
        map3 = self.layer3(map2)
        return [map1, map2, map3, global_average(map3)]

    def classify(self, pooled: Tensor) -> Tensor:
        """[B,feature_dim] → [B,K]."""
        return self.fc(pooled)


def _narrow(depth: int, classes: int, channels: int) -> ResNetCifar:
    return ResNetCifar(depth, [16, 16, 32, 64], classes, channels)


def _wide(depth: int, classes: int, channels: int) -> ResNetCifar:
    return ResNetCifar(depth, [32, 64, 128, 256], classes, channels)


def resnet8(classes: int, channels: int, image_size: int) -> ResNetCifar:
    """One block a layer; any image size."""
    return _narrow(8, classes, channels)


def resnet20(classes: int, channels: int, image_size: int) -> ResNetCifar:
    """Three blocks a layer; any image size."""
    return _narrow(20, classes, channels)


def resnet32(classes: int, channels: int, image_size: int) -> ResNetCifar:
    """Five blocks a layer; any image size."""
    return _narrow(32, classes, channels)


def resnet56(classes: int, channels: int, image_size: int) -> ResNetCifar:
    """Nine blocks a layer; any image size."""
    return _narrow(56, classes, channels)


def resnet110(classes: int, channels: int, image_size: int) -> ResNetCifar:
    """Eighteen blocks a layer; any image size."""
    return _narrow(110, classes, channels)


def resnet8x4(classes: int, channels: int, image_size: int) -> ResNetCifar:
    """ResNet-8 with a stem of 32 and layers of 64, 128 and 256 channels; any image size."""
    return _wide(8, classes, channels)


def resnet32x4(classes: int, channels: int, image_size: int) -> ResNetCifar:
    """ResNet-32 with a stem of 32 and layers of 64, 128 and 256 channels; any image size."""
    return _wide(32, classes, channels)
