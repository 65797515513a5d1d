"""Intervals: against tabulated values of Student's t, and honest about too few seeds."""

import math

import numpy as np
import pytest
from scipy import stats

from nppkit.study.stats import Interval, decimals, deviation, interval, plus_minus, pooled_deviation, welch


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
    ("low", "high", "side"),
    [(-2, -1, "lower"), (1, 2, "higher"), (-1, 1, "spans zero"), (0, 1, "spans zero")],
)
def test_side(low, high, side):
    """A side of zero needs an interval that does not touch it."""
    assert Interval(3, 0.0, low, high).side("lower", "higher") == side


def test_too_few_seeds():
    """One seed shows its value without an interval, none says so."""
    assert str(interval([4.0])) == "4 (one seed)" and str(interval([])) == "not run"
    assert math.isnan(interval([4.0]).low) and math.isnan(deviation([4.0]))
    assert {interval(values).side("lower", "higher") for values in ([4.0], [])} == {"not known from one seed"}


def test_pooled_deviation():
    """Pairs of draws from distributions of one width but different means give back the width."""
    rng = np.random.default_rng(0)
    means = rng.normal(0, 50, (4000, 1))
    assert pooled_deviation(means + rng.normal(0, 3.0, (4000, 2))) == pytest.approx(3.0, rel=0.05)


def test_equal_values_do_not_deviate():
    """Not even by the rounding of their mean."""
    assert deviation([30.733369344] * 3) == 0.0 and deviation([1.0, 3.0]) == pytest.approx(2**0.5)


@pytest.mark.parametrize(
    ("mean", "spread", "text"),
    [
        *(
            (13.5534, 0.8475, "13.6 ± 0.8"),
            (13.5534, 0.1475, "13.55 ± 0.15"),
            (10.37, 2.6, "10.4 ± 2.6"),
            (104.2, 31.0, "104 ± 31"),
        ),
        *((0.81934, 0.0093, "0.819 ± 0.009"), (5.0, 0.0, "5.00 ± 0.00"), (-0.01, 0.8, "0.0 ± 0.8"), (1.534, math.nan, "1.53")),
    ],
)
def test_digits_that_the_uncertainty_leaves(mean, spread, text):
    """One digit of a deviation, two where it begins with 1 or 2, and the mean to the same place."""
    assert plus_minus(mean, spread) == text and decimals(float("nan")) == 2


@pytest.mark.parametrize(
    ("ends", "text"),
    [
        ((0.33, -1.08, 1.74), "0.3 [-1.1, 1.7]"),
        ((4.06, 0.0476, 8.06), "4.06 [0.05, 8.06]"),
        ((-0.0201, -0.0369, -0.0032), "-0.020 [-0.037, -0.003]"),
    ],
)
def test_an_interval_keeps_its_side_of_zero(ends, text):
    """Two digits of the half width."""
    assert str(Interval(5, *ends)) == text


def test_unpaired_is_welchs():
    """Its interval is scipy's, for unlike numbers and deviations; of a single value there is none."""
    ours, theirs = [1.0, 2.0, 4.5], [7.0, 3.0, 3.5, 9.0, 20.0]
    ends, found = stats.ttest_ind(ours, theirs, equal_var=False).confidence_interval(), welch(ours, theirs)
    assert (found.low, found.high) == pytest.approx((ends.low, ends.high)) and found.n == 3
    assert found.mean == pytest.approx(2.5 - 8.5) and str(welch([1.0], theirs)) == "nan (one seed)"
