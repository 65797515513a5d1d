"""How sure a difference is: intervals over seeds, paired where two runs share theirs."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import special

CONFIDENCE = 0.95
SPANS_ZERO, ONE_SEED = "spans zero", "not known from one seed"


@dataclass(frozen=True)
class Interval:
    """A mean over n seeds and Student's 95 % interval for it; without a second seed there is none (NaN)."""

    n: int
    mean: float
    low: float
    high: float

    def side(self, below: str, above: str) -> str:
        """`below` if all of the interval lies below zero, `above` if above; otherwise it spans zero, or is not known."""
        if self.n < 2:
            return ONE_SEED
        if self.high < 0:
            return below
        return above if self.low > 0 else SPANS_ZERO

    def __str__(self) -> str:
        if self.n < 2:
            return f"{self.mean:.3g} (one seed)" if self.n else "not run"
        places = decimals((self.high - self.low) / 2, digits=2)
        while places < 4 and any(round(end, places) == 0 != end for end in (self.low, self.high)):
            places += 1  # an end near zero keeps its side of it
        mean, low, high = (rounded(value, places) for value in (self.mean, self.low, self.high))
        return f"{mean} [{low}, {high}]"


def decimals(uncertainty: float, digits: int = 0) -> int:
    """How many decimals an uncertainty leaves: two where there is none, else those that show `digits` digits of it.

    digits 0: two where the first of them is 1 or 2, else one.

    >>> [decimals(u) for u in (0.85, 0.13, 0.3, 2.6, 31.0)]
    [1, 2, 1, 1, 0]
    """
    if not (math.isfinite(uncertainty) and uncertainty > 0):
        return 2
    exponent = math.floor(math.log10(uncertainty))
    return max(0, (digits or 1 + (uncertainty < 3 * 10**exponent * (1 - 1e-9))) - 1 - exponent)


def rounded(value: float, places: int) -> str:
    """A value with that many decimals, and no minus before a zero."""
    text = f"{value:.{places}f}"
    return text.removeprefix("-") if float(text) == 0 else text


def plus_minus(mean: float, spread: float) -> str:
    """Mean and standard deviation, with the decimals that the deviation leaves; the mean alone where there is none (NaN).

    >>> plus_minus(13.5534, 0.8475)
    '13.6 ± 0.8'
    """
    places = decimals(spread)
    return rounded(mean, places) + (f" ± {rounded(spread, places)}" if math.isfinite(spread) else "")


def interval(values: Sequence[float], confidence: float = CONFIDENCE) -> Interval:
    """Mean of the values and its interval: mean +- t * s / sqrt(n), t of n - 1 degrees of freedom."""
    x = np.asarray(values, float)
    if not len(x):
        return Interval(0, *[float("nan")] * 3)
    half = special.stdtrit(len(x) - 1, (1 + confidence) / 2) * deviation(x) / len(x) ** 0.5 if len(x) > 1 else float("nan")
    return Interval(len(x), x.mean(), x.mean() - half, x.mean() + half)


def welch(ours: Sequence[float], theirs: Sequence[float]) -> Interval:
    """Mean of ours minus mean of theirs, which share no seed, and Welch's 95 % interval for it; n is the smaller number."""
    from scipy.stats import ttest_ind  # takes half a second, which the rest of this does not need

    n = min(len(ours), len(theirs))
    if n < 2:
        return Interval(n, *[float("nan")] * 3)
    return Interval(n, np.mean(ours) - np.mean(theirs), *ttest_ind(ours, theirs, equal_var=False).confidence_interval())


def deviation(values: Sequence[float]) -> float:
    """Sample standard deviation; NaN of fewer than two values, exactly 0 of equal ones."""
    if len(values) < 2:
        return float("nan")
    return 0.0 if min(values) == max(values) else float(np.std(values, ddof=1))


def pooled_deviation(pairs: Sequence[tuple[float, float]]) -> float:
    """Standard deviation of one measurement, from pairs that measure the same thing twice: sqrt(mean(d**2) / 2)."""
    difference = np.diff(np.asarray(pairs, float), axis=1)
    return float(np.sqrt(np.mean(difference**2) / 2))
