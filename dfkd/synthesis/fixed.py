"""A fixed set of images: nothing is synthesised. CMI's non-adversarial variant (Fang et al., IJCAI 2021, arXiv 2105.08584).

The student imitates the teacher on random views of the bank that the run was given (plain distillation, KL_20). The published
variant does so on about 50,000 images that CMI had inverted beforehand and that only a download gives; here it is
the teacher's init bank, inverted by the same losses without the contrastive and the adversarial term.
"""

from __future__ import annotations

from dfkd.progress import StopRequest
from dfkd.synthesis.synthesizer import Synthesis, Synthesizer


class Fixed(Synthesizer):
    """Makes nothing; the student sees the images that are there."""

    shareable = True

    def synthesize(self, epoch: int, stop: StopRequest | None = None) -> Synthesis:
        """No images, no cost."""
        return Synthesis({})
