"""Checkpoints: a folder of safetensors and one JSON file, complete or absent.

Files are written to a hidden folder, synced, and renamed; only then are older checkpoints removed.
"""

import json
import os
import shutil
import warnings
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from nppkit.errors import NppkitError
from nppkit.runs import sha256


def save_checkpoint(folder: Path, step: int, tensors: dict[str, dict[str, Tensor]], state: dict, keep: int = 1) -> Path:
    """Write folder/step_<step> with one safetensors file per group and state.json; keep the newest `keep`."""
    final, temporary = folder / f"step_{step:08d}", folder / f".step_{step:08d}.{os.getpid()}"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        for name, group in tensors.items():
            save_file({key: value.detach().contiguous() for key, value in group.items()}, temporary / f"{name}.safetensors")
        digests = {f"{name}.safetensors": sha256(temporary / f"{name}.safetensors") for name in tensors}
        (temporary / "state.json").write_text(json.dumps({"step": step, "files": digests, **state}))
        for path in (*temporary.iterdir(), temporary):
            _sync(path)
        shutil.rmtree(final, ignore_errors=True)
        temporary.replace(final)
        _sync(folder)
    except OSError as error:
        shutil.rmtree(temporary, ignore_errors=True)
        raise NppkitError(f"checkpoint {final} could not be written ({error}): free some space; older ones are intact") from None
    for old in checkpoints(folder)[:-keep]:
        shutil.rmtree(old)
    return final


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def checkpoints(folder: Path) -> list[Path]:
    """Checkpoint folders, oldest first."""
    return sorted(folder.glob("step_*"))


def load_checkpoint(path: Path, config_digest: str) -> tuple[dict[str, dict[str, Tensor]], dict]:
    """Tensors by group, and the state. NppkitError names a damaged file, or a checkpoint of another configuration."""
    try:
        state = json.loads((path / "state.json").read_text())
        files = state["files"]
    except (OSError, ValueError, KeyError, TypeError):
        raise NppkitError(f"checkpoint {path}/state.json is missing or damaged: remove {path}") from None
    if state.get("config_digest") != config_digest:
        raise NppkitError(f"checkpoint {path} belongs to another configuration: remove it or use its own preset")
    tensors = {}
    for name, digest in files.items():
        file = path / name
        if not file.is_file() or sha256(file) != digest:
            raise NppkitError(f"checkpoint file {file} is missing or damaged: remove {path}")
        try:
            tensors[file.stem] = load_file(file)
        except SafetensorError as error:
            raise NppkitError(f"checkpoint file {file} is damaged ({error}): remove {path}") from None
    return tensors, state


def load_newest(folder: Path, config_digest: str) -> tuple[dict[str, dict[str, Tensor]], dict] | None:
    """The newest complete checkpoint, or None. A damaged one is named in a warning and the one before is used."""
    for path in reversed(checkpoints(folder)):
        try:
            return load_checkpoint(path, config_digest)
        except NppkitError as error:
            if "another configuration" in str(error):
                raise
            warnings.warn(str(error), stacklevel=2)
    return None
