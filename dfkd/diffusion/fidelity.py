"""The fidelity filter: a variation stays iff it lies near its parent in an embedding (DDA, MM 2024, step 2b).

M = cos(embedding(variation), embedding(parent)); kept iff M >= threshold. DDA names neither the embedding nor the threshold;
the teacher's penultimate features and 0.7 are this project's choice, CLIP is the alternative.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from dfkd.bank.format import Block
from dfkd.datasets.info import DatasetInfo
from dfkd.datasets.views import normalise, to_unit
from dfkd.diffusion.image_variations import clip_input
from dfkd.diffusion.pretrained import load_pretrained
from dfkd.files import atomic_path
from dfkd.runtime import Runtime
from dfkd.settings import AugmentSettings

BINS = 40  # of the cosine histogram, from -1 to 1
ITSELF = -1  # the variation number of a parent that stands for itself
CHUNK = 256  # images per forward pass


class Judge:
    """The embedding that the filter compares in, and the teacher's confidence."""

    def __init__(self, teacher: nn.Module, info: DatasetInfo, settings: AugmentSettings, runtime: Runtime) -> None:
        self.teacher, self.info, self.runtime = teacher, info, runtime
        self.clip: Any = None
        if settings.embedding == "clip":
            from transformers import CLIPVisionModelWithProjection

            alternative = "choose augment.embedding: teacher"
            clip = load_pretrained(CLIPVisionModelWithProjection, settings.clip, "augment.clip", alternative=alternative)
            self.clip = clip.eval().requires_grad_(False).to(runtime.device)

    @torch.inference_mode()
    def __call__(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """uint8 [n,C,H,W] -> embeddings float32 [n,D] and the teacher's largest softmax probability [n], on the CPU."""
        parts = [self._chunk(images[i : i + CHUNK]) for i in range(0, len(images), CHUNK)]
        return torch.cat([part[0] for part in parts]), torch.cat([part[1] for part in parts])

    def _chunk(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        images = images.to(self.runtime.device)
        with self.runtime.autocast():
            logits, features = self.teacher(self.runtime.images(normalise(to_unit(images), self.info)), return_features=True)
        embedding = features[-1].flatten(1)
        if self.clip is not None:
            embedding = self.clip(clip_input(images, self.clip.config.image_size)).image_embeds
        return embedding.float().cpu(), logits.float().softmax(1).amax(1).cpu()


def cosine(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """Cosine of each pair of rows, [n,D] × [n,D] -> float32 [n]; 0 where a row is zero."""
    return F.cosine_similarity(first.double(), second.double(), dim=1).float()


@dataclass
class Verdict:
    """Which variations stay, and which parents stand for themselves. Rows are parents, columns variations."""

    kept: torch.Tensor  # bool [n,V]
    itself: torch.Tensor  # bool [n]


def judge(cosines: torch.Tensor, threshold: float) -> Verdict:
    """Keep iff cosine >= threshold, [n,V]; a parent none of whose variations survives stands for itself."""
    kept = cosines.double() >= threshold - 1e-6  # float32 cosines: 0.7 itself must count as 0.7
    return Verdict(kept, ~kept.any(1))


def report(
    backend: str, threshold: float, classes: list[str], accepted: Iterable[Block], rejected: Iterable[Block]
) -> dict[str, Any]:
    """What the filter did, for the bank's metadata: rates in total and per class, cosine histogram, dropped ids.

    A function of the two banks' blocks alone (parents, labels, scores `cosine` and `variation`).

    Returns:
        `accept_rate` (None without variations), `accept_rate_per_class` (by class name; None where there are none),
        `made`, `accepted`, `represented_by_themselves`, `histogram` (`edges`, `accepted`, `rejected`), `dropped`
        ([parent, variation] pairs).
    """
    edges = np.linspace(-1, 1, BINS + 1)
    counts = np.zeros((2, len(classes)), dtype=np.int64)
    histogram = np.zeros((2, BINS), dtype=np.int64)
    itself, dropped = 0, []
    for row, blocks in enumerate((accepted, rejected)):
        for block in blocks:
            made = block.scores["variation"] != ITSELF
            itself += int((~made).sum())
            counts[row] += np.bincount(block.labels[made].numpy(), minlength=len(classes))
            histogram[row] += np.histogram(block.scores["cosine"][made].numpy().clip(-1, 1), edges)[0]
            if row == 1 and block.parents is not None:
                dropped += [
                    list(pair) for pair in zip(block.parents.tolist(), block.scores["variation"].int().tolist(), strict=True)
                ]
    made_per_class = counts.sum(0)
    return {
        "backend": backend,
        "threshold": threshold,
        "made": int(counts.sum()),
        "accepted": int(counts[0].sum()),
        "accept_rate": float(counts[0].sum() / counts.sum()) if counts.sum() else None,
        "accept_rate_per_class": {
            name: float(kept / made) if made else None
            for name, kept, made in zip(classes, counts[0], made_per_class, strict=True)
        },
        "represented_by_themselves": itself,
        "histogram": {
            "edges": [round(float(edge), 6) for edge in edges],
            "accepted": histogram[0].tolist(),
            "rejected": histogram[1].tolist(),
        },
        "dropped": dropped,
    }


def plot(content: dict[str, Any], output: str | Path) -> None:
    """Draw the cosine histogram with the threshold and the accept rate of each class. Equal reports give equal bytes."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.4), layout="constrained")
    left, right = figure.subplots(1, 2)
    edges = np.array(content["histogram"]["edges"])
    stacked = [content["histogram"]["accepted"], content["histogram"]["rejected"]]
    left.hist(
        [edges[:-1]] * 2, edges.tolist(), weights=stacked, stacked=True, color=["#0b5394", "#cc4c02"], label=["kept", "dropped"]
    )
    left.axvline(content["threshold"], color="black", linestyle="--", linewidth=1, label=f"threshold {content['threshold']:g}")
    occupied = np.flatnonzero(np.sum(stacked, axis=0))
    if occupied.size:
        left.set_xlim(min(edges[occupied[0]], content["threshold"]) - 0.05, 1.02)
    left.set(
        xlabel="cosine of variation and parent",
        ylabel="variations",
        title=f"{content['made']} variations, {content['backend']}",
    )
    left.legend()
    rates = content["accept_rate_per_class"]
    right.bar(range(len(rates)), [100 * (rate or 0) for rate in rates.values()], color="#0b5394")
    if len(rates) <= 20:
        right.set_xticks(range(len(rates)), list(rates), rotation=45 if max(map(len, rates)) > 3 else 0)
    total = "none were made" if content["accept_rate"] is None else f"{100 * content['accept_rate']:.1f} % in total"
    right.set(xlabel="class", ylabel="kept, %", ylim=(0, 100), title=f"Accept rate: {total}")
    with atomic_path(output) as temporary:
        figure.savefig(temporary, format="png", dpi=110, metadata={"Software": None})
