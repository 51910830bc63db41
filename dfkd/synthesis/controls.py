"""The controls, between which every data-free method should lie: distillation on noise, and on the real training images.

Both are plain distillation (Hinton et al., arXiv 1503.02531). `noise` shows what the teacher gives away on images that show
nothing; `real` what is lost by having no data. `real` is not data-free and is there to be compared with.
"""

from __future__ import annotations

import torch

from dfkd.progress import StopRequest
from dfkd.synthesis.fixed import Fixed
from dfkd.synthesis.synthesizer import FreshSynthesizer, Synthesis


class Noise(FreshSynthesizer):
    """Every batch of the student is fresh noise, every pixel uniform in [0, 1]; no views, no synthesis."""

    shareable = True

    def synthesize(self, epoch: int, stop: StopRequest | None = None) -> Synthesis:
        """No images, no cost."""
        return Synthesis({})

    def sample(self, count: int) -> torch.Tensor:
        """Noise [count,C,H,W]. Drawn on the CPU, so that devices agree."""
        return torch.rand(count, *self.info.shape).to(self.runtime.device)


class Real(Fixed):
    """The real training images, in random views. They are in the store, never in the run's bank."""
