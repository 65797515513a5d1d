"""The patch loss (Eq. 2)."""

from torch import Tensor


def patch_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Mean over batch and patches of the mean cross-entropy against a patch's K codes (Eq. 2), in nats.

    logits: (B, n, V), targets: (B, n, K) int64. One softmax serves all K targets, because
    mean_k CE(logits, t_k) = logsumexp(logits) - mean_k logits[t_k]: the logits are never repeated.
    K = 1 is the ordinary next-token loss.
    """
    logits = logits.float()
    return (logits.logsumexp(-1) - logits.gather(-1, targets).mean(-1)).mean()
