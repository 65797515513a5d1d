"""A linear probe: which class does a frozen extractor see? For extractors that were trained on other classes than the data's.

Features are standardised over the training images; one matrix maps them to the data's classes, fitted by L-BFGS on the
cross-entropy with an L2 penalty (multinomial logistic regression; Alain and Bengio, 2016, arXiv 1610.01644). The
problem is convex: there is one answer, and no seed. Its held-out accuracy says how far its word on generated images goes.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from nppkit.errors import NppkitError

PENALTY = 1e-2  # of the mean squared weight, per class; features are many where images are few
ITERATIONS = 200


@dataclass(frozen=True, eq=False)
class Probe:
    """weight (K, D) and bias (K,) of features (n, D) that `mean` and `std` (D,) standardise."""

    weight: Tensor
    bias: Tensor
    mean: Tensor
    std: Tensor

    def logits(self, features: Tensor) -> Tensor:
        """(n, K) of features (n, D)."""
        return (features - self.mean) / self.std @ self.weight.T + self.bias

    def classes(self, features: Tensor) -> Tensor:
        """The class (n,) that each feature (n, D) most looks like."""
        return self.logits(features).argmax(-1)


def fit_probe(features: Tensor, labels: Tensor, num_classes: int, penalty: float = PENALTY) -> Probe:
    """The probe of features (n, D) and labels (n,) in [0, num_classes). NppkitError if they are not as many, or none."""
    if len(features) != len(labels) or not len(labels):
        raise NppkitError(f"a probe of {len(features)} features with {len(labels)} labels: give as many, and at least one")
    mean, std = features.mean(0), features.std(0, correction=0).clamp(min=1e-6)
    x, dim = ((features - mean) / std).double(), features.shape[1]
    weight = torch.zeros(num_classes, dim, dtype=torch.float64, requires_grad=True)
    bias = torch.zeros(num_classes, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([weight, bias], max_iter=ITERATIONS, tolerance_grad=1e-7, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        value = F.cross_entropy(x @ weight.T + bias, labels) + penalty * weight.square().sum() / 2
        value.backward()
        return value

    optimizer.step(loss)
    return Probe(weight.detach().float(), bias.detach().float(), mean, std)


def probe_scores(probe: Probe, features: Tensor, labels: Tensor) -> dict[str, float]:
    """What a probe's word is worth on images that it was not fitted on.

    accuracy: share of right classes; balanced_accuracy: the mean of it over the classes present; majority: the accuracy
    of always naming the most frequent class. NppkitError without images.
    """
    if not len(labels):
        raise NppkitError("a probe is scored on held-out images, and there are none: set data.heldout")
    right = (probe.classes(features) == labels).double()
    present = labels.unique()
    shares = torch.stack([right[labels == c].mean() for c in present])
    majority = labels.bincount().max().item() / len(labels)
    return {"accuracy": right.mean().item(), "balanced_accuracy": shares.mean().item(), "majority": majority}
