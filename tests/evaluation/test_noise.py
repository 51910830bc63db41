import numpy as np
import pytest

from dfkd.evaluation.noise import Interval, binomial_interval, bootstrap_differences
from dfkd.evaluation.result import summarise


def test_bootstrap_of_images_alone_has_the_binomial_spread():
    """Two students that differ on 100 of 1,000 images, the one right and the other wrong there; seeds are all alike. The
    difference is the share of drawn images among the 100, with standard deviation sqrt(0.1 · 0.9 / 1000)."""
    right = np.ones((3, 1000), dtype=bool)
    wrong = right.copy()
    wrong[:, :100] = False
    reference, other = bootstrap_differences([right, wrong], 0)
    assert (reference.difference, reference.low, reference.high) == (0.0, 0.0, 0.0)
    spread = 100 * np.sqrt(0.1 * 0.9 / 1000)
    assert other.difference == pytest.approx(-10)
    assert other.low == pytest.approx(-10 - 1.96 * spread, abs=0.12)
    assert other.high == pytest.approx(-10 + 1.96 * spread, abs=0.12)
    assert other.exceeds_noise
    assert not reference.exceeds_noise


def test_bootstrap_is_paired_over_images():
    """Two students that are right on the same half of the images do not differ, however the images are drawn."""
    half = np.tile(np.arange(200) % 2 == 0, (3, 1))
    assert [(item.low, item.high) for item in bootstrap_differences([half, half.copy()], 0, samples=500)] == [(0.0, 0.0)] * 2


def test_bootstrap_draws_seeds():
    """Every image alike, so that only the seeds differ: the mean of 3 draws from {0, 0, 1} is 0, 1/3, 2/3 or 1, with shares
    8/27, 12/27, 6/27 and 1/27; the 5 % quantile is 0 and that of 95 % is 2/3."""
    one = np.ones((1, 20), dtype=bool)
    unstable = np.zeros((3, 20), dtype=bool)
    unstable[2] = True
    never, mixed = bootstrap_differences([one & False, unstable], 0, level=0.9)
    assert never.difference == 0
    assert mixed.difference == pytest.approx(100 / 3)
    assert (mixed.low, mixed.high) == pytest.approx((0, 200 / 3))
    assert not mixed.exceeds_noise


def test_bootstrap_depends_on_its_seed_alone():
    flags = [np.random.default_rng(index).random((3, 300)) < 0.5 for index in range(3)]
    assert bootstrap_differences(flags, 1, 300) == bootstrap_differences(flags, 1, 300)
    assert bootstrap_differences(flags, 1, 300) != bootstrap_differences(flags, 1, 300, seed=1)


def test_binomial_interval_has_the_spread_of_two_independent_shares():
    """Drawn: two students of 90 and 84 % on 400 images each."""
    generator = np.random.default_rng(0)
    drawn = [100 * generator.binomial(400, share, size=200_000) / 400 for share in (0.90, 0.84)]
    low, high = np.quantile(drawn[0] - drawn[1], [0.025, 0.975])
    found = binomial_interval(summarise([90.0]), summarise([84.0]), 400)
    assert found.difference == 6.0
    assert (found.low, found.high) == (pytest.approx(low, abs=0.15), pytest.approx(high, abs=0.15))
    assert found.rule == "binomial"


def test_binomial_interval_adds_the_spread_of_the_seeds_where_it_is_known():
    """Seeds 88, 90, 92: the variance of their mean is 4 / 3; a student that is always right has none of its own."""
    found = binomial_interval(summarise([88.0, 90.0, 92.0]), summarise([100.0]), 1000)
    variance = 100**2 * 0.9 * 0.1 / 1000 + 4 / 3
    assert found.high - found.low == pytest.approx(2 * 1.959964 * np.sqrt(variance))
    certain = binomial_interval(summarise([100.0]), summarise([100.0]), 1000)
    assert (certain.low, certain.high, certain.exceeds_noise) == (0.0, 0.0, False)


def test_more_than_noise_takes_the_bootstrap():
    assert Interval(-5.0, -6.0, -4.0).exceeds_noise is True
    assert Interval(-5.0, -6.0, 0.5).exceeds_noise is False
    assert Interval(-5.0, -6.0, 0.5, "binomial").exceeds_noise is False
    assert Interval(-5.0, -6.0, -4.0, "binomial").exceeds_noise is None
