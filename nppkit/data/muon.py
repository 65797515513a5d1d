"""Muon: momentum whose matrix is made orthogonal before each step (Jordan et al., 2024, https://kellerjordan.github.io/posts/muon).

A tokenizer that may only take some thousand steps is limited by its optimiser: with AdamW the rate that suits its narrow
layers shakes its wide ones. Here every matrix moves by the same spectral norm. A convolution counts as a matrix (out, in k k).
"""

import torch
from torch import Tensor, nn

POLYNOMIAL = (3.4445, -4.7750, 2.0315)  # a x + b x^3 + c x^5: takes singular values near 1 in five rounds
ROUNDS = 5


def orthogonal(matrix: Tensor) -> Tensor:
    """The matrix (m, n) with its singular values moved to about 1, 0.7 to 1.2, by Newton-Schulz iterations."""
    a, b, c = POLYNOMIAL
    x = matrix.T if matrix.shape[0] > matrix.shape[1] else matrix
    x = x / (x.norm() + 1e-7)
    for _ in range(ROUNDS):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.T if matrix.shape[0] > matrix.shape[1] else x


class Muon(torch.optim.Optimizer):
    """Nesterov momentum, made orthogonal, for parameters of two or more dimensions; no weight decay."""

    def __init__(self, parameters: list[nn.Parameter], lr: float, momentum: float = 0.95):
        super().__init__(parameters, {"lr": lr, "momentum": momentum})

    @torch.no_grad()
    def step(self) -> None:
        """One step; a tall matrix moves further, by the root of its shape, so that its outputs move alike."""
        for group in self.param_groups:
            for p in (p for p in group["params"] if p.grad is not None):
                state, beta = self.state[p], group["momentum"]
                if not state:
                    state["momentum"] = torch.zeros_like(p)
                state["momentum"].lerp_(p.grad, 1 - beta)
                update = orthogonal(p.grad.lerp(state["momentum"], beta).flatten(1))
                stretch = max(1.0, update.shape[0] / update.shape[1]) ** 0.5
                p.sub_(update.reshape(p.shape), alpha=group["lr"] * stretch)


def hidden_matrices(model: nn.Module) -> list[nn.Parameter]:
    """The weights of a tokenizer's convolutions, but for the first and last of encoder and decoder and the codebook's two."""
    ends = ("conv_in", "conv_out", "quant")
    return [p for name, p in model.named_parameters() if p.ndim == 4 and not any(end in name for end in ends)]
