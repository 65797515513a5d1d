"""One of the paper's models on a GPU: a training step against patch side, its memory, and sampling.

    python benchmarks/gpu.py B --batch-size 32 --modes eager graph

Batch 32 is a device's share of the paper's 256 on eight. bf16 autocast over fp32 weights, dropout on, with clipping and
AdamW, five steps without waiting for the device between them. Modes: eager; compiled; graph, compiled to CUDA graphs (the
train notebook's `graphs`). Sampling is guided, at the batch of the preset imagenet256, plain and with the step as a CUDA
graph. Weights and codes are random: neither changes the time. Models may be measured side by side: they compile together,
and take turns with the clock. results/gpu/ holds the reports.
"""

import argparse
import tempfile
from functools import partial
from pathlib import Path

import bench
import filelock
import numpy as np
import torch

from nppkit.cost import train_flops
from nppkit.loss import npp_loss
from nppkit.model import GPT, MODELS, GPTConfig, count_parameters
from nppkit.sample import SamplingConfig, sample_codes
from nppkit.training.config import TrainingConfig
from nppkit.training.devices import autocast, compiled
from nppkit.training.trainer import make_optimizer

STEPS, IMAGES = 5, 128
MODES = ("eager", "compiled", "graph")
RESULTS = bench.RESULTS.parent / "gpu"
CLOCK = Path(tempfile.gettempdir()) / "nppkit-benchmark.lock"


def train(model: GPT, batch_size: int, sides: list[int], modes: list[str]) -> dict:
    """Seconds of a step and peak memory for every mode and patch side; the first call of each compiles."""
    config = TrainingConfig()
    optimizer, batch = make_optimizer(model, config), bench.random_batch(model.config, batch_size)
    losses = {"eager": npp_loss, "compiled": compiled(npp_loss, bench.DEVICE), "graph": compiled(npp_loss, bench.DEVICE, True)}
    model.train()

    def steps(loss_fn, patch_size, count=STEPS):
        for _ in range(count):
            with autocast(bench.DEVICE, bench.PRECISION):
                loss = loss_fn(model, *batch, patch_size)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), config.grad_clip)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

    cases = {f"{mode} {p}": partial(steps, losses[mode], p) for mode in modes for p in sides}
    for case in cases.values():
        case(count=3)  # the second records a graph
    torch.cuda.empty_cache()
    with filelock.FileLock(CLOCK):
        times = bench.interleaved(cases, repeats=7)
        memory = {name: peak(case) for name, case in cases.items() if "graph" not in name}  # a graph's pool is not counted
        torch.cuda.empty_cache()
    seconds = {name: bench.summary([t / STEPS for t in times[name]]) for name in cases}
    return {"flops": {str(p): batch_size * train_flops(model.config, p) for p in sides}, "seconds": seconds, "gib": memory}


def peak(case) -> float:
    """GiB that the device holds at most during a case, weights and optimiser included."""
    torch.cuda.reset_peak_memory_stats()
    case(count=1)
    return torch.cuda.max_memory_allocated() / 2**30


def sample(model: GPT) -> dict:
    """Seconds of a guided batch, plain and with the step as a CUDA graph."""
    model.eval().requires_grad_(False)
    index, labels = np.arange(IMAGES), torch.arange(IMAGES, device=bench.DEVICE) % model.config.num_classes

    def draw(name):
        with autocast(bench.DEVICE, bench.PRECISION):
            sample_codes(model, labels, SamplingConfig(cfg_scale=1.75, compile=name == "graph"), index)

    cases = {name: partial(draw, name) for name in ("plain", "graph")}
    for case in cases.values():
        case()
    with filelock.FileLock(CLOCK):
        times = bench.interleaved(cases, repeats=3, warmup=0)
    return {"images": IMAGES, "seconds": {name: bench.summary(seconds) for name, seconds in times.items()}}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python benchmarks/gpu.py", description=__doc__.splitlines()[0])
    parser.add_argument("model", choices=MODELS)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--sides", type=int, nargs="+", default=[1, 2, 4, 8], help="patch sides")
    parser.add_argument("--modes", nargs="*", choices=MODES, default=MODES, help="each compiled case takes half a minute")
    parser.add_argument("--sample", action="store_true", help="sampling, too")
    a = parser.parse_args()
    if bench.DEVICE.type != "cuda":
        parser.error("no GPU is visible here: `make bench` measures a CPU")
    torch.manual_seed(0)
    torch.set_float32_matmul_precision("high")  # as the trainer does
    model = GPT(GPTConfig(**MODELS[a.model])).to(bench.DEVICE)
    torch.nn.init.normal_(model.output.weight, std=0.02)
    if a.modes:
        found = {"parameters": count_parameters(model), **train(model, a.batch_size, a.sides, a.modes)}
        save(f"{a.model} {a.batch_size} step", found)
    if a.sample:
        save(f"{a.model} sampling", sample(model))


def save(name: str, found: dict) -> None:
    """Into the GPU's report."""
    with filelock.FileLock(CLOCK):
        bench.record(name, lambda: found, threads=1, folder=RESULTS)


if __name__ == "__main__":
    main()
