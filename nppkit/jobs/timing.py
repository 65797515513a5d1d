"""How long things take on this machine: real training steps, samples and tokenizer steps on synthetic data of a preset's shape.

The measured half of the plan. Nothing is read, trained or kept. Times are processor time per thread, which other work on
the machine disturbs little.
"""

import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from nppkit.data import train_tokenizer
from nppkit.data.codes import CodeStore, Manifest
from nppkit.data.extract import write_store
from nppkit.data.images import CROPS
from nppkit.machine import devices
from nppkit.machine.options import Options
from nppkit.sample import SamplingConfig
from nppkit.schedule import Segment
from nppkit.scoring import evaluate
from nppkit.scoring.reference import Reference
from nppkit.study.presets import Preset
from nppkit.study.runs import Run, image_size
from nppkit.tokenizer import VQModel
from nppkit.training.trainer import Trainer, make_model

SECONDS = 0.5  # what is timed at least, over at least three calls
IMAGES = 100  # sampled at once, at most


def seconds(function: Callable, *args: object) -> float:
    """Processor time of a call per thread: on an idle machine what a clock on the wall says."""
    started = time.process_time()
    function(*args)
    return (time.process_time() - started) / torch.get_num_threads()


def median_seconds(function: Callable, *args: object) -> float:
    """Median time of a call, after one that is not counted."""
    function(*args)
    times = []
    while len(times) < 3 or sum(times) < SECONDS:
        times.append(seconds(function, *args))
    return statistics.median(times)


def synthetic_store(folder: Path, preset: Preset, large: bool, classes: int = 10) -> CodeStore:
    """A store of random codes of the preset's grid, vocabulary and crops."""
    vq, side, n = preset.tokenizer.network, image_size(preset, large), preset.training.batch_size
    shape, rng = (n, CROPS[preset.data.crops], vq.grid_size(side) ** 2), np.random.default_rng(0)
    names = [str(c) for c in range(classes)]
    about = Manifest(n, shape[1], vq.grid_size(side), vq.codebook_size, names, "none", "synthetic", side)
    write_store(folder, about, rng.integers(0, vq.codebook_size, shape), np.arange(n) % classes)
    return CodeStore(folder)


def step_seconds(preset: Preset, run: Run, patch_sizes: list[int]) -> tuple[dict[int, float], dict[int, float]]:
    """Seconds of one training step at each patch side: batch, forward, backward, clipping and AdamW; and of its compilation.

    What the compiler cache holds already, of an earlier run or plan, is not compiled again.
    """
    torch.compiler.reset()  # a run compiles few shapes; those of many models together would exceed the compiler's limit
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        store = synthetic_store(folder, preset, run.large)
        training = run.training(preset)
        model = make_model(store, preset.models[run.size], training, run.seed)
        segments = tuple(Segment(p, i, i + 1) for i, p in enumerate(patch_sizes))
        files = (folder / "history.csv", folder / "checkpoints", "timing")
        trainer = Trainer(model, store, store, segments, training, 0, *files, Options(device="cpu"), preset.precision)
        compiling = {}
        for p in patch_sizes:
            started = processor_seconds()
            trainer.warm_up((p,))
            compiling[p] = processor_seconds() - started
        return {p: median_seconds(trainer.train_step, 0, p) for p in patch_sizes}, compiling


def image_seconds(preset: Preset, run: Run, guided: bool) -> float:
    """Seconds to sample and decode one image, in a batch as large as the preset's, or of 100."""
    n, scale = min(preset.evaluation.batch_size, IMAGES), 2.0 if guided else 1.0
    with tempfile.TemporaryDirectory() as name:
        store = synthetic_store(Path(name), preset, run.large)
        model = make_model(store, preset.models[run.size], preset.training, run.seed).eval()
        decoder = VQModel(preset.tokenizer.network).eval()
        evaluate.generate(model, decoder, SamplingConfig(), 2, 2)
        with devices.autocast(devices.CPU, preset.precision):
            return seconds(evaluate.generate, model, decoder, SamplingConfig(cfg_scale=scale), n, n) / n


def tokenizer_seconds(preset: Preset) -> tuple[float, float]:
    """Seconds of one training step of the tokenizer (0 if it is not trained), and to encode one crop."""
    t, side = preset.tokenizer, preset.data.image_size
    pixels, step = torch.zeros(t.batch_size, 1, 3, side, side, dtype=torch.uint8), 0.0
    if t.steps and not t.weights:
        few, many = (seconds(train_tokenizer.train_tokenizer, pixels, t.network, replace(t, steps=n)) for n in (1, 6))
        step = max(0.0, many - few) / 5
    images = torch.zeros(8, 3, side, side)
    with torch.inference_mode():
        return step, median_seconds(VQModel(t.network).eval().encode, images) / len(images)


def metrics_seconds(preset: Preset) -> float:
    """Seconds of an evaluation's metrics, at all its scales, of features as the digit classifier has."""
    e, rng = preset.evaluation, np.random.default_rng(0)
    features, logits = (torch.from_numpy(rng.normal(size=(e.samples, width)).astype(np.float32)) for width in (64, 10))
    x, index = features.double().numpy(), np.arange(len(features))
    own = Reference(x.mean(0), np.cov(x, rowvar=False), features, index, "", "", "", "")
    return len(e.guidance) * seconds(evaluate.score, {"features": features, "logits": logits}, own, e.kid_subsets)


def processor_seconds() -> float:
    """Processor time of this process and of those that it has waited for: compilers, imports."""
    return sum(os.times()[:4])


def start_seconds() -> float:
    """Processor seconds until a job's launcher and kernel have imported what they need; a warm server spares them."""
    imports = "import nppkit.jobs.launch, papermill", "import nppkit.scoring.evaluate, nppkit.training.trainer"
    started = processor_seconds()
    for line in imports:
        subprocess.run([sys.executable, "-c", line])
    return processor_seconds() - started
