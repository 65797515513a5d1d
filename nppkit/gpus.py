"""GPUs that a plan knows, by their makers' data sheets; without torch, so that `nppkit plan --help` lists them at once."""

from dataclasses import dataclass

UTILISATION = 0.4  # share of a GPU's peak that a plan reckons with; docs/imagenet.md compares it with LlamaGen's reports


@dataclass(frozen=True)
class GPU:
    """Peak dense bf16 FLOP/s (TF32: half of it), memory in bytes and its bandwidth in bytes/s, by the maker's data sheet."""

    flops: float
    memory: float
    bandwidth: float


GPUS = {
    "A100-40G": GPU(312e12, 40e9, 1.555e12),
    "A100-80G": GPU(312e12, 80e9, 2.039e12),
    "H100-80G": GPU(989e12, 80e9, 3.35e12),
    "H200-141G": GPU(989e12, 141e9, 4.8e12),
    "L40S-48G": GPU(362e12, 48e9, 0.864e12),
    "RTX4090-24G": GPU(165e12, 24e9, 1.008e12),
}
