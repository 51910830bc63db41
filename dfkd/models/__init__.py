"""Classifiers by name. An architecture is imported when it is first built."""

from __future__ import annotations

import copy
import functools
import importlib
from collections.abc import Callable

import torch
from torch import nn

from dfkd.config import WRN, check_model
from dfkd.errors import UserError
from dfkd.models.count import count_macs, count_parameters

__all__ = ["MODELS", "build_model", "count_macs", "count_parameters"]

# name → "module:builder", a builder being called with (classes, channels, image_size). `wrn{depth}{width}` comes on top.
# Code outside of the package adds its own: dfkd.models.MODELS["mynet"] = "mypackage.mynet:build".
MODELS: dict[str, str] = {
    "resnet18": "dfkd.models.resnet:resnet18",
    "resnet34": "dfkd.models.resnet:resnet34",
    "resnet50": "dfkd.models.resnet:resnet50",
    "vgg8": "dfkd.models.vgg:vgg8",
    "vgg11": "dfkd.models.vgg:vgg11",
    "vgg13": "dfkd.models.vgg:vgg13",
    "vgg16": "dfkd.models.vgg:vgg16",
    "vgg19": "dfkd.models.vgg:vgg19",
    "mobilenetv2": "dfkd.models.mobilenetv2:mobilenetv2",
    "resnet8": "dfkd.models.resnet_cifar:resnet8",
    "resnet20": "dfkd.models.resnet_cifar:resnet20",
    "resnet32": "dfkd.models.resnet_cifar:resnet32",
    "resnet56": "dfkd.models.resnet_cifar:resnet56",
    "resnet110": "dfkd.models.resnet_cifar:resnet110",
    "resnet8x4": "dfkd.models.resnet_cifar:resnet8x4",
    "resnet32x4": "dfkd.models.resnet_cifar:resnet32x4",
    "lenet5": "dfkd.models.lenet:lenet5",
    "lenet5half": "dfkd.models.lenet:lenet5half",
}
USUAL_SIZES = (8, 16, 28, 32, 64, 96, 128)

Builder = Callable[[int, int, int], nn.Module]


def build_model(name: str, classes: int, channels: int = 3, image_size: int = 32) -> nn.Module:
    """A freshly initialised classifier in training mode, on the current default device.

    `model(x)` gives logits [B,K]; `model(x, return_features=True)` gives (logits, [map1, …, mapN, pooled]). Attributes:
    `feature_channels` (of the maps), `feature_dim` (of the pooled feature).

    Raises:
        UserError: an unknown name (the nearest known are offered), or classes, channels or an image size that the model
            cannot take (found by a forward pass of one empty image).
    """
    builder = _builder(name)
    if classes < 2 or channels < 1:
        raise UserError(
            f"model '{name}': {classes} classes and {channels} channels; it needs at least 2 classes and 1 channel."
        )
    model = builder(classes, channels, image_size)
    if not _takes(model, channels, image_size):
        with torch.random.fork_rng(devices=[]):
            fitting = [str(size) for size in USUAL_SIZES if _takes(builder(classes, channels, size), channels, size)]
        raise UserError(
            f"model '{name}' cannot take images of {channels}×{image_size}×{image_size}; of the usual sizes it takes "
            f"{', '.join(fitting) or 'none'}: set image_size of the data set or choose another model."
        )
    return model


def _builder(name: str) -> Builder:
    if name not in MODELS:
        match = WRN.fullmatch(check_model(name))
        if match is None:  # a name that config knows and this file does not: excluded by a test
            raise UserError(f"model '{name}' has no builder.")
        from dfkd.models.wrn import wrn

        return functools.partial(wrn, int(match["depth"]), int(match["width"]))
    module, _, attribute = MODELS[name].partition(":")
    return getattr(importlib.import_module(module), attribute)


@torch.no_grad()
def _takes(model: nn.Module, channels: int, image_size: int) -> bool:
    """Whether every element of the last map has image under it, and a forward pass ends without a misfit of shapes."""
    if image_size < getattr(model, "stride", 1):
        return False
    # A big image would cost seconds; a small one costs less than the meta device, whose arithmetic on shapes is Python.
    probe = model if image_size <= 64 else copy.deepcopy(model).to("meta")
    device = next(probe.parameters()).device
    try:
        probe.eval()(torch.zeros(1, channels, image_size, image_size, device=device))
    except RuntimeError:  # how torch says that shapes do not fit
        return False
    finally:
        model.train()
    return True
