"""The plan: steps, tokens, FLOPs, memory, disk and hours of every run of a preset, before anything starts.

    nppkit plan imagenet256 --gpu H100-80G --gpus 8 --utilisation 0.4
    nppkit plan demo

For a GPU the hours follow from the cost model (nppkit/cost.py) at the stated utilisation. Where no GPU is named they
are measured here, on the CPU: a few real steps and samples of each model size and patch side.
"""

import os
from collections import Counter
from collections.abc import Callable

import pandas as pd
import torch
from torch.utils.flop_counter import FlopCounterMode

from nppkit import cost
from nppkit.data.config import DataConfig
from nppkit.data.images import CROPS, check_heldout, count_images
from nppkit.errors import NppkitError
from nppkit.files import located, npz_length
from nppkit.gpus import GPUS
from nppkit.jobs import timing
from nppkit.machine.progress import progress
from nppkit.model import GPTConfig
from nppkit.scoring.reference import KEPT
from nppkit.study.presets import Preset
from nppkit.study.protocol import questions
from nppkit.study.runs import LARGE, Run, image_size, preset_runs
from nppkit.tokenizer import VQModel

COLUMNS = ["job", "steps", "tokens", "FLOPs", "GB a device", "images a device", "disk GB", "train", "evaluate"]
Seconds = dict[str, float]  # of a run's two jobs on one device: train, evaluate
Times = tuple[Callable[[Run], Seconds], dict[bool, float]]  # of any run, and of the tokenize jobs
COUNTS = {"mnist": 5000, "elpv": 2624, "npz": KEPT}  # images of a source


def model_config(preset: Preset, run: Run) -> GPTConfig:
    """The run's transformer on its grid, with ImageNet's number of classes, which hardly counts."""
    vq = preset.tokenizer.network
    grid = vq.grid_size(image_size(preset, run.large))
    return GPTConfig(**{"vocab_size": vq.codebook_size, "grid_size": grid, **preset.models[run.size]})


def patch_steps(preset: Preset, run: Run) -> dict[int, int]:
    """Optimiser steps at each patch side; none where released weights, or another preset's runs, take the place of training."""
    if run.id in preset.weights or preset.models_of:
        return {}
    t, found = run.training(preset), Counter()
    for s in run.segments(t.epochs):
        found += Counter({p: round(share * (s.end - s.start) * t.steps_per_epoch) for p, share in s.shares.items()})
    return dict(found)


def train_flops(preset: Preset, run: Run) -> float:
    """FLOPs of the whole training, forward and backward."""
    c, t = model_config(preset, run), run.training(preset)
    return float(sum(n * t.batch_size * cost.train_flops(c, p, t.patch) for p, n in patch_steps(preset, run).items()))


def sampled_images(preset: Preset) -> dict[bool, int]:
    """How many images an evaluation samples with guidance (True), which costs twice, and without."""
    e = preset.evaluation
    plain, images = e.guidance.count(1.0), e.samples + e.select_samples
    return {True: (len(e.guidance) - plain) * images, False: plain * images}


def images_of(preset: Preset) -> tuple[int, str]:
    """How many images the preset's source holds, and where that is from: a folder is counted, its files are not opened.

    Of others, and where the folder is not here, a schedule epoch is taken for one visit. NppkitError as of count_images,
    and where nothing is left to train on.
    """
    d, t = preset.data, preset.training
    if d.source == "npz" and located(d.path).is_file():
        return npz_length(located(d.path), "arr_0"), d.path
    if d.source in COUNTS:
        return COUNTS[d.source], d.source
    if d.source == "folder" and located(d.path).exists():
        images, classes = count_images(located(d.path))
        check_heldout(0 if d.heldout_path else d.heldout, min(images, d.limit) if d.limit else images)
        return images, f"{d.path}, {classes} class{'es' * (classes > 1)}, counted and not opened"
    absent = f"{located(d.path)} is not there" if d.source == "folder" else f"{d.path or d.source} not counted"
    return t.steps_per_epoch * t.batch_size, f"{absent}: as many as a schedule epoch has"


def counted(preset: Preset) -> str:
    """How many images there are, in words, to be said before minutes of timing."""
    return "{:,} images ({})".format(*images_of(preset))


def crops(preset: Preset) -> int:
    """Crops that are encoded once."""
    d, (images, _) = preset.data, images_of(preset)
    images = min(images, d.limit) if d.limit else images
    return (images + _kept_apart(d)) * CROPS[d.crops]


def _kept_apart(d: DataConfig) -> int:
    """Held-out images that have a place of their own: those that are there, where they are."""
    place, found = located(d.heldout_path), d.heldout
    if not d.heldout_path:
        return 0
    if d.source == "folder" and place.is_dir():
        found = count_images(place)[0]
    if d.source == "npz" and place.is_file():
        found = npz_length(place, "arr_0")
    return min(d.heldout or found, found)


def coding_flops(preset: Preset, large: bool) -> tuple[int, int]:
    """FLOPs to encode and to decode one image, counted by torch without computing anything."""
    with torch.device("meta"):
        model, side = VQModel(preset.tokenizer.network), image_size(preset, large)
        images, codes = torch.empty(1, 3, side, side), torch.empty(1, model.config.grid_size(side) ** 2, dtype=torch.int64)
    counts = []
    for function, x in ((model.encode, images), (model.decode, codes)):
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            function(x)
        counts.append(counter.get_total_flops())
    return counts[0], counts[1]


def tokenizer_steps(preset: Preset, large: bool) -> int:
    """Training steps of the tokenizer in this job."""
    return 0 if large or preset.tokenizer.weights else preset.tokenizer.steps


def grids(preset: Preset) -> list[bool]:
    """The tokenize jobs: False, and True where the preset has larger images too."""
    return sorted({False} | {run.large for run in preset_runs(preset)})


def on_gpu(preset: Preset, utilisation: float, encoded: int) -> Times:
    """Seconds of a run, and of the tokenize jobs, by the cost model; encoded: crops. fp32 runs at TF32's rate, half of bf16's.

    A training step has a fixed cost on each of the preset's GPUs. The tokenizer is fp32 in any case.
    """
    gpu, coding = GPUS[preset.gpu], {large: coding_flops(preset, large) for large in grids(preset)}
    bf16, images, batch = gpu.flops * utilisation, sampled_images(preset), preset.evaluation.batch_size
    slow = bf16 / 2
    rate = bf16 if preset.precision == "bf16" else slow

    def seconds(run: Run) -> Seconds:
        c = model_config(preset, run)
        sampling = sum(n / batch * cost.sampling_seconds(c, gpu, batch, guided, utilisation) for guided, n in images.items())
        fixed = preset.gpus * sum(patch_steps(preset, run).values()) * cost.fixed_seconds(c, gpu)
        decoding = sum(images.values()) * coding[run.large][1] / slow
        return {"train": train_flops(preset, run) / rate + fixed, "evaluate": sampling * bf16 / rate + decoding}

    steps = {large: 3 * preset.tokenizer.batch_size * tokenizer_steps(preset, large) for large in coding}
    return seconds, {large: (encoded * e + steps[large] * (e + d)) / slow for large, (e, d) in coding.items()}


def on_this_machine(preset: Preset, encoded: int) -> Times:
    """The same, measured here: every model size at every patch side it trains, its sampling, and the tokenizer."""
    torch.set_num_threads(preset.threads)
    start, images = timing.start_seconds(), {guided: n for guided, n in sampled_images(preset).items() if n}
    models, steps, sampling = {(run.size, run.large, run.patch): run for run in preset_runs(preset)}, {}, {}
    compiling, metrics = {}, timing.metrics_seconds(preset)
    for key, run in progress(list(models.items()), "timing"):
        alike = [r for r in preset_runs(preset) if (r.size, r.large, r.patch) == key]
        sides = sorted({p for r in alike for p in patch_steps(preset, r)}, reverse=True)
        steps[key], compiling[key] = timing.step_seconds(preset, run, sides) if sides else ({}, {})  # of a lender's, or weights
        sampling[key] = {guided: timing.image_seconds(preset, run, guided) for guided in images}

    def seconds(run: Run) -> Seconds:
        key = run.size, run.large, run.patch
        training = sum(n * steps[key][p] + compiling[key][p] for p, n in patch_steps(preset, run).items())
        evaluation = sum(n * sampling[key][guided] for guided, n in images.items()) + metrics
        return {"train": training + start if training else 0.0, "evaluate": evaluation + start}

    step, encode = timing.tokenizer_seconds(preset)
    area = {large: (image_size(preset, large) / preset.data.image_size) ** 2 for large in grids(preset)}
    training = {large: tokenizer_steps(preset, large) * step for large in area}
    return seconds, {large: training[large] + encoded * encode * area[large] + start for large in area}


def run_line(preset: Preset, run: Run, seconds: Seconds, memory: float) -> dict:
    """One run: memory is that of one device with its share of the batch, or with the largest part of it that fits."""
    c, steps, share = model_config(preset, run), patch_steps(preset, run), max(1, preset.training.batch_size // preset.gpus)
    held = cost.largest_batch(c, preset.precision, memory, share)
    npz = preset.evaluation.samples * len(preset.evaluation.guidance) * 3 * preset.data.image_size**2
    tokens = sum(n * preset.training.batch_size * c.block_size // p**2 for p, n in steps.items())
    return {
        "job": run.id,
        "steps": sum(steps.values()),
        "tokens": tokens,
        "FLOPs": train_flops(preset, run),
        "GB a device": (cost.state_bytes(c) + held * cost.activation_bytes(c, preset.precision)) / 1e9 * bool(steps),
        "images a device": f"{held} of {share}" if steps else "",
        "disk GB": (3 * cost.checkpoint_bytes(c) * bool(steps) + npz * preset.evaluation.save_npz) / 1e9,
        **seconds,
    }


def plan(preset: Preset, utilisation: float) -> pd.DataFrame:
    """A line for every tokenize job and run of the preset, and their sum; `train` and `evaluate` in seconds on one device."""
    encoded = crops(preset)
    seconds, tokenize = on_gpu(preset, utilisation, encoded) if preset.gpu else on_this_machine(preset, encoded)
    memory = GPUS[preset.gpu].memory if preset.gpu else os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    vq, lines = preset.tokenizer.network, []
    for large, time in tokenize.items():
        disk = 2 * encoded * vq.grid_size(image_size(preset, large)) ** 2 / 1e9
        steps = tokenizer_steps(preset, large)
        lines.append({"job": f"tokenize{LARGE if large else ''}", "steps": steps, "disk GB": disk, "train": time})
    lines += [run_line(preset, run, seconds(run), memory) for run in preset_runs(preset)]
    table = pd.DataFrame(lines, columns=COLUMNS)
    total = {"job": "sum", **table[["tokens", "FLOPs", "disk GB", "train", "evaluate"]].sum()}
    return pd.concat([table, pd.DataFrame([total])], ignore_index=True)


def wall_seconds(table: pd.DataFrame, jobs: int) -> float:
    """What a clock on the wall shows at least: tokenizers first, then runs side by side, each a training and its evaluation."""
    first = table["job"].str.startswith("tokenize")
    runs = table.loc[~first & (table["job"] != "sum"), ["train", "evaluate"]].sum(axis=1)
    return table.loc[first, "train"].sum() + max(runs.max(), runs.sum() / jobs)


def text(table: pd.DataFrame, unit: float, name: str) -> str:
    """The plan for reading, times in `unit` seconds."""
    steps = [f"{n:,.0f}" if n == n else "" for n in table["steps"]]
    shown = table.assign(steps=steps, train=table["train"] / unit, evaluate=table["evaluate"] / unit)
    shown = shown.rename(columns={"train": f"train {name}", "evaluate": f"evaluate {name}"})
    return shown.to_string(index=False, na_rep="", float_format=lambda x: f"{x:.3g}" if x >= 0.01 or not x else "< 0.01")


def report(preset: Preset, utilisation: float) -> str:
    """All that the command prints."""
    if preset.beyond:
        raise NppkitError(f"preset {preset.name}: runs of texts, videos and names are not planned: its file says what they take")
    questions(preset)  # refuses one that no run will answer
    table = plan(preset, utilisation)
    total = table[["train", "evaluate"]].iloc[-1].sum()
    head = f"preset {preset.name}: {preset.description}\n\n"
    if preset.gpu:
        (unit, units), (long, longs) = ((60, "minutes"), (60, "minutes")) if total < 36000 else ((3600, "hours"), (86400, "days"))
        body = text(table, unit, f"GPU-{units}")
        how = f"{total / unit:,.{int(total < 10 * unit)}f} GPU-{units} on {preset.gpu} at {utilisation:.0%} of its peak"
        wall = f"{preset.precision}; {total / long / preset.gpus:.1f} {longs} on {preset.gpus} of them. "
        wall += "Computed, and arithmetic alone: reading, starting, compiling and a tokenizer's perceptual loss come on top; "
        wall += "see docs/imagenet.md."
    else:
        body, jobs = text(table, 60, "minutes"), max(1, len(os.sched_getaffinity(0)) // preset.threads)
        how = f"{total / 60:.0f} minutes in jobs of {preset.threads} thread(s)"
        wall = f"processor time measured here; about {wall_seconds(table, jobs) / 60:.0f} with {jobs} at a time, "
        wall += "and some for tables and figures."
    return f"{head}{body}\n\n{how}, {wall}"
