"""Weights on disk: safetensors with a JSON card beside them, and the import of the field's `.pth` checkpoints."""

from __future__ import annotations

import hashlib
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import safetensors.torch
import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors import SafetensorError
from torch import Tensor, nn

from dfkd.datasets.info import DatasetInfo
from dfkd.errors import UserError
from dfkd.files import atomic_path, read_json, together, write_json
from dfkd.models import build_model, count_parameters
from dfkd.provenance import revision, versions
from dfkd.runtime import Runtime
from dfkd.settings import Blocks

State = dict[str, Tensor]

# Where the usual checkpoints keep their state dict when it does not lie bare in the file.
CONTAINERS = ("state_dict", "model")
# Module names of other code → ours, tried one by one when a name does not fit as it stands.
ALIASES = {"fc": "linear", "linear": "fc", "downsample": "shortcut", "shortcut": "downsample"}


class WeightsCard(BaseModel):
    """What the weights are, how they came about and which file they are."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    architecture: str
    blocks: Blocks = "plain"  # what its k×k convolutions were trained as
    deployed: bool = False  # blocks and BatchNorms folded into the convolutions (`dfkd deploy`)
    dataset: DatasetInfo
    role: Literal["teacher", "student", "diffusion", "generator", "paraphraser"]
    stage: str
    stage_version: int
    settings: dict[str, Any]
    seed: int
    metrics: dict[str, float] = {}
    params: int = 0  # filled by `save_weights`
    versions: dict[str, str] = Field(default_factory=versions)
    revision: str = Field(default_factory=revision)
    sha256: str = ""  # of the safetensors file; filled by `save_weights`
    lineage: dict[str, str] = {}  # what it was made from → SHA-256; `packed FILE`: its BLAKE2b digest
    notes: dict[str, str] = {}  # what else a reader has to know of how it was made


def save_weights(path: str | Path, model: nn.Module, card: WeightsCard) -> WeightsCard:
    """Write `path` (.safetensors), and the card as `path` with the suffix .json: both whole or neither.

    Equal tensors give equal bytes, whatever their device and memory format. Returns the card with `sha256` and `params`.
    """
    target = check_output(path)
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in sorted(model.state_dict().items())}
    content = safetensors.torch.save(state)
    card = card.model_copy(update={"sha256": hashlib.sha256(content).hexdigest(), "params": count_parameters(model)})
    with together():
        with atomic_path(target) as temporary:
            temporary.write_bytes(content)
        write_json(target.with_suffix(".json"), card.model_dump(mode="json"))
    return card


def read_card(path: str | Path) -> WeightsCard:
    """The card of the weights at `path` (.safetensors).

    Raises:
        UserError: the weights or their card are missing, or the card is not one of ours.
    """
    card_path = check_output(path).with_suffix(".json")
    for file in (Path(path), card_path):
        if not file.is_file():
            raise UserError(f"{file}: no such file; weights are a .safetensors file with their card, a .json, beside them.")
    content = read_json(card_path)
    try:
        return WeightsCard.model_validate(content)
    except ValidationError as error:
        fault = error.errors()[0]
        where = ".".join(str(part) for part in fault["loc"]) or "content"
        raise UserError(
            f"{card_path}: not a card of this project's weights ({where}: {fault['msg']}); give weights that dfkd wrote."
        ) from None


def load_state(path: str | Path) -> State:
    """The tensors of a weights file, checked against its card.

    Raises:
        UserError: the file or its card is missing, damaged, or not one of ours.
    """
    card = read_card(path)
    try:
        content = Path(path).read_bytes()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); make the weights again.") from None
    if hashlib.sha256(content).hexdigest() != card.sha256:
        raise UserError(f"{path}: its SHA-256 is not the one on its card: damaged or replaced; make the weights again.")
    try:
        return safetensors.torch.load(content)
    except SafetensorError as error:
        raise UserError(f"{path}: not a safetensors file ({error}); make the weights again.") from None


def load_model(path: str | Path, runtime: Runtime | None = None) -> tuple[nn.Module, WeightsCard]:
    """A classifier and its card: in eval mode, its parameters frozen, placed by `runtime` if one is given.

    The random generators are left as they were.

    Raises:
        UserError: see `load_state`; also when the tensors do not fit the architecture on the card.
    """
    card = read_card(path)
    if card.role in ("diffusion", "paraphraser"):
        what = "diffusion model" if card.role == "diffusion" else card.role
        raise UserError(f"{path}: these are weights of a {what}; give those of a teacher or a student.")
    state = load_state(path)
    model = fitted_model(card.architecture, card.dataset, state, str(path), blocks=card.blocks, deployed=card.deployed)
    model.eval().requires_grad_(False)
    return (model if runtime is None else runtime.place(model)), card


def import_checkpoint(path: str | Path, architecture: str, info: DatasetInfo) -> nn.Module:
    """A classifier from a checkpoint of the usual CIFAR code (`.pth`, `.pt` or `.safetensors`), in training mode on the CPU.

    The file may hold a bare state dict or one under `state_dict` or `model`; names may start with `module.`; `fc` and
    `linear`, `shortcut` and `downsample` stand for each other. Nothing in the file is run (`weights_only`), nothing is dropped.

    Raises:
        UserError: not a checkpoint, code inside, or names, shapes, or a class count that do not fit.
    """
    state = _state_of(_read_checkpoint(path), path)
    return fitted_model(architecture, info, state, str(path), aliases=True)


def check_output(path: str | Path) -> Path:
    """`path` as weights are named; a `UserError` for another suffix than .safetensors."""
    target = Path(path)
    if target.suffix != ".safetensors":
        raise UserError(f"{target}: weights are kept in .safetensors files; `dfkd teacher import` takes a .pth checkpoint.")
    return target


def _read_checkpoint(path: str | Path) -> Any:
    if not Path(path).is_file():
        raise UserError(f"{path}: no such file; give a .pth checkpoint.")
    if Path(path).suffix == ".safetensors":
        try:
            return safetensors.torch.load_file(path)
        except SafetensorError as error:
            raise UserError(f"{path}: not a safetensors file ({error}); save the state dict again.") from None
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if "Unsupported global" in str(error) or "Unsupported class" in str(error):
            raise UserError(
                f"{path}: holds Python objects besides tensors, which are not loaded because they can run code; "
                "save the state dict alone and import that."
            ) from None
        raise _no_checkpoint(path) from None
    except Exception:  # torch names no common class for what is no checkpoint
        raise _no_checkpoint(path) from None


def _no_checkpoint(path: str | Path) -> UserError:
    return UserError(f"{path}: not a PyTorch checkpoint, or a damaged one; give a file that torch.save wrote.")


def _state_of(content: Any, path: str | Path) -> State:
    """The state dict within a checkpoint's content, `module.` taken off."""
    for key in CONTAINERS:
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
            break
    if not isinstance(content, Mapping) or not content:
        raise UserError(f"{path}: holds no state dict (bare, or under 'state_dict' or 'model'); save model.state_dict().")
    for name, tensor in content.items():
        if not isinstance(name, str) or not isinstance(tensor, Tensor):
            raise UserError(f"{path}: '{name}' is no tensor, so this is no state dict; save model.state_dict() alone.")
    wrapped = all(name.startswith("module.") for name in content)
    return {name.removeprefix("module.") if wrapped else name: tensor for name, tensor in content.items()}


def fitted_model(
    architecture: str,
    info: DatasetInfo,
    state: State,
    where: str,
    aliases: bool = False,
    blocks: Blocks = "plain",
    deployed: bool = False,
) -> nn.Module:
    """`architecture` for `info` with the tensors of `state`, every one of which must fit; in training mode on the CPU.

    Args:
        where: that the state is of, for the sentences of refusals.
        aliases: whether other code's names are taken as well.
        blocks: what the convolutions were trained as.
        deployed: whether they, and the BatchNorms, were folded: the state's names say which.

    Raises:
        UserError: names, shapes, or a number of classes that do not fit, or tensors that are not finite.
    """
    folded = state.keys() if deployed else ()
    with torch.random.fork_rng(devices=[]):
        model = build_model(architecture, len(info.classes), info.channels, info.image_size, blocks, folded)
    own = model.state_dict()
    if aliases:
        state = _renamed(state, own)
    _check_names(state, own, where, architecture)
    _check_shapes(state, own, where, architecture, info, _classifier_name(model))
    for name, tensor in state.items():
        if tensor.is_floating_point() and not tensor.isfinite().all():
            raise UserError(f"{where}: '{name}' holds NaN or infinite values; the training failed, use other weights.")
    # strict=False for the counters of batches alone, see _check_names.
    model.load_state_dict(state, strict=False)
    return model


def _renamed(state: State, own: State) -> State:
    """`state` with names that `own` lacks written as `own` has them, as far as ALIASES goes."""
    renamed: State = {}
    for name, tensor in state.items():
        other = ".".join(ALIASES.get(part, part) for part in name.split("."))
        use_other = name not in own and other in own and other not in state
        renamed[other if use_other else name] = tensor
    return renamed


def _check_names(state: State, own: State, where: str, architecture: str) -> None:
    # Checkpoints older than PyTorch 0.4.1 lack the counters, which play no part at a fixed momentum.
    missing = [name for name in own if name not in state and not name.endswith(".num_batches_tracked")]
    unexpected = [name for name in state if name not in own]
    faults = [
        f"{len(names)} {kind} (first '{names[0]}')"
        for kind, names in (("missing", missing), ("unexpected", unexpected))
        if names
    ]
    if faults:
        raise UserError(
            f"{where}: the tensors' names do not fit model '{architecture}': {' and '.join(faults)}; "
            "name the architecture that these weights belong to."
        )


def _check_shapes(state: State, own: State, where: str, architecture: str, info: DatasetInfo, classifier: str) -> None:
    misfits = [name for name, tensor in own.items() if name in state and state[name].shape != tensor.shape]
    if not misfits:
        return
    if all(name.rpartition(".")[0] == classifier for name in misfits) and _rows_differ_only(state, own, misfits):
        raise UserError(
            f"{where}: has {state[misfits[0]].shape[0]} classes, data set {info.name} has {len(info.classes)}; "
            "choose the data set that these weights were trained on."
        )
    name = misfits[0]
    raise UserError(
        f"{where}: '{name}' has shape {tuple(state[name].shape)}, model '{architecture}' on data set {info.name} needs "
        f"{tuple(own[name].shape)} ({len(misfits)} such tensors); name the architecture and the data set of these weights."
    )


def _rows_differ_only(state: State, own: State, names: list[str]) -> bool:
    return all(state[name].dim() == own[name].dim() and state[name].shape[1:] == own[name].shape[1:] for name in names)


def _classifier_name(model: nn.Module) -> str:
    """The name of the last linear layer, which makes the logits."""
    return [name for name, layer in model.named_modules() if isinstance(layer, nn.Linear)][-1]
