"""A trained network into the one that is run: blocks and BatchNorms folded into the convolutions, checked, with a card."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from torch import nn

from dfkd.errors import UserError
from dfkd.models.fold import fold_error, folded_state
from dfkd.models.weights import WeightsCard, check_output, fitted_model, load_model, read_card, save_weights

# Largest difference of the logits, as a share of the largest: single-precision weights stay far below it.
TOLERANCE = 1e-5


@dataclass(frozen=True)
class Deployed:
    """What a deployment gave."""

    card: WeightsCard
    params: int  # of the network that was folded
    error: float  # see `fold_error`


def deploy(path: Path, output: Path) -> Deployed:
    """Fold the network at `path` and write it to `output` (.safetensors) with its card, whose lineage names what it was.

    A network without blocks is taken as well: its BatchNorms are folded. The result is compared with the unfolded network on
    a batch of noise before anything is written.

    Raises:
        UserError: not a classifier of this project, deployed already, without anything to fold, or folded wrongly; `output`
            is `path`, whose network could not be trained further.
    """
    check_output(output)
    card = read_card(path)
    if card.deployed:
        raise UserError(f"{path}: is deployed already; use it as it is.")
    if output.resolve() == path.resolve():
        raise UserError(f"{output}: would replace the network that was trained; give another file with -o.")
    model, card = load_model(path)
    twin, error = folded_model(model, card, str(path))
    lineage = {**card.lineage, "trained": card.sha256}
    saved = save_weights(output, twin, card.model_copy(update={"deployed": True, "lineage": lineage}))
    return Deployed(saved, card.params, error)


def folded_model(model: nn.Module, card: WeightsCard, where: str) -> tuple[nn.Module, float]:
    """The folded form of a network, in eval mode and frozen, and how far its logits are off.

    Raises:
        UserError: there is nothing to fold, or the forms differ: code of others that a BatchNorm does not tell all about.
    """
    state = folded_state(model)
    if not state:
        raise UserError(f"{where}: has neither blocks nor a BatchNorm behind a convolution to fold; use it as it is.")
    twin = fitted_model(card.architecture, card.dataset, state, where, deployed=True).eval().requires_grad_(False)
    error = fold_error(model, twin, card.dataset.shape)
    if not error <= TOLERANCE:  # NaN too
        raise UserError(
            f"{where}: folded, its logits differ by {error:.1e} of the largest (allowed: {TOLERANCE:.0e}); "
            "nothing is written: use the network as it is."
        )
    return twin, error
