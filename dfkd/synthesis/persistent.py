"""Generators that go on from synthesis to synthesis and whose images go to the bank: what Fast and NAYER share.

A synthesis is a few steps of

    min:  bn R_bn^m + oh CE(T(v), y) + adv L_adv(S(v), T(v))
    L_adv = - mean_i [argmax s_i = argmax t_i] KL_1(t_i || s_i)

v is the random view (crop, flip) of an image; R_bn^m remembers the statistics of former syntheses (`MovingStatistics`). The
images of the lowest loss are kept.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import torch
from torch import nn

from dfkd.datasets.info import DatasetInfo
from dfkd.datasets.views import draw_training_views, normalise, to_bytes
from dfkd.distillation.objective import Objective
from dfkd.methods import FastSettings, NAYERSettings
from dfkd.progress import StopRequest
from dfkd.runtime import Runtime
from dfkd.synthesis.priors import MovingStatistics, decision_adversarial, one_hot
from dfkd.synthesis.synthesizer import Best, Memory, Synthesis, Synthesizer, held, teacher_scores


class PersistentInversion(Synthesizer):
    """The synthesis of such a method. A subclass says what begins and ends it, what makes the images and what learns."""

    shareable = True
    settings: FastSettings | NAYERSettings

    def __init__(
        self,
        teacher: nn.Module,
        student: nn.Module,
        info: DatasetInfo,
        settings: FastSettings | NAYERSettings,
        runtime: Runtime,
        objective: Objective,
    ) -> None:
        super().__init__(teacher, student, info, settings, runtime, objective)
        one_pass = runtime.precision == "fast" and not runtime.compile
        self.statistics = MovingStatistics(teacher, settings.bn_momentum, one_pass, runtime.ranks)
        self.share = runtime.ranks.share(settings.synthesis_batch_size)
        self.memory = Memory()
        self._losses = runtime.compiled(self.losses)

    @abstractmethod
    def begin(self, epoch: int) -> torch.Tensor:
        """Make ready for a synthesis; returns its labels [B], on the CPU."""

    @abstractmethod
    def adversarial(self, epoch: int) -> bool:
        """Whether the adversarial term takes part in the synthesis that has begun."""

    @abstractmethod
    def images(self, labels: torch.Tensor) -> torch.Tensor:
        """This process's part of the images [B,C,H,W] in [0, 1] for labels [B], with a graph to what learns; under autocast."""

    @abstractmethod
    def step(self, loss: torch.Tensor) -> None:
        """Backward pass from the mean loss of this process's part, and one step of what learns."""

    def finish(self) -> None:
        """Called after the last step."""

    def losses(self, views: torch.Tensor, labels: torch.Tensor, adversarial: bool) -> dict[str, torch.Tensor]:
        """The weighted sum and the unweighted terms of a batch of normalised views [B,C,H,W]."""
        own = self.settings
        with self.runtime.autocast():
            logits = self.teacher(views)
        terms = {"bn": self.statistics.loss(), "oh": one_hot(logits, labels)}
        loss = own.bn * terms["bn"] + own.oh * terms["oh"]
        if adversarial:
            with self.runtime.autocast():
                answers = self.student(views)
            terms["adv"] = decision_adversarial(answers, logits)
            loss = loss + own.adv * terms["adv"]
        return {"loss": loss, **terms}

    def synthesize(self, epoch: int, stop: StopRequest | None = None) -> Synthesis:
        """`g_steps` steps against the student as it is."""
        labels = self.begin(epoch).to(self.runtime.device)
        adversarial = bool(self.settings.adv) and self.adversarial(epoch)
        count, steps, best, ranks = len(labels), self.settings.g_steps, Best(), self.runtime.ranks
        with held(self.student), self.statistics.recording():
            for _ in range(steps):
                if stop:
                    stop.stop()
                with self.runtime.autocast():
                    images = self.images(labels)
                images = images.float()
                seen = draw_training_views(count, self.info).part(ranks.part(count)).apply(images, self.info)
                found = self._losses(self.runtime.images(normalise(seen, self.info)), ranks.mine(labels), adversarial)
                self.step(found["loss"])
                best.offer(*ranks.means(found.pop("loss"), found, self.share), images)
        self.finish()
        self.statistics.update()
        (images,), terms = best.take()
        kept = ranks.whole(to_bytes(images), count)
        scores = teacher_scores(self.teacher, kept, labels, self.info, self.runtime)
        return Synthesis(terms, kept.cpu().contiguous(), labels.cpu(), scores, count, steps, count * (steps + 1))

    def parts(self) -> dict[str, Any]:
        """The moving statistics and what else has to be remembered."""
        return {"statistics": self.statistics, "memory": self.memory}
