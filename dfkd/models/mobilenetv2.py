"""MobileNetV2 at half width for small images (Sandler et al., 2018; the form of the distillation literature)."""

from __future__ import annotations

from torch import Tensor, nn

from dfkd.models.classifier import Classifier, Features, Layers, global_average, initialise_fan_out

# Expansion, channels at full width, repeats and stride of the seven groups of blocks.
GROUPS = ((1, 16, 1, 1), (6, 24, 2, 1), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))
STEM, LAST = 32, 1280


class InvertedResidual(nn.Module):
    """1×1 expansion (also for an expansion of 1), 3×3 depthwise convolution, linear 1×1 projection."""

    def __init__(self, inputs: int, outputs: int, stride: int, expansion: int) -> None:
        super().__init__()
        inner = inputs * expansion
        self.residual = stride == 1 and inputs == outputs
        self.conv = nn.Sequential(
            nn.Conv2d(inputs, inner, 1, bias=False),
            nn.BatchNorm2d(inner),
            nn.ReLU(inplace=True),
            nn.Conv2d(inner, inner, 3, stride, 1, groups=inner, bias=False),
            nn.BatchNorm2d(inner),
            nn.ReLU(inplace=True),
            nn.Conv2d(inner, outputs, 1, bias=False),
            nn.BatchNorm2d(outputs),
        )

    def forward(self, x: Tensor) -> Tensor:
        """[B,inputs,H,W] → [B,outputs,H/stride,W/stride]."""
        return x + self.conv(x) if self.residual else self.conv(x)


class MobileNetV2(Classifier):
    """Stem with stride 2, seven groups of blocks, 1×1 head to 1280 channels; ReLU (not ReLU6), no dropout.

    Features: the linear outputs of groups 1, 2, 4 and 6 (counted from 0), and the pooled one. The reference pools the
    last map by a fixed window; the mean over the whole map is the same at 32 pixels and also takes other sizes.
    """

    def __init__(self, width: float, classes: int, channels: int) -> None:
        super().__init__()
        inputs = int(STEM * width)
        self.conv1 = nn.Sequential(
            nn.Conv2d(channels, inputs, 3, 2, 1, bias=False), nn.BatchNorm2d(inputs), nn.ReLU(inplace=True)
        )
        self.blocks = nn.ModuleList()
        for expansion, full_width, repeats, stride in GROUPS:
            outputs = int(full_width * width)
            first = InvertedResidual(inputs, outputs, stride, expansion)
            self.blocks.append(
                nn.Sequential(first, *(InvertedResidual(outputs, outputs, 1, expansion) for _ in range(repeats - 1)))
            )
            inputs = outputs
        self.conv2 = nn.Sequential(nn.Conv2d(inputs, LAST, 1, bias=False), nn.BatchNorm2d(LAST), nn.ReLU(inplace=True))
        linear = nn.Linear(LAST, classes)
        self.classifier = nn.Sequential(linear)
        self.feature_channels = [int(GROUPS[index][1] * width) for index in (1, 2, 4, 6)]
        self.feature_dim, self.stride = LAST, 16
        maps = ("blocks.1", "blocks.2", "blocks.4", "blocks.6")
        self.layers = Layers("conv1", maps, maps, ("conv1", "blocks"), "classifier.0")
        initialise_fan_out(self)
        nn.init.normal_(linear.weight, 0.0, 0.01)
        nn.init.zeros_(linear.bias)

    def extract(self, x: Tensor) -> Features:
        """Four feature maps, at 1/2, 1/4, 1/8 and 1/16 of the image size, and the pooled feature."""
        out = self.conv1(x)
        outputs = []
        for block in self.blocks:
            out = block(out)
            outputs.append(out)
        return [outputs[1], outputs[2], outputs[4], outputs[6], global_average(self.conv2(out))]

    def classify(self, pooled: Tensor) -> Tensor:
        """[B,1280] → [B,K]."""
        return self.classifier(pooled)


def mobilenetv2(classes: int, channels: int, image_size: int) -> MobileNetV2:
    """Half width; images of 16 pixels and more."""
    return MobileNetV2(0.5, classes, channels)
