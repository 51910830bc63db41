"""Networks for other runtimes: ONNX and TorchScript, compared with the original before they are published."""

from __future__ import annotations

import importlib
import io
import json
import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dfkd.datasets.info import DatasetInfo
from dfkd.errors import UserError, nearest
from dfkd.files import atomic_path
from dfkd.models.adapter import AdaptedClassifier
from dfkd.models.deploy import folded_model
from dfkd.models.weights import WeightsCard, load_model

TOLERANCE = 1e-5  # of the logits' difference, as a share of the largest
BATCHES = (1, 5)  # that the exported network is compared on; it is traced with another


class Exported(nn.Module):
    """A classifier for images [B,C,H,W] → logits [B,K]; with `normalise` the images are in [0, 1], else normalised already."""

    mean: Tensor
    std: Tensor

    def __init__(self, model: nn.Module, info: DatasetInfo, normalise: bool) -> None:
        super().__init__()
        self.network = model.module if isinstance(model, AdaptedClassifier) else model
        self.normalise = normalise
        self.register_buffer("mean", torch.tensor(info.mean).view(1, -1, 1, 1))
        self.register_buffer("std", torch.tensor(info.std).view(1, -1, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        """Logits."""
        return self.network((images - self.mean) / self.std if self.normalise else images)


@dataclass(frozen=True)
class Export:
    """What an export gave."""

    card: WeightsCard
    folded: bool  # whether blocks were folded on the way
    error: float  # largest difference of the logits, as a share of the largest
    size: int  # bytes


def export(path: Path, output: Path, form: str, normalise: bool = False) -> Export:
    """Write the network at `path` as `form`, for any batch size. A network with blocks is folded on the way.

    The file is run and compared with the original before it gets its name. It carries a JSON (ONNX: `dfkd` of the metadata,
    TorchScript: the extra file dfkd.json) with architecture, data set, class names, normalisation, size, the weights' SHA-256.

    Raises:
        UserError: an unknown form, a library that is absent, weights that cannot be read, or logits that differ.
    """
    if form not in FORMS:
        raise UserError(f"--format {form}: {nearest(form, FORMS)}.")
    write = FORMS[form]
    if form == "onnx":
        _need("onnx", "onnxscript", "onnxruntime")
    model, card = load_model(path)
    fold = card.blocks != "plain" and not card.deployed
    whole = Exported(model, card.dataset, normalise).eval()
    told = json.dumps(_description(card, normalise, fold), ensure_ascii=False, sort_keys=True)
    written = Exported(folded_model(model, card, str(path))[0], card.dataset, normalise).eval() if fold else whole
    example = torch.rand((2, *card.dataset.shape), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        content, run = write(written, example, told)
        error = max(_error(whole, run, card.dataset.shape, batch) for batch in BATCHES)
    if not error <= TOLERANCE:  # NaN too
        raise UserError(
            f"{path}: as {form}, its logits differ by {error:.1e} of the largest (allowed: {TOLERANCE:.0e}); "
            "nothing is written: try the other format."
        )
    with atomic_path(output) as temporary:
        temporary.write_bytes(content)
    return Export(card, fold, error, len(content))


Run = Callable[[Tensor], Tensor]


def _onnx(model: Exported, example: Tensor, told: str) -> tuple[bytes, Run]:
    import onnx
    import onnxruntime

    with warnings.catch_warnings(), _quiet("torch.onnx", "onnxscript"):
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            model,
            (example,),
            dynamo=True,
            verbose=False,
            input_names=["images"],
            output_names=["logits"],
            dynamic_shapes={"images": {0: torch.export.Dim("batch", min=1)}},
        )
    assert program is not None
    proto: Any = program.model_proto
    for node in proto.graph.node:
        del node.metadata_props[:]  # where the code lies that it came from: paths of this machine
    del proto.graph.metadata_props[:]
    for value in (*proto.graph.value_info, *proto.graph.input, *proto.graph.output):
        del value.metadata_props[:]
    proto.doc_string = ""
    onnx.helper.set_model_props(proto, {"dfkd": told})
    content = proto.SerializeToString(deterministic=True)
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    return content, lambda images: torch.from_numpy(session.run(["logits"], {"images": images.numpy()})[0])


def _torchscript(model: Exported, example: Tensor, told: str) -> tuple[bytes, Run]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.jit is on its way out; what reads its files stays
        traced = torch.jit.freeze(torch.jit.trace(model, example))
        buffer = io.BytesIO()
        torch.jit.save(traced, buffer, _extra_files={"dfkd.json": told})
        again = torch.jit.load(io.BytesIO(buffer.getvalue()))
    return buffer.getvalue(), again


FORMS: dict[str, Callable[[Exported, Tensor, str], tuple[bytes, Run]]] = {"onnx": _onnx, "torchscript": _torchscript}


def _error(model: Exported, run: Run, shape: tuple[int, int, int], batch: int) -> float:
    images = torch.rand((batch, *shape), generator=torch.Generator().manual_seed(batch))
    expected, found = model(images), run(images)
    if found.shape != expected.shape:
        return float("inf")
    return ((found - expected).abs().max() / expected.abs().max().clamp(min=1e-30)).item()


def _description(card: WeightsCard, normalise: bool, folded: bool) -> dict[str, Any]:
    info = card.dataset
    return {
        "architecture": card.architecture,
        "dataset": info.name,
        "classes": info.classes,
        "input": [info.channels, info.image_size, info.image_size],
        "range": "[0, 1]" if normalise else "normalised: (pixels in [0, 1] - mean) / std",
        "mean": info.mean,
        "std": info.std,
        "folded": folded or card.deployed,
        "sha256": card.sha256,
    }


def _need(*modules: str) -> None:
    absent = []
    for name in modules:
        try:
            importlib.import_module(name)
        except ImportError:
            absent.append(name)
    if absent:
        raise UserError(f"--format onnx needs {' and '.join(absent)}: pip install onnx onnxscript onnxruntime.")


@contextmanager
def _quiet(*names: str) -> Iterator[None]:
    """Within it, these loggers tell errors alone: exporters narrate."""
    loggers = [logging.getLogger(name) for name in names]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
