"""How sure a difference is: intervals over seeds, paired where two runs share theirs."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Interval:
    """A mean over n seeds and Student's 95 % interval for it; without a second seed there is none (NaN)."""

    n: int
    mean: float
    low: float
    high: float

    def verdict(self, better: str, worse: str) -> str:
        """`better` if all of the interval lies below zero, `worse` if above, otherwise no verdict."""
        if self.high < 0:
            return better
        return worse if self.low > 0 else "no verdict"

    def __str__(self) -> str:
        if self.n < 2:
            return f"{self.mean:.3g} (one seed)" if self.n else "not run"
        return f"{self.mean:.3g} [{self.low:.3g}, {self.high:.3g}]"


def interval(values: Sequence[float]) -> Interval:
    """Mean of the values and its interval: mean +- t * s / sqrt(n), t of n - 1 degrees of freedom."""
    x = np.asarray(values, float)
    if not len(x):
        return Interval(0, *[float("nan")] * 3)
    half = stats.t.ppf((1 + CONFIDENCE) / 2, len(x) - 1) * deviation(x) / len(x) ** 0.5 if len(x) > 1 else float("nan")
    return Interval(len(x), x.mean(), x.mean() - half, x.mean() + half)


def deviation(values: Sequence[float]) -> float:
    """Sample standard deviation; NaN of fewer than two values, exactly 0 of equal ones."""
    if len(values) < 2:
        return float("nan")
    return 0.0 if min(values) == max(values) else float(np.std(values, ddof=1))


def pooled_deviation(pairs: Sequence[tuple[float, float]]) -> float:
    """Standard deviation of one measurement, from pairs that measure the same thing twice: sqrt(mean(d**2) / 2)."""
    difference = np.diff(np.asarray(pairs, float), axis=1)
    return float(np.sqrt(np.mean(difference**2) / 2))
