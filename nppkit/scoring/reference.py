"""References: what generated images are compared with, as ADM's evaluation divides it.

FID compares with the mean and covariance of all reference images; KID, precision and recall compare with the
features of at most 10,000 of them. A reference comes from ADM's npz file or from an own data set.
"""

import contextlib
import hashlib
import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch_fidelity.feature_extractor_base import FeatureExtractorBase

from nppkit import files, noise
from nppkit.data.images import ImageSet, reference_pixels
from nppkit.data.npz import read_npz
from nppkit.errors import NppkitError
from nppkit.scoring.features import extract_features

KEPT = 10_000  # images whose features are kept, as many as ADM's file holds
CHUNK = 500  # images in memory at once


@dataclass(frozen=True, eq=False)
class Reference:
    """Moments of all images in fp64, mu (D,) and sigma (D, D), and features (m, D) of those at `index` (m,) of the source.

    digest: sha256 of the images, or of the file that they came in; extractor_sha256: of the weights that saw them.
    """

    mu: np.ndarray
    sigma: np.ndarray
    features: Tensor
    index: np.ndarray
    source: str
    digest: str
    extractor: str
    extractor_sha256: str

    def save(self, path: Path) -> None:
        """Write an npz file without pickles, so that the file is either whole or absent."""
        files.save_arrays(path, **{**vars(self), "features": self.features.numpy()})


class Moments:
    """Mean and covariance in fp64 of features that arrive in batches (Chan et al., 1979)."""

    def __init__(self):
        self.n, self.mean, self.scatter = 0, 0.0, 0.0

    def add(self, features: Tensor) -> None:
        """Take in a batch (n, D)."""
        x = features.double().numpy()
        mean, total = x.mean(0), self.n + len(x)
        shift, x = mean - self.mean, x - mean
        self.scatter = self.scatter + x.T @ x + np.outer(shift, shift) * (self.n * len(x) / total)
        self.mean, self.n = self.mean + shift * (len(x) / total), total

    @property
    def sigma(self) -> np.ndarray:
        """The unbiased covariance (D, D)."""
        return self.scatter / (self.n - 1)


def reference_from_images(images: ImageSet, size: int, extractor: FeatureExtractorBase, progress: Callable = iter) -> Reference:
    """The reference of all centre crops of an own data set; features are kept of a fixed random choice of them."""
    if len(images) < 2:
        raise NppkitError(f"a reference of {len(images)} images has no covariance: give at least 2")
    chosen = np.sort(noise.permutation(len(images), 0, noise.PERMUTATION, 2**35)[:KEPT])
    moments, digest, features = Moments(), hashlib.sha256(), []
    for index in progress(np.array_split(np.arange(len(images)), math.ceil(len(images) / CHUNK))):
        pixels = reference_pixels(images.subset(index), size)
        digest.update(pixels)
        found = extract_features(extractor, torch.from_numpy(pixels))["features"]
        moments.add(found)
        features.append(found[np.isin(index, chosen)])
    source = f"{len(images)} own images, centre crops of side {size}"
    seen = (extractor.get_name(), extractor.sha256)
    return Reference(moments.mean, moments.sigma, torch.cat(features), chosen, source, digest.hexdigest(), *seen)


def reference_from_adm(path: str | Path, extractor: FeatureExtractorBase, size: int = 0) -> Reference:
    """The reference in ADM's file: `mu`, `sigma` of a whole training set, and images `arr_0` for the features.

    NppkitError names the file if its keys, shapes or values are wrong, are not of this extractor's features, or its images not
    of the `size` of those that are scored (0: any).
    """
    arrays, pixels = files.read_arrays(path, ("mu", "sigma")), read_npz(path)
    if size and tuple(pixels.shape[2:]) != (size, size):
        height, width = pixels.shape[2:]
        raise NppkitError(f"{path}: images of {width} x {height} pixels are no reference for {size} x {size}: give one of these")
    dim = extract_features(extractor, pixels[:1])["features"].shape[1]
    mu, sigma = check_moments(path, arrays["mu"], arrays["sigma"], dim)  # before minutes of features
    features = extract_features(extractor, pixels)["features"]
    seen = (extractor.get_name(), extractor.sha256)
    return Reference(mu, sigma, features, np.arange(len(features)), Path(path).name, files.sha256(path), *seen)


def load_reference(path: str | Path, extractor: FeatureExtractorBase) -> Reference:
    """A saved reference. NppkitError names the file if it is damaged, or was seen by another extractor."""
    a = files.read_arrays(path, Reference.__dataclass_fields__)
    text = {key: str(a[key]) for key in ("source", "digest", "extractor", "extractor_sha256")}
    name = extractor.get_name()
    if (text["extractor"], text["extractor_sha256"]) != (name, extractor.sha256):
        raise NppkitError(f"{path} holds features of {text['extractor']} with other weights: make it again with {name}")
    features, index = a["features"], a["index"]
    if features.dtype != np.float32 or features.ndim != 2 or index.shape != features.shape[:1]:
        raise NppkitError(f"{path}: features are {features.dtype} {features.shape}, not float32 (images, D) with an index each")
    check_finite(path, features=features)
    mu, sigma = check_moments(path, a["mu"], a["sigma"], features.shape[1])
    return Reference(mu, sigma, torch.from_numpy(features), index, **text)


def prepare_reference(
    setting: str, images: ImageSet, size: int, extractor: FeatureExtractorBase, cache: Path, progress: Callable = iter
) -> Reference:
    """The reference that `evaluation.reference` names (ADM's file, or a saved one); empty: that of the images.

    Features are extracted once and kept in the folder `cache`, under a digest of all that decides them.
    """
    file = files.located(setting)
    if setting and "features" in files.npz_keys(file):
        given = load_reference(file, extractor)
        if (side := re.search(r"crops of side (\d+)$", given.source)) and int(side[1]) != size:
            raise NppkitError(f"{file} is of images of side {side[1]}, and {size} is scored: make one of these")
        return given
    origin = files.sha256(file) if setting else f"{images.digest} {size} {KEPT}"
    key = hashlib.sha256(f"{origin} {extractor.get_name()} {extractor.sha256}".encode()).hexdigest()
    path = cache / f"reference-{key[:16]}.npz"
    with contextlib.suppress(NppkitError):  # where it is not there yet, or damaged
        return load_reference(path, extractor)
    made = reference_from_adm(file, extractor, size) if setting else reference_from_images(images, size, extractor, progress)
    made.save(path)
    return load_reference(path, extractor)


def check_moments(path: str | Path, mu: np.ndarray, sigma: np.ndarray, dim: int) -> tuple[np.ndarray, np.ndarray]:
    """mu (D,) and sigma (D, D) in fp64. NppkitError names the file if they are no moments of `dim` features."""
    if mu.shape != (dim,) or sigma.shape != (dim, dim):
        raise NppkitError(f"{path}: mu {mu.shape} and sigma {sigma.shape} are not of the extractor's {dim} features")
    check_finite(path, mu=mu, sigma=sigma)
    mu, sigma = mu.astype(np.float64), sigma.astype(np.float64)
    if np.abs(sigma - sigma.T).max() > 1e-4 * np.abs(sigma).max():
        raise NppkitError(f"{path}: sigma is not symmetric, so it is no covariance")
    if (np.diagonal(sigma) < 0).any():
        raise NppkitError(f"{path}: sigma has a negative variance, so it is no covariance")
    return mu, sigma


def check_finite(path: str | Path, **arrays: np.ndarray) -> None:
    """NppkitError names the file and the first array that holds something else than finite numbers."""
    for name, array in arrays.items():
        if not np.issubdtype(array.dtype, np.floating) or not np.isfinite(array).all():
            raise NppkitError(f"{path}: {name} ({array.dtype}) holds NaN, infinite or no real values")
