"""What the processes of one job do: each takes its share of a training, of the samples, or of the extraction."""

import functools
import os
import tempfile
from pathlib import Path

import torch

from nppkit.data import prepare_tokenizer
from nppkit.data.codes import CodeStore
from nppkit.data.extract import extract_codes
from nppkit.data.images import ImageSet
from nppkit.data.sources import study_images
from nppkit.errors import NppkitError
from nppkit.files import sha256
from nppkit.machine.devices import pick_device, rounded
from nppkit.machine.guard import die_with_parent
from nppkit.machine.options import Options
from nppkit.machine.processes import joined
from nppkit.machine.progress import BATCH, progress
from nppkit.scoring import sampling
from nppkit.scoring.evaluate import label_shares
from nppkit.study import graph
from nppkit.study.models import load_trained, run_trainer
from nppkit.study.presets import Preset, load_preset
from nppkit.study.records import Job
from nppkit.study.runs import find_run, image_size
from nppkit.tokenizer import VQModel
from nppkit.training.trainer import make_model


def _begin(job: Job, said: str | None) -> Options:
    """As a process of torchrun's, which must not outlive it: the options that were said, or else those of the preset's job.

    NppkitError where torchrun started fewer processes than they ask for, the results are another preset's, or the codes are
    of other settings.
    """
    graph.claim(load_preset(job.parameters["preset"]))
    graph.check_codes(job)
    if "WORLD_SIZE" in os.environ:
        die_with_parent()
    options = graph.options(job) if said is None else Options.parse(said)
    if int(os.environ.get("WORLD_SIZE") or 1) < options.processes:
        raise NppkitError(f"options: {options}: so many processes are started by nppkit run, or by torchrun: see docs/scaling.md")
    torch.set_num_threads(options.threads)
    return options


def train(preset: Preset, run_id: str, said: str | None = None) -> None:
    """One run's training: the loop of the train notebook, in every process."""
    run = find_run(preset, run_id)
    options = _begin(graph.train_job(preset, run), said)
    folder = graph.tokenizer_dir(preset, run.large)
    store, heldout = CodeStore(folder / "train"), CodeStore(folder / "heldout")
    model = make_model(store, preset.models[run.size], preset.training, run.seed)
    with joined() as processes:
        trainer = run_trainer(preset, run, model, store, heldout, options, processes)
        show = iter if processes.rank else functools.partial(progress, label=run.id)
        with trainer.running() as steps:
            for step in show(steps):
                trainer.train_step(step, trainer.patch_size(step))
                trainer.after(step)


def sample(preset: Preset, run_id: str, said: str | None = None) -> None:
    """The codes of every guidance scale and seed of a preset's evaluation, for one run."""
    run = find_run(preset.of_images(), run_id)
    options = _begin(graph.evaluate_job(preset, run), said)
    store = CodeStore(graph.tokenizer_dir(preset, run.large) / "train")
    with joined() as processes:
        model = rounded(load_trained(preset, run, store), preset.precision).to(pick_device(options.device))
        shares = label_shares(preset.evaluation.labels, store, CodeStore(graph.tokenizer_dir(preset, run.large) / "heldout"))
        folder = graph.samples_dir(preset, run)
        sampling.draw_all(model, preset.evaluation, shares, folder, preset.precision, run.id, processes)


def extract(preset: Preset, large: bool, rank: int, world_size: int, device: str, batch_size: int) -> None:
    """This process's share of the codes that the tokenize notebook extracts; the notebook then finds them."""
    if "WORLD_SIZE" in os.environ:
        die_with_parent()
    if world_size > 1:
        os.environ.setdefault(BATCH, "1")  # lines, because the bars of several processes overwrite each other
    graph.claim(preset.of_images())
    place = pick_device(device)
    if device == "auto" and place.type == "cuda":
        place = torch.device("cuda", rank % torch.cuda.device_count())
    training, heldout = study_images(preset.data)
    model, digest = _frozen_tokenizer(preset, training)
    model, crops, side = model.to(place).requires_grad_(False), preset.data.crops, image_size(preset, large)
    for split, images in (("train", training), ("heldout", heldout)):
        folder = graph.tokenizer_dir(preset, large) / split
        show = functools.partial(progress, label=f"{split}, process {rank + 1} of {world_size}")
        shares = dict(rank=rank, world_size=world_size, packed=preset.data.packed)
        store = extract_codes(model, images, folder, crops, side, digest, batch_size, show, **shares)
        print(f"{folder}: {'complete' if store is not None else 'this share is done, other processes are not'}", flush=True)


def _frozen_tokenizer(preset: Preset, training: ImageSet) -> tuple[VQModel, str]:
    """The preset's tokenizer and the sha256 of its file: from its weights, or as the notebook has trained it."""
    folder = graph.tokenizer_dir(preset)
    if preset.tokenizer.weights:
        with tempfile.TemporaryDirectory() as own:  # several processes would write one file
            model, _ = prepare_tokenizer.prepare_tokenizer(preset.tokenizer, preset.data, training, Path(own))
            return model, sha256(Path(own) / "tokenizer.safetensors")
    graph.check_codes(graph.tokenize_job(preset))
    if not (folder / "tokenizer.safetensors").is_file():
        raise NppkitError(f"{folder} has no tokenizer: run the tokenize notebook, which trains it, or set tokenizer.weights")
    return prepare_tokenizer.load_tokenizer(folder), sha256(folder / "tokenizer.safetensors")
