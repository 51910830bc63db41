"""VGG with BatchNorm for small images (Simonyan and Zisserman, 2015; one linear layer instead of three)."""

from __future__ import annotations

from torch import Tensor, nn

from dfkd.models.classifier import Classifier, Features, Layers, global_average, initialise_fan_out, relu_

WIDTHS = (64, 128, 256, 512, 512)
# Convolutions in each of the five blocks.
LAYOUTS = {8: (1, 1, 1, 1, 1), 11: (1, 1, 2, 2, 2), 13: (2, 2, 2, 2, 2), 16: (2, 2, 3, 3, 3), 19: (2, 2, 4, 4, 4)}


def _block(inputs: int, outputs: int, count: int) -> nn.Sequential:
    """conv-BN-ReLU-…-conv-BN; the last ReLU is applied by the network."""
    layers: list[nn.Module] = []
    for index in range(count):
        layers += [
            nn.Conv2d(inputs if index == 0 else outputs, outputs, 3, 1, 1),
            nn.BatchNorm2d(outputs),
            nn.ReLU(inplace=True),
        ]
    return nn.Sequential(*layers[:-1])


class VGG(Classifier):
    """Five blocks, max-pooled after the first three, and after the fourth too for images of 64 pixels and more.

    Features: the outputs of blocks 1 to 4 (counted from 0) after ReLU, and the pooled one.
    """

    def __init__(self, depth: int, classes: int, channels: int, image_size: int) -> None:
        super().__init__()
        inputs = (channels, *WIDTHS)
        self.block0, self.block1, self.block2, self.block3, self.block4 = (
            _block(inputs[index], inputs[index + 1], count) for index, count in enumerate(LAYOUTS[depth])
        )
        self.relu0, self.relu1, self.relu2, self.relu3, self.relu4 = (relu_() for _ in WIDTHS)
        self.pool0, self.pool1, self.pool2 = (nn.MaxPool2d(2) for _ in range(3))
        self.pool3 = nn.MaxPool2d(2) if image_size >= 64 else nn.Identity()
        self.classifier = nn.Linear(WIDTHS[-1], classes)
        self.feature_channels, self.feature_dim = list(WIDTHS[1:]), WIDTHS[-1]
        self.stride = 16 if image_size >= 64 else 8
        blocks = tuple(f"block{index}" for index in range(5))
        self.layers = Layers("relu0", ("relu1", "relu2", "relu3", "relu4"), blocks[1:], blocks, "classifier")
        initialise_fan_out(self)
        nn.init.normal_(self.classifier.weight, 0.0, 0.01)
        nn.init.zeros_(self.classifier.bias)

    def extract(self, x: Tensor) -> Features:
        """Four feature maps, at 1/2, 1/4, 1/8 and 1/8 (or 1/16) of the image size, and the pooled feature."""
        map0 = self.relu0(self.block0(x))
        map1 = self.relu1(self.block1(self.pool0(map0)))
        map2 = self.relu2(self.block2(self.pool1(map1)))
        map3 = self.relu3(self.block3(self.pool2(map2)))
        map4 = self.relu4(self.block4(self.pool3(map3)))
        return [map1, map2, map3, map4, global_average(map4)]

    def classify(self, pooled: Tensor) -> Tensor:
        """[B,512] → [B,K]."""
        return self.classifier(pooled)


def vgg8(classes: int, channels: int, image_size: int) -> VGG:
    """One convolution a block."""
    return VGG(8, classes, channels, image_size)


def vgg11(classes: int, channels: int, image_size: int) -> VGG:
    """Configuration A."""
    return VGG(11, classes, channels, image_size)


def vgg13(classes: int, channels: int, image_size: int) -> VGG:
    """Configuration B."""
    return VGG(13, classes, channels, image_size)


def vgg16(classes: int, channels: int, image_size: int) -> VGG:
    """Configuration D."""
    return VGG(16, classes, channels, image_size)


def vgg19(classes: int, channels: int, image_size: int) -> VGG:
    """Configuration E."""
    return VGG(19, classes, channels, image_size)
