"""KD with the benchmark's recipe: 0.1 CE(S(x), y) + 0.9 T² KL(T || S), T = 4 (Hinton et al., arXiv 1503.02531)."""

from __future__ import annotations

from dfkd.distillation.zoo.objective import DataObjective


class Vanilla(DataObjective):
    """Cross-entropy and imitation of the answers."""
