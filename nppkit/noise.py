"""Counter-based random numbers: every draw is a pure function of its key, whatever was drawn before.

A key is a row of integers such as (seed, stream, step, sample). Data order, crops, label dropout and
sampling noise therefore do not depend on restarts, batch size or the number of processes.
"""

import numpy as np

from nppkit.errors import NppkitError

PERMUTATION, CROP, LABEL_DROPOUT, DROPOUT, SAMPLE_LABEL, SAMPLE_TOKEN, MOTION, LEVEL = range(8)  # streams


_GAMMA, _MIX1, _MIX2 = (np.uint64(c) for c in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB))


def splitmix64(x: np.ndarray) -> np.ndarray:
    """The SplitMix64 hash of uint64 values (Steele, Lea and Flood, 2014)."""
    with np.errstate(over="ignore"):
        x = np.asarray(x, np.uint64) + _GAMMA
        z = (x ^ (x >> np.uint64(30))) * _MIX1
        z = (z ^ (z >> np.uint64(27))) * _MIX2
    return z ^ (z >> np.uint64(31))


def hash64(*key: int | np.ndarray) -> np.ndarray:
    """A uint64 hash of the key; arrays among its parts broadcast against each other. NppkitError for what is not an integer."""
    state = np.uint64(0)
    for part in map(np.asarray, key):
        if part.dtype.kind not in "biu":
            raise NppkitError(f"a key of random numbers holds {part.dtype}: seeds, indices and steps must be integers of 64 bits")
        state = splitmix64(state ^ part.astype(np.uint64))
    return state


def uniform(*key: int | np.ndarray) -> np.ndarray:
    """float64 in [0, 1) of the key's broadcast shape."""
    return (hash64(*key) >> np.uint64(11)) * 2.0**-53


def integers(high: int, *key: int | np.ndarray) -> np.ndarray:
    """int64 in [0, high) of the key's broadcast shape."""
    return (uniform(*key) * high).astype(np.int64)


def permutation(n: int, *key: int) -> np.ndarray:
    """A random order of 0 ... n - 1."""
    return np.argsort(hash64(*key, np.arange(n)), kind="stable")


def torch_seed(*key: int) -> int:
    """A seed for torch.manual_seed."""
    return int(hash64(*key) >> np.uint64(1))
