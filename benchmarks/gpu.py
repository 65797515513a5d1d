"""One of the paper's models on a GPU: a training step against patch side, its memory, and sampling.

    python benchmarks/gpu.py B --batch-size 32 --modes eager graph

Batch 32 is a device's share of the paper's 256 on eight. The trainer's own steps on random codes: batch, bf16 autocast over
fp32 weights, dropout, loss, clipping and AdamW, ten without waiting for the device between them. Modes: eager; compiled;
graph, the compiled step as one CUDA graph (the option `graphs`). Sampling is guided, at the batch of the preset
imagenet256, plain and with the step as a CUDA graph. Weights and codes are random: neither changes the time. Models may
be measured side by side: they compile together, and take turns with the clock. results/gpu/ holds the reports.
"""

import argparse
import dataclasses
import tempfile
from functools import partial
from pathlib import Path

import bench
import filelock
import numpy as np
import torch

from nppkit.cost import train_flops
from nppkit.jobs.timing import synthetic_store
from nppkit.machine.devices import autocast, rounded
from nppkit.machine.options import Options
from nppkit.model import GPT, MODELS, GPTConfig, count_parameters
from nppkit.sample import SamplingConfig, sample_codes
from nppkit.schedule import Segment
from nppkit.study.presets import load_preset
from nppkit.training.trainer import Trainer, make_model

STEPS, IMAGES, PRODUCT = 10, 128, 8192
MODES = ("eager", "compiled", "graph")
RESULTS = bench.RESULTS.parent / "gpu"
CLOCK = Path(tempfile.gettempdir()) / "nppkit-benchmark.lock"


def trainer(sizes: dict, batch_size: int, sides: list[int], mode: str, folder: Path) -> Trainer:
    """The trainer of a model on random codes of the preset imagenet256, ready for its first step at each side."""
    preset = load_preset("imagenet256")
    training = dataclasses.replace(preset.training, batch_size=batch_size, compile=mode != "eager", steps_per_epoch=1)
    store = synthetic_store(folder, dataclasses.replace(preset, training=training), False, classes=1000)
    model = make_model(store, sizes, training, 0)
    torch.nn.init.normal_(model.output.weight, std=0.02)  # 0 at first: gradients would reach no layer
    segments = tuple(Segment(p, i, i + 1) for i, p in enumerate(sorted(sides, reverse=True)))
    options, places = Options(graphs=mode == "graph", device=str(bench.DEVICE)), (folder / "h.csv", folder / "checkpoints", "gpu")
    made = Trainer(model, store, store, segments, training, 0, *places, options, bench.PRECISION)
    made.warm_up()
    return made


def train(sizes: dict, batch_size: int, sides: list[int], modes: list[str], repeats: int = 5) -> dict:
    """Seconds of a step and peak memory for every mode and patch side, and the rate of a large bf16 product beside them."""
    with tempfile.TemporaryDirectory() as name:
        trainers = {}
        for mode in modes:
            folder = Path(name) / mode
            folder.mkdir()
            trainers[mode] = trainer(sizes, batch_size, sides, mode, folder)
        cases = {f"{mode} {p}": partial(steps, trainers[mode], p) for mode in modes for p in sides}
        with filelock.FileLock(CLOCK):
            times = bench.interleaved(cases, repeats=repeats, warmup=2)
            memory = {name: peak(case) for name, case in cases.items() if "graph" not in name}  # a graph's pool is not counted
            rate = product_rate()
        flops = {str(p): batch_size * train_flops(trainers[modes[0]].model.config, p) for p in sides}
        parameters = count_parameters(trainers[modes[0]].model)
    seconds = {name: bench.summary([t / STEPS for t in times[name]]) for name in cases}
    return {"parameters": parameters, "flops": flops, "seconds": seconds, "gib": memory, "product_flops_per_second": rate}


def steps(made: Trainer, patch_size: int) -> None:
    """Some steps, as a training makes them between two rows of its history."""
    for step in range(STEPS):
        made.train_step(step % made.total_steps, patch_size)
    made.pending.clear()


def product_rate() -> float:
    """FLOP/s of an 8192-cubed product in bf16, of random numbers."""
    side = PRODUCT if bench.DEVICE.type == "cuda" else 256
    a, b = (torch.randn(side, side, device=bench.DEVICE, dtype=torch.bfloat16) for _ in range(2))
    seconds = bench.interleaved({"product": lambda: [a @ b for _ in range(10)]}, repeats=5)["product"]
    return 10 * 2 * side**3 / bench.median(seconds)


def peak(case) -> float:
    """GiB that the device holds at most during a case, with the weights and optimisers of all modes, which are alive together."""
    if bench.DEVICE.type != "cuda":
        return float("nan")
    torch.cuda.reset_peak_memory_stats()
    case()
    return torch.cuda.max_memory_allocated() / 2**30


def sample(sizes: dict, images: int = IMAGES) -> dict:
    """Seconds of a guided batch, plain and, on a GPU, with the step as a CUDA graph."""
    model = GPT(GPTConfig(**sizes)).to(bench.DEVICE).eval().requires_grad_(False)
    torch.nn.init.normal_(model.output.weight, std=0.02)
    model = rounded(model, bench.PRECISION)  # as evaluations sample: the weights are cast once, not at every token
    index, labels = np.arange(images), torch.arange(images, device=bench.DEVICE) % model.config.num_classes

    def draw(name):
        with autocast(bench.DEVICE, bench.PRECISION):
            sample_codes(model, labels, SamplingConfig(cfg_scale=1.75, compile=name == "graph"), index)

    cases = {name: partial(draw, name) for name in ("plain", "graph")[: 1 + (bench.DEVICE.type == "cuda")]}
    with filelock.FileLock(CLOCK):
        times = bench.interleaved(cases, repeats=3)
    return {"images": images, "seconds": {name: bench.summary(seconds) for name, seconds in times.items()}}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python benchmarks/gpu.py", description=__doc__.splitlines()[0])
    parser.add_argument("model", choices=MODELS)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--sides", type=int, nargs="+", default=[1, 2, 4], help="patch sides")
    parser.add_argument("--modes", nargs="*", choices=MODES, default=MODES, help="each compiled case takes half a minute")
    parser.add_argument("--sample", action="store_true", help="sampling, too")
    a = parser.parse_args()
    if bench.DEVICE.type != "cuda":
        parser.error("no GPU is visible here: `make bench` measures a CPU")
    if a.modes:
        save(f"{a.model} {a.batch_size} step", train(MODELS[a.model], a.batch_size, a.sides, a.modes))
    if a.sample:
        save(f"{a.model} sampling", sample(MODELS[a.model]))


def save(name: str, found: dict, folder: Path = RESULTS) -> None:
    """Into the GPU's report."""
    with filelock.FileLock(CLOCK):
        bench.record(name, lambda: found, threads=1, folder=folder)


if __name__ == "__main__":
    main()
