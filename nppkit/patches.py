"""Better patches: what can take the place of the mean (Eq. 1), or of one prediction for all (Eq. 2), in a window of K tokens.

Each starts as the paper's mean, and belongs to one window: at p = 1 nothing of it is left, so that the model that comes out
has the released parameters alone. Shapes: B images, n patches, K tokens a window, C = dim.
"""

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nppkit.errors import NppkitError
from nppkit.window import Window, area


class Mean(nn.Module):
    """The paper's: the mean goes in, and one prediction is scored against all K tokens. It has no parameter."""

    def __init__(self, tokens: int, dim: int):
        super().__init__()

    def pool(self, x: Tensor) -> Tensor:
        """Patch embeddings (B, n, C) of token embeddings (B, n, K, C)."""
        return x.mean(2)

    def spread(self, h: Tensor) -> Tensor:
        """What the output head reads of hidden states h (B, n, C): h itself, or (B, n, K, C), one for each place."""
        return h


class Offset(Mean):
    """The mean plus one learned vector.

    An offset for each place is no more than that: the mean of x_k + o_k is the mean of x_k plus the mean of o_k, because
    a mean cannot tell places apart.
    """

    def __init__(self, tokens: int, dim: int):
        super().__init__(tokens, dim)
        self.offset = nn.Parameter(torch.zeros(dim))

    def pool(self, x: Tensor) -> Tensor:
        return x.mean(2) + self.offset


class AttentionPool(Mean):
    """A mean with weights softmax_k(q . norm(x_k) / sqrt(C) + b_k): a learned query, a bias for each place; at 0 all alike."""

    def __init__(self, tokens: int, dim: int):
        super().__init__(tokens, dim)
        self.query, self.place = nn.Parameter(torch.zeros(dim)), nn.Parameter(torch.zeros(tokens))

    def pool(self, x: Tensor) -> Tensor:
        scores = F.rms_norm(x, x.shape[-1:]) @ self.query[:, None] / x.shape[-1] ** 0.5  # (B, n, K, 1)
        scores = scores[..., 0] + self.place
        return torch.einsum("bnk,bnkc->bnc", scores.softmax(-1), x)


class LinearMap(Mean):
    """A linear map of the K embeddings side by side, held as what it adds to the mean: weight decay leads back to the mean."""

    def __init__(self, tokens: int, dim: int):
        super().__init__(tokens, dim)
        self.weight = nn.Parameter(torch.zeros(tokens * dim, dim))

    def pool(self, x: Tensor) -> Tensor:
        return x.mean(2) + x.flatten(2) @ self.weight


class PlaceHeads(Mean):
    """The mean goes in; each place has a prediction of its own, the output head of h + W_k h. W_k begin at 0: all K alike."""

    def __init__(self, tokens: int, dim: int):
        super().__init__(tokens, dim)
        self.weight = nn.Parameter(torch.zeros(tokens, dim, dim))

    def spread(self, h: Tensor) -> Tensor:
        return h[:, :, None] + torch.einsum("bnc,kcd->bnkd", h, self.weight)


KINDS = {"mean": Mean, "offset": Offset, "attention": AttentionPool, "linear": LinearMap, "heads": PlaceHeads}


def make_windows(kind: str, patch_sizes: Iterable[Window], dim: int) -> nn.ModuleDict:
    """What takes the mean's place in each window of more than one token, by its K, for `GPT.windows`; empty for the mean.

    NppkitError for an unknown kind.

    >>> sorted(name for name, _ in make_windows("attention", [4, 2, 1], dim=8).named_parameters())
    ['16.place', '16.query', '4.place', '4.query']
    """
    if kind not in KINDS:
        raise NppkitError(f"patch {kind!r} is unknown: use one of {', '.join(KINDS)}")
    areas = {area(p) for p in patch_sizes} - {1} if kind != "mean" else ()
    return nn.ModuleDict({str(K): KINDS[kind](K, dim) for K in sorted(areas)})
