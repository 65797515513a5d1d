"""The patch loss (Eq. 2)."""

import re

import pytest
import torch
import torch.nn.functional as F

from nppkit.errors import NppkitError
from nppkit.loss import npp_loss, patch_loss
from nppkit.model import GPT, GPTConfig


def repeated(logits, targets):
    """The formulation with one copy of the logits for each target."""
    k = targets.shape[-1]
    return F.cross_entropy(logits[:, :, None].expand(-1, -1, k, -1).flatten(0, 2), targets.flatten())


def test_equals_repeated_logits():
    """Value and gradient are those of scoring a repeated prediction against every target."""
    torch.manual_seed(0)
    targets = torch.randint(0, 40, (3, 4, 16))
    ours, theirs = (torch.randn(3, 4, 40, generator=torch.Generator().manual_seed(1)).requires_grad_() for _ in range(2))
    a, b = patch_loss(ours, targets), repeated(theirs, targets)
    a.backward(), b.backward()
    torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-5, atol=1e-8)


def test_one_target_is_cross_entropy():
    """K = 1 is the ordinary next-token loss."""
    torch.manual_seed(0)
    logits, targets = torch.randn(2, 5, 7), torch.randint(0, 7, (2, 5, 1))
    torch.testing.assert_close(patch_loss(logits, targets), F.cross_entropy(logits.flatten(0, 1), targets.flatten()))


def test_target_order_is_free():
    """The loss does not see the order of a patch's codes."""
    torch.manual_seed(0)
    logits, targets = torch.randn(2, 5, 7), torch.randint(0, 7, (2, 5, 4))
    torch.testing.assert_close(patch_loss(logits, targets), patch_loss(logits, targets.flip(-1)))


def test_bf16_logits_are_summed_in_fp32():
    """Low-precision logits give the loss of the same numbers in fp32, and double precision stays."""
    torch.manual_seed(0)
    logits, targets = 3 * torch.randn(2, 3, 16384).bfloat16(), torch.randint(0, 16384, (2, 3, 4))
    torch.testing.assert_close(patch_loss(logits, targets), patch_loss(logits.float(), targets), rtol=1e-6, atol=0)
    logits = logits[..., :50].double().requires_grad_()
    assert torch.autograd.gradcheck(lambda x: patch_loss(x, targets % 50), logits)


def test_a_models_own_grid_decides_the_targets():
    """On 8 x 32 tokens, as many as on 16 x 16, the model's grid groups input and targets alike."""
    model = GPT(GPTConfig(dim=16, n_layer=1, n_head=2, vocab_size=32, num_classes=10, grid_size=(8, 32), dropout=0.0))
    torch.nn.init.normal_(model.output.weight, generator=torch.Generator().manual_seed(0))
    codes = torch.randint(0, 32, (2, 256), generator=torch.Generator().manual_seed(1))
    labels = torch.tensor([3, 7])
    own, square = npp_loss(model, codes, labels, 2), npp_loss(model.forward, codes, labels, 2)
    assert own == npp_loss(model.forward, codes, labels, 2, (8, 32)) == npp_loss(model, codes, labels, 2, (8, 32))
    assert own != square


@pytest.mark.parametrize(
    ("logits", "targets"),
    [
        ((2, 16, 32), (2, 1, 64)),  # grouped at another patch size
        ((2, 16, 32), (1, 16, 4)),  # of one image for two
        ((2, 16, 32), (2, 15, 4)),
        ((2, 16, 32), (2, 16)),  # not grouped
        ((2, 4, 2, 32), (2, 8, 1)),
        ((2, 4, 4, 32), (2, 4, 2)),
        ((0, 16, 32), (0, 16, 4)),  # nothing to take a mean of
        ((2, 16, 32), (2, 16, 0)),
    ],
)
def test_shapes_that_do_not_belong_together(logits, targets):
    """Targets are never broadcast: both shapes are named."""
    with pytest.raises(NppkitError, match=re.escape(f"logits {[*logits]} and targets {[*targets]}")):
        patch_loss(torch.zeros(logits), torch.zeros(targets, dtype=torch.int64))


def test_flat_logits():
    """The patches of all images in one row, as some models return them, have the same loss."""
    torch.manual_seed(0)
    logits, targets = torch.randn(2, 5, 7), torch.randint(0, 7, (2, 5, 4))
    assert patch_loss(logits.flatten(0, 1), targets.flatten(0, 1)) == patch_loss(logits, targets)


def test_another_grid_than_the_models_is_refused():
    """Targets would be grouped by one grid and embeddings by the other, and the loss would look like one."""
    model = GPT(GPTConfig(dim=16, n_layer=1, n_head=2, vocab_size=32, num_classes=10, grid_size=4))
    codes, labels = torch.arange(16)[None], torch.tensor([3])
    assert npp_loss(model, codes, labels, 2, (4, 4)) == npp_loss(model, codes, labels, 2)
    with pytest.raises(NppkitError, match=r"grid \(2, 8\) is not the model's \(4, 4\): leave it out"):
        npp_loss(model, codes, labels, 2, (2, 8))
