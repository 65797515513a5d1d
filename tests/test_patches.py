"""Better patches: each begins as the mean, can become something else, and is gone at p = 1."""

from typing import get_args

import pytest
import torch

from nppkit import cost
from nppkit.errors import NppkitError
from nppkit.grouping import group, group_targets
from nppkit.loss import npp_loss, patch_loss
from nppkit.model import GPT, GPTConfig
from nppkit.patches import KINDS, AttentionPool, LinearMap, Mean, Offset, PlaceHeads, make_windows
from nppkit.training.config import Patch

BETTER = [kind for kind in KINDS if kind != "mean"]
GRIDS = {"image": (4, [2, 4]), "text": ((16,), [(4,)]), "video": ((2, 4, 4), [(2, 2, 2)])}


def model_and_batch(grid=4, kind="mean", patch_sizes=(), dim=24):
    """A model that predicts something, as none does whose output head is still 0, and what it is asked."""
    torch.manual_seed(0)
    model = GPT(GPTConfig(dim=dim, n_layer=1, n_head=2, vocab_size=32, num_classes=10, grid_size=grid, dropout=0.0))
    torch.nn.init.normal_(model.output.weight, std=0.5)
    torch.nn.init.normal_(model.tok_embeddings.weight)
    codes = torch.randint(32, (3, model.config.block_size))
    model.windows = make_windows(kind, patch_sizes, dim)
    return model, codes, torch.tensor([3, 7, 10])


def test_the_kinds_are_those_of_the_settings():
    """A preset and a run can ask for each kind that there is, and for no other; the mean needs nothing."""
    assert list(KINDS) == list(get_args(Patch)) and len(make_windows("mean", [2, 4], 8)) == 0
    with pytest.raises(NppkitError, match="patch 'sum' is unknown: use one of mean, offset"):
        make_windows("sum", [2], 8)


@pytest.mark.parametrize("kind", BETTER)
@pytest.mark.parametrize("name", GRIDS)
def test_the_start_is_the_mean(name, kind):
    """On grids of one, two and three axes loss and gradients of all old parameters begin as the mean's."""
    grid, windows = GRIDS[name]
    for p in windows:
        models = []
        for k in ("mean", kind):
            model, codes, labels = model_and_batch(grid, k, windows)
            models.append((model, npp_loss(model, codes, labels, p)))
            models[-1][1].backward()
        (mean, loss), (better, other) = models
        torch.testing.assert_close(other, loss, atol=1e-6, rtol=1e-6)
        gradients = {key: value.grad for key, value in better.named_parameters()}
        for key, value in mean.named_parameters():
            torch.testing.assert_close(gradients[key], value.grad, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("kind", BETTER)
def test_gradients_reach_every_parameter(kind):
    """At the first step each new parameter of the window learns, and those of another window do not."""
    model, codes, labels = model_and_batch(kind=kind, patch_sizes=[4, 2, 1])
    assert set(model.windows) == {"4", "16"}
    npp_loss(model, codes, labels, 2).backward()
    assert all(p.grad.abs().sum() > 0 for p in model.windows["4"].parameters())
    assert all(p.grad is None for p in model.windows["16"].parameters())


@pytest.mark.parametrize("kind", BETTER)
def test_nothing_of_it_at_p_1(kind):
    """Whatever the windows have learned, single tokens are predicted as without them, to the last bit."""
    model, codes, labels = model_and_batch(kind=kind, patch_sizes=[2])
    plain, _, _ = model_and_batch()
    for p in model.windows.parameters():
        torch.nn.init.normal_(p)
    loss = npp_loss(model, codes, labels, 1)
    assert torch.equal(loss, npp_loss(plain, codes, labels, 1))
    loss.backward()
    assert all(p.grad is None for p in model.windows.parameters())
    assert not torch.allclose(npp_loss(model, codes, labels, 2), npp_loss(plain, codes, labels, 2))


def test_what_each_computes():
    """The formulas, one place after the other: offsets are one vector, weights are a softmax, maps and heads have places."""
    torch.manual_seed(0)
    K, C = 4, 6
    x, h = torch.randn(2, 3, K, C), torch.randn(2, 3, C)
    made = {kind: KINDS[kind](K, C) for kind in KINDS}
    for window in made.values():
        assert torch.equal(window.spread(h), h) or isinstance(window, PlaceHeads)
        for p in window.parameters():
            torch.nn.init.normal_(p)
    offsets = torch.randn(K, C)
    assert isinstance(made["offset"], Offset) and torch.equal(made["mean"].pool(x), Mean(K, C).pool(x))
    made["offset"].offset.data = offsets.mean(0)
    torch.testing.assert_close(made["offset"].pool(x), (x + offsets).mean(2))  # an offset for each place
    a, m, heads = made["attention"], made["linear"], made["heads"]
    assert isinstance(a, AttentionPool) and isinstance(m, LinearMap)
    scores = [(x[:, :, k] / x[:, :, k].square().mean(-1, True).sqrt()) @ a.query / C**0.5 + a.place[k] for k in range(K)]
    weights = torch.stack(scores).exp() / torch.stack(scores).exp().sum(0)
    torch.testing.assert_close(a.pool(x), sum(weights[k][..., None] * x[:, :, k] for k in range(K)))
    torch.testing.assert_close(m.pool(x), sum(x[:, :, k] @ (torch.eye(C) / K + m.weight.view(K, C, C)[k]) for k in range(K)))
    torch.testing.assert_close(heads.spread(h), torch.stack([h + h @ heads.weight[k] for k in range(K)], 2))


def test_a_place_is_scored_on_its_own_code():
    """With a head for each place the loss is the mean over places of the cross-entropy with that place's code."""
    model, codes, labels = model_and_batch(kind="heads", patch_sizes=[2])
    torch.nn.init.normal_(model.windows["4"].weight)
    logits, targets = model(codes, labels, 2), group_targets(codes, 2)
    assert logits.shape == (3, 4, 4, 32) and torch.equal(targets, group(codes, 2))
    expected = [torch.nn.functional.cross_entropy(logits[:, :, k].flatten(0, 1), targets[:, :, k].flatten()) for k in range(4)]
    torch.testing.assert_close(patch_loss(logits, targets), sum(expected) / 4)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("p", [1, 2, 4])
def test_flops(kind, p):
    """The closed form is what torch counts on the real step, with what each adds to a patch; at p = 1 it adds nothing."""
    model, codes, labels = model_and_batch(kind=kind, patch_sizes=[2, 4])
    counted = cost.step_flops(model, codes, labels, p)
    pooled = kind in ("attention", "linear") and p == 4  # the one patch of the image, of which no gradient asks
    expected = cost.train_flops(model.config, p, kind)
    assert counted == len(codes) * expected or (pooled and counted < len(codes) * expected)
    more = expected - cost.train_flops(model.config, p)
    assert (more == 0) == (p == 1 or kind in ("mean", "offset"))
