"""The protocol's rule (docs/protocol.md): verdicts on a family of contrasts, with intervals that hold together."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

LEVEL = 0.05  # of the whole family
NO_MATTER, SUPPORTED, REFUTED, UNDECIDED = "no difference that matters", "supported", "refuted", "undecided"


@dataclass(frozen=True)
class Contrast:
    """A claim about a mean difference: that it lies below zero (sign -1) or above (1); with how many seeds it is planned."""

    name: str
    sign: int
    planned: int


@dataclass(frozen=True)
class Decision:
    """A contrast's mean over n seeds, its simultaneous interval, p and Holm's adjusted p, and the verdict."""

    contrast: Contrast
    n: int
    mean: float
    low: float
    high: float
    p: float
    adjusted: float
    verdict: str

    @property
    def complete(self) -> bool:
        """Whether all planned seeds are in."""
        return self.n >= self.contrast.planned


def holm(p: Sequence[float]) -> np.ndarray:
    """Holm's adjusted p values (Holm, 1979): below a level, the whole family's error rate is below it.

    >>> holm([0.01, 0.04, 0.03]).round(2).tolist()
    [0.03, 0.06, 0.06]
    """
    order = np.argsort(p)
    steps = np.maximum.accumulate(np.asarray(p)[order] * np.arange(len(p), 0, -1))
    return np.minimum(steps, 1.0)[np.argsort(order)]


def decide(differences: dict[Contrast, Sequence[float]], margin: float) -> list[Decision]:
    """The verdict on every contrast of a family, from its paired differences, one a seed.

    margin: the smallest difference worth knowing. A contrast with fewer seeds than planned has no verdict, and counts as
    one of the family all the same.
    """
    family, done = len(differences), [len(x) >= c.planned for c, x in differences.items()]
    tests = [stats.ttest_1samp(x, 0.0) if len(x) > 1 else None for x in differences.values()]
    p = [float(test.pvalue) if test and complete else 1.0 for test, complete in zip(tests, done, strict=True)]
    decisions = []
    for (contrast, x), test, adjusted in zip(differences.items(), tests, holm(p), strict=True):
        low, high = test.confidence_interval(1 - LEVEL / family) if test else (np.nan, np.nan)
        found = Decision(contrast, len(x), float(np.mean(x)) if len(x) else np.nan, low, high, p[len(decisions)], adjusted, "")
        decisions.append(_with_verdict(found, margin))
    return decisions


def _with_verdict(found: Decision, margin: float) -> Decision:
    if not found.complete:
        verdict = f"planned {found.contrast.planned}, done {found.n}"
    elif -margin < found.low and found.high < margin:
        verdict = NO_MATTER
    elif found.adjusted < LEVEL:
        verdict = SUPPORTED if np.sign(found.mean) == found.contrast.sign else REFUTED
    else:
        verdict = UNDECIDED
    return Decision(**{**vars(found), "verdict": verdict})
