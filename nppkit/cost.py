"""What training costs: the paper's rule, and FLOPs counted on the real step."""

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from nppkit.grouping import group_targets
from nppkit.loss import patch_loss
from nppkit.model import GPT, GPTConfig
from nppkit.schedule import Segment


def linear_weights(c: GPTConfig) -> int:
    """Weights of all linear layers, the output head included (Table 5 counts these)."""
    attention = c.dim * (c.n_head + 2 * c.kv_heads) * c.head_dim + c.dim * c.dim
    return c.n_layer * (attention + 3 * c.dim * c.hidden_dim) + c.dim * c.vocab_size


def rule_gflops(c: GPTConfig, segments: tuple[Segment, ...]) -> float:
    """Table 5's rule, GFLOPs an image: linear weights x (patches + 1), a multiply-add counted as one, mean over epochs."""
    positions = sum((s.end - s.start) * (c.block_size // s.patch_size**2 + 1) for s in segments) / segments[-1].end
    return linear_weights(c) * positions / 1e9


def step_flops(model: GPT, codes: Tensor, labels: Tensor, patch_size: int) -> int:
    """FLOPs of one forward and backward pass on this batch, counted by torch (a multiply-add counts as two).

    Attention runs on the plain kernel while counting, because torch has no count for the CPU's flash kernel.
    """
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        patch_loss(model(codes, labels, patch_size), group_targets(codes, patch_size)).backward()
    model.zero_grad(set_to_none=True)
    return counter.get_total_flops()


def device_name(device: torch.device) -> str:
    """The accelerator's name, or the number of CPU threads."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"CPU, {torch.get_num_threads()} thread{'s' * (torch.get_num_threads() > 1)}"
