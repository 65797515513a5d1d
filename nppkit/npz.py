"""npz files, read without unpickling anything and written whole or not at all; images in them as ADM's scripts have it."""

from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from nppkit.errors import NppkitError
from nppkit.runs import replacing


def npz_keys(path: str | Path) -> list[str]:
    """Names of the arrays in an npz file. NppkitError names a missing or damaged file."""
    try:
        with np.load(path) as file:
            return list(file.files)
    except Exception as error:  # a damaged file raises nearly anything
        raise NppkitError(f"{path} cannot be read as npz ({' '.join(str(error).split())})") from None


def read_arrays(path: str | Path, keys: Iterable[str]) -> dict[str, np.ndarray]:
    """The named arrays of an npz file. NppkitError names a missing or damaged file, and a missing key."""
    present = npz_keys(path)
    if missing := [key for key in keys if key not in present]:
        raise NppkitError(f"{path} has no {', '.join(missing)}: it holds {', '.join(present) or 'nothing'}")
    try:
        with np.load(path) as file:  # never unpickles: NumPy's default
            return {key: file[key] for key in keys}
    except Exception as error:
        raise NppkitError(f"{path} cannot be read ({' '.join(str(error).split())})") from None


def save_arrays(path: Path, write: Callable = np.savez, **arrays: np.ndarray | str) -> None:
    """Write an npz file whole or not at all; `write` may be np.savez_compressed."""
    with replacing(path) as temporary, open(temporary, "wb") as file:
        write(file, **arrays)


def read_npz(path: str | Path) -> Tensor:
    """Images of an npz file as ADM's scripts write them (`arr_0`, uint8 NHWC), as uint8 (n, 3, H, W).

    NppkitError names a file that holds none.
    """
    pixels = read_arrays(path, ("arr_0",))["arr_0"]
    if pixels.dtype != np.uint8 or pixels.ndim != 4 or pixels.shape[-1] != 3 or not pixels.size:
        raise NppkitError(f"{path}: arr_0 is {pixels.dtype} {pixels.shape}, not uint8 (images, height, width, 3)")
    return torch.from_numpy(pixels).permute(0, 3, 1, 2)


def write_npz(path: Path, pixels: Tensor) -> None:
    """Write uint8 images (n, 3, H, W) as ADM's evaluation script reads them: `arr_0`, NHWC."""
    path.parent.mkdir(parents=True, exist_ok=True)
    save_arrays(path, arr_0=pixels.permute(0, 2, 3, 1).contiguous().numpy())
