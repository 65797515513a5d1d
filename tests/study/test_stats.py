"""Intervals: against tabulated values of Student's t, and honest about too few seeds."""

import math

import numpy as np
import pytest

from nppkit.study.stats import Interval, deviation, interval, pooled_deviation


def test_interval_of_known_values():
    """1, 2, 3: mean 2, s = 1, t(0.975, 2) = 4.3027, so 2 +- 4.3027 / sqrt(3)."""
    found = interval([1.0, 2.0, 3.0])
    assert (found.n, found.mean) == (3, 2.0)
    assert (found.high - 2, 2 - found.low) == pytest.approx([4.3027 / 3**0.5] * 2, rel=1e-4)


def test_coverage():
    """Of many intervals over five normal values, 95 % hold the true mean."""
    rng = np.random.default_rng(0)
    found = [interval(rng.normal(3.0, 2.0, 5)) for _ in range(2000)]
    assert 0.935 < np.mean([i.low < 3 < i.high for i in found]) < 0.965


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [(-2, -1, "better"), (1, 2, "worse"), (-1, 1, "no verdict"), (math.nan, math.nan, "no verdict"), (0, 1, "no verdict")],
)
def test_verdict(low, high, verdict):
    """A verdict needs an interval that does not touch zero; without an interval there is none."""
    assert Interval(3, 0.0, low, high).verdict("better", "worse") == verdict


def test_too_few_seeds():
    """One seed shows its value without an interval, none says so."""
    assert str(interval([4.0])) == "4 (one seed)" and str(interval([])) == "not run"
    assert math.isnan(interval([4.0]).low) and math.isnan(deviation([4.0]))


def test_pooled_deviation():
    """Pairs of draws from distributions of one width but different means give back the width."""
    rng = np.random.default_rng(0)
    means = rng.normal(0, 50, (4000, 1))
    assert pooled_deviation(means + rng.normal(0, 3.0, (4000, 2))) == pytest.approx(3.0, rel=0.05)


def test_equal_values_do_not_deviate():
    """Not even by the rounding of their mean."""
    assert deviation([30.733369344] * 3) == 0.0 and deviation([1.0, 3.0]) == pytest.approx(2**0.5)
