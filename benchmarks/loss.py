"""The patch loss, forward and backward, against cross-entropy on logits repeated K times: GPT-B's shapes, batch 16."""

import bench
import torch
import torch.nn.functional as F

from nppkit.loss import patch_loss

BATCH, TOKENS, VOCABULARY = 16, 256, 16384


def repeated(logits, targets):
    """The usual formulation: every prediction once per token of its patch."""
    logits = logits[:, :, None].expand(*targets.shape, logits.shape[-1])
    return F.cross_entropy(logits.flatten(0, 2), targets.flatten())


def compare(patch_size: int) -> dict:
    patches = TOKENS // patch_size**2
    logits = torch.randn(BATCH, patches, VOCABULARY, device=bench.DEVICE, requires_grad=True)
    targets = torch.randint(VOCABULARY, (BATCH, patches, patch_size**2), device=bench.DEVICE)
    losses = {"ours": patch_loss, "repeated": repeated}
    cases = {name: lambda loss=loss: torch.autograd.grad(loss(logits, targets), logits) for name, loss in losses.items()}
    difference = abs(patch_loss(logits, targets) - repeated(logits, targets)).item()
    gradient = (cases["ours"]()[0] - cases["repeated"]()[0]).abs().max().item()
    times = bench.interleaved(cases, repeats=5)
    seconds = {name: bench.summary(values) for name, values in times.items()}
    found = {"times_faster": bench.ratio(times, "repeated", "ours"), "difference": difference, "gradient_difference": gradient}
    return {**found, "seconds": seconds}


def measure() -> dict:
    return {str(p): compare(p) for p in (2, 4, 8)}


if __name__ == "__main__":
    bench.record("loss", measure)
