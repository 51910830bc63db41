"""CRD: contrast with memory banks (Tian et al., arXiv 1910.10699, in the benchmark's form, which is its authors').

Embeddings v = N(W f + b) of the pooled features f, student and teacher each with a linear map of its own, both trained. Two
banks keep a row per image of the transfer set: M_S of the student's embeddings, M_T of the teacher's. Image x with the indices
I = [positive, K negatives of other classes] has

    o_j = exp(<M_T[I_j], v_S(x)> / τ) / Z_S,   and likewise with M_S and v_T,
    NCE = − mean_x (log o_0 / (o_0 + K/n) + Σ_{j≥1} log (K/n) / (o_j + K/n)),   L_CRD = NCE_S + NCE_T,

with Z = n · mean exp(…) of the first batch, then frozen. After the step row M[x] ← N(m M[x] + (1 − m) v(x)).

Deviations: the negatives are drawn on the device, without repetition as in the published code, by sorting hashed keys whose
seeds come from torch's global CPU generator; a K beyond what the other classes offer is refused (the published sampler then
repeats). No rows are gathered: one product of the batch with a bank, block by block, of which scalars are taken. In fp32 in any
precision.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import nn
from torch.nn import functional as F

from dfkd.distillation.objective import Batch
from dfkd.distillation.zoo.objective import FeatureObjective, Seen, Shape
from dfkd.errors import UserError
from dfkd.methods.kd_stages import CRDSettings

if TYPE_CHECKING:
    from dfkd.distillation.stream import Store

EPSILON = 1e-7  # of the published code
BLOCK = 65536  # rows of a bank, or images of the store, that are looked at together
LAST = torch.iinfo(torch.int64).max


class MemoryBanks(nn.Module):
    """The two banks [n,D], their constants Z, and the contrast with them. All of it is state of the run."""

    def __init__(self, count: int, dim: int, temperature: float, momentum: float) -> None:
        super().__init__()
        self.count, self.temperature, self.momentum = count, temperature, momentum
        bound = math.sqrt(3 / dim)
        self.register_buffer("student", torch.empty(count, dim).uniform_(-bound, bound))
        self.register_buffer("teacher", torch.empty(count, dim).uniform_(-bound, bound))
        self.register_buffer("constants", torch.full((2,), -1.0))  # Z of the student's anchors and the teacher's; -1: unset
        self.student: torch.Tensor
        self.teacher: torch.Tensor
        self.constants: torch.Tensor

    def contrast(self, student: torch.Tensor, teacher: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
        """L_CRD of embeddings [B,D] against the rows `index` [B,1+K] of the banks, the positive first."""
        scores = [similarities(student, self.teacher, index), similarities(teacher, self.student, index)]
        answers = [torch.exp(score / self.temperature) for score in scores]
        with torch.no_grad():
            first = torch.stack([self.count * answer.mean() for answer in answers]).to(self.constants.dtype)
            self.constants.copy_(torch.where(self.constants < 0, first, self.constants))
        noise = (index.shape[1] - 1) / self.count
        return torch.stack([nce(answer / z, noise) for answer, z in zip(answers, self.constants.clone(), strict=True)]).sum()

    @torch.no_grad()
    def renew(self, rows: torch.Tensor, student: torch.Tensor, teacher: torch.Tensor) -> None:
        """Move the rows [B] towards the embeddings [B,D] of their images."""
        for bank, fresh in ((self.student, student), (self.teacher, teacher)):
            moved = self.momentum * bank[rows] + (1 - self.momentum) * fresh.to(bank.dtype)
            bank[rows] = F.normalize(moved, dim=1)


def nce(ratios: torch.Tensor, noise: float) -> torch.Tensor:
    """The NCE loss of exp(…) / Z [B,1+K], the positive first, with `noise` = K / n."""
    positive, negatives = ratios[:, 0], ratios[:, 1:]
    found = torch.log(positive / (positive + noise + EPSILON))
    rejected = torch.log(noise / (negatives + noise + EPSILON)).sum(1)
    return -(found + rejected).mean()


def similarities(anchors: torch.Tensor, bank: torch.Tensor, index: torch.Tensor, block: int = BLOCK) -> torch.Tensor:
    """<anchors[b], bank[index[b,j]]> as [B,1+K]: a product with each block of the bank, and scalars taken of it."""
    if len(bank) <= block:
        return (anchors @ bank.T).gather(1, index)
    found = anchors.new_zeros(index.shape)
    for start in range(0, len(bank), block):
        part = bank[start : start + block]
        place = index - start
        inside = (place >= 0) & (place < len(part))
        found = torch.where(inside, (anchors @ part.T).gather(1, place.clamp(0, len(part) - 1)), found)
    return found


def draw(
    labels: torch.Tensor, own: torch.Tensor, seeds: torch.Tensor, count: int, same: bool, block: int = BLOCK
) -> torch.Tensor:
    """For each class in `own` [B], `count` different images [B,count] of it (`same`), or of other classes; in no order.

    Every image has a key that is a hash of its index and of `seeds` [B], and those of the smallest keys are taken. The hash is
    a bijection, so no two keys are equal, and integers are the same on every device. `labels` [n] are those of the store.
    """
    keys = torch.empty(len(own), 0, dtype=torch.int64, device=labels.device)
    found = keys
    for start in range(0, len(labels), block):
        part = torch.arange(start, min(start + block, len(labels)), device=labels.device)
        allowed = (labels[part] == own[:, None]) == same
        keys = torch.cat([keys, hashed(part + seeds[:, None]).masked_fill(~allowed, LAST)], 1)
        found = torch.cat([found, part.expand(len(own), -1)], 1)
        if keys.shape[1] > count:
            keys, place = keys.topk(count, largest=False, sorted=False)
            found = found.gather(1, place)
    return found


def hashed(values: torch.Tensor) -> torch.Tensor:
    """A bijection of int64 that leaves no pattern: splitmix64's finaliser, with signed shifts. Overflow wraps around."""
    values = values * -7046029254386353131
    values = (values ^ (values >> 30)) * -4658895280553007687
    values = (values ^ (values >> 27)) * -7723592293110705685
    return values ^ (values >> 31)


class CRD(FeatureObjective):
    """The contrast of the pooled features, and the memory of it."""

    sees: ClassVar[str] = ""
    pooled: ClassVar[bool] = True
    shareable = False
    needs_labels = True
    settings: CRDSettings
    memory: MemoryBanks
    _index: torch.Tensor | None = None  # of the batch in hand
    _embedded: tuple[torch.Tensor, torch.Tensor]

    def build(self, student: list[Shape], teacher: list[Shape]) -> nn.ModuleDict:
        """The two linear maps to the embeddings."""
        return nn.ModuleDict({role: nn.Linear(seen.feature_dim, self.dim) for role, seen in self.observed.items()})

    @property
    def dim(self) -> int:
        """Length of the embeddings."""
        return self.settings.crd_dim

    def begin(self, store: Store) -> None:
        """Make the banks for the images that are there.

        Raises:
            UserError: the other classes of some image offer fewer than `negatives`.
        """
        super().begin(store)
        labels, settings = store.labels[: store.count], self.settings
        fewest = store.count - int(labels.bincount().max())
        if settings.negatives > fewest:
            raise UserError(
                f"CRD: negatives {settings.negatives}, but the largest class leaves {fewest} images of others among "
                f"{store.count}; set negatives to at most {fewest}."
            )
        with torch.random.fork_rng(devices=[]):  # a resumed run makes them too, and then takes those of its state
            banks = MemoryBanks(store.count, self.dim, settings.crd_temperature, settings.crd_momentum)
        self.memory = banks.to(self.runtime.device)

    def step(self, batch: Batch) -> torch.Tensor:
        """One student step, and the rows of the batch renewed."""
        assert batch.rows is not None
        self._index = self.partners(batch)  # before what is compiled, whose random numbers would be others
        terms = super().step(batch)
        self.memory.renew(batch.rows, *self._embedded)
        self._index = None
        return terms

    def partners(self, batch: Batch) -> torch.Tensor:
        """The positive and the negatives of each image: rows of the store, int64 [B,1+K]."""
        assert batch.rows is not None
        labels = self.store.labels[: self.store.count]
        seeds = torch.randint(LAST, (2, len(batch.rows))).to(labels.device)
        positive = batch.rows[:, None]
        if self.settings.positive == "relax":
            positive = draw(labels, batch.labels, seeds[0], 1, same=True)
        return torch.cat([positive, draw(labels, batch.labels, seeds[1], self.settings.negatives, same=False)], 1)

    def own(self, student: Seen, teacher: Seen, batch: Batch) -> torch.Tensor:
        """The contrast of the batch with its partners."""
        ours = F.normalize(self.heads["student"](student.pooled), dim=1)
        theirs = F.normalize(self.heads["teacher"](teacher.pooled), dim=1)
        self._embedded = ours.detach(), theirs.detach()
        return self.memory.contrast(ours, theirs, self.partners(batch) if self._index is None else self._index)

    def parts(self) -> dict[str, object]:
        """Student, optimiser, heads and memory banks."""
        return super().parts() | {"memory": self.memory}
