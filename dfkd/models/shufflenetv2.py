"""ShuffleNetV2 at width 1 for small images (Ma et al., 2018; the form of the distillation literature)."""

from __future__ import annotations

from torch import Tensor, nn

from dfkd.models.classifier import ChannelShuffle, Classifier, Concat, Features, Layers, global_average, relu_

STEM, WIDTHS, REPEATS, LAST = 24, (116, 232, 464), (3, 7, 3), 1024


class Unit(nn.Module):
    """The first half of the channels passes untouched; the other goes through 1×1, 3×3 depthwise and 1×1 convolutions."""

    def __init__(self, width: int) -> None:
        super().__init__()
        half = width // 2
        self.conv1 = nn.Conv2d(half, half, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(half)
        self.conv2 = nn.Conv2d(half, half, 3, 1, 1, groups=half, bias=False)
        self.bn2 = nn.BatchNorm2d(half)
        self.conv3 = nn.Conv2d(half, half, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(half)
        self.relu1, self.merge, self.relu2, self.shuffle = relu_(), Concat(), relu_(), ChannelShuffle(2)

    def forward(self, x: Tensor) -> Tensor:
        """[B,width,H,W] → the same."""
        kept, half = x.chunk(2, 1)
        half = self.bn3(self.conv3(self.bn2(self.conv2(self.relu1(self.bn1(self.conv1(half)))))))
        # The untouched half comes out of a ReLU as well, so one over both leaves it what it is.
        return self.shuffle(self.relu2(self.merge(kept, half)))


class DownUnit(nn.Module):
    """Two branches with stride 2 of half the output's channels each: depthwise and 1×1; 1×1, depthwise and 1×1."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        half = outputs // 2
        self.conv1 = nn.Conv2d(inputs, inputs, 3, 2, 1, groups=inputs, bias=False)
        self.bn1 = nn.BatchNorm2d(inputs)
        self.conv2 = nn.Conv2d(inputs, half, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(half)
        self.conv3 = nn.Conv2d(inputs, half, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(half)
        self.conv4 = nn.Conv2d(half, half, 3, 2, 1, groups=half, bias=False)
        self.bn4 = nn.BatchNorm2d(half)
        self.conv5 = nn.Conv2d(half, half, 1, bias=False)
        self.bn5 = nn.BatchNorm2d(half)
        self.relu1, self.merge, self.relu2, self.shuffle = relu_(), Concat(), relu_(), ChannelShuffle(2)

    def forward(self, x: Tensor) -> Tensor:
        """[B,inputs,H,W] → [B,outputs,H/2,W/2]."""
        left = self.bn2(self.conv2(self.bn1(self.conv1(x))))
        right = self.bn5(self.conv5(self.bn4(self.conv4(self.relu1(self.bn3(self.conv3(x)))))))
        return self.shuffle(self.relu2(self.merge(left, right)))


class ShuffleNetV2(Classifier):
    """1×1 stem without stride; layers of 4, 8 and 4 units at 1/2, 1/4 and 1/8 of the image size; 1×1 head to 1024 channels.

    Features: [layer1, layer2, layer3, pooled]. The last map is that of 464 channels, not the one of 1024 that is pooled, and
    a map before its activation has its channels in the order before the shuffle: both as in the field's code. PyTorch's
    default initialisation, likewise.
    """

    def __init__(self, classes: int, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, STEM, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(STEM)
        self.relu = relu_()

        def layer(index: int) -> nn.Sequential:
            first = DownUnit((STEM, *WIDTHS)[index], WIDTHS[index])
            return nn.Sequential(first, *(Unit(WIDTHS[index]) for _ in range(REPEATS[index])))

        self.layer1, self.layer2, self.layer3 = layer(0), layer(1), layer(2)
        self.conv2 = nn.Conv2d(WIDTHS[-1], LAST, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(LAST)
        self.relu2 = relu_()
        self.linear = nn.Linear(LAST, classes)
        self.feature_channels, self.feature_dim, self.stride = list(WIDTHS), LAST, 8
        maps = ("layer1", "layer2", "layer3")
        preacts = tuple(f"{name}.{count}.merge" for name, count in zip(maps, REPEATS, strict=True))
        self.layers = Layers("relu", maps, preacts, ("conv1", "bn1", *maps), "linear")

    def extract(self, x: Tensor) -> Features:
        """Three feature maps and the pooled feature."""
        map1 = self.layer1(self.relu(self.bn1(self.conv1(x))))
        map2 = self.layer2(map1)
        map3 = self.layer3(map2)
        return [map1, map2, map3, global_average(self.relu2(self.bn2(self.conv2(map3))))]

    def classify(self, pooled: Tensor) -> Tensor:
        """[B,1024] → [B,K]."""
        return self.linear(pooled)


def shufflenetv2(classes: int, channels: int, image_size: int) -> ShuffleNetV2:
    """Width 1; images of 8 pixels and more."""
    return ShuffleNetV2(classes, channels)
