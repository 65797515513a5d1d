"""Segments, learning rate and cost against closed forms and the paper's numbers."""

from fractions import Fraction
from itertools import pairwise

import numpy as np
import pytest

from nppkit.errors import NppkitError
from nppkit.schedule import (
    Segment,
    cost_ratio,
    drawn_segments,
    ideal_cost_ratio,
    is_coarse,
    learning_rate,
    multi_scale_segments,
    ntp_segments,
    parse_lambda,
    patch_size_at,
    segment_at,
    single_scale_segments,
)


def test_boundaries_of_the_paper():
    """T = 300, lambda = 1/2, four levels: 37, 75, 150, 300."""
    segments = multi_scale_segments(300, 4, "1/2")
    assert [(s.patch_size, s.end) for s in segments] == [(8, 37), (4, 75), (2, 150), (1, 300)]


def test_two_levels_are_patch_size_two():
    """#L = 2 and p = 2 with the same lambda are one schedule."""
    assert multi_scale_segments(300, 2, "1/2") == single_scale_segments(300, 2, "1/2")


@pytest.mark.parametrize("lam", ["1/2", "2/3", "4/5"])
def test_drawn_levels(lam):
    """Over seeds lambda of the steps are coarse and each step is as often as its probability says: from 1 down to 0."""
    (segment,), steps = drawn_segments(100, 4, lam), np.arange(1000)
    drawn = np.stack([is_coarse(steps, segment, 10, seed) for seed in range(400)])
    share, power = float(Fraction(lam)), segment.coarse / (1 - segment.coarse)
    assert abs(drawn.mean() - share) < 0.003  # 4 standard deviations
    parts, x = drawn.reshape(400, 10, 100).mean((0, 2)), ((steps + 0.5) / 1000).reshape(10, 100)
    np.testing.assert_allclose(parts, (1 - x**power).mean(1), atol=0.012)
    assert (drawn[0] != drawn[1]).any() and drawn[:, -1].mean() < 0.05 < 0.9 < drawn[:, 0].mean()


def test_drawn_levels_need_seed_and_step_alone():
    """A step's patch size is the same asked alone, with others, in any order; a hard segment draws nothing."""
    segments = drawn_segments(4, (2, 2, 2), "1/2")
    alone = {step: patch_size_at(step, segments, 5, seed=3) for step in reversed(range(20))}
    together = is_coarse(np.arange(20), segments[0], 5, 3)
    assert [alone[step] == (2, 2, 2) for step in range(20)] == together.tolist() and {*alone.values()} == {1, (2, 2, 2)}
    hard = single_scale_segments(4, 2, "1/2")
    assert [patch_size_at(step, hard, 5, seed=3) for step in range(20)] == [2] * 10 + [1] * 10
    assert segments[0].shares == {(2, 2, 2): 0.5, 1: 0.5} and hard[0].shares == {2: 1.0}
    with pytest.raises(NppkitError, match="step 20 is outside"):
        patch_size_at(20, segments, 5, seed=3)


@pytest.mark.parametrize(
    ("segments", "ratio"),
    [
        (drawn_segments(300, 4, "2/3"), 0.375),
        (ntp_segments(300), 1),
        (single_scale_segments(300, 2, "1/2"), 0.625),
        (single_scale_segments(300, 4, "1/2"), 0.53125),
        (single_scale_segments(300, 2, "2/3"), 0.5),
        (single_scale_segments(300, 2, "3/4"), 0.4375),
        (single_scale_segments(300, 2, "4/5"), 0.4),
        (multi_scale_segments(300, 3, "1/2"), 0.578125),
        (multi_scale_segments(300, 4, "1/2"), 0.57234375),
    ],
)
def test_cost_ratio(segments, ratio):
    """Relative cost of Tables 2-4 with the integer boundaries of 300 epochs."""
    assert cost_ratio(segments) == pytest.approx(ratio, abs=1e-12)


def test_ideal_cost_differs_only_for_four_levels():
    """Unrounded boundaries give 0.572265625, the only value that rounding changes."""
    assert ideal_cost_ratio([8, 4, 2, 1], "1/2") == 0.572265625
    assert ideal_cost_ratio([4, 2, 1], "1/2") == 0.578125
    assert ideal_cost_ratio([2, 1], Fraction(2, 3)) == pytest.approx(0.5)


def test_learning_rate_restarts_in_every_segment():
    """Each segment warms up from 0, reaches the base rate, and decays towards the end rate without reaching it."""
    segments = multi_scale_segments(20, 2, "1/2")
    rates = [learning_rate(s, segments, 5, 1e-3, 1e-5) for s in range(100)]
    assert rates[0] == rates[50] == 0
    assert rates[5] == rates[42 - 2] == 1e-3
    assert 1e-5 < rates[49] < rates[48] < 1e-3
    assert rates[:50] == rates[50:]


def test_a_rate_below_the_end_rate_is_held():
    """What is already as low as the decay would end stays: it never rises."""
    rates = [learning_rate(s, ntp_segments(20), 5, base_lr=1e-6) for s in range(100)]
    assert set(rates[5:]) == {1e-6}


def test_learning_rate_ends_with_the_schedule():
    """A step past the end is an error, not a number."""
    with pytest.raises(NppkitError, match="step 100"):
        learning_rate(100, ntp_segments(20), 5, 1e-3)


def test_segment_at_boundary():
    """The first step of a segment belongs to it."""
    segments = multi_scale_segments(4, 2, "1/2")
    assert [segment_at(s, segments, 3) for s in (0, 5, 6, 11)] == [0, 0, 1, 1]


@pytest.mark.parametrize("value", ["0", "1", "1.5", "-1/2", "nan", "inf", "x", None, "1/0"])
def test_lambda_outside_the_open_interval(value):
    """lambda must lie in (0, 1); anything else is one line that says so."""
    with pytest.raises(NppkitError, match="lambda"):
        parse_lambda(value)


def test_lambda_is_exact():
    """2/3 written as a float or as text is the same fraction."""
    assert parse_lambda(2 / 3) == parse_lambda("2/3") == Fraction(2, 3)


def test_levels_halve_each_axis():
    """A window of any shape is halved along each axis until it is 1, with the same boundaries; its cost is one in K tokens."""
    segments = multi_scale_segments(300, 4, "1/2", coarsest=(2, 8, 4))
    assert [s.patch_size for s in segments] == [(2, 8, 4), (1, 4, 2), (1, 2, 1), 1]
    assert [s.end for s in segments] == [37, 75, 150, 300]
    assert cost_ratio(segments) == pytest.approx((37 / 64 + 38 / 8 + 75 / 2 + 150) / 300)
    assert cost_ratio(single_scale_segments(300, (4,), "2/3")) == pytest.approx(2 / 3 / 4 + 1 / 3)  # text, Shao et al.
    assert multi_scale_segments(300, 4, "1/2", coarsest=8) == multi_scale_segments(300, 4, "1/2")


def test_levels_that_end_above_one():
    """The last segment is at single tokens, or there is none."""
    with pytest.raises(NppkitError, match=r"levels 2 end at patch size \(1, 2\)"):
        multi_scale_segments(300, 2, "1/2", coarsest=(2, 4))


def test_empty_segment_is_refused():
    """More levels than the epochs can hold is an error."""
    for epochs in (0, -3):
        for make in (ntp_segments, lambda n: drawn_segments(n, 2, "1/2"), lambda n: Segment(2, 0, n)):
            with pytest.raises(NppkitError, match="empty"):
                make(epochs)
    with pytest.raises(NppkitError, match="empty"):
        multi_scale_segments(4, 4, "1/2")


@pytest.mark.parametrize("p", [0, -2, 2.0, (0, 2), (2, 1.5), ()], ids=str)
def test_patch_sizes_are_whole_numbers(p):
    """Whatever makes a segment, or its cost, refuses a patch size that is none."""
    for make in (single_scale_segments, drawn_segments):
        with pytest.raises(NppkitError, match=r"patch_size .* whole numbers above 0"):
            make(300, p, "1/2")
    with pytest.raises(NppkitError, match=r"patch_size .* whole numbers above 0"):
        ideal_cost_ratio([p, 1], "1/2")
    if p:  # without it the side comes from the levels
        with pytest.raises(NppkitError, match=r"patch_size .* whole numbers above 0"):
            multi_scale_segments(300, 4, "1/2", coarsest=p)


@pytest.mark.parametrize("levels", [0, -1, 2.0, "2", None])
def test_levels_are_a_whole_number(levels):
    """Next-token prediction is one level, and a fraction of one is none."""
    with pytest.raises(NppkitError, match=r"levels .* use 1 for next-token prediction"):
        multi_scale_segments(300, levels, "1/2")


def test_integers_of_numpy():
    """NumPy's integers make the segments that Python's do."""
    assert multi_scale_segments(300, np.int64(3), "1/2", np.int64(4)) == multi_scale_segments(300, 3, "1/2")


def test_segments_are_contiguous():
    """Every epoch belongs to exactly one segment."""
    segments = multi_scale_segments(300, 4, "2/3")
    assert segments[0].start == 0 and all(a.end == b.start for a, b in pairwise(segments))
