"""ResNet-18, -34 and -50 in their CIFAR form, "8x": a 3×3 stem without stride and no max-pool (He et al., 2016)."""

from __future__ import annotations

from torch import Tensor, nn

from dfkd.models.classifier import Add, Classifier, Features, Layers, global_average, relu_


def _shortcut(inputs: int, outputs: int, stride: int) -> nn.Sequential:
    """The identity, or a 1×1 convolution with BatchNorm where the shape changes."""
    if stride == 1 and inputs == outputs:
        return nn.Sequential()
    return nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))


class BasicBlock(nn.Module):
    """Two 3×3 convolutions."""

    expansion = 1

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, width, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.relu1, self.add, self.relu2 = relu_(), Add(), relu_()
        self.shortcut = _shortcut(inputs, width, stride)

    def forward(self, x: Tensor) -> Tensor:
        """[B,inputs,H,W] → [B,width,H/stride,W/stride]."""
        out = self.bn2(self.conv2(self.relu1(self.bn1(self.conv1(x)))))
        return self.relu2(self.add(out, self.shortcut(x)))


class Bottleneck(nn.Module):
    """1×1, 3×3 (with the stride) and 1×1 convolutions; the last is four times as wide."""

    expansion = 4

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        outputs = width * self.expansion
        self.conv1 = nn.Conv2d(inputs, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, outputs, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(outputs)
        self.relu1, self.relu2, self.add, self.relu3 = relu_(), relu_(), Add(), relu_()
        self.shortcut = _shortcut(inputs, outputs, stride)

    def forward(self, x: Tensor) -> Tensor:
        """[B,inputs,H,W] → [B,4·width,H/stride,W/stride]."""
        out = self.relu1(self.bn1(self.conv1(x)))
        out = self.bn3(self.conv3(self.relu2(self.bn2(self.conv2(out)))))
        return self.relu3(self.add(out, self.shortcut(x)))


class ResNet(Classifier):
    """Four layers of 64, 128, 256 and 512 (times the block's expansion) channels at 1, 1/2, 1/4 and 1/8 of the image size.

    Features: [layer1, layer2, layer3, layer4, pooled]. PyTorch's default initialisation, as in the field's code.
    """

    def __init__(self, block: type[BasicBlock] | type[Bottleneck], counts: list[int], classes: int, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, 64, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.relu = relu_()
        self.feature_channels = [width * block.expansion for width in (64, 128, 256, 512)]
        inputs = [64, *self.feature_channels]

        def layer(index: int, stride: int) -> nn.Sequential:
            first = block(inputs[index], 64 << index, stride)
            rest = [block(inputs[index + 1], 64 << index, 1) for _ in range(counts[index] - 1)]
            return nn.Sequential(first, *rest)

        self.layer1, self.layer2, self.layer3, self.layer4 = layer(0, 1), layer(1, 2), layer(2, 2), layer(3, 2)
        self.feature_dim, self.stride = self.feature_channels[-1], 8
        self.linear = nn.Linear(self.feature_dim, classes)
        maps = ("layer1", "layer2", "layer3", "layer4")
        preacts = tuple(f"{name}.{count - 1}.add" for name, count in zip(maps, counts, strict=True))
        self.layers = Layers("relu", maps, preacts, ("conv1", "bn1", *maps), "linear")

    def extract(self, x: Tensor) -> Features:
        """The outputs of the four layers and the pooled feature."""
        map1 = self.layer1(self.relu(self.bn1(self.conv1(x))))
        map2 = self.layer2(map1)
        map3 = self.layer3(map2)
        map4 = self.layer4(map3)
        return [map1, map2, map3, map4, global_average(map4)]

    def classify(self, pooled: Tensor) -> Tensor:
        """[B,feature_dim] → [B,K]."""
        return self.linear(pooled)


def resnet18(classes: int, channels: int, image_size: int) -> ResNet:
    """ResNet-18; any image size."""
    return ResNet(BasicBlock, [2, 2, 2, 2], classes, channels)


def resnet34(classes: int, channels: int, image_size: int) -> ResNet:
    """ResNet-34; any image size."""
    return ResNet(BasicBlock, [3, 4, 6, 3], classes, channels)


def resnet50(classes: int, channels: int, image_size: int) -> ResNet:
    """ResNet-50 with bottleneck blocks; any image size."""
    return ResNet(Bottleneck, [3, 4, 6, 3], classes, channels)
