"""Windows on a grid of tokens with one, two or three axes, whose names are those of AXES. No torch: the graph reads this.

A patch size is a number, the side p of a square window on a grid of two axes, or a tuple with a length for each axis.
"""

from math import isqrt, prod
from numbers import Integral

from nppkit.errors import NppkitError

AXES = "thw"  # video: frames, height, width; image: height, width; text: width alone
Window = int | tuple[int, ...]
Grid = tuple[int, ...]


def area(patch_size: Window) -> int:
    """K, the tokens of a window. NppkitError for lengths that are not whole numbers above 0.

    >>> area(2), area((4,)), area((2, 2, 2))
    (4, 4, 8)
    """
    return prod(as_grid(patch_size, "patch_size"))


def of_side(side: Window, grid: Grid) -> Window:
    """The window that is `side` tokens long along every axis of the grid; a window that is given as a tuple stays.

    >>> of_side(4, (16, 16)), of_side(4, (128,)), of_side(2, (8, 16, 16))
    (4, (4,), (2, 2, 2))
    """
    return side if len(grid) == 2 or not isinstance(side, Integral) else (side,) * len(grid)


def halved(patch_size: Window, times: int) -> Window:
    """A window with each axis halved so many times, or until it is 1.

    >>> halved((2, 4, 4), 1), halved((2, 4, 4), 2), halved(8, 2)
    ((1, 2, 2), (1, 1, 1), 2)
    """
    window = tuple(max(1, p >> times) for p in as_grid(patch_size, "patch_size"))
    return window[0] if isinstance(patch_size, Integral) else window


def square(num_tokens: int) -> Grid:
    """The grid of an image's tokens where none is given, (G, G) for N = G * G. NppkitError unless N is a square above 0."""
    try:
        side = isqrt(num_tokens)
    except (TypeError, ValueError):  # no integer, or a negative one
        side = 0
    if not side or side * side != num_tokens:
        raise NppkitError(f"{num_tokens} tokens are not a square grid: give G * G tokens per image, or their grid")
    return side, side


def as_grid(lengths: int | Grid, name: str = "grid") -> Grid:
    """The lengths of a grid's or a window's axes, where a number G stands for an image's G x G.

    NppkitError, with the name, unless they are whole numbers above 0.

    >>> as_grid(16), as_grid((1024,))
    ((16, 16), (1024,))
    """
    axes = tuple(lengths) if hasattr(lengths, "__iter__") else (lengths, lengths)
    if not axes or not all(isinstance(n, Integral) and n > 0 for n in axes):
        raise NppkitError(f"{name} {lengths!r} must be of whole numbers above 0: give one, or one for each axis")
    return tuple(int(n) for n in axes)


def sides(patch_size: Window, grid: Grid) -> Grid:
    """The window's length along each axis of the grid. NppkitError for another number of axes, and as `area`."""
    window = as_grid(patch_size, "patch_size")
    window = window if prod(window) > 1 else (1,) * len(grid)
    if not 1 <= len(grid) <= len(AXES):
        raise NppkitError(f"grid {grid} has {len(grid)} axes: give one (text), two (images) or three (video)")
    if len(window) != len(grid):
        names = ", ".join(AXES[-len(grid) :])
        fit = (window[0],) * len(grid)
        raise NppkitError(f"patch_size {patch_size} does not fit the axes {names}: give a length for each, as {fit}")
    return window


def patches(grid: Grid, patch_size: Window) -> Grid:
    """Patches along each axis of a grid. NppkitError names the axis that the window does not divide.

    >>> patches((16, 24), 4), patches((1024,), (4,)), patches((8, 16, 16), (2, 4, 4))
    ((4, 6), (256,), (4, 4, 4))
    """
    window = sides(patch_size, grid)
    for axis, length, p in zip(AXES[-len(grid) :], grid, window, strict=True):
        if length % p:
            shape = " x ".join(map(str, grid))
            raise NppkitError(f"patch_size {p} does not divide the {shape} grid along {axis}: use a divisor of {length}")
    return tuple(length // p for length, p in zip(grid, window, strict=True))
