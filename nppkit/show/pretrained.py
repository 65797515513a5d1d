"""A small trained pair in the package, NTP and NPP from the same seed, so that the notebooks have something to show at once.

    nppkit pair     # makes it again: trains and evaluates both runs unless that is done, and keeps them here

The folder `pretrained` is laid out like a results home, with each run's weights in its own folder.
"""

import json
import os
import shutil
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from nppkit.data.images import reference_pixels
from nppkit.data.prepare_tokenizer import load_tokenizer  # noqa: F401  a kept one is loaded like a job's
from nppkit.data.sources import study_images
from nppkit.errors import NppkitError
from nppkit.files import home, noted, sha256, write_atomic
from nppkit.model import GPT, GPTConfig
from nppkit.releases import load_weights
from nppkit.study.graph import evaluate_job, last_checkpoint, run_dir, tokenizer_dir, tokenizer_preset
from nppkit.study.presets import Preset, load_preset
from nppkit.study.records import Job, versions
from nppkit.study.runs import find_run
from nppkit.tokenizer import UNUSED, VQModel, to_model_range

HOME = Path(__file__).parent / "pretrained"
PRESET = "demo"
RUNS = ("GPT-L_ntp_seed0", "GPT-L_npp_p2_lambda1-2_seed0")
KEPT = ("config.json", "history.csv", "train_metrics.json", "metrics.json", "samples.png")


def pair_jobs() -> list[Job]:
    """The jobs that make the pair."""
    preset = load_preset(PRESET)
    return [evaluate_job(preset, find_run(preset, run_id)) for run_id in RUNS]


def keep(target: Path = HOME) -> None:
    """Copy the complete pair's weights and results to `target`, and note how they were made."""
    preset = load_preset(PRESET)
    for run in (find_run(preset, run_id) for run_id in RUNS):
        folder = target / "results" / PRESET / "runs" / run.id
        folder.mkdir(parents=True, exist_ok=True)
        for name in KEPT:
            shutil.copyfile(run_dir(preset, run) / name, folder / name)
        shutil.copyfile(last_checkpoint(preset, run) / "model.safetensors", folder / "model.safetensors")
    keep_tokenizer(tokenizer_dir(preset), target / "results" / PRESET / "tokenizer")
    files = sorted(target.rglob("*.safetensors"))
    made = {"command": "nppkit pair", "preset": PRESET, "runs": RUNS, "versions": versions()}
    made["sha256"] = {str(path.relative_to(target)): sha256(path) for path in files}
    write_atomic(target / "made.json", json.dumps(made, indent=1) + "\n")


def keep_tokenizer(source: Path, target: Path) -> None:
    """Copy a tokenizer folder's weights, without the buffer that nothing reads, and its descriptions."""
    target.mkdir(parents=True, exist_ok=True)
    state = load_file(source / "tokenizer.safetensors")
    save_file({key: value for key, value in state.items() if key != UNUSED}, target / "tokenizer.safetensors")
    for name in ("tokenizer.json", "metrics.json"):
        shutil.copyfile(source / name, target / name)


def load_model(run: Path) -> GPT:
    """The transformer of a run's folder in its newest state, in eval mode. NppkitError without configuration or weights."""
    if (weights := weights_file(run)) is None:
        raise NppkitError(f"{run} has no weights yet: train the run, or choose another")
    model = GPT(GPTConfig(**json.loads((run / "config.json").read_text())["model"]))
    load_weights(model, weights)
    return model.eval().requires_grad_(False)


def weights_file(run: Path) -> Path | None:
    """The weights of a run's folder: kept beside its results, or in the newest checkpoint of its home; None without."""
    if (run / "model.safetensors").is_file():
        return run / "model.safetensors"
    place, preset = run.parents[3], run.parents[1].name
    found = (place / "checkpoints" / preset / run.name).glob("*/step_*/model.safetensors")
    return max(found, key=os.path.getmtime, default=None) if (run / "config.json").is_file() else None


def tokenizer_folder(run: Path) -> Path | None:
    """Where the tokenizer of a run's images is: with its preset or the one that this names. None without, and of other grids."""
    said, place = noted(run / "config.json"), run.parents[1]
    source = place / ".preset"  # where the preset of these results is, if it is not a packaged one
    with suppress(NppkitError):  # a preset that is not known here has its own
        known = source.read_text() if source.is_file() else said.get("preset", place.name)
        place = place.with_name(tokenizer_preset(load_preset(known)).name)
    square = isinstance(said.get("model", {}).get("grid_size"), int)  # not of videos or texts
    return place / "tokenizer" if square and (place / "tokenizer/tokenizer.safetensors").is_file() else None


def results_of(preset: Preset) -> Path:
    """Results of a preset: the package's own of the preset that it has a pair of, else this machine's."""
    return (HOME if preset.name == PRESET else home()) / "results" / preset.name


def runs_of(preset: Preset) -> list[Path]:
    """Run folders of a preset, NTP's before NPP's; none before its first run."""
    return sorted((results_of(preset) / "runs").glob("*"), reverse=True)


def trained_runs(homes: list[Path]) -> dict[str, Path]:
    """Run folders whose images can be drawn, because weights and tokenizer are there, by a name for a menu; the pair first."""
    runs = [HOME / "results" / PRESET / "runs" / run for run in RUNS]
    runs += [path for place in homes for path in sorted(place.glob("results/*/runs/*"))]
    named = {f"{run.name} ({run.parents[1].name}{'' if HOME in run.parents else f', {run.parents[3]}'})": run for run in runs}
    return {name: run for name, run in named.items() if weights_file(run) and tokenizer_folder(run)}


def preset_images(preset: Preset, n: int = 0, heldout: bool = False) -> tuple[Tensor, np.ndarray]:
    """Pixels uint8 (n, 3, S, S) and labels (n,) of a preset's training or held-out images; n 0 takes all."""
    images = study_images(preset.data)[heldout]
    if n:
        images = images.subset(np.arange(n) * len(images) // n)
    return torch.from_numpy(reference_pixels(images, preset.data.image_size)), images.labels


@torch.inference_mode()
def encode(tokenizer: VQModel, batches: Iterable[Tensor]) -> Tensor:
    """Codes (n, N) of uint8 images, batch by batch."""
    return torch.cat([tokenizer.encode(to_model_range(batch)) for batch in batches])
