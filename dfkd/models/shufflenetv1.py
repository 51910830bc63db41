"""ShuffleNetV1 with three groups for small images (Zhang et al., 2018; the form of the distillation literature)."""

from __future__ import annotations

from torch import Tensor, nn

from dfkd.models.classifier import Add, ChannelShuffle, Classifier, Concat, Features, Layers, global_average, relu_

STEM, WIDTHS, REPEATS, GROUPS = 24, (240, 480, 960), (4, 8, 4), 3


class Unit(nn.Module):
    """Grouped 1×1, shuffle, 3×3 depthwise (with the stride, and with a ReLU, unlike the paper's) and grouped 1×1 convolution.

    With stride 2 the average-pooled input is set behind the `outputs` channels; without, it is added to them.
    """

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        inner, groups = outputs // 4, 1 if inputs == STEM else GROUPS
        self.conv1 = nn.Conv2d(inputs, inner, 1, groups=groups, bias=False)
        self.bn1 = nn.BatchNorm2d(inner)
        self.shuffle = ChannelShuffle(groups)
        self.conv2 = nn.Conv2d(inner, inner, 3, stride, 1, groups=inner, bias=False)
        self.bn2 = nn.BatchNorm2d(inner)
        self.conv3 = nn.Conv2d(inner, outputs, 1, groups=GROUPS, bias=False)
        self.bn3 = nn.BatchNorm2d(outputs)
        self.shortcut = nn.AvgPool2d(3, 2, 1) if stride == 2 else nn.Identity()
        self.merge: nn.Module = Concat() if stride == 2 else Add()
        self.relu1, self.relu2, self.relu3 = relu_(), relu_(), relu_()

    def forward(self, x: Tensor) -> Tensor:
        """[B,inputs,H,W] → [B,outputs,H,W], or with stride 2 [B,outputs+inputs,H/2,W/2]."""
        out = self.shuffle(self.relu1(self.bn1(self.conv1(x))))
        out = self.bn3(self.conv3(self.relu2(self.bn2(self.conv2(out)))))
        return self.relu3(self.merge(out, self.shortcut(x)))


class ShuffleNetV1(Classifier):
    """1×1 stem without stride; layers of 4, 8 and 4 units at 1/2, 1/4 and 1/8 of the image size.

    Features: [layer1, layer2, layer3, pooled]. PyTorch's default initialisation, as in the field's code.
    """

    def __init__(self, classes: int, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, STEM, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(STEM)
        self.relu = relu_()

        def layer(index: int) -> nn.Sequential:
            inputs, outputs = (STEM, *WIDTHS)[index], WIDTHS[index]
            rest = (Unit(outputs, outputs, 1) for _ in range(REPEATS[index] - 1))
            return nn.Sequential(Unit(inputs, outputs - inputs, 2), *rest)

        self.layer1, self.layer2, self.layer3 = layer(0), layer(1), layer(2)
        self.linear = nn.Linear(WIDTHS[-1], classes)
        self.feature_channels, self.feature_dim, self.stride = list(WIDTHS), WIDTHS[-1], 8
        maps = ("layer1", "layer2", "layer3")
        preacts = tuple(f"{name}.{count - 1}.merge" for name, count in zip(maps, REPEATS, strict=True))
        self.layers = Layers("relu", maps, preacts, ("conv1", "bn1", *maps), "linear")

    def extract(self, x: Tensor) -> Features:
        """Three feature maps and the pooled feature."""
        map1 = self.layer1(self.relu(self.bn1(self.conv1(x))))
        map2 = self.layer2(map1)
        map3 = self.layer3(map2)
        return [map1, map2, map3, global_average(map3)]

    def classify(self, pooled: Tensor) -> Tensor:
        """[B,960] → [B,K]."""
        return self.linear(pooled)


def shufflenetv1(classes: int, channels: int, image_size: int) -> ShuffleNetV1:
    """Three groups; images of 8 pixels and more."""
    return ShuffleNetV1(classes, channels)
