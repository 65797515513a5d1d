"""The patch loss (Eq. 2)."""

from collections.abc import Callable

import torch
from torch import Tensor

from nppkit.errors import NppkitError
from nppkit.grouping import group_targets, require_range, require_tensor
from nppkit.window import Grid, Window, as_grid


def patch_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Mean over batch and patches of the mean cross-entropy against a patch's K codes (Eq. 2), in nats.

    logits: (B, n, V), targets: (B, n, K) integers. One softmax serves all K targets, because
    mean_k CE(logits, t_k) = logsumexp(logits) - mean_k logits[t_k]: the logits are never repeated. With logits (B, n, K, V)
    each code has a prediction of its own (nppkit/patches.py).
    K = 1 is the ordinary next-token loss. NppkitError for shapes that do not belong together, an empty batch, targets that are
    not integers, or, on a CPU, out of range.

    >>> import torch
    >>> logits = torch.zeros(1, 4, 32)  # four patches, all 32 codes alike
    >>> round(patch_loss(logits, torch.zeros(1, 4, 9, dtype=torch.int64)).item(), 4)  # ln 32
    3.4657
    """
    require_tensor(targets, "targets")
    places = targets.shape if require_tensor(logits, "logits").dim() == 4 else targets.shape[:-1]
    if logits.shape[:-1] != places or not targets.numel():
        raise NppkitError(f"logits {[*logits.shape]} and targets {[*targets.shape]} are no batch: group both at one patch size")
    targets = require_range(targets, logits.shape[-1], "targets", wait=False)
    if logits.dim() == 4:  # K predictions of one code each
        logits, targets = logits.flatten(1, 2), targets.flatten(1)[..., None]
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return (logits.logsumexp(-1) - logits.gather(-1, targets).mean(-1)).mean()


def npp_loss(model: Callable, codes: Tensor, labels: Tensor, patch_size: Window, grid: Grid = ()) -> Tensor:
    """The loss of one batch at a patch size, for models that group by themselves (Eq. 1 and 2). A scalar in nats.

    model(codes, labels, patch_size) -> logits (B, N / K, V): as in `GPT.forward`, the model itself averages its token embeddings,
    leaves the last patch out and counts positions on the grid of patches. For one that takes embeddings use `group_embeddings`,
    `group_targets` and `patch_loss`. codes: (B, N) integers, labels: (B,). grid: that of the codes; a model with a `config.grid`
    knows its own, and without either N is a square. NppkitError as `group_targets` and
    `patch_loss`, and for another grid than the model's.

    >>> import torch
    >>> from nppkit import GPT, GPTConfig
    >>> model = GPT(GPTConfig(dim=16, n_layer=1, n_head=2, vocab_size=32, num_classes=10, grid_size=4))
    >>> codes, labels = torch.zeros(2, 16, dtype=torch.int64), torch.tensor([3, 7])
    >>> [round(npp_loss(model, codes, labels, p).item(), 4) for p in (1, 2, 4)]  # the output head starts at 0
    [3.4657, 3.4657, 3.4657]
    """
    known = getattr(getattr(model, "config", None), "grid", ())
    if grid and known and as_grid(grid) != as_grid(known):
        raise NppkitError(f"grid {grid} is not the model's {known}: leave it out")
    grid = grid or known
    return patch_loss(model(codes, labels, patch_size), group_targets(codes, patch_size, grid))
