"""Where a preset's images come from: the image set that its `data` section names, and what of it is held out."""

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from nppkit.data.config import DataConfig
from nppkit.data.elpv import elpv_images
from nppkit.data.images import ImageSet, folder_images, mnist_images, some_images, split_heldout, torchvision_images
from nppkit.data.npz import npz_images
from nppkit.data.video import moving_digits
from nppkit.errors import NppkitError
from nppkit.files import located


def load_images(source: str, path: str | Path = "", name: str = "", check: bool = True, **shown: bool | str) -> ImageSet:
    """The image set that a preset's `data` section names; `check` looks at every file of a folder first; shown: its
    pictures' `upright` and `background`."""
    if source == "mnist":
        return mnist_images()
    if source == "folder":
        return folder_images(path, check, **shown)
    if source == "torchvision":
        return torchvision_images(name, path)
    if source == "elpv":
        return elpv_images()
    return npz_images(path)


def study_images(data: DataConfig, check: bool = True) -> tuple[ImageSet, ImageSet]:
    """A preset's training and held-out images. NppkitError if a folder of held-out images has other classes."""
    if data.source == "moving_mnist":
        parts = split_heldout(mnist_images(), data.heldout, data.limit)
        return tuple(moving_digits(part, data.frames, seed) for seed, part in enumerate(parts))
    shown = {"upright": data.upright, "background": data.background}
    images = load_images(data.source, located(data.path), data.name, check, **shown)
    if not data.heldout_path:
        return split_heldout(images, data.heldout, data.limit)
    others = load_images(data.source, located(data.heldout_path), data.name, check, **shown)
    if others.class_names != images.class_names:
        raise NppkitError(
            f"data.heldout_path {data.heldout_path} has other classes than {data.path}: sort it into the same folders"
        )
    seen = set(_each(images))
    unseen = [i for i, digest in enumerate(_each(others)) if digest not in seen]
    if not unseen:
        raise NppkitError(f"data.heldout_path {data.heldout_path} holds images of data.path alone: name others")
    if left := len(others) - len(unseen):
        print(f"{data.heldout_path}: {left} images are left out, because {data.path} holds the same")
        others = others.subset(np.array(unseen))
    training, _ = split_heldout(images, 0, data.limit)
    return training, some_images(others, data.heldout or len(others))


def _each(images: ImageSet) -> Sequence[str]:
    """A digest of each image: of its file, or, of an npz file's, of its pixels."""
    return images.files or [hashlib.sha256(images.load(i).tobytes()).hexdigest() for i in range(len(images))]
