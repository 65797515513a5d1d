"""The patch loss (Eq. 2)."""

from collections.abc import Callable

from torch import Tensor

from nppkit.grouping import group_targets


def patch_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Mean over batch and patches of the mean cross-entropy against a patch's K codes (Eq. 2), in nats.

    logits: (B, n, V), targets: (B, n, K) int64. One softmax serves all K targets, because
    mean_k CE(logits, t_k) = logsumexp(logits) - mean_k logits[t_k]: the logits are never repeated.
    K = 1 is the ordinary next-token loss.
    """
    logits = logits.float()
    return (logits.logsumexp(-1) - logits.gather(-1, targets).mean(-1)).mean()


def npp_loss(model: Callable, codes: Tensor, labels: Tensor, patch_size: int) -> Tensor:
    """The loss of one batch at a patch side: grouping, forward pass, patch loss (Eq. 1 and 2). A scalar in nats.

    model(codes, labels, patch_size) -> logits (B, N / p**2, V); codes: (B, N) integers, labels: (B,).
    """
    return patch_loss(model(codes, labels, patch_size), group_targets(codes, patch_size))
