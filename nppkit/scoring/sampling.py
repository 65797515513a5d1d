"""Sampling that outlives a kill, by one process or several: the codes of a run's images, kept as code stores.

    torchrun --nproc-per-node 8 -m nppkit sample PRESET RUN

A sample's label and noise belong to its index and a batch is the same whoever draws it, so the tokens do not depend on the
number of processes. What was drawn before a kill is not drawn again.
"""

import functools
import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from nppkit.data.codes import CodeStore, Manifest
from nppkit.data.extract import filled
from nppkit.machine.devices import autocast
from nppkit.machine.processes import ALONE, Processes
from nppkit.machine.progress import progress
from nppkit.model import GPT
from nppkit.sample import SamplingConfig, sample_labels
from nppkit.scoring.config import EvaluationConfig
from nppkit.scoring.evaluate import draw_codes, sampling_roles

opened = functools.lru_cache(maxsize=1)(CodeStore)  # the same one for every batch of a configuration


def weights_digest(model: GPT) -> str:
    """sha256 of the weights, in the order of their names."""
    digest = hashlib.sha256()
    for _, tensor in sorted(model.state_dict().items()):
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


def place(folder: Path, config: SamplingConfig) -> Path:
    """Where the samples of a configuration lie."""
    return folder / f"drawn_cfg{config.cfg_scale:g}_seed{config.seed}"


def _manifest(model: GPT, weights: str, config: SamplingConfig, samples: int, batch_size: int, precision: str) -> Manifest:
    """All that decides the codes."""
    c, origin = model.config, json.dumps([asdict(config), batch_size, precision, weights])
    names = [str(number) for number in range(c.num_classes)]
    source = hashlib.sha256(origin.encode()).hexdigest()
    return Manifest(samples, 1, c.grid_size, c.vocab_size, names, "drawn by the transformer", source, image_size=0)


def draw(
    model: GPT,
    config: SamplingConfig,
    samples: int,
    batch_size: int,
    folder: Path,
    weights: str,
    precision: str = "fp32",
    processes: Processes = ALONE,
    show: Callable = iter,
) -> CodeStore | None:
    """This process's share of the samples; the store once all shares are there, None while others are at work."""
    manifest, device = _manifest(model, weights, config, samples, batch_size, precision), next(model.parameters()).device
    labels = sample_labels(np.arange(samples), model.config.num_classes, config.seed, config.shares)

    def drawn(index: np.ndarray) -> np.ndarray:
        with autocast(device, precision):
            return draw_codes(model, torch.from_numpy(labels[index]).to(device), config, index).cpu().numpy()[:, None]

    return filled(folder, manifest, labels, drawn, batch_size, processes, show)


def draw_all(
    model: GPT,
    evaluation: EvaluationConfig,
    shares: tuple[float, ...],
    folder: Path,
    precision: str,
    label: str,
    processes: Processes = ALONE,
) -> None:
    """This process's share of all that an evaluation draws, at each guidance scale, each in its `place` of the folder."""
    weights = weights_digest(model)
    for scale in evaluation.guidance:
        show = iter if processes.rank else functools.partial(progress, label=f"{label} guidance {scale}")
        for config, samples in sampling_roles(evaluation, scale, shares).values():
            draw(model, config, samples, evaluation.batch_size, place(folder, config), weights, precision, processes, show)


def drawn(model: GPT, labels: Tensor, config: SamplingConfig, index: np.ndarray, folder: Path) -> Tensor:
    """Codes (B, N) that were drawn before, in place of `sample_codes`."""
    codes, _ = opened(place(folder, config)).batch(index, np.zeros_like(index))
    return codes.to(labels.device)
