"""Weights and inputs of the golden vectors: every value is a hash of its name (tests/golden/README.md)."""

import json
import zlib
from pathlib import Path

import numpy as np
import torch

from nppkit.noise import splitmix64

FOLDER = Path(__file__).parent / "golden"


def load(name: str) -> dict[str, np.ndarray]:
    with np.load(FOLDER / f"{name}.npz", allow_pickle=False) as file:
        return dict(file)


def shapes(name: str) -> dict[str, list[int]]:
    return json.loads((FOLDER / f"{name}_state_dict.json").read_text())


def uniform(name: str, shape: tuple[int, ...]) -> np.ndarray:
    counter = np.arange(np.prod(shape, dtype=np.int64), dtype=np.uint64) + (np.uint64(zlib.crc32(name.encode())) << np.uint64(32))
    return ((splitmix64(counter) >> np.uint64(11)) * 2.0**-53).reshape(shape)


def integers(name: str, shape: tuple[int, ...], high: int) -> torch.Tensor:
    return torch.from_numpy(np.floor(uniform(name, shape) * high).astype(np.int64))


def weight(name: str, shape: tuple[int, ...]) -> torch.Tensor:
    u = (2 * uniform(name, shape) - 1) * np.sqrt(3)
    if len(shape) > 1:
        value = u / np.sqrt(np.prod(shape[1:]))
    else:
        value = 1 + 0.1 * u if name.endswith("weight") else 0.1 * u
    return torch.from_numpy(value.astype(np.float32))


def fill(model: torch.nn.Module) -> torch.nn.Module:
    """Give every parameter its golden value; buffers stay as they are."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(weight(name, tuple(parameter.shape)))
    return model


def relative_error(value, reference) -> float:
    value, reference = np.asarray(value, np.float64), np.asarray(reference, np.float64)
    largest = np.abs(reference).max()
    return float(np.abs(value - reference).max() / (largest if largest > 0 else 1.0))
