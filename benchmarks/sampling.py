"""Sampling with guidance: GPT-B, 8 images, in tokens a second and against position; and small models on one thread."""

import bench
import numpy as np
import torch

from nppkit.machine.devices import autocast, rounded
from nppkit.model import GPT, GPTConfig
from nppkit.sample import SamplingConfig, decode_tokens

SMALL = {  # the model, and the images of a batch
    "small_1_thread": (GPTConfig(dim=64, n_layer=3, n_head=4, vocab_size=128, num_classes=10, multiple_of=32), 100),
    "demo_l_1_thread": (GPTConfig(48, 3, 3, vocab_size=128, num_classes=10, grid_size=8, multiple_of=32), 500),
    "photographs_b_1_thread": (GPTConfig(128, 4, 4, vocab_size=256, num_classes=8, multiple_of=32), 100),
}


def seconds_per_cell(model, images: int, precision: str) -> np.ndarray:
    """Seconds (N,) that each grid cell of a batch takes."""
    labels = torch.arange(images, device=bench.DEVICE) % model.config.num_classes
    marks = [bench.now()]
    with autocast(bench.DEVICE, precision):
        for _ in decode_tokens(model, labels, SamplingConfig(cfg_scale=2.0), np.arange(images)):
            marks.append(bench.now())
    return np.diff(marks)


def rate(model, images: int, repeats: int, precision: str = bench.PRECISION) -> dict:
    """Tokens a second, and the median time of a cell in each quarter of the grid."""
    model.eval().requires_grad_(False)
    seconds_per_cell(model, images, precision)
    runs = np.array([seconds_per_cell(model, images, precision) for _ in range(repeats)])
    totals = images * model.config.block_size / runs.sum(1)
    quarters = [float(np.median(part)) for part in np.split(runs, 4, axis=1)]
    spread = {"tokens_per_second_min": float(totals.min()), "tokens_per_second_max": float(totals.max())}
    return {"tokens_per_second": float(np.median(totals)), **spread, "images": images, "seconds_per_cell_by_quarter": quarters}


def measure() -> dict:
    times = bench.interleaved({"yardstick": bench.yardstick()}, repeats=5)
    found = {"gpt_b": rate(bench.gpt_b(), 8, repeats=2)}
    found["gpt_b_bf16"] = rate(rounded(bench.gpt_b(), "bf16"), 8, repeats=2, precision="bf16")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    for name, (config, images) in SMALL.items():
        small = GPT(config).to(bench.DEVICE)
        torch.nn.init.normal_(small.output.weight, std=0.1)
        found[name] = rate(small, images, repeats=2)
    torch.set_num_threads(threads)
    product = bench.gflops(2 * bench.SIDE**3, times["yardstick"])
    at_200 = found["gpt_b"]["tokens_per_second"] * 200 / product
    return {"yardstick_gflops": product, "tokens_per_second_at_200": at_200, **found}


if __name__ == "__main__":
    bench.record("sampling", measure)
