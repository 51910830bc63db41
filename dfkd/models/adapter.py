"""Any `nn.Module` that gives logits, as a classifier with features: they are found by hooks, or refused by name."""

from __future__ import annotations

import functools
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from dfkd.errors import UserError
from dfkd.models.classifier import Features, Layers


class MissingFeatures(UserError):
    """A model lacks features that a method needs."""

    def __init__(self, model: str, what: str, why: str) -> None:
        self.model, self.what, self.why = model, what, why
        super().__init__(f"the method needs {what}; {model} has none ({why}): choose another model or method.")

    def of_method(self, method: str) -> UserError:
        """The same sentence with the method's name."""
        return UserError(f"{method} needs {self.what}; {self.model} has none ({self.why}): choose another model or method.")


class AdaptedClassifier(nn.Module):
    """A module of others behind the interface of `Classifier`. Made by `as_classifier`.

    The penultimate feature is what enters the last linear layer. The feature maps are, for each size that occurs, the last
    [B,C,H,W] of that size which a submodule gives; 1×1 is left out, since it is pooled already. Names in the state dict are
    the module's own, and so are attributes that this class lacks.
    """

    def __init__(self, module: nn.Module, name: str, maps: dict[str, int], last: str, feature_dim: int) -> None:
        """`maps`: submodule → channels, the largest map first; `last`: the last linear layer, '' if there is none."""
        super().__init__()
        self.module, self.name = module, name
        self._maps, self._last, self._dim = maps, last, feature_dim
        self._found: dict[str, Tensor] = {}
        layers = dict(module.named_modules())
        for key in maps:
            layers[key].register_forward_hook(functools.partial(self._keep_output, key))
        if last:
            layers[last].register_forward_pre_hook(self._keep_input)
        self.register_state_dict_post_hook(_without_prefix)
        self.register_load_state_dict_pre_hook(_with_prefix)

    @property
    def feature_dim(self) -> int:
        """Length of the penultimate feature. Raises `MissingFeatures` if there is none."""
        if not self._last:
            raise self._no_penultimate()
        return self._dim

    @property
    def feature_channels(self) -> list[int]:
        """Channels of the feature maps. Raises `MissingFeatures` if there are none."""
        if not self._maps:
            raise MissingFeatures(self.name, "feature maps", "no layer in it gives [B,C,H,W] larger than 1×1")
        return list(self._maps.values())

    @property
    def layers(self) -> Layers:
        """Names of the maps' layers and of the last linear one; a module of others does not say what its stem is."""
        return Layers(maps=tuple(self._maps), classifier=self._last)

    def forward(self, x: Tensor, return_features: bool = False) -> Tensor | tuple[Tensor, Features]:
        """Logits [B,K] of normalised images [B,C,H,W]; with `return_features`, (logits, [map1, …, mapN, pooled])."""
        logits = self.module(x)
        found = dict(self._found)
        self._found.clear()
        if not return_features:
            return logits
        if not self._last:
            raise self._no_penultimate()
        return logits, [found[key] for key in (*self._maps, "")]

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name == "module":
                raise
            return getattr(super().__getattr__("module"), name)

    def _no_penultimate(self) -> MissingFeatures:
        return MissingFeatures(
            self.name, "penultimate features", "no linear layer in it takes [B,features] and gives the logits"
        )

    def _keep_output(self, key: str, _layer: nn.Module, _inputs: Any, output: Tensor) -> None:
        self._found[key] = output

    def _keep_input(self, _layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        self._found[""] = inputs[0]


def as_classifier(module: nn.Module, name: str, classes: int, shape: tuple[int, int, int]) -> AdaptedClassifier:
    """`module` with features, in the mode that it was in. It is run once on an empty image of `shape`, in eval mode.

    Raises:
        UserError: what it gives is not logits of `classes` classes.
    """
    events = _run(module, shape)
    logits = events.pop()[1]
    if not isinstance(logits, Tensor) or logits.shape != (1, classes):
        given = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise UserError(f"model '{name}' gives {given} for one image; it has to give logits of shape (1, {classes}).")
    linear = [(key, inputs) for key, _, inputs in events if isinstance(module.get_submodule(key), nn.Linear)]
    key, inputs = linear[-1] if linear else ("", None)
    if inputs is None or inputs.dim() != 2 or module.get_submodule(key).out_features != classes or not _once(key, events):
        key, inputs = "", None
    maps = {
        tuple(output.shape[2:]): (layer, output.shape[1])
        for layer, output, _ in events
        if _is_map(output) and _once(layer, events)
    }
    found = sorted(maps.items(), key=lambda item: -item[0][0] * item[0][1])
    return AdaptedClassifier(module, name, dict(entry for _, entry in found), key, 0 if inputs is None else inputs.shape[1])


Event = tuple[str, Any, Any]  # name of a submodule, what it gave, the first thing it took


@torch.no_grad()
def _run(module: nn.Module, shape: tuple[int, int, int]) -> list[Event]:
    """Every submodule's call in a forward pass, in the order in which they ended; the module itself comes last."""
    events: list[Event] = []

    def note(key: str, _layer: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        events.append((key, output, inputs[0] if inputs and isinstance(inputs[0], Tensor) else None))

    parameter = next(iter(module.parameters()), torch.zeros(()))
    modes = [(layer, layer.training) for layer in module.modules()]
    handles = [layer.register_forward_hook(functools.partial(note, key)) for key, layer in module.named_modules()]
    try:
        module.eval()(torch.zeros((1, *shape), device=parameter.device, dtype=parameter.dtype))
    finally:
        for handle in handles:
            handle.remove()
        for layer, training in modes:
            layer.training = training
    return events


def _is_map(output: Any) -> bool:
    return isinstance(output, Tensor) and output.dim() == 4 and output.shape[2] * output.shape[3] > 1


def _once(key: str, events: Iterable[Event]) -> bool:
    """Whether the submodule is called once: a shared one gives several things under one name."""
    return sum(event[0] == key for event in events) == 1


def _without_prefix(_module: nn.Module, state: dict[str, Any], prefix: str, _metadata: dict[str, Any]) -> None:
    for key in [key for key in state if key.startswith(f"{prefix}module.")]:
        state[prefix + key.removeprefix(f"{prefix}module.")] = state.pop(key)


def _with_prefix(_module: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
    for key in [key for key in state if key.startswith(prefix)]:
        state[f"{prefix}module.{key.removeprefix(prefix)}"] = state.pop(key)
