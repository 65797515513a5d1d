"""What training and sampling cost: the paper's rule, closed forms of FLOPs and bytes, and FLOPs counted on the real step.

The one cost model: `make plan` adds it up, and whatever asks a scheduler for time and memory takes it from here. A
multiply-add counts as two FLOPs everywhere but in the paper's rule.
"""

from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from nppkit.gpus import GPU, UTILISATION
from nppkit.loss import npp_loss
from nppkit.model import GPT, GPTConfig
from nppkit.schedule import Segment, mean_cost
from nppkit.window import Window, area

BYTES = {"fp32": 4, "bf16": 2}
FIXED_SECONDS, FIXED_BYTES = 2.4e-3, 80  # of a step whatever its patches, and a parameter: measured, docs/imagenet.md


def linear_weights(c: GPTConfig) -> int:
    """Weights of all linear layers, the output head included (Table 5 counts these)."""
    attention = c.dim * (c.n_head + 2 * c.kv_heads) * c.head_dim + c.dim * c.dim
    return c.n_layer * (attention + 3 * c.dim * c.hidden_dim) + c.dim * c.vocab_size


def patch_weights(c: GPTConfig, patch_size: Window, patch: str) -> int:
    """What a patch of that kind (nppkit/patches.py) multiplies besides the linear layers, in weights; at p = 1 there is none."""
    K, square = area(patch_size), area(patch_size) * c.dim**2
    more = {"attention": 2 * K * c.dim, "linear": square, "heads": square + (K - 1) * c.dim * c.vocab_size}
    return more.get(patch, 0) if K > 1 else 0


def parameters(c: GPTConfig) -> int:
    """All of them: the linear layers, both tables, and the norms."""
    return linear_weights(c) + (c.vocab_size + c.conditions + 1 + 2 * c.n_layer + 1) * c.dim


def rule_gflops(c: GPTConfig, segments: tuple[Segment, ...]) -> float:
    """Table 5's rule, GFLOPs an image: linear weights x (patches + prefix), a multiply-add counted as one, mean over epochs."""
    return mean_cost(segments, lambda p: linear_weights(c) * (c.block_size // area(p) + c.prefix)) / 1e9


def train_flops(c: GPTConfig, patch_size: Window, patch: str = "mean") -> int:
    """FLOPs of the forward and backward pass of one image: linear layers, and attention over all pairs of positions.

    A prefix has as many positions at every patch size, and no logits but its last.
    """
    patches = c.block_size // area(patch_size)
    T = c.prefix - 1 + patches
    head = (c.prefix - 1) * c.dim * c.vocab_size  # not computed
    window = patches * patch_weights(c, patch_size, patch)
    return 3 * 2 * (T * linear_weights(c) - head + window + c.n_layer * 2 * T**2 * c.dim)


def fixed_seconds(c: GPTConfig, gpu: GPU) -> float:
    """What a step takes on each GPU at any patch side: clipping, AdamW and casts read and write all weights and moments."""
    return FIXED_SECONDS + FIXED_BYTES * parameters(c) / gpu.bandwidth


def state_bytes(c: GPTConfig) -> int:
    """fp32 weights, gradients and AdamW's two moments."""
    return 4 * 4 * parameters(c)


def checkpoint_bytes(c: GPTConfig) -> int:
    """fp32 weights and AdamW's two moments, as one checkpoint holds them."""
    return 3 * 4 * parameters(c)


def layer_bytes(c: GPTConfig, precision: str) -> int:
    """What one position of one layer keeps for the backward pass, without torch.compile, which keeps less.

    Each norm its input and normalised input in fp32, and its output; the fused q, k, v, and q and k rotated; attention's
    output; w1's and w3's outputs, the gate and w2's input; dropout's two masks.
    """
    size, kv = BYTES[precision], c.kv_heads * c.head_dim
    attention = (3 * c.dim + 3 * kv) * size
    return 2 * c.dim * (8 + size) + attention + 4 * c.hidden_dim * size + 2 * c.dim


def activation_bytes(c: GPTConfig, precision: str) -> int:
    """The same of one image at p = 1: all layers, and the head's logits in fp32 with the two parts of their gradient."""
    return c.positions * c.n_layer * layer_bytes(c, precision) + c.block_size * 3 * 4 * c.vocab_size


def largest_batch(c: GPTConfig, precision: str, memory: float, batch_size: int) -> int:
    """Images of a batch that a device holds at p = 1, halved from batch_size until they fit; 0 if not even one does."""
    while batch_size and state_bytes(c) + batch_size * activation_bytes(c, precision) > 0.9 * memory:
        batch_size //= 2
    return batch_size


def sampling_seconds(c: GPTConfig, gpu: GPU, batch_size: int, guided: bool, utilisation: float = UTILISATION) -> float:
    """One batch of images, in bf16: a position costs its FLOPs or its traffic, whichever takes longer.

    The traffic is the weights once, and every sequence's keys and values of the positions so far. Guidance doubles the
    sequences.
    """
    sequences, mean_length = batch_size * (1 + guided), c.positions / 2
    cache = 2 * c.n_layer * c.kv_heads * c.head_dim * mean_length  # numbers a sequence
    flops = 2 * sequences * (linear_weights(c) + c.n_layer * 2 * mean_length * c.dim)
    traffic = 2 * (linear_weights(c) + sequences * cache)
    return c.positions * max(flops / gpu.flops, traffic / gpu.bandwidth) / utilisation


def gpu_hours(c: GPTConfig, segments: tuple[Segment, ...], images: int, gpu: GPU, utilisation: float = UTILISATION) -> float:
    """GPU-hours of a bf16 training on `images` an epoch, at a share of the GPU's peak; data and optimiser are not counted."""
    flops = images * segments[-1].end * mean_cost(segments, lambda p: train_flops(c, p))
    return flops / (gpu.flops * utilisation) / 3600


def step_flops(model: GPT, codes: Tensor, labels: Tensor, patch_size: Window) -> int:
    """FLOPs of one forward and backward pass on this batch, counted by torch (a multiply-add counts as two).

    Attention runs on the plain kernel while counting, because torch has no count for the CPU's flash kernel.
    """
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        npp_loss(model, codes, labels, patch_size, model.config.grid).backward()
    model.zero_grad(set_to_none=True)
    return counter.get_total_flops()
