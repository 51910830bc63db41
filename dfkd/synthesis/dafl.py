"""DAFL: Data-Free Learning of Student Networks (Chen et al., ICCV 2019, arXiv 1904.01186).

    generator   min over G:  CE(t, argmax t) + 0.001 L_act + 20 L_bal          (eq. 9 of the paper, weights of its tables' code)
                L_act = - mean |f_T|,   L_bal = SUM_k pbar_k log pbar_k,  pbar = mean_i softmax(t_i)
    student     min over S:  KL_1(S || T) on fresh images, without views

One generator step, then five student steps, as the code behind the published tables has it (the paper trains both at
once). Deviations, all from that code and kept because the tables are of it: L_act is a mean over all entries (the paper's
is larger by the factor C); the temperature 20 of its scripts had no effect, `temperature` says 1. Ours: L_bal takes the
logarithm of the mean of log-softmaxes, so that a class that underflows to 0 does not make it NaN.
"""

from __future__ import annotations

import torch

from dfkd.methods import DAFLSettings
from dfkd.synthesis.generative import GenerativeSynthesizer
from dfkd.synthesis.priors import activation, class_balance, one_hot


class DAFL(GenerativeSynthesizer):
    """Images of which the teacher is sure, that excite its features, spread evenly over the classes."""

    settings: DAFLSettings

    def losses(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        """The generator's terms."""
        with self.runtime.autocast():
            logits, features = self.teacher(images, return_features=True)
        own = self.settings
        oh = one_hot(logits, logits.argmax(1))
        act = activation(features[-1])
        balance = class_balance(self.whole(logits))
        return {"loss": own.oh * oh + own.act * act + own.balance * balance, "oh": oh, "act": act, "balance": balance}
