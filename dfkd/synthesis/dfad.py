"""DFAD: Data-Free Adversarial Distillation (Fang et al., arXiv 1912.11006), the recipe of its own code for classification.

    student     min over S:    mean |s - t|     over all B K raw logits, five steps, G in train mode
    generator   min over G:  - mean |s - t|     one step, S in train mode: it moves S's BN statistics
                             - log(1 + mean |s - t|)   with `log`, the form of its code for segmentation

The generator ends in a tanh and a BatchNorm without weights, so that its images have zero mean and unit variance per channel:
they are what the networks take, and no normalisation follows. In [0, 1], for the bank, they are x std + mean, clamped.

Rates of student and generator fall together, by `schedule`. The published code steps its schedule before an epoch is trained:
counted from 1, epochs 100 and 200 are the first at the new rate, so `milestones` (counted from 0) are 99 and 199.

Deviations: none by intent in the losses. The published code built the generator's graph in the student's steps and dropped it;
here there is none, the batch statistics are the same. It took CIFAR-10's normalisation for CIFAR-100; here each has its own.
"""

from __future__ import annotations

import torch

from dfkd.datasets.views import denormalise
from dfkd.distillation.schedule import rate_at
from dfkd.methods import DFADSettings
from dfkd.models.generators import GeneratorA
from dfkd.progress import StopRequest
from dfkd.synthesis.generative import GenerativeSynthesizer
from dfkd.synthesis.synthesizer import Synthesis


class DFAD(GenerativeSynthesizer):
    """Images on which the logits of student and teacher lie far apart."""

    student_trains = True
    settings: DFADSettings

    def build(self) -> GeneratorA:
        """DFAD's generator: latents [B,latent_size] → normalised images [B,C,H,W]."""
        return GeneratorA(self.settings.latent_size, self.info.channels, self.info.image_size, self.settings.width)

    def inputs(self, count: int) -> torch.Tensor:
        """The generator's images as they are, with a graph to it."""
        return self.made(count)

    def losses(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        """The generator's terms; `l1` is the distance, unsigned."""
        with self.runtime.autocast():
            teacher, student = self.teacher(images), self.student(images)
        l1 = self.whole(student.float() - teacher.float()).abs().mean()
        return {"loss": -torch.log1p(l1) if self.settings.log else -l1, "l1": l1}

    def synthesize(self, epoch: int, stop: StopRequest | None = None) -> Synthesis:
        """`g_steps` steps of the generator at the epoch's rate."""
        for group in self.optimiser.param_groups:
            group["lr"] = self.settings.lr_g * rate_at(self.settings, epoch) / self.settings.lr
        return super().synthesize(epoch, stop)

    @torch.no_grad()
    def batch(self, count: int) -> torch.Tensor:
        """A fresh batch of the student from batch statistics: normalised images [count,C,H,W]; this process's part."""
        self._generator.train()
        return self.made(count)

    def sample(self, count: int) -> torch.Tensor:
        """The nearest images in [0, 1] to such a batch."""
        return denormalise(self.runtime.ranks.whole(self.batch(count), count), self.info)
