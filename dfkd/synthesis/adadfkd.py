"""AdaDFKD: Exploring Adaptive Inter-Sample Relationship in Data-Free Knowledge Distillation (Li et al., 2024), its synthesis.

    min over G:  (the terms of `dfkd.synthesis.cudfkd`) + hard L_cnce

    L_cnce = mean_i CE([⟨q_i, k_i⟩, the window of ⟨q_i, queue⟩] / τ, 0)        q = f_T / |f_T|, k = f_S / |f_S| without gradient

The queue holds the last k, at first random unit vectors. Of its products with q_i, sorted from easy (low) to hard (high), the
share `window` is used; over the epochs it slides from the easiest to the hardest:

    h = clip((1 - window) (epoch - begin) / (end - begin), 0, 1 - window),   the elements [int(h N), int((h + window) N))

With `window: 1` this is plain MoCo. Of js the adversarial term is 1 - clamp(JS_3, 0, 1). The student's side is `Relational` in
`dfkd.distillation.self_paced`.

Deviations: the window is cut out by dropping the few that lie outside of it, without sorting the queue for every image. A queue
that the batch does not divide is refused with the settings; the headline script of the published code has one (768 and 4096)
and stops, 4608 is taken here. Where the sizes of the features differ its projection is a fresh random one at every use, here
too (`projection`).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from dfkd.datasets.info import DatasetInfo
from dfkd.distillation.self_paced import Relational
from dfkd.methods import AdaDFKDSettings
from dfkd.progress import StopRequest
from dfkd.runtime import Runtime
from dfkd.synthesis.cudfkd import TEMPERATURE, CuDFKD
from dfkd.synthesis.priors import js_divergence
from dfkd.synthesis.synthesizer import Synthesis


def difficulty(settings: AdaDFKDSettings, epoch: int) -> float:
    """h of an epoch counted from 0: the share of the queue that is too easy."""
    begin, span = int(settings.epochs * settings.begin), int(settings.epochs * (settings.end - settings.begin))
    room = 1 - settings.window
    return min(max(room * (epoch - begin) / max(span, 1), 0.0), room)


def window(settings: AdaDFKDSettings, epoch: int) -> tuple[int, int]:
    """The elements of the sorted queue that an epoch uses: from, to (exclusive)."""
    easy = difficulty(settings, epoch)
    return int(easy * settings.queue), min(int((easy + settings.window) * settings.queue), settings.queue)


def sliding_window(scores: torch.Tensor, low: torch.Tensor, high: torch.Tensor, dropped: int) -> torch.Tensor:
    """Scores [B,N] with -inf wherever a row's ascending order would have an element before `low` or from `high` on.

    `low` and `high` are scalars on the device; at most `dropped` elements lie on either side. Selects those alone and sorts
    nothing else; among equal scores it is open which one is kept, as in a sort.
    """
    rank = torch.arange(dropped, device=scores.device)
    for count, largest in ((low, False), (scores.shape[1] - high, True)):  # -inf is never among those that the second drops
        index = scores.detach().topk(dropped, dim=1, largest=largest).indices
        outside = torch.zeros_like(scores, dtype=torch.bool).scatter(1, index, (rank < count).expand_as(index))
        scores = scores.masked_fill(outside, -torch.inf)
    return scores


class FeatureQueue(nn.Module):
    """The last `size` unit vectors, [size,C]; a new one takes the place of the oldest."""

    rows: torch.Tensor
    pointer: torch.Tensor

    def __init__(self, size: int, features: int) -> None:
        super().__init__()
        self.register_buffer("rows", F.normalize(torch.randn(size, features), dim=1))
        self.register_buffer("pointer", torch.zeros((), dtype=torch.int64))

    def push(self, rows: torch.Tensor) -> None:
        """Take in rows [B,C]; B divides the size."""
        index = (self.pointer + torch.arange(len(rows), device=rows.device)) % len(self.rows)
        self.rows.index_copy_(0, index, rows)
        self.pointer.add_(len(rows)).remainder_(len(self.rows))


class AdaDFKD(CuDFKD):
    """CuDFKD's images, which also lie near the student's view of themselves and away from its view of others."""

    settings: AdaDFKDSettings
    objective: Relational
    keys: torch.Tensor  # the student's directions of the batch in hand

    def __init__(
        self,
        teacher: nn.Module,
        student: nn.Module,
        info: DatasetInfo,
        settings: AdaDFKDSettings,
        runtime: Runtime,
        objective: Relational,
    ) -> None:
        super().__init__(teacher, student, info, settings, runtime, objective)
        self.queue = FeatureQueue(settings.queue, teacher.feature_dim).to(runtime.device)  # type: ignore[arg-type]
        self.dropped = settings.queue - int(settings.window * settings.queue)

    def synthesize(self, epoch: int, stop: StopRequest | None = None) -> Synthesis:
        """`g_steps` steps of the generator with the epoch's window."""
        self.low, self.high = (torch.tensor(bound).to(self.runtime.device) for bound in window(self.settings, epoch))
        return super().synthesize(epoch, stop)

    def step(self) -> dict[str, torch.Tensor]:
        """One step of the generator, with a projection of its own; the student's features go into the queue."""
        self.objective.redraw()
        found = super().step()
        self.queue.push(self.whole(self.keys))
        return found

    def losses(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        """The generator's terms, unweighted but for `loss`."""
        with self.runtime.autocast():
            logits, features = self.teacher(images, return_features=True)
            answers, seen = self.student(images, return_features=True)
        found = self.terms(logits, features[-1], answers if self.pushing else None)
        self.keys = self.objective.directions(seen[-1].detach())
        contrast = self.contrast(F.normalize(features[-1].float(), dim=1), self.keys)
        return found | {"loss": found["loss"] + self.settings.hard * contrast, "contrast": contrast}

    def contrast(self, queries: torch.Tensor, keys: torch.Tensor) -> torch.Tensor:
        """L_cnce of unit vectors [B,C], with the gradient to the queries."""
        own = (queries * keys).sum(1, keepdim=True)
        others = sliding_window(queries @ self.queue.rows.T, self.low, self.high, self.dropped)
        logits = torch.cat([own, others], dim=1) / self.settings.contrast_temperature
        return F.cross_entropy(logits, torch.zeros(len(logits), dtype=torch.int64, device=logits.device))

    def adversarial(self, student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
        """L_adv of logits [B,K]."""
        if self.settings.adversarial == "js":
            return 1 - js_divergence(self.whole(student), self.whole(teacher), TEMPERATURE).clamp(0, 1)
        return super().adversarial(student, teacher)

    def parts(self) -> dict[str, Any]:
        """Generator, its Adam and the queue."""
        return super().parts() | {"queue": self.queue}
