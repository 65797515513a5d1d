"""Grouping of embeddings and targets (Eq. 1)."""

import pytest
import torch

from nppkit.errors import NppkitError
from nppkit.grouping import group_embeddings, group_targets, patch_grid


def test_windows_are_two_dimensional():
    """A patch is a p x p window of the grid, not p**2 tokens in a row."""
    targets = group_targets(torch.arange(16)[None], 2)
    assert targets[0].sort(-1).values.tolist() == [[0, 1, 4, 5], [2, 3, 6, 7], [8, 9, 12, 13], [10, 11, 14, 15]]


def test_embedding_and_targets_share_windows():
    """The mean of one-hot embeddings counts exactly the patch's targets."""
    codes = torch.randint(0, 50, (2, 64), generator=torch.Generator().manual_seed(0))
    means = group_embeddings(torch.nn.functional.one_hot(codes, 50).float(), 4)
    counts = torch.nn.functional.one_hot(group_targets(codes, 4), 50).float().mean(2)
    torch.testing.assert_close(means, counts)


def test_patch_size_one_is_the_identity():
    """p = 1 is next-token prediction: nothing changes."""
    x = torch.randn(2, 9, 5)
    assert group_embeddings(x, 1) is x
    codes = torch.arange(9)[None]
    assert torch.equal(group_targets(codes, 1)[..., 0], codes)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.bool])
def test_codes_must_be_integers(dtype):
    """Float codes are refused: a cast has altered them already."""
    with pytest.raises(NppkitError, match="integers"):
        group_targets(torch.zeros(1, 16, dtype=dtype), 2)


@pytest.mark.parametrize(
    ("tokens", "patch_size", "word"), [(15, 1, "square"), (16, 3, "divide"), (16, 8, "divide"), (16, 0, "divide")]
)
def test_bad_grid(tokens, patch_size, word):
    """A grid that is not square, or that the patch side does not divide, is named."""
    with pytest.raises(NppkitError, match=word):
        patch_grid(tokens, patch_size)
