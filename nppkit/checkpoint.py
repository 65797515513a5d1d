"""Checkpoints: a folder of safetensors and one JSON file, complete or absent.

Files are written to a hidden folder, synced, and renamed; only then are older checkpoints removed. Every file has its
digest in state.json, which holds its own as well.
"""

import contextlib
import json
import math
import os
import re
import shutil
import warnings
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.optim import Optimizer

from nppkit.errors import NppkitError
from nppkit.files import json_digest, noted, remedy, sha256, share, sync
from nppkit.machine.processes import part_of


class OtherConfiguration(NppkitError):
    """The checkpoint was trained with other settings: an older one is no remedy."""


def save_checkpoint(
    folder: Path, step: int, tensors: dict[str, dict[str, Tensor]], state: dict, keep_last: int = 1, keep_best: int = 0
) -> Path:
    """Write folder/step_<step> with one safetensors file per group and state.json.

    The newest `keep_last` are kept, and the `keep_best` of lowest state["score"]. NppkitError if the disk is full.
    """
    final, temporary = folder / f"step_{step:08d}", folder / f".step_{step:08d}.{os.getpid()}"
    try:
        _discard_leftovers(folder)
        temporary.mkdir(parents=True)
        _write(temporary, tensors, {"step": step, **state})
        shutil.rmtree(final, ignore_errors=True)  # a damaged one that was refused
        temporary.replace(final)
        sync(folder)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(temporary, ignore_errors=True)
        raise NppkitError(f"checkpoint {final} could not be written ({error}): {remedy(error)}; older ones are intact") from None
    _prune(folder, final, keep_last, keep_best)
    return final


def _write(folder: Path, tensors: dict[str, dict[str, Tensor]], state: dict) -> None:
    for name, group in tensors.items():
        save_file({key: value.detach().contiguous() for key, value in group.items()}, folder / f"{name}.safetensors")
    state = {**state, "files": {path.name: sha256(path) for path in folder.iterdir()}}
    (folder / "state.json").write_text(json.dumps({**state, "digest": json_digest(state)}))
    for path in folder.iterdir():
        share(path, (folder / "state.json").stat().st_mode)
        sync(path)
    sync(folder)


def _prune(folder: Path, written: Path, keep_last: int, keep_best: int) -> None:
    """Remove older checkpoints; each becomes hidden first, so that no half removed one is seen."""
    found = checkpoints(folder)
    keep = {written, *found[-keep_last:], *sorted(found, key=_score)[:keep_best]}
    for old in (path for path in found if path not in keep):
        old.replace(folder / f".{old.name}.old")
    _discard_leftovers(folder)


def _discard_leftovers(folder: Path) -> None:
    """Remove hidden folders: of processes that were killed while writing, and of old checkpoints."""
    for path in folder.glob(".step_*"):
        shutil.rmtree(path)


def _score(path: Path) -> float:
    score = noted(path / "state.json").get("score")
    return score if isinstance(score, int | float) and math.isfinite(score) else math.inf


def checkpoints(folder: Path) -> list[Path]:
    """Checkpoint folders, oldest first. A link is none: it could lead anywhere."""
    return sorted(path for path in folder.glob("step_*") if path.is_dir() and not path.is_symlink())


def load_checkpoint(path: Path, config_digest: str) -> tuple[dict[str, dict[str, Tensor]], dict]:
    """Tensors by group, and the state. NppkitError names a damaged file, or a checkpoint of another configuration."""
    state = _read_state(path / "state.json")
    if state.get("config_digest") != config_digest:
        raise OtherConfiguration(f"checkpoint {path} belongs to another configuration: remove it or use its own preset")
    tensors = {}
    for name, digest in state["files"].items():
        file = path / name
        if not re.fullmatch(r"\w+\.safetensors", name) or not file.is_file() or sha256(file) != digest:
            raise NppkitError(f"checkpoint file {file} is missing or damaged: remove {path}")
        try:
            tensors[file.stem] = load_file(file)
        except SafetensorError as error:
            raise NppkitError(f"checkpoint file {file} is damaged ({error}): remove {path}") from None
    return tensors, state


def _read_state(path: Path) -> dict:
    state = noted(path)
    digest = state.pop("digest", None)  # checkpoints of the first days have none
    whole = isinstance(state.get("files"), dict) and isinstance(state.get("step"), int)
    if not whole or digest not in (None, json_digest(state)):
        raise NppkitError(f"checkpoint {path} is missing or damaged: remove {path.parent}")
    return state


def load_newest(folder: Path, config_digest: str) -> tuple[dict[str, dict[str, Tensor]], dict] | None:
    """The newest complete checkpoint, or None. A damaged one is named in a warning and the one before is used."""
    for path in reversed(checkpoints(folder)):
        try:
            return load_checkpoint(path, config_digest)
        except OtherConfiguration:
            raise
        except NppkitError as error:
            warnings.warn(str(error), stacklevel=2)
    return None


def set_aside(folder: Path, step: int) -> None:
    """Hide the checkpoints beyond the step that a run goes on from, all damaged ones; they go when the next is written."""
    for path in checkpoints(folder):
        if path.name > f"step_{step:08d}":
            with contextlib.suppress(FileNotFoundError):  # another process has just done it
                path.replace(folder / f".{path.name}.damaged")


def optimizer_tensors(optimizer: Optimizer, model: nn.Module) -> dict[str, Tensor]:
    """An optimiser's state as named tensors, such as AdamW's exp_avg.<parameter>, exp_avg_sq.<parameter> and step.<parameter>."""
    names = {p: name for name, p in model.named_parameters()}
    return {f"{key}.{names[p]}": value for p, state in optimizer.state.items() for key, value in state.items()}


def load_optimizer(optimizer: Optimizer, model: nn.Module, tensors: dict[str, Tensor]) -> None:
    """The inverse of `optimizer_tensors`: what lies in a parameter's place lies as it does in memory, and is sharded as it is."""
    parameters = dict(model.named_parameters())
    for key, value in tensors.items():
        kind, name = key.split(".", 1)
        p = parameters[name]
        optimizer.state[p][kind] = value.to(p.device) if kind == "step" else torch.empty_like(p).copy_(part_of(value, p))
