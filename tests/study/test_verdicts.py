"""The protocol's rule, on made-up studies whose truth is known."""

import dataclasses

import numpy as np
import pytest
from scipy import stats

from nppkit.study.verdicts import NO_MATTER, REFUTED, SUPPORTED, UNDECIDED, Contrast, decide, holm

# docs/protocol.md: deviation in the pilot, planned seeds, power at a difference of 1.0, equivalence where there is none
PLAN = [(1.14, 20, 0.82, 0.64), (0.43, 25, 1.0, 1.0), (1.02, 20, 0.91, 0.82), (0.82, 20, 0.99, 0.98), (1.28, 25, 0.84, 0.67)]
PLAN += [(2.58, 20, 0.14, 0.0)]
FAMILY = [Contrast(f"contrast {i}", -1, n) for i, (_, n, _, _) in enumerate(PLAN, 1)]
STUDIES = 1000


def studies(truth: float) -> np.ndarray:
    """Verdicts (STUDIES, 6) of made-up studies as planned, all of whose true differences are `truth`."""
    rng = np.random.default_rng(0)
    made = [
        {c: rng.normal(truth, deviation, n) for c, (deviation, n, _, _) in zip(FAMILY, PLAN, strict=True)} for _ in range(STUDIES)
    ]
    return np.array([[d.verdict for d in decide(study, margin=1.0)] for study in made])


def test_false_positives():
    """Of a thousand studies without any difference, at most 5 % (within sampling error) claim one; none is left unplanned."""
    verdicts = studies(0.0)
    false = np.isin(verdicts, [SUPPORTED, REFUTED]).any(1).mean()
    assert false <= 0.05 + 2 * (0.05 * 0.95 / STUDIES) ** 0.5
    found = (verdicts == NO_MATTER).mean(0)
    assert found == pytest.approx([equal for *_, equal in PLAN], abs=0.05)


def test_power_is_as_planned():
    """At a true difference of 1.0 each contrast is supported as often as the protocol's table says, or a little more by Holm."""
    found = (studies(-1.0) == SUPPORTED).mean(0)
    assert all(share > power - 0.04 for share, (_, _, power, _) in zip(found, PLAN, strict=True))
    assert found[-1] < 0.45  # the last one is not planned for a difference of 1.0


def test_the_sign_decides():
    """The same differences with the other sign refute the claim."""
    x = np.random.default_rng(1).normal(-3.0, 1.0, 20)
    both = {Contrast("below", -1, 20): x, Contrast("above", 1, 20): x}
    assert [d.verdict for d in decide(both, margin=1.0)] == [SUPPORTED, REFUTED]


def test_small_and_surely_not_zero_does_not_matter():
    """An interval within the margin comes before a rejected zero; one that leaves it does not."""
    x = 0.3 + 0.1 * np.sin(np.arange(20))
    (found,) = decide({Contrast("small", -1, 20): x}, margin=1.0)
    assert found.adjusted < 1e-6 and found.verdict == NO_MATTER
    assert decide({Contrast("small", -1, 20): x}, margin=0.3)[0].verdict == REFUTED


def test_no_verdict_before_all_seeds():
    """A contrast that lacks a seed has none, whatever it shows, and the others are corrected for all of the family."""
    x, y = np.linspace(-6, -4, 20), np.linspace(-1.5, 0.7, 20)
    alone, together = decide({FAMILY[2]: y}, 1.0), decide({FAMILY[0]: x[:19], FAMILY[2]: y}, 1.0)
    assert together[0].verdict == "planned 20, done 19" and together[1].adjusted == pytest.approx(2 * alone[0].adjusted)
    assert together[1].low < alone[0].low
    assert decide({FAMILY[0]: []}, 1.0)[0].verdict == "planned 20, done 0"
    assert decide({FAMILY[0]: [2.0]}, 1.0)[0].verdict == "planned 20, done 1"


def test_the_test_is_students():
    """p and interval are those of scipy's own t test; equal differences are as sure as can be, and zeros show nothing."""
    x = np.random.default_rng(3).normal(0.4, 1.0, 20)
    (found,) = decide({FAMILY[0]: x}, 1.0)
    theirs = stats.ttest_1samp(x, 0.0)
    assert found.p == pytest.approx(theirs.pvalue, rel=1e-12)
    assert (found.low, found.high) == pytest.approx(tuple(theirs.confidence_interval(0.95)), rel=1e-12)
    ones, zeros = decide({FAMILY[0]: [2.0] * 20, FAMILY[2]: [0.0] * 20}, 1.0)
    assert (ones.p, ones.verdict, zeros.p, zeros.verdict) == (0.0, REFUTED, 1.0, NO_MATTER)


def test_undecided():
    """A wide interval around zero decides nothing."""
    assert decide({FAMILY[0]: np.linspace(-9, 9, 20)}, 1.0)[0].verdict == UNDECIDED


def test_undecided_comes_last():
    """Before all of a family are complete none is undecided: a later one's small p lowers Holm's for the rest."""
    noise = np.sin(np.arange(20) * 2.4)
    x = (noise - noise.mean()) / noise.std(
        ddof=1
    ) * 3 - 2.89 * 3 / 20**0.5  # t = -2.89: p = 0.0094, and six times that is above 0.05
    clear = dict.fromkeys(FAMILY[2:], tuple(-5.0 + 0.1 * noise))
    before = decide({FAMILY[0]: x, **dict.fromkeys(FAMILY[1:], ())}, 1.0)[0]
    after = decide({FAMILY[0]: x, FAMILY[1]: (), **{c: np.resize(d, c.planned) for c, d in clear.items()}}, 1.0)[0]
    assert before.verdict == "not decided before the others (1 of 6 complete)" and before.adjusted >= 0.05
    assert after.verdict == SUPPORTED and after.p == before.p


def test_a_diverged_seed_is_not_waited_for():
    """One that has no difference because a run diverged counts as done, and is said."""
    x = np.linspace(-6, -4, 19)
    lost = dataclasses.replace(FAMILY[0], diverged=1)
    assert decide({lost: x}, 1.0)[0].said == "supported (1 diverged)"
    assert decide({lost: x[:18]}, 1.0)[0].verdict == "planned 20, done 18"


def family_of_runs(rng, shift):
    """Differences of contrasts that share arms, as 1, 3, 4 and 6 do: each arm is `shift` times the margin from its baseline."""
    runs = rng.normal(0.0, 0.8, (5, 20))  # NTP, NPP, p = 4, #L = 4, constant rate
    runs += shift * np.array([[0.0], [-1.0], [0.0], [0.0], [1.0]])
    pairs = [(1, 0), (2, 1), (3, 1), (0, 4)]
    return {Contrast(str(pair), -1 if pair in ((1, 0), (0, 4)) else 1, 20): runs[pair[0]] - runs[pair[1]] for pair in pairs}


def test_a_single_seed_that_is_left_decides_nothing():
    """All planned seeds are in, or have diverged: undecided, and the others are not kept waiting."""
    lonely, other = decide({Contrast("a", -1, 3, diverged=2): [1.0], Contrast("b", -1, 4): [-3.0, -3.1, -2.9, -3.0]}, 1.0)
    assert (lonely.verdict, other.verdict) == (UNDECIDED, SUPPORTED)
    assert decide({Contrast("a", -1, 3, diverged=3): []}, 1.0)[0].verdict == UNDECIDED


def test_shared_arms_keep_the_error_rates():
    """Contrasts with a run in common are correlated: false findings stay below 5 %, also at the edge of what matters."""
    rng = np.random.default_rng(2)
    null = [[d.verdict for d in decide(family_of_runs(rng, 0.0), margin=1.0)] for _ in range(STUDIES)]
    edge = [[d.verdict for d in decide(family_of_runs(rng, 1.0), margin=1.0)] for _ in range(STUDIES)]
    tolerated = 0.05 + 2 * (0.05 * 0.95 / STUDIES) ** 0.5
    assert np.isin(null, [SUPPORTED, REFUTED]).any(1).mean() <= tolerated
    assert np.isin(edge, [NO_MATTER, REFUTED]).any(1).mean() <= tolerated  # every true difference is the margin itself


def test_holm():
    """The textbook's example: steps down from the smallest, never decreasing, never above one."""
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.8]).tolist() == [1.0, 1.0]
