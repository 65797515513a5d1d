"""The protocol's rule (docs/protocol.md): verdicts on a family of contrasts, with intervals that hold together."""

import math
from collections.abc import Sequence
from dataclasses import astuple, dataclass, replace

import numpy as np
from scipy import special

from nppkit.study.stats import Interval, deviation, interval

LEVEL = 0.05  # of the whole family
NO_MATTER, SUPPORTED, REFUTED, UNDECIDED = "no difference that matters", "supported", "refuted", "undecided"
WORDS = (NO_MATTER, SUPPORTED, REFUTED, UNDECIDED)


@dataclass(frozen=True)
class Contrast:
    """A claim about a mean difference: that it lies below zero (sign -1) or above (1).

    planned: number of seeds; diverged: how many of them have a run that diverged, and so no difference.
    """

    name: str
    sign: int
    planned: int
    diverged: int = 0


@dataclass(frozen=True)
class Decision(Interval):
    """A contrast's mean over n seeds with its simultaneous interval, p and Holm's adjusted p, and the verdict."""

    contrast: Contrast
    p: float
    adjusted: float
    verdict: str

    @property
    def complete(self) -> bool:
        """Whether all planned seeds are in, or have diverged."""
        return self.n + self.contrast.diverged >= self.contrast.planned

    @property
    def said(self) -> str:
        """The verdict, and how many seeds diverged."""
        lost = self.contrast.diverged
        return f"{self.verdict} ({lost} diverged)" if lost else self.verdict


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
    one of the family all the same. Until all have theirs none is undecided: a later one can only lower Holm's p.
    """
    found = [_estimate(contrast, x, len(differences)) for contrast, x in differences.items()]
    p = holm([d.p if d.complete else 1.0 for d in found])
    found = [replace(d, adjusted=float(adjusted)) for d, adjusted in zip(found, p, strict=True)]
    done = sum(d.complete for d in found)
    waiting = UNDECIDED if done == len(found) else f"not decided before the others ({done} of {len(found)} complete)"
    return [replace(d, verdict=_verdict(d, margin, waiting)) for d in found]


def _estimate(contrast: Contrast, x: Sequence[float], family: int) -> Decision:
    """Mean, simultaneous interval and p of one contrast, as far as its seeds allow."""
    found, n, p = interval(x, 1 - LEVEL / family), len(x), 1.0
    if n > 1 and found.mean:  # Student's t test of a mean of zero, from both sides
        t = abs(found.mean) / error if (error := deviation(x) / n**0.5) else math.inf
        p = 2 * float(special.stdtr(n - 1, -t))
    return Decision(*astuple(found), contrast, p, 1.0, "")


def _verdict(found: Decision, margin: float, waiting: str) -> str:
    if not found.complete:
        return f"planned {found.contrast.planned}, done {found.n}"
    if -margin < found.low and found.high < margin:
        return NO_MATTER
    if found.adjusted < LEVEL:
        return SUPPORTED if np.sign(found.mean) == found.contrast.sign else REFUTED
    return waiting
