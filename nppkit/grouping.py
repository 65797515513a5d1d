"""Grouping: image tokens become patch tokens (Eq. 1). N tokens of a G x G grid, patches of side p."""

from math import isqrt

import torch
from einops import rearrange, reduce
from torch import Tensor

from nppkit.errors import NppkitError

INTEGER_DTYPES = ("torch.int64", "torch.int32", "torch.int16", "torch.uint8", "torch.uint16")


def patch_grid(num_tokens: int, patch_size: int) -> int:
    """Side of the patch grid, G / p, for N = G * G tokens. NppkitError unless N is a square and p divides G.

    >>> patch_grid(num_tokens=256, patch_size=2)
    8
    """
    grid = isqrt(num_tokens)
    if grid * grid != num_tokens:
        raise NppkitError(f"{num_tokens} tokens are not a square grid: give G * G tokens per image")
    if patch_size < 1 or grid % patch_size:
        raise NppkitError(f"patch_size {patch_size} does not divide the {grid} x {grid} grid: use a divisor of {grid}")
    return grid // patch_size


def group_embeddings(x: Tensor, patch_size: int) -> Tensor:
    """Patch embeddings: the mean of each p x p window of token embeddings, (B, N, C) -> (B, N / p**2, C) (Eq. 1).

    Windows do not overlap and follow in raster order; patch_size 1 returns x itself. NppkitError unless N is a square grid
    whose side patch_size divides.

    >>> import torch
    >>> x = torch.arange(16.0).view(1, 16, 1)  # a 4 x 4 grid of one-dimensional embeddings
    >>> group_embeddings(x, 2).flatten().tolist()
    [2.5, 4.5, 10.5, 12.5]
    """
    side = patch_grid(x.shape[1], patch_size)
    if patch_size == 1:
        return x
    p = patch_size
    return reduce(x, "b (h p1 w p2) c -> b (h w) c", "mean", h=side, w=side, p1=p, p2=p)


def group_targets(codes: Tensor, patch_size: int) -> Tensor:
    """The K = p**2 codes that each patch is scored on, (B, N) -> (B, N / K, K) (Eq. 2). Codes stay integers.

    NppkitError for codes that are not integers, and as `group_embeddings`.

    >>> import torch
    >>> group_targets(torch.arange(16).view(1, 16), 2)[0].tolist()
    [[0, 1, 4, 5], [2, 3, 6, 7], [8, 9, 12, 13], [10, 11, 14, 15]]
    """
    if str(codes.dtype) not in INTEGER_DTYPES:
        raise NppkitError(f"codes are {codes.dtype}: they must be integers (bf16 alters 93 % of 14-bit codes)")
    side = patch_grid(codes.shape[1], patch_size)
    p = patch_size
    return rearrange(codes, "b (h p1 w p2) -> b (h w) (p1 p2)", h=side, w=side, p1=p, p2=p)


def require_range(values: Tensor, count: int, name: str) -> None:
    """NppkitError unless all integers are in 0 ... count - 1. A GPU is waited for: call it once a batch, outside of graphs."""
    if values.device.type == "meta" or torch.compiler.is_compiling() or not values.numel():
        return
    low, high = values.min().item(), values.max().item()
    if low < 0 or high >= count:
        raise NppkitError(f"{name} hold {low if low < 0 else high}: they must be from 0 to {count - 1}")
