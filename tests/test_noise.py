"""Counter-based random numbers."""

import numpy as np

from nppkit import noise


def test_splitmix64_reference_values():
    """The first outputs of SplitMix64 seeded with 1234567, as published with the algorithm."""
    state = np.uint64(1234567)
    outputs = []
    for _ in range(3):
        outputs.append(int(noise.splitmix64(np.array([state]))[0]))
        with np.errstate(over="ignore"):
            state = state + np.uint64(0x9E3779B97F4A7C15)
    assert outputs == [6457827717110365317, 3203168211198807973, 9817491932198370423]


def test_a_draw_depends_on_its_key_alone():
    """A value is the same alone and among others, in any order."""
    many = noise.uniform(3, 1, np.arange(100))
    assert noise.uniform(3, 1, 42) == many[42]
    assert np.array_equal(noise.uniform(3, 1, np.arange(100)[::-1]), many[::-1])


def test_every_part_of_the_key_counts():
    """Changing the seed, the stream or the index changes the draw."""
    assert len({float(noise.uniform(*key)) for key in [(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1), (0, 0), (0, 0, 0, 0)]}) == 6


def test_uniform_is_uniform():
    """Deciles of 100,000 draws hold a tenth each, and neighbours are uncorrelated."""
    u = noise.uniform(7, np.arange(100_000))
    counts = np.histogram(u, 10, (0, 1))[0]
    assert abs(counts - 10_000).max() < 400
    assert abs(np.corrcoef(u[:-1], u[1:])[0, 1]) < 0.01


def test_integers_cover_the_range():
    """Every value below `high` occurs, none outside."""
    assert set(noise.integers(7, 0, np.arange(1000)).tolist()) == set(range(7))


def test_permutation_holds_everything_once():
    """A permutation of n is one, and another key gives another."""
    order = noise.permutation(50, 0, 1)
    assert sorted(order.tolist()) == list(range(50))
    assert not np.array_equal(order, noise.permutation(50, 0, 2))
