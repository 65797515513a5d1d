"""Grouping of embeddings and targets (Eq. 1)."""

import itertools

import numpy as np
import pytest
import torch

from nppkit.errors import NppkitError
from nppkit.grouping import group, group_embeddings, group_targets, patch_grid
from nppkit.loss import npp_loss
from nppkit.model import GPT, GPTConfig
from nppkit.sample import SamplingConfig, sample_codes, sample_labels
from nppkit.window import area, halved, of_side


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


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: group_embeddings(torch.zeros(2, 16, dtype=torch.int64), 2),
            r"embeddings are torch\.int64 \[2, 16\]: give ",
        ),
        (lambda: group_embeddings(torch.zeros(2, 16, 4, dtype=torch.int64), 1), r"embeddings are torch\.int64 \[2, 16, 4\]"),
        (lambda: group_embeddings(torch.zeros(2, 16, 4, 1), 1), r"torch\.float32 \[2, 16, 4, 1\]"),
        (lambda: group_embeddings(torch.zeros(16), 2), r"torch\.float32 \[16\]"),
        (lambda: group_targets(torch.zeros(16, dtype=torch.int64), 2), r"tokens \[16\] have no axis of images"),
        (lambda: patch_grid(-4, 2), "-4 tokens are not a square grid"),
        (lambda: patch_grid(0, 2), "0 tokens are not a square grid"),
        (lambda: patch_grid(256.0, 2), r"256\.0 tokens are not a square grid"),
        (lambda: sample_labels(np.arange(5), -3, 0), "num_classes -3: give one or more"),
    ],
)
def test_what_is_no_batch_of_tokens_is_one_line(call, message):
    """At every patch size, and before einops or torch say it in several."""
    with pytest.raises(NppkitError, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)


def test_patch_size_one_is_the_identity():
    """p = 1 is next-token prediction: nothing changes."""
    x = torch.randn(2, 9, 5)
    assert group_embeddings(x, 1) is x
    codes = torch.arange(9)[None]
    assert torch.equal(group_targets(codes, 1)[..., 0], codes)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.bool])
def test_codes_must_be_integers(dtype):
    """Float codes are refused: a cast has altered them already."""
    with pytest.raises(NppkitError, match=r"codes are .*integers"):
        group_targets(torch.zeros(1, 16, dtype=dtype), 2)


@pytest.mark.parametrize("dtype", ["int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"])
def test_codes_of_any_integers(dtype):
    """Codes and labels may be of every integer type, a CodeStore's uint16 among them: the loss is that of int64."""
    model = GPT(GPTConfig(dim=16, n_layer=1, n_head=2, vocab_size=32, num_classes=10, grid_size=4, dropout=0.0))
    torch.nn.init.normal_(model.output.weight)
    codes, labels = torch.arange(32).view(2, 16), torch.tensor([3, 7])
    other, of = codes.to(getattr(torch, dtype)), labels.to(getattr(torch, dtype))
    assert torch.equal(group_targets(other, 2), group_targets(codes, 2))
    assert npp_loss(model, other, of, 2) == npp_loss(model, codes, labels, 2)
    assert torch.equal(sample_codes(model, of, SamplingConfig()), sample_codes(model, labels, SamplingConfig()))


@pytest.mark.parametrize(
    ("tokens", "patch_size", "word"),
    [(15, 1, "square"), (16, 3, "divide"), (16, 8, "divide"), (16, 0, "patch_size 0"), (16, 2.0, "patch_size 2.0")],
)
def test_bad_grid(tokens, patch_size, word):
    """A grid that is not square, or that the patch side does not divide, is named."""
    with pytest.raises(NppkitError, match=word):
        patch_grid(tokens, patch_size)


GRIDS = [((12,), (4,)), ((4, 6), (2, 3)), ((6, 4), 2), ((4, 4, 6), (2, 1, 3)), ((2, 4, 4), (2, 4, 4)), ((3, 2, 2), 1)]


@pytest.mark.parametrize(("grid", "window"), GRIDS)
def test_windows_on_any_grid(grid, window):
    """Window w holds exactly the tokens whose place along each axis lies in it, in raster order, as counted one by one."""
    tokens = np.arange(np.prod(grid)).reshape(grid)
    sides = (window,) * len(grid) if isinstance(window, int) else window
    corners = itertools.product(*(range(0, length, p) for length, p in zip(grid, sides, strict=True)))
    expected = [tokens[tuple(slice(c, c + p) for c, p in zip(corner, sides, strict=True))].ravel().tolist() for corner in corners]
    assert group_targets(torch.arange(tokens.size)[None], window, grid)[0].tolist() == expected
    x = torch.randn(2, tokens.size, 5, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(group_embeddings(x, window, grid), group(x, window, grid).mean(2))


@pytest.mark.parametrize(
    ("grid", "window", "words"),
    [
        ((16, 24), (4, 5), "patch_size 5 does not divide the 16 x 24 grid along w: use a divisor of 24"),
        ((16, 24), 16, "patch_size 16 does not divide the 16 x 24 grid along w: use a divisor of 24"),
        ((8, 16, 16), (3, 4, 4), "patch_size 3 does not divide the 8 x 16 x 16 grid along t: use a divisor of 8"),
        ((10,), (4,), "patch_size 4 does not divide the 10 grid along w: use a divisor of 10"),
        ((8,), 4, r"patch_size 4 does not fit the axes w: give a length for each, as \(4,\)"),
        ((8, 4, 4), (2, 2), r"patch_size \(2, 2\) does not fit the axes t, h, w: give a length for each, as \(2, 2, 2\)"),
        ((2, 2, 2, 2), (2, 2, 2, 2), "has 4 axes"),
        ((4, 4), (2, 0), r"patch_size \(2, 0\) .* whole numbers above 0"),
        ((4, 4), (2, 2.0), r"patch_size \(2, 2.0\) .* whole numbers above 0"),
        ((4, 4), "2", "patch_size '2' .* whole numbers above 0"),
        ((4, 4.0), 2, r"grid \(4, 4.0\) .* whole numbers above 0"),
    ],
)
def test_errors_name_the_axis(grid, window, words):
    """What does not fit is said with its axis and what would."""
    with pytest.raises(NppkitError, match=words):
        group(torch.zeros(1, int(np.prod(grid))), window, grid)


@pytest.mark.parametrize("call", [group, group_embeddings])
@pytest.mark.parametrize("patch_size", [1, 2])
@pytest.mark.parametrize("tokens", [15, 17])
def test_tokens_must_fill_the_grid(call, patch_size, tokens):
    """A class token that was left in, or a token too few, is said at every patch size."""
    with pytest.raises(NppkitError, match=f"^{tokens} tokens do not fill the 4 x 4 grid: .* 16"):
        call(torch.randn(2, tokens, 8), patch_size, (4, 4))


def test_numbers_of_other_libraries():
    """NumPy's integers are integers, and a grid may be the G of G x G, as in a GPTConfig."""
    codes, two = torch.arange(16).view(1, 16), np.int64(2)
    for patch_size, grid in [(two, (4, 4)), ((two, two), ()), (2, 4), (2, two + 2), (2, [4, two + 2])]:
        assert torch.equal(group_targets(codes, patch_size, grid), group_targets(codes, 2))
    assert [area(two), of_side(two, (4,)), halved(two, 1)] == [4, (2,), 1]
