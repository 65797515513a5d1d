"""Evaluation: sample a checkpoint, compare with the reference images through torch-fidelity.

Every result carries its contract (contract.py).
"""

import functools
import math
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch_fidelity.feature_extractor_base import FeatureExtractorBase
from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric
from torch_fidelity.metric_isc import isc_features_to_metric
from torch_fidelity.metric_kid import kid_features_to_metric
from torch_fidelity.metric_prc import calc_cdist_full

from nppkit.data.codes import CodeStore
from nppkit.data.npz import read_npz, write_npz
from nppkit.errors import NppkitError
from nppkit.files import sha256
from nppkit.machine import devices
from nppkit.model import GPT
from nppkit.sample import SamplingConfig, sample_codes, sample_labels
from nppkit.scoring.config import NEIGHBOURS, EvaluationConfig
from nppkit.scoring.contract import IS_SPLIT, measurement
from nppkit.scoring.features import extract_features
from nppkit.scoring.probe import Probe
from nppkit.scoring.reference import Reference
from nppkit.tokenizer import VQModel, images_at_once, to_pixels
from nppkit.window import Grid


def draw_codes(model: GPT, labels: Tensor, config: SamplingConfig, index: np.ndarray) -> Tensor:
    """`sample_codes`, compiled or not as configured; plain where the compiler fails, which a line says once."""
    if config.compile and devices.may_compile():
        with suppress(devices.CannotCompile), devices.compiling():
            return sample_codes(model, labels, config, index)
    return sample_codes(model, labels, replace(config, compile=False), index)


@torch.inference_mode()
def generate(
    model: GPT,
    tokenizer: VQModel,
    config: SamplingConfig,
    samples: int,
    batch_size: int,
    progress: Callable = iter,
    draw: Callable = draw_codes,
    side: int = 0,
) -> tuple[Tensor, Tensor]:
    """Images uint8 (samples, 3, S, S) and labels (samples,); image i depends on (seed, i) alone. Of videos all frames.

    draw: what gives a batch's codes; side: S, where it is not that of the decoded images.
    """
    device, pixels = next(model.parameters()).device, torch.empty(0, dtype=torch.uint8)
    labels = torch.from_numpy(sample_labels(np.arange(samples), model.config.num_classes, config.seed, config.shares))
    for start in progress(range(0, samples, batch_size)):
        index = np.arange(start, min(start + batch_size, samples))
        decoded = decode_pixels(tokenizer, draw(model, labels[index].to(device), config, index), model.config.grid, side)
        frames = len(decoded) // len(index)
        if not start:  # all of them once: a list and its concatenation would hold them twice
            pixels = decoded.new_empty(samples * frames, *decoded.shape[1:])
        pixels[start * frames : start * frames + len(decoded)] = decoded
    return pixels, labels.repeat_interleave(len(pixels) // samples)


def decode_pixels(tokenizer: VQModel, codes: Tensor, grid: Grid = (), side: int = 0) -> Tensor:
    """uint8 images (n, 3, S, S) of codes (n, N), in fp32 whatever the codes were drawn in; of a video's grid all its frames.

    side: S of the "384" rows, which are seen at 256. They are resized as LlamaGen does (its sample_c2i_ddp.py): what is decoded,
    before it is rounded, bicubic and without antialias.
    """
    codes = codes.reshape(len(codes) * math.prod(grid[:-2]), -1)
    with torch.autocast(codes.device.type, enabled=False), torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        together = images_at_once(tokenizer.config.downsampling * math.isqrt(codes.shape[1]), codes.device)
        return torch.cat([to_pixels(at_side(tokenizer.decode(part), side)).cpu() for part in codes.split(together)])


def at_side(images: Tensor, side: int) -> Tensor:
    """Images (n, 3, S, S) in [-1, 1] at another side, or as they are where it is theirs or 0."""
    same = side in (0, images.shape[-1])
    return images if same else F.interpolate(images, size=(side, side), mode="bicubic")


@torch.inference_mode()
def class_samples(model: GPT, tokenizer: VQModel, config: SamplingConfig, columns: int, rows: int = 5) -> Tensor:
    """uint8 images (rows * columns, 3, S, S), row by row: a column for each of so many evenly spaced classes.

    Image i depends on (seed, i) and its class alone, so that two models can be compared image by image. Of videos all frames.
    """
    spaced = np.linspace(0, model.config.num_classes - 1, columns).round().astype(np.int64)
    labels = torch.from_numpy(np.tile(spaced, rows)).to(next(model.parameters()).device)
    return decode_pixels(tokenizer, draw_codes(model, labels, config, np.arange(len(labels))), model.config.grid)


def frechet_distance(features: Tensor, reference: Tensor | Reference) -> float:
    """Frechet distance in fp64 of features (n, D) from those of a reference, or from other features (m, D)."""
    ours = fid_features_to_statistics(features.double())
    theirs = vars(reference) if isinstance(reference, Reference) else fid_features_to_statistics(reference.double())
    return fid_statistics_to_metric(ours, theirs, verbose=False)["frechet_inception_distance"]


def score(generated: dict[str, Tensor], reference: Reference, kid_subsets: int = 10) -> dict[str, float]:
    """FID, IS, KID, precision and recall of generated `features` and `logits` against a reference.

    NppkitError if there are too few images for them, or values that are not finite.
    """
    g, r = generated["features"], reference.features
    if min(len(g), len(r)) <= NEIGHBOURS:
        raise NppkitError(f"{len(g)} images against {len(r)} cannot be scored: give more than {NEIGHBOURS} of each")
    if not all(values.isfinite().all() for values in generated.values()):
        raise NppkitError("the generated images have features that are not finite: check the extractor's weights")
    splits, subset = max(1, len(g) // IS_SPLIT), min(1000, len(g), len(r))
    kid = kid_features_to_metric(g, r, kid_subsets=kid_subsets, kid_subset_size=subset, verbose=False)
    precision, recall = precision_recall(g, reference)
    return {
        "fid": frechet_distance(g, reference),
        "inception_score": isc_features_to_metric(generated["logits"], splits=splits)["inception_score_mean"],
        "kid": kid["kernel_inception_distance_mean"],
        "precision": precision,
        "recall": recall,
    }


def precision_recall(generated: Tensor, reference: Reference) -> tuple[float, float]:
    """Precision and recall (Kynkaanniemi et al., 2019) of features (n, D): torch-fidelity's numbers.

    torch-fidelity would measure the reference anew at each guidance scale, and sort all distances for the third nearest.
    """
    far, near = radii(generated), reference_radii(reference)
    precise, recalled = torch.zeros_like(far, dtype=torch.bool), []
    for part, radius in zip(_parts(reference.features, len(generated)), _parts(near, len(generated)), strict=True):
        distances = calc_cdist_full(part, generated)
        recalled.append((distances <= far).any(1))
        precise |= (distances <= radius[:, None]).any(0)
    return precise.float().mean().item(), torch.cat(recalled).float().mean().item()


def _parts(rows: Tensor, columns: int) -> tuple[Tensor, ...]:
    """Rows whose distances from so many columns fill a gibibyte at most; up to 16,384 of both they come in one piece."""
    return rows.split(max(1, 2**28 // max(1, columns)))


def radii(features: Tensor) -> Tensor:
    """Distance (n,) of each feature (n, D) from its NEIGHBOURS-th nearest neighbour."""
    found = (calc_cdist_full(part, features).topk(NEIGHBOURS + 1, largest=False) for part in _parts(features, len(features)))
    return torch.cat([nearest.values[:, -1] for nearest in found])  # the nearest is itself


@functools.lru_cache(maxsize=1)
def reference_radii(reference: Reference) -> Tensor:
    """The same of a reference, once for all guidance scales."""
    return radii(reference.features)


def label_shares(setting: str, store: CodeStore, heldout: CodeStore) -> tuple[float, ...]:
    """The classes' shares of the training images, in which labels are drawn; none where they are drawn uniformly.

    Uniformly if the preset says so, or if the classes are of one size, of which a random part is held out.
    """
    train, held = (np.bincount(s.labels, minlength=store.num_classes) for s in (store, heldout))
    if setting == "uniform" or np.ptp(train) == 0 or np.ptp(train + held) == 0:
        return ()
    return tuple((train / train.sum()).tolist())


def sampling_roles(
    config: EvaluationConfig, cfg_scale: float, shares: tuple[float, ...] = ()
) -> dict[str, tuple[SamplingConfig, int]]:
    """How, and how many images, are sampled at one guidance scale: to select a scale, and to report."""
    shared = dict(temperature=config.temperature, top_k=config.top_k, top_p=config.top_p, compile=config.compile, shares=shares)
    roles = {"select": (config.select_seed, config.select_samples), "report": (config.report_seed, config.samples)}
    return {role: (SamplingConfig(cfg_scale=cfg_scale, seed=seed, **shared), n) for role, (seed, n) in roles.items()}


def evaluate_guidance(
    model: GPT,
    tokenizer: VQModel,
    extractor: FeatureExtractorBase,
    reference: Reference,
    config: EvaluationConfig,
    cfg_scale: float,
    image_size: int,
    progress: Callable = iter,
    folder: Path | None = None,
    draw: Callable = draw_codes,
    probe: Probe | None = None,
    shares: tuple[float, ...] = (),
) -> dict[str, float | None]:
    """Metrics at one guidance scale from the reporting seed, and `select_fid` from the selecting seed.

    `repeat_fid` is that of as many of the reported images as were drawn for selecting: it differs from `select_fid` by
    the sampling seed alone.

    With `config.save_npz` the reported images are written to `folder`. `agreement` is the share of images in whose
    class the extractor's classifier believes, or a linear probe of it; None where its classes are not the data's.
    """
    found = {}
    for role, (sampling, samples) in sampling_roles(config, cfg_scale, shares).items():
        pixels, labels = generate(model, tokenizer, sampling, samples, config.batch_size, progress, draw, image_size)
        found[role] = extract_features(extractor, pixels)  # the reported images come last and are kept
    if config.save_npz and folder:
        write_npz(folder / f"samples_cfg{cfg_scale:g}.npz", pixels)
    scores = score(found["report"], reference, config.kid_subsets)
    select_fid = frechet_distance(found["select"]["features"], reference)
    repeat_fid = frechet_distance(found["report"]["features"][: len(found["select"]["features"])], reference)
    named = extractor.get_name() == "digits"  # the only one that is trained on the data's classes
    seen = found["report"]["logits"].argmax(-1) if named else probe.classes(found["report"]["features"]) if probe else None
    agreement = None if seen is None else (seen == labels.cpu()).float().mean().item()
    return {"cfg_scale": cfg_scale, "select_fid": select_fid, "repeat_fid": repeat_fid, **scores, "agreement": agreement}


def evaluate_npz(
    path: str | Path, extractor: FeatureExtractorBase, reference: Reference, image_size: int, kid_subsets: int = 10
) -> dict:
    """Metrics and contract of the images in an npz file, anyone's. NppkitError names a file that holds none, or no squares."""
    pixels = read_npz(path)
    if pixels.shape[2] != (side := pixels.shape[3]):
        raise NppkitError(f"{path}: images of {pixels.shape[2]} x {side} pixels would be distorted: cut squares of them")
    scores = score(extract_features(extractor, resize(pixels, image_size)), reference, kid_subsets)
    terms = {"samples": len(pixels), "kid_subsets": kid_subsets, **measurement(reference, image_size)}
    terms |= {"resized_from": side} if side != image_size else {}
    return {"file": Path(path).name, "file_sha256": sha256(path), **scores, "contract": terms}


def resize(pixels: Tensor, size: int) -> Tensor:
    """uint8 images (n, 3, S, S), whose numbers alone are known, at another side: bicubic with antialias."""
    if pixels.shape[-2:] == (size, size):
        return pixels
    parts = (F.interpolate(part.float(), size=(size, size), mode="bicubic", antialias=True) for part in pixels.split(500))
    return torch.cat([part.round().clamp(0, 255).to(torch.uint8) for part in parts])


def nearest(features: Tensor, reference: Tensor) -> Tensor:
    """Index (n,) of the reference feature (m, D) nearest to each feature (n, D)."""
    return torch.cdist(features, reference).argmin(1)
