"""Grouping: tokens become patch tokens (Eq. 1), for windows of any shape on grids of one, two or three axes.

The N tokens of an image are a G x G grid unless a grid is given, e.g. (16, 24), (1024,) for a text, (8, 16, 16) for a video.
"""

import torch
from einops import rearrange, reduce
from torch import Tensor

from nppkit import window
from nppkit.errors import NppkitError
from nppkit.window import AXES, Grid, Window


def patch_grid(num_tokens: int, patch_size: int) -> int:
    """Side of the patch grid, G / p, for N = G * G tokens. NppkitError unless N is a square and p divides G.

    >>> patch_grid(num_tokens=256, patch_size=2)
    8
    """
    return window.patches(window.square(num_tokens), patch_size)[0]


def axes_of(num_tokens: int, patch_size: Window, grid: Grid = ()) -> tuple[str, str, str, dict[str, int]]:
    """einops' names of the tokens, the patches and the places in a window, and the lengths; two axes: h p_h w p_w.

    NppkitError for a grid or a window that is none, a window that does not divide the grid, or tokens that do not fill it.
    """
    grid = window.as_grid(grid or window.square(num_tokens))
    if num_tokens != (area := window.area(grid)):
        raise NppkitError(f"{num_tokens} tokens do not fill the {' x '.join(map(str, grid))} grid: give its {area} alone")
    counts, lengths = window.patches(grid, patch_size), window.sides(patch_size, grid)
    names = AXES[-len(grid) :]
    sizes = dict(zip(names, counts, strict=True)) | {f"p_{a}": p for a, p in zip(names, lengths, strict=True)}
    return " ".join(f"{a} p_{a}" for a in names), " ".join(names), " ".join(f"p_{a}" for a in names), sizes


def group(x: Tensor, patch_size: Window, grid: Grid = ()) -> Tensor:
    """The K tokens of each window side by side, (B, N, ...) -> (B, N / K, K, ...), windows and places in raster order.

    patch_size: side p of a square window on two axes, or a length for each axis; grid: lengths of the axes. Without one the N
    tokens are a square image, also where they are a text: give (N,). NppkitError names the axis of the grid that
    the window does not divide, or the number of tokens that the grid does not have.

    >>> import torch
    >>> group(torch.arange(8).view(1, 8), (2,), grid=(8,))[0].tolist()  # a text
    [[0, 1], [2, 3], [4, 5], [6, 7]]
    >>> group(torch.arange(16).view(1, 16), (2, 1, 2), grid=(2, 2, 4))[0].tolist()  # two frames of 2 x 4
    [[0, 1, 8, 9], [2, 3, 10, 11], [4, 5, 12, 13], [6, 7, 14, 15]]
    """
    if require_tensor(x, "tokens").dim() < 2:
        raise NppkitError(f"tokens {[*x.shape]} have no axis of images: give (images, tokens, ...)")
    tokens, patches, places, sizes = axes_of(x.shape[1], patch_size, grid)
    return rearrange(x, f"b ({tokens}) ... -> b ({patches}) ({places}) ...", **sizes)


def group_embeddings(x: Tensor, patch_size: Window, grid: Grid = ()) -> Tensor:
    """Patch embeddings: the mean of each window's K token embeddings, (B, N, C) -> (B, N / K, C) (Eq. 1).

    Windows do not overlap and follow in raster order; patch_size 1 returns x itself. patch_size and grid: as of `group`; without
    a grid the N tokens are a square image. NppkitError as `group`, and for codes in place of embeddings.
    On a square grid with p x p windows this is reduce(x, "b (h p_h w p_w) c -> b (h w) c", "mean", p_h=p, p_w=p, ...).

    >>> import torch
    >>> x = torch.arange(16.0).view(1, 16, 1)  # a 4 x 4 grid of one-dimensional embeddings
    >>> group_embeddings(x, 2).flatten().tolist()
    [2.5, 4.5, 10.5, 12.5]
    """
    if require_tensor(x, "embeddings").dim() != 3 or not x.is_floating_point():
        raise NppkitError(f"embeddings are {x.dtype} {[*x.shape]}: give floating-point (images, tokens, channels)")
    tokens, patches, _, sizes = axes_of(x.shape[1], patch_size, grid)
    if window.area(patch_size) == 1:
        return x
    return reduce(x, f"b ({tokens}) c -> b ({patches}) c", "mean", **sizes)


def group_targets(codes: Tensor, patch_size: Window, grid: Grid = ()) -> Tensor:
    """The K codes that each patch is scored on, (B, N) -> (B, N / K, K) int64 (Eq. 2).

    patch_size and grid: as of `group`; without a grid the N codes are a square image. NppkitError for codes that are not
    integers, and as `group`.

    >>> import torch
    >>> group_targets(torch.arange(16).view(1, 16), 2)[0].tolist()
    [[0, 1, 4, 5], [2, 3, 6, 7], [8, 9, 12, 13], [10, 11, 14, 15]]
    """
    return group(integers(codes, "codes"), patch_size, grid)


def require_tensor(values: Tensor, name: str) -> Tensor:
    """The tensor itself. NppkitError for what is none, as NumPy's arrays."""
    if not isinstance(values, Tensor):
        raise NppkitError(f"{name} are a {type(values).__name__}: give a torch.Tensor (torch.as_tensor makes one)")
    return values


def integers(values: Tensor, name: str) -> Tensor:
    """Integers of any type as int64. NppkitError for others."""
    require_tensor(values, name)
    if values.is_floating_point() or values.is_complex() or values.dtype == torch.bool:
        raise NppkitError(f"{name} are {values.dtype}: they must be integers (bf16 alters 93 % of 14-bit codes)")
    return values.long()


def require_range(values: Tensor, count: int, name: str, wait: bool = True) -> Tensor:
    """As `integers`, and NppkitError unless all are in 0 ... count - 1.

    A GPU is waited for: call it once a batch, outside of graphs, or without `wait`, when it looks at a CPU's alone.
    """
    values, kind = integers(values, name), values.device.type
    if kind == "meta" or not (wait or kind == "cpu") or torch.compiler.is_compiling() or not values.numel():
        return values
    low, high = values.min().item(), values.max().item()
    if low < 0 or high >= count:
        raise NppkitError(f"{name} hold {low if low < 0 else high}: they must be from 0 to {count - 1}")
    return values
