"""What a teacher says of every image of a bank, and the file beside the bank that keeps it.

A bank's own scores say what its stage knew. These are measured on the images as they are stored, for any bank and any teacher
that fits, so that banks of different stages can be compared, sorted and filtered by the same columns.
"""

from __future__ import annotations

import logging
from contextlib import nullcontext
from pathlib import Path
from types import TracebackType

import numpy as np
import torch
from torch import Tensor, nn

from dfkd.bank.pixels import first_copies, is_constant, pixel_hashes
from dfkd.bank.reader import BankReader
from dfkd.bank.storage import published_digest
from dfkd.datasets.views import normalise, to_unit
from dfkd.errors import UserError
from dfkd.inspection.related import find_teacher
from dfkd.inspection.sidecar import MEASURED, TOP, BankScores, kept_scores, read_scores, scores_file, write_scores
from dfkd.models.weights import load_model
from dfkd.progress import Steps, progress
from dfkd.runtime import Runtime

__all__ = ["MEASURED", "BankScores", "measure", "read_scores", "scores_file", "scores_of", "write_scores"]

logger = logging.getLogger(__name__)


def scores_of(bank: str | Path, teacher: Path | None, runtime: Runtime, batch_size: int = 256) -> BankScores:
    """The scores beside the bank if they are of this very bank and teacher; else they are measured now, and not written.

    Args:
        bank: complete, or still being written.
        teacher: weights that fit the bank's images; None: those it was made with, looked for in the results around it.

    Raises:
        UserError: the bank or the teacher cannot be read, or none is found.
    """
    reader = BankReader(bank, allow_incomplete=True)
    if teacher is None:
        kept = fitting_scores(reader, reader.meta.teacher_sha256)
        if kept is not None:
            return kept
        teacher = find_teacher(reader.path, reader.meta.teacher_sha256)
        if teacher is None:
            sha256 = reader.meta.teacher_sha256[:12]
            raise UserError(f"{bank}: its teacher (SHA-256 {sha256}…) is not in the results around it; name it with --teacher.")
    model, card = load_model(teacher, runtime)
    kept = fitting_scores(reader, card.sha256)
    if kept is not None:
        return kept
    if card.dataset.shape != reader.meta.dataset.shape or len(card.dataset.classes) != len(reader.meta.dataset.classes):
        raise UserError(
            f"{teacher}: its images or classes are not those of {bank}; give a teacher of {reader.meta.dataset.name}."
        )
    return measure(reader, model, card.architecture, card.sha256, runtime, batch_size)


def fitting_scores(reader: BankReader, teacher_sha256: str) -> BankScores | None:
    """The scores beside the bank if they are of this very bank and teacher; None otherwise, with a warning if damaged."""
    try:
        return kept_scores(reader.path, teacher_sha256)
    except UserError as error:
        logger.warning("%s They are measured anew.", error)
        return None


@torch.inference_mode()
def measure(
    reader: BankReader,
    model: nn.Module,
    architecture: str,
    sha256: str,
    runtime: Runtime,
    batch_size: int = 256,
    steps: Steps | None = None,
) -> BankScores:
    """Score every image of a bank; images are streamed, columns and features are kept.

    R_bn is the sum over BatchNorm layers of ||var - running var||_2 + ||mean - running mean||_2 (the term that the inversion
    minimises, `dfkd.synthesis.priors`), here with the statistics of one image, of a class, of the whole bank.
    `steps` is advanced once a block; without it a bar shows the progress.

    Raises:
        UserError: a damaged block, or a teacher whose answers are not finite.
    """
    info, classes = reader.meta.dataset, len(reader.meta.dataset.classes)
    found: dict[str, list[np.ndarray]] = {}
    features: list[np.ndarray] = []
    top: list[tuple[Tensor, Tensor]] = []  # probabilities, classes
    hashes: list[bytes] = []
    shown = progress("score images", reader.meta.blocks) if steps is None else nullcontext(steps)
    with _Moments(model, classes) as moments, shown as bar:
        for block in reader.blocks():
            hashes += pixel_hashes(block.images)
            parts: dict[str, list[Tensor]] = {}
            for images, labels in zip(block.images.split(batch_size), block.labels.split(batch_size), strict=True):
                unit = normalise(to_unit(images.to(runtime.device)), info)
                moments.labels = labels.to(runtime.device)
                with runtime.autocast():
                    logits, maps = model(runtime.images(unit), return_features=True)
                log_p = logits.float().log_softmax(1).cpu()
                likeliest = log_p.sort(dim=1, descending=True, stable=True)  # of equal ones the first
                top.append((likeliest.values[:, :TOP].exp(), likeliest.indices[:, :TOP]))
                for name, values in {**_answers(log_p, labels), **moments.taken(), **_pixels(images)}.items():
                    parts.setdefault(name, []).append(values.cpu())
                features.append(maps[-1].flatten(1).float().clamp(-65504, 65504).cpu().numpy().astype(np.float16))
            parents = block.parents if block.parents is not None else torch.full_like(block.labels, -1)
            measured = {name: torch.cat(several) for name, several in parts.items()}
            # What a stage wrote under one of our names means the same, and is measured anew.
            for name, column in {"label": block.labels, "parent": parents, **block.scores, **measured}.items():
                found.setdefault(name, []).append(column.numpy())
            bar.advance()
    columns = {name: np.concatenate(values) for name, values in found.items()}
    if not all(np.isfinite(columns[name]).all() for name in MEASURED if name in columns):
        raise UserError(
            f"{reader.path}: the answers of teacher {architecture} are not finite; give a teacher that was trained."
        )
    columns["duplicate_of"] = first_copies(hashes)
    of_class, of_all = moments.distances()
    everything = np.concatenate(features) if features else np.zeros((0, 0), np.float16)
    nothing = torch.zeros(0, min(TOP, classes))
    probabilities = torch.cat([nothing, *(values for values, _ in top)]).numpy()
    answers = torch.cat([nothing, *(indices for _, indices in top)]).numpy().astype(np.int16)
    digest = published_digest(reader.path) if reader.meta.status == "complete" else None
    return BankScores(columns, everything, answers, probabilities, of_class, of_all, architecture, sha256, digest)


def _answers(log_p: Tensor, labels: Tensor) -> dict[str, Tensor]:
    best = log_p.max(1)
    return {
        "prediction": best.indices,
        "confidence": best.values.exp(),
        "label_probability": log_p.gather(1, labels[:, None])[:, 0].exp(),
        "entropy": -(log_p.exp() * log_p).sum(1),
    }


def _pixels(images: Tensor) -> dict[str, Tensor]:
    deviation, mean = torch.std_mean(images.flatten(1).float(), dim=1, correction=0)
    return {"brightness": mean, "contrast": deviation, "constant": is_constant(images).to(torch.uint8)}


class _Moments:
    """Mean and mean square of every BatchNorm2d input: of each image, summed by class."""

    def __init__(self, model: nn.Module, classes: int) -> None:
        self.layers = [layer for layer in model.modules() if isinstance(layer, nn.BatchNorm2d)]
        self.labels = torch.zeros(0, dtype=torch.int64)
        self._counts = torch.zeros(classes, dtype=torch.float64)
        self._sums: list[Tensor | None] = [None] * len(self.layers)  # [K,2,C]: mean, mean square
        self._distance: Tensor | None = None  # [B] of the batch in hand

    def __enter__(self) -> _Moments:
        self._handles = [
            layer.register_forward_pre_hook(lambda _, inputs, place=place: self._hook(place, inputs[0]))  # type: ignore[misc]
            for place, layer in enumerate(self.layers)
        ]
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for handle in self._handles:
            handle.remove()

    def _hook(self, place: int, maps: Tensor) -> None:
        variance, mean = torch.var_mean(maps.float(), dim=(2, 3), correction=0)
        distance = _distance(mean, variance, self.layers[place])
        self._distance = distance if self._distance is None else self._distance + distance
        both = torch.stack([mean, variance + mean.square()], dim=1).double().cpu()  # [B,2,C]
        former = self._sums[place]
        if former is None:
            former = torch.zeros(len(self._counts), *both.shape[1:], dtype=torch.float64)
        self._sums[place] = former.index_add_(0, self.labels.cpu(), both)

    def taken(self) -> dict[str, Tensor]:
        """The distances of the batch that went through last; nothing for a network without BatchNorm2d."""
        self._counts += torch.bincount(self.labels.cpu(), minlength=len(self._counts))
        distance, self._distance = self._distance, None
        return {} if distance is None else {"bn_distance": distance}

    def distances(self) -> tuple[np.ndarray, float]:
        """R_bn of each class and of all images; NaN where there is nothing to measure."""
        sums = [(total, layer) for total, layer in zip(self._sums, self.layers, strict=True) if total is not None]
        if not sums:
            return np.full(len(self._counts), np.nan), float("nan")

        def of(chosen: list[Tensor], count: Tensor) -> Tensor:
            """Over [G,2,C] sums of groups of `count` [G] images."""
            moments = [total / count.view(-1, 1, 1) for total in chosen]
            pairs = zip(moments, (layer for _, layer in sums), strict=True)
            return sum(
                (_distance(both[:, 0], (both[:, 1] - both[:, 0].square()).clamp(min=0), layer) for both, layer in pairs),
                start=torch.zeros(len(count), dtype=torch.float64),
            )

        by_class = of([total for total, _ in sums], self._counts)  # 0 / 0 is the NaN of an empty class
        whole = of([total.sum(0, keepdim=True) for total, _ in sums], self._counts.sum(0, keepdim=True))
        return by_class.numpy(), whole.item()


def _distance(mean: Tensor, variance: Tensor, layer: nn.BatchNorm2d) -> Tensor:
    """||var - running var|| + ||mean - running mean|| of each row of [G,C] → [G]."""
    assert layer.running_mean is not None
    assert layer.running_var is not None
    kind = {"device": mean.device, "dtype": mean.dtype}
    norms = torch.linalg.vector_norm(variance - layer.running_var.to(**kind), dim=1)  # type: ignore[call-overload]
    return norms + torch.linalg.vector_norm(mean - layer.running_mean.to(**kind), dim=1)  # type: ignore[call-overload]
