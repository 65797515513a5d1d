"""The coarse-to-fine schedule: segments, learning rate, relative cost. Pure functions (Section 2).

Time is counted in schedule epochs of `steps_per_epoch` optimiser steps; how often the data is visited
is another matter.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from fractions import Fraction
from numbers import Integral

import numpy as np

from nppkit import noise
from nppkit.errors import NppkitError
from nppkit.window import Window, area, halved


@dataclass(frozen=True)
class Segment:
    """Epochs [start, end) trained at one patch size: a side, or a tuple with a length for each axis.

    coarse: the share of its steps that is expected at that size. Below 1 each step is drawn (`is_coarse`), the others are at 1.
    NppkitError for a patch size that is none, or no epoch.

    >>> Segment(patch_size=2, start=0, end=150)
    Segment(patch_size=2, start=0, end=150)
    """

    patch_size: Window
    start: int
    end: int
    coarse: float = field(default=1.0, repr=False)

    def __post_init__(self):
        area(self.patch_size)  # is one
        if _whole(self.start) < 0 or not 0 <= self.coarse <= 1:
            raise NppkitError(f"a segment begins at epoch 0 or later, and coarse is from 0 to 1: not {self.start}, {self.coarse}")
        _whole(self.end)
        if self.end <= self.start:
            raise NppkitError(f"a segment is empty (ends at {self.end}): use more epochs, fewer levels or another lambda")

    @property
    def shares(self) -> dict[Window, float]:
        """Every patch size of its steps, and the share of them that is expected at it."""
        return {self.patch_size: self.coarse} | ({1: 1 - self.coarse} if self.coarse < 1 else {})


def parse_lambda(value: str | float | Fraction) -> Fraction:
    """The factor lambda as an exact fraction, e.g. "2/3"; of a float the simplest near it. NppkitError unless 0 < lambda < 1.

    >>> parse_lambda("333/1001"), parse_lambda(0.6)
    (Fraction(333, 1001), Fraction(3, 5))
    """
    try:
        lam = Fraction(value)
        lam = lam.limit_denominator(1000) if isinstance(value, float) else lam
    except (ValueError, TypeError, ZeroDivisionError, OverflowError):
        raise NppkitError(f"lambda {value!r} is not a number: write a fraction such as 2/3") from None
    if not 0 < lam < 1:
        raise NppkitError(f"lambda {value} is outside (0, 1): the coarse part is a true fraction of the training")
    return lam


def ntp_segments(epochs: int) -> tuple[Segment, ...]:
    """Next-token prediction: one segment at p = 1. NppkitError without an epoch.

    >>> ntp_segments(300)
    (Segment(patch_size=1, start=0, end=300),)
    """
    return _segments([1], [epochs])


def single_scale_segments(epochs: int, patch_size: Window, lam: str | float | Fraction) -> tuple[Segment, ...]:
    """One patch size until lambda * T, then p = 1 (the ablations of Tables 2 and 3). NppkitError as `multi_scale_segments`.

    >>> [(s.patch_size, s.end) for s in single_scale_segments(300, 4, "2/3")]
    [(4, 200), (1, 300)]
    """
    return _segments([patch_size, 1], [int(_whole(epochs) * parse_lambda(lam)), epochs])


def multi_scale_segments(epochs: int, levels: int, lam: str | float | Fraction, coarsest: Window = 0) -> tuple[Segment, ...]:
    """Coarse to fine: level l has p = 2**l and ends at int(T * lambda**l), l = levels - 1 ... 0 (Section 2, Table 4).

    Where the window of the coarsest level is given, each next level halves its axes until they are 1. NppkitError for less than
    one level, too few to reach 1, a lambda outside (0, 1), a window that is none, or a segment without an epoch.

    >>> [(s.patch_size, s.end) for s in multi_scale_segments(300, levels=4, lam="1/2")]
    [(8, 37), (4, 75), (2, 150), (1, 300)]
    >>> [(s.patch_size, s.end) for s in multi_scale_segments(300, 3, "1/2", coarsest=(2, 4, 4))]
    [((2, 4, 4), 75), ((1, 2, 2), 150), (1, 300)]
    """
    if not isinstance(levels, Integral) or levels < 1:
        raise NppkitError(f"levels {levels!r} is not a whole number above 0: use 1 for next-token prediction")
    lam, last = parse_lambda(lam), int(levels) - 1
    windows = [halved(coarsest or 2**last, times) for times in range(levels)]
    if area(windows[-1]) != 1:
        raise NppkitError(f"levels {levels} end at patch size {windows[-1]}, not at 1: use more levels or a smaller window")
    return _segments([*windows[:-1], 1], [int(_whole(epochs) * lam ** (last - i)) for i in range(levels)])


def drawn_segments(epochs: int, patch_size: Window, lam: str | float | Fraction) -> tuple[Segment, ...]:
    """No levels one after the other: each step's is drawn, coarse less and less often, for lambda of the steps in all.

    Beyond the paper. One segment, so that the learning rate warms up and decays once. NppkitError as `multi_scale_segments`.

    >>> cost_ratio(drawn_segments(300, 2, "1/2"))  # that of p = 2 until lambda * T
    0.625
    """
    return (Segment(patch_size, 0, epochs, float(parse_lambda(lam))),)


def is_coarse(step: int | np.ndarray, segment: Segment, steps_per_epoch: float, seed: int) -> np.ndarray:
    """Whether steps of a segment are made at its patch size: a function of seed and step, whoever asks, and whenever.

    With probability 1 - x**a, where x goes from 0 to 1 over the segment: of mean a / (a + 1), which a makes the share
    `coarse`. For a half it falls along a straight line; for 1 it is always 1.
    """
    x = (step + 0.5 - segment.start * steps_per_epoch) / ((segment.end - segment.start) * steps_per_epoch)
    power = segment.coarse / (1 - segment.coarse) if segment.coarse < 1 else np.inf
    return noise.uniform(seed, noise.LEVEL, step) < 1 - x**power


def _whole(epochs: int) -> int:
    if not isinstance(epochs, Integral):
        raise NppkitError(f"epochs {epochs!r} is not a whole number")
    return epochs


def _segments(patch_sizes: list[Window], ends: list[int]) -> tuple[Segment, ...]:
    return tuple(Segment(p, s, e) for p, s, e in zip(patch_sizes, [0, *ends[:-1]], ends, strict=True))


def segment_at(step: int, segments: tuple[Segment, ...], steps_per_epoch: int) -> int:
    """Index of the segment that trains optimiser step `step`, counted from 0. NppkitError past the end.

    >>> segments = multi_scale_segments(300, 2, "1/2")
    >>> [segment_at(step, segments, steps_per_epoch=10) for step in (0, 1499, 1500)]
    [0, 0, 1]
    """
    for index, segment in enumerate(segments):
        if segment.start * steps_per_epoch <= step < segment.end * steps_per_epoch:
            return index
    raise NppkitError(f"step {step} is outside the schedule of {segments[-1].end * steps_per_epoch} steps")


def patch_size_at(step: int, segments: tuple[Segment, ...], steps_per_epoch: int, seed: int) -> Window:
    """The patch size of one step: its segment's, or what the step draws. NppkitError past the end.

    >>> [patch_size_at(step, drawn_segments(2, 4, "1/2"), 5, seed=4) for step in range(10)]
    [4, 4, 4, 4, 1, 4, 1, 1, 4, 1]
    """
    segment = segments[segment_at(step, segments, steps_per_epoch)]
    return segment.patch_size if is_coarse(step, segment, steps_per_epoch, seed) else 1


def learning_rate(
    step: int,
    segments: tuple[Segment, ...],
    steps_per_epoch: int,
    base_lr: float,
    end_lr: float = 1e-5,
    warmup_epochs: float = 1,
    decay_fraction: float = 0.2,
) -> float:
    """Learning rate of one step: in every segment linear warm-up from 0, constant, linear decay to end_lr.

    The decay covers the last `decay_fraction` of the segment's steps, not rounded, so end_lr is
    approached and not reached (Section 3.1); a base_lr below it is held. NppkitError past the end.

    >>> segments = multi_scale_segments(300, 2, "1/2")
    >>> [round(learning_rate(step, segments, 10, base_lr=1e-4), 7) for step in (0, 5, 100, 1499, 1505)]
    [0.0, 5e-05, 0.0001, 1.03e-05, 5e-05]
    """
    segment = segments[segment_at(step, segments, steps_per_epoch)]
    s = step - segment.start * steps_per_epoch
    total = (segment.end - segment.start) * steps_per_epoch
    warmup, tail = warmup_epochs * steps_per_epoch, decay_fraction * total
    if s < warmup:
        return base_lr * s / warmup
    if s > total - tail:
        return base_lr + (min(end_lr, base_lr) - base_lr) * (s - (total - tail)) / tail
    return base_lr


def mean_cost(segments: tuple[Segment, ...], cost: Callable[[Window], float]) -> float:
    """What an epoch costs on average over a schedule, where cost(p) is that of an epoch at patch size p, in any unit."""
    return sum((s.end - s.start) * share * cost(p) for s in segments for p, share in s.shares.items()) / segments[-1].end


def cost_ratio(segments: tuple[Segment, ...], before: float = 0.0) -> float:
    """Training cost relative to NTP with the segments' integer boundaries: sum of (share of epochs) / K, K = p**2 (Section 3.6).

    before: positions in front of the first token's (a prefix of L has L - 1) for each token; they cost the same at every p.

    >>> cost_ratio(multi_scale_segments(300, 2, "1/2")), cost_ratio(multi_scale_segments(300, 2, "1/2"), before=64 / 256)
    (0.625, 0.7)
    """
    return mean_cost(segments, lambda p: 1 / area(p) + before) / (1 + before)


def ideal_cost_ratio(patch_sizes: list[Window], lam: str | float | Fraction) -> float:
    """The same with unrounded boundaries lambda**i, as the paper's Tables 2-4 print it. Coarsest side first.

    >>> ideal_cost_ratio([8, 4, 2, 1], "1/2")
    0.572265625
    """
    lam, last = parse_lambda(lam), len(patch_sizes) - 1
    ends = [lam ** (last - i) for i in range(len(patch_sizes))]
    shares = [end - start for start, end in zip([0, *ends], ends, strict=False)]
    return float(sum(share / area(p) for share, p in zip(shares, patch_sizes, strict=True)))
