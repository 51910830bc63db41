"""Outputs of named submodules, taken while the network runs."""

from __future__ import annotations

import functools
from collections.abc import Iterable
from typing import Any

from torch import Tensor, nn

from dfkd.errors import UserError, nearest
from dfkd.models.adapter import AdaptedClassifier


class Taps:
    """Keeps what submodules of a network give in a forward pass.

        with Taps(model, model.layers.preacts) as taps:
            logits = model(images)
            before = taps.take()  # name → tensor, in the order in which the names were given

    Any `nn.Module` will do; of an `AdaptedClassifier` the names are those of the module within. What is kept is the output
    itself, with its gradient; the network goes on with a copy, so that no in-place activation behind a tapped layer alters it.
    Of a submodule that runs several times in one pass the last output is kept.

    Taps must be set before the network is compiled: `torch.compile` captures hooks with the graph, without a break, and does
    not notice hooks that are added or removed later.
    """

    def __init__(self, model: nn.Module, names: Iterable[str]) -> None:
        """Tap the submodules of these dotted names.

        Raises:
            UserError: the network has no such submodule.
        """
        module = model.module if isinstance(model, AdaptedClassifier) else model
        known = dict(module.named_modules())
        self.names = tuple(dict.fromkeys(names))
        for name in self.names:
            if not name or name not in known:
                raise UserError(
                    f"{type(module).__name__} has no layer '{name}'; {nearest(name, filter(None, known))}; "
                    "`dict(model.named_modules())` lists all."
                )
        self._outputs: dict[str, Tensor] = {}
        self._handles = [known[name].register_forward_hook(functools.partial(self._keep, name)) for name in self.names]

    def take(self) -> dict[str, Tensor]:
        """The outputs of the last forward pass; they are forgotten here.

        Raises:
            UserError: a tapped submodule has not run since the outputs were taken last.
        """
        idle = [name for name in self.names if name not in self._outputs]
        if idle:
            raise UserError(f"layer '{idle[0]}' was not run in the forward pass; tap one that is.")
        found = {name: self._outputs[name] for name in self.names}
        self._outputs.clear()
        return found

    def remove(self) -> None:
        """Take the hooks off the network and forget the outputs; a second time does nothing."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._outputs.clear()

    def __enter__(self) -> Taps:
        return self

    def __exit__(self, *_: object) -> None:
        self.remove()

    def _keep(self, name: str, _layer: nn.Module, _inputs: Any, output: Any) -> Tensor:
        if not isinstance(output, Tensor):
            raise UserError(f"layer '{name}' gives no tensor but {type(output).__name__}; tap one that gives a tensor.")
        self._outputs[name] = output
        return output.clone()
