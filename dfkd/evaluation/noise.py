"""How far two accuracies on one test split must lie apart to be more than noise.

Where every student's answers are known, a paired bootstrap tells (Efron and Tibshirani, An Introduction to the Bootstrap,
1993): test images are drawn with replacement, the same for all methods, and so are each method's seeds. Where they are not, the
spread of a binomial share is the least that can be said. docs/results-table.md says how to read either.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from dfkd.evaluation.formats import Statistic

FEWEST_SEEDS = 3  # from which on the bootstrap knows something of the seeds
SAMPLES = 10_000
LEVEL = 0.95
DEVIATIONS = 1.959964  # of a normal distribution, within which LEVEL lies
CHUNK = 256  # bootstrap samples whose weights are in memory at a time

Flags = npt.NDArray[np.bool_]
Rule = Literal["bootstrap", "binomial"]


@dataclass(frozen=True)
class Interval:
    """A difference of Acc@1 in percentage points, and where its noise puts it."""

    difference: float
    low: float
    high: float
    rule: Rule = "bootstrap"

    @property
    def exceeds_noise(self) -> bool | None:
        """Whether the difference is more than noise: the interval leaves out 0.

        None where the binomial's does: it knows too little of the seeds to say more than that a difference may be noise.
        """
        outside = self.low > 0 or self.high < 0
        return None if outside and self.rule == "binomial" else outside


def bootstrap_differences(
    correct: Sequence[Flags], reference: int, samples: int = SAMPLES, level: float = LEVEL, seed: int = 0
) -> list[Interval]:
    """Acc@1 of each method minus that of method `reference`, with percentile intervals of a paired bootstrap.

    A sample draws the test images with replacement, the same for all methods, and for each method as many of its seeds as it
    has, with replacement too. Everything is float64, and a function of the arguments alone.

    Args:
        correct: for each method bool [seeds, images]; seeds may differ in number, images may not.
        reference: index of the method that the others are compared with; its own interval is [0, 0].
        samples: of the bootstrap.
        level: of the interval, each method on its own.

    Returns:
        One interval per method, in percentage points.
    """
    counts = [len(flags) for flags in correct]
    images = correct[0].shape[1]
    every = np.concatenate(correct).astype(np.float64).T  # [images, all seeds of all methods]
    ends = np.cumsum(counts)
    parts = [slice(end - count, end) for end, count in zip(ends, counts, strict=True)]
    generator = np.random.default_rng(seed)
    drawn = np.empty((samples, len(correct)), dtype=np.float64)
    for start in range(0, samples, CHUNK):
        size = min(CHUNK, samples - start)
        choices = generator.integers(images, size=(size, images)) + images * np.arange(size)[:, None]
        weights = np.bincount(choices.ravel(), minlength=size * images).reshape(size, images)
        right = weights.astype(np.float64) @ every  # whole numbers: exact, so that equal methods do not differ by rounding
        for method, (part, count) in enumerate(zip(parts, counts, strict=True)):
            seeds = generator.multinomial(count, np.full(count, 1 / count), size=size)
            drawn[start : start + size, method] = 100 * (right[:, part] * seeds).sum(1) / (count * images)
    differences = drawn - drawn[:, [reference]]
    tail = (1 - level) / 2
    low, high = np.quantile(differences, [tail, 1 - tail], axis=0)
    means = np.array([100 * flags.sum() / flags.size for flags in correct])
    return [
        Interval(float(mean), float(lower), float(upper))
        for mean, lower, upper in zip(means - means[reference], low, high, strict=True)
    ]


def binomial_interval(one: Statistic, other: Statistic, images: int) -> Interval:
    """Acc@1 of `one` minus that of `other` with the least noise that it has, from the figures alone.

    The variance of either is p (1 - p) / images: seeds do not make the test split larger. Where there are several, that of
    their mean is added. The images of either are taken for independent draws, for figures alone do not tell that both students
    fail on the same ones: then the interval is too wide. With one seed, whose spread is not known, it is too narrow.

    Args:
        one, other: Acc@1 over the seeds, percent.
        images: of the test split.
    """
    variance = 0.0
    for value in (one, other):
        share = value.mean / 100
        variance += 100**2 * share * (1 - share) / images
        variance += 0.0 if value.std is None else value.std**2 / len(value.per_seed)
    difference, spread = one.mean - other.mean, DEVIATIONS * math.sqrt(variance)
    return Interval(difference, difference - spread, difference + spread, "binomial")
