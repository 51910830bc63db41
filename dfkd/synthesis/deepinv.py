"""DeepInversion, and its adversarial form ADI (Yin et al., CVPR 2020, arXiv 1912.08795), in the form of the published tables.

Once an epoch, the pixels of one batch, in normalised space and from noise, are trained themselves:

    min over x:  bn R_bn + oh CE(T(v), y) - adv JS_3(S(v), T(v)) + tv TV(x)

v is x rolled by up to 4 pixels in each axis and mirrored half the time, the same for the whole batch; TV sees x itself. After
each step x is clamped to what an image can be. Adam, rate 0.1, betas (0.5, 0.99), 1000 steps.

What is that of the tables' code and not of the paper: R_bn has no larger weight in the first layer; JS_3 is the reversed and
clamped form of `js_divergence`; there is no L2 term (its weight is 0). That code meant to keep the iterate of the lowest
loss and kept a reference to the tensor that it went on to change, so that the last iterate was saved: `keep: last` is
what the tables show, `keep: best` what was meant. Ours: a batch is mirrored only if the data set's training views are (a
mirrored digit is another sign; the published code always mirrors, and no table has such a data set).
"""

from __future__ import annotations

import torch
from torch import nn

from dfkd.datasets.info import DatasetInfo
from dfkd.datasets.views import normalise, to_bytes
from dfkd.distillation.objective import Objective
from dfkd.divergence import check_terms
from dfkd.methods import DeepInversionSettings
from dfkd.progress import StopRequest
from dfkd.runtime import Runtime
from dfkd.synthesis.priors import BatchStatistics, js_divergence, one_hot, random_labels, total_variation
from dfkd.synthesis.synthesizer import Best, Synthesis, Synthesizer, clear_moments, held, teacher_scores


class DeepInversion(Synthesizer):
    """Inverts one batch of pixels per call. Pixels and Adam are re-initialised in place."""

    shareable = True
    settings: DeepInversionSettings

    def __init__(
        self,
        teacher: nn.Module,
        student: nn.Module,
        info: DatasetInfo,
        settings: DeepInversionSettings,
        runtime: Runtime,
        objective: Objective,
    ) -> None:
        super().__init__(teacher, student, info, settings, runtime, objective)
        self.pixels = torch.zeros(settings.synthesis_batch_size, *info.shape, device=runtime.device, requires_grad=True)
        self.optimiser = torch.optim.Adam(
            [self.pixels], lr=settings.lr_g, betas=(0.5, 0.99), fused=runtime.precision == "fast", foreach=False
        )
        # black and white as the networks see them, [1,C,1,1]
        self.black, self.white = (
            normalise(torch.full((1, info.channels, 1, 1), v, device=runtime.device), info) for v in (0.0, 1.0)
        )
        self.statistics = BatchStatistics(teacher, runtime.precision == "fast" and not runtime.compile, runtime.ranks)
        self._losses = runtime.compiled(self.losses)

    def jittered(self, pixels: torch.Tensor) -> torch.Tensor:
        """The whole batch [B,C,H,W] rolled by one random shift, and by chance mirrored if the data set's training views are."""
        reach = self.settings.jitter
        down, right = torch.randint(-reach, reach + 1, (2,)).tolist()
        views = torch.roll(pixels, (down, right), (2, 3))
        return views.flip(3) if self.info.flip and torch.rand(()) < 0.5 else views

    def losses(self, views: torch.Tensor, pixels: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        """The weighted sum and the unweighted terms of pixels [B,C,H,W] and their views, both normalised."""
        own = self.settings
        with self.runtime.autocast():
            logits = self.teacher(views)
        terms = {"bn": self.statistics.loss(), "oh": one_hot(logits, labels), "tv": total_variation(pixels)}
        loss = own.bn * terms["bn"] + own.oh * terms["oh"] + own.tv * terms["tv"]
        if own.adv:
            with self.runtime.autocast():
                answers = self.student(views)
            terms["adv"] = -js_divergence(answers, logits)
            loss = loss + own.adv * terms["adv"]
        return {"loss": loss, **terms}

    def synthesize(self, epoch: int, stop: StopRequest | None = None) -> Synthesis:
        """One batch against the student as it is."""
        own, count, ranks = self.settings, len(self.pixels), self.runtime.ranks
        share = ranks.share(count)
        with torch.no_grad():
            self.pixels.copy_(torch.randn(self.pixels.shape))
        clear_moments(self.optimiser)
        labels = random_labels(count, len(self.info.classes)).to(self.runtime.device)
        best, found = Best(), {}
        with held(self.student), self.statistics.recording():
            for _ in range(own.g_steps):
                if stop:
                    stop.stop()
                views = self.runtime.images(ranks.mine(self.jittered(self.pixels)))
                found = self._losses(views, ranks.mine(self.pixels), ranks.mine(labels))
                if own.keep == "best":
                    others = {name: value for name, value in found.items() if name != "loss"}
                    best.offer(*ranks.means(found["loss"], others, share), self.pixels)
                self.optimiser.zero_grad()
                ranks.backward(found["loss"], self.optimiser, share)
                self.optimiser.step()
                with torch.no_grad():
                    self.pixels.copy_(torch.maximum(torch.minimum(self.pixels, self.white), self.black))
        if own.keep == "best":
            (pixels,), terms = best.take()
        else:
            pixels = self.pixels.detach()
            means = ranks.mean(torch.stack([value.detach() for value in found.values()]), share)
            terms = dict(zip(found, means.tolist(), strict=True))
            check_terms("synthesis", own.g_steps - 1, terms, "lr_g")
        kept = to_bytes(self.in_unit_range(pixels))
        scores = teacher_scores(self.teacher, kept, labels, self.info, self.runtime)
        queries = count * (own.g_steps + 1)
        return Synthesis(terms, kept.cpu().contiguous(), labels.cpu(), scores, count, own.g_steps, queries)

    def in_unit_range(self, pixels: torch.Tensor) -> torch.Tensor:
        """Normalised pixels [B,C,H,W] -> [0, 1]."""
        return (pixels - self.black) / (self.white - self.black)
