"""Classifiers by name. An architecture is imported when it is first built."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Collection

import torch
from torch import nn

from dfkd.config import MODELS, WRN, check_model
from dfkd.errors import UserError
from dfkd.models.count import count_macs, count_parameters
from dfkd.plugins import load

__all__ = ["MODELS", "build_model", "count_macs", "count_parameters"]

USUAL_SIZES = (8, 16, 28, 32, 64, 96, 128)

Builder = Callable[[int, int, int], nn.Module]


def build_model(
    name: str,
    classes: int,
    channels: int = 3,
    image_size: int = 32,
    blocks: str = "plain",
    folded: Collection[str] = (),
) -> nn.Module:
    """A freshly initialised classifier in training mode, on the current default device.

    `model(x)` gives logits [B,K]; `model(x, return_features=True)` gives (logits, [map1, …, mapN, pooled]). Attributes:
    `feature_channels` (of the maps), `feature_dim` (of the pooled feature). A registered model that is no `Classifier` gets
    this interface from `dfkd.models.adapter`.

    Args:
        name: one of `MODELS`, or `wrn{depth}{width}`.
        classes, channels, image_size: of the data set.
        blocks: what its k×k convolutions are trained as: `plain`, or blocks of branches (`dfkd.models.rep`).
        folded: names in the state dict of a deployed network, whose form is built instead (`dfkd.models.fold`).

    Raises:
        UserError: an unknown name (the nearest known are offered), or classes, channels or an image size that the model
            cannot take (found by a forward pass of one empty image), or has nothing for blocks to replace.
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
    if folded:
        from dfkd.models.fold import fold_form

        model = fold_form(model, folded)
    elif blocks != "plain":
        from dfkd.models.rep import with_blocks

        model = with_blocks(model, blocks, name)
    from dfkd.models.adapter import as_classifier
    from dfkd.models.classifier import Classifier

    if isinstance(model, Classifier):
        return model
    return as_classifier(model, name, classes, (channels, image_size, image_size))


def _builder(name: str) -> Builder:
    if check_model(name) in MODELS:
        return load(MODELS[name])
    match = WRN.fullmatch(name)
    assert match  # all that check_model lets through besides
    from dfkd.models.wrn import wrn

    return functools.partial(wrn, int(match["depth"]), int(match["width"]))


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
