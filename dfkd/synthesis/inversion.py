"""Generator inversion: a generator and its latent are trained for one batch, against the teacher alone.

The synthesis step of CMI (Fang et al., IJCAI 2021, eq. 7) as CSD (Luo et al., arXiv 2307.04542) and DDA (ACM MM 2024) use
it: the generator is re-initialised for every batch, the latent is optimised with it, and the images of the lowest loss are
kept.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext

import torch
from torch import nn

from dfkd.datasets.info import DatasetInfo
from dfkd.datasets.views import draw_training_views, normalise, to_bytes
from dfkd.methods import InversionSettings
from dfkd.models.generators import GENERATORS, reset_n02
from dfkd.parallel import ALONE, Ranks
from dfkd.progress import StopRequest
from dfkd.runtime import Runtime
from dfkd.synthesis.contrastive import Contrast
from dfkd.synthesis.priors import BatchStatistics, one_hot, random_labels
from dfkd.synthesis.synthesizer import Best, Synthesis, clear_moments, teacher_scores

# An additional term: (views [B,C,H,W] normalised, labels [B], teacher's logits [B,K]) -> scalar to be minimised.
Term = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]


class GeneratorInversion:
    """Inverts one batch per call. The generator, the latent and their Adam are re-initialised in place.

    Minimises `bn` R_bn + `oh` CE(T(v), y) + term(v, y, T(v)) over the generator's weights and z, where v is the normalised
    random view (crop, flip) of x = G(z). With a `contrast`, + its loss, which compares v with a second view of x.
    """

    def __init__(
        self,
        teacher: nn.Module,
        info: DatasetInfo,
        runtime: Runtime,
        *,
        batch_size: int,  # images per call
        steps: int,  # Adam steps per call
        lr: float,  # of generator and latent; betas (0.5, 0.999)
        latent_size: int,
        generator: str,  # "small" or "large"
        width: int,  # maps of the generator's last stage
        bn: float,  # weight of R_bn
        oh: float,  # weight of the one-hot term
        term: Term | None = None,
        term_name: str = "term",
        contrast: Contrast | None = None,
        ranks: Ranks = ALONE,  # that share each batch
    ) -> None:
        self.teacher, self.info, self.runtime, self.ranks = teacher, info, runtime, ranks
        self.steps, self.bn, self.oh, self.term, self.term_name = steps, bn, oh, term, term_name
        self.contrast = contrast
        self.generator = runtime.place(GENERATORS[generator](latent_size, info.channels, info.image_size, width)).train()
        ranks.share_statistics(self.generator)
        self.latent = torch.zeros(batch_size, latent_size, device=runtime.device, requires_grad=True)
        parameters = [*self.generator.parameters(), self.latent]
        # one kernel for all tensors in the fast path; the plain loop is the reference
        fused = runtime.precision == "fast"
        self.optimiser = torch.optim.Adam(parameters, lr=lr, betas=(0.5, 0.999), fused=fused, foreach=False)
        # a compiler fuses the plain formula; eagerly, one pass is the fast path
        self.statistics = BatchStatistics(teacher, runtime.precision == "fast" and not runtime.compile, ranks)
        self._teacher_losses = runtime.compiled(self._losses)

    @classmethod
    def of_method(
        cls,
        teacher: nn.Module,
        info: DatasetInfo,
        settings: InversionSettings,
        runtime: Runtime,
        term: Term | None,
        term_name: str,
        contrast: Contrast | None = None,
    ) -> GeneratorInversion:
        """The inversion that a method's settings describe, with its own term."""
        return cls(
            teacher,
            info,
            runtime,
            batch_size=settings.synthesis_batch_size,
            steps=settings.g_steps,
            lr=settings.lr_g,
            latent_size=settings.latent_size,
            generator=settings.generator,
            width=settings.width,
            bn=settings.bn,
            oh=settings.oh,
            term=term,
            term_name=term_name,
            contrast=contrast,
            ranks=runtime.ranks,
        )

    def _reset(self) -> None:
        """Fresh generator, latent and Adam moments, in the memory of the old ones."""
        reset_n02(self.generator)
        for layer in self.generator.modules():
            if isinstance(layer, nn.BatchNorm2d):
                layer.reset_running_stats()
        with torch.no_grad():
            self.latent.copy_(torch.randn(self.latent.shape))
        clear_moments(self.optimiser)

    def _losses(self, views: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        """The unweighted terms of a batch of normalised views."""
        with self.runtime.autocast():
            logits = self.teacher(views)
        losses = {"bn": self.statistics.loss(), "oh": one_hot(logits, labels)}
        if self.term is not None:
            losses[self.term_name] = self.term(views, labels, logits)
        return losses

    def synthesize(self, stop: StopRequest | None = None) -> Synthesis:
        """Make one batch. Everything random comes from torch's global generator: seed it for a reproducible batch.

        Raises:
            Stopped: `stop` was requested; the batch in hand is lost.
            UserError: the loss was never finite.
        """
        self._reset()
        count, ranks = len(self.latent), self.ranks
        rows, share = ranks.part(count), ranks.share(count)
        labels = random_labels(count, len(self.info.classes)).to(self.runtime.device)
        best, contrast = Best(), self.contrast
        with self.statistics.recording(), contrast.synthesis() if contrast else nullcontext():
            for _ in range(self.steps):
                if stop:
                    stop.stop()
                with self.runtime.autocast():
                    images = self.generator(ranks.mine(self.latent))
                images = images.float()
                views = normalise(draw_training_views(count, self.info).part(rows).apply(images, self.info), self.info)
                losses = self._teacher_losses(views, ranks.mine(labels))
                loss = self.bn * losses["bn"] + self.oh * losses["oh"] + losses.get(self.term_name, 0.0)
                features: list[torch.Tensor] = []
                if contrast:
                    with self.statistics.paused():
                        losses["cr"], *features = contrast.loss(images)
                    loss = loss + contrast.weight * losses["cr"]
                self.optimiser.zero_grad()
                ranks.backward(loss, self.optimiser, share)
                self.optimiser.step()
                if contrast:
                    contrast.step()
                best.offer(*ranks.means(loss, losses, share), images, *features)
        (images, *features), terms = best.take()
        if contrast:
            contrast.bank.append(*features)
        kept = ranks.whole(to_bytes(images), count)
        scores = teacher_scores(self.teacher, kept, labels, self.info, self.runtime)
        queries = count * (self.steps * (2 if contrast else 1) + 1)
        return Synthesis(terms, kept.cpu().contiguous(), labels.cpu(), scores, count, self.steps, queries)
