"""Images in npz files, as ADM's scripts have them: arr_0, uint8, NHWC."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from nppkit.data.images import ImageSet
from nppkit.errors import NppkitError
from nppkit.files import read_arrays, save_arrays, sha256


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
    save_arrays(path, arr_0=pixels.permute(0, 2, 3, 1).contiguous().numpy())


def npz_images(path: str | Path) -> ImageSet:
    """The images in ADM's reference file, real ones of ImageNet's training set, or in another file like it; no labels."""
    pixels = read_npz(path).permute(0, 2, 3, 1).numpy()
    labels = np.zeros(len(pixels), np.int64)
    return ImageSet(labels, ("unlabelled",), sha256(path), lambda i: Image.fromarray(pixels[i]))
