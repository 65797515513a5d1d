"""Training of the tokenizer: images to a VQ model, which then stays as it is."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from nppkit import noise
from nppkit.data.config import DataConfig, TokenizerConfig
from nppkit.data.images import CROPS, ImageSet, crop_images, some_images
from nppkit.errors import NppkitError
from nppkit.files import sha256, write_atomic
from nppkit.releases import find, load_weights
from nppkit.settings import settings
from nppkit.tokenizer import TOKENIZERS, VQConfig, VQModel, to_model_range

CPU = torch.device("cpu")
UNUSED = "quantize.codebook_used"  # of the released state dict; a kept tokenizer may lack it: it is a quarter of the file
MAX_BYTES = 4 * 10**9  # of pixels in memory that a tokenizer trains on
REVIVE_EVERY = 50  # steps between two looks for codes that nothing uses


def all_crops(images: ImageSet, crops: str, size: int) -> Tensor:
    """Every crop of every image, uint8 (n, crops, 3, size, size)."""
    pixels = np.stack([crop_images(images.load(i), crops, size) for i in range(len(images))])
    return torch.from_numpy(pixels).permute(0, 1, 4, 2, 3).contiguous()


def random_crops(pixels: Tensor, batch_size: int, *key: int) -> tuple[Tensor, Tensor]:
    """A random crop of random images, and the images' indices; a pure function of the key."""
    slot = np.arange(batch_size)
    index = noise.integers(pixels.shape[0], *key, noise.PERMUTATION, slot)
    crop = noise.integers(pixels.shape[1], *key, noise.CROP, slot)
    return pixels[index, crop], torch.from_numpy(index)


def one_cycle(optimizer: torch.optim.Optimizer, lr: float, steps: int) -> torch.optim.lr_scheduler.LRScheduler:
    """Up for the first tenth of the steps; of ten steps for a fifth, because OneCycleLR cannot rise in a single one."""
    return torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=steps, pct_start=0.2 if steps == 10 else 0.1)


def fit_tokenizer(
    pixels: Tensor, config: VQConfig, t: TokenizerConfig, progress: Callable = iter, device: torch.device = CPU
) -> tuple[VQModel, list[dict]]:
    """Train a VQ tokenizer on uint8 crops (n, crops, 3, S, S) with L1 and squared error. Returns it and its history.

    The codebook starts from latents of the first batch, and a code that nothing used since the last look
    moves to a random latent: otherwise most codes of a small codebook die.
    """
    torch.manual_seed(noise.torch_seed(t.seed))
    model = VQModel(config).train().to(device, memory_format=torch.channels_last)  # a tenth faster on CPU
    optimizer = torch.optim.AdamW(model.parameters(), lr=t.lr, betas=(0.9, 0.95), weight_decay=0.0, fused=True)
    schedule, used, history = one_cycle(optimizer, t.lr, t.steps), torch.zeros(config.codebook_size, device=device), []
    for step in progress(range(t.steps)):
        images = to_model_range(random_crops(pixels, t.batch_size, t.seed, step)[0].to(device))
        if step % REVIVE_EVERY == 0 and step < 0.7 * t.steps:
            _revive(model, images, used, step, t.seed)
        reconstruction, codebook_loss, codes = model(images)
        l1, l2 = F.l1_loss(reconstruction, images), F.mse_loss(reconstruction, images)
        (l1 + l2 + codebook_loss).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        schedule.step()
        used += torch.bincount(codes.flatten(), minlength=config.codebook_size)
        history.append({"step": step + 1, "l1": l1.item(), "l2": l2.item(), "codebook_loss": codebook_loss.item()})
    return model.eval(), history


@torch.no_grad()
def _revive(model: VQModel, images: Tensor, used: Tensor, step: int, seed: int) -> None:
    """Move every code that is unused since the last look to a random latent of the batch."""
    dead = (used == 0).nonzero()[:, 0]
    latents = model.latent(images).permute(0, 2, 3, 1).flatten(0, 2)
    pick = noise.integers(len(latents), seed, step, 0, np.arange(len(dead)))
    model.quantize.embedding.weight[dead] = latents[pick]
    used.zero_()


def prepare_tokenizer(
    t: TokenizerConfig, data: DataConfig, train: ImageSet, folder: Path, progress: Callable = iter, device: torch.device = CPU
) -> tuple[VQModel, list[dict]]:
    """The tokenizer, saved in `folder`: loaded from its weights file, or trained. Returns it and its history.

    It trains on all crops of as many random images as fit 4 GB, which are held in memory. One that was trained from the
    same already is loaded, without a history: when an extraction is killed, its tokenizer and its codes stay.
    """
    weights, origin, config = folder / "tokenizer.safetensors", folder / "tokenizer.origin", tokenizer_config(t, data.image_size)
    if t.weights:
        model, history = VQModel(config), []
        load_weights(model, find(t.weights))
    elif t.steps:
        if origin.is_file() and weights.is_file() and origin.read_text() == _origin(t, data, train, weights):
            return load_tokenizer(folder), []
        crops, size = data.crops, data.image_size
        fitting = MAX_BYTES // (CROPS.get(crops, 1) * 3 * size**2)
        pixels = all_crops(train if len(train) <= fitting else some_images(train, fitting), crops, size)
        model, history = fit_tokenizer(pixels, config, t, progress, device)
    else:
        raise NppkitError("tokenizer needs weights (a file) or steps (to train one): see nppkit/presets/demo.yaml")
    folder.mkdir(parents=True, exist_ok=True)
    save_file({key: value.contiguous() for key, value in model.state_dict().items()}, weights)
    (folder / "tokenizer.json").write_text(json.dumps(asdict(config)) + "\n")
    if history:
        write_atomic(origin, _origin(t, data, train, weights))
    return model.eval(), history


def _origin(t: TokenizerConfig, data: DataConfig, images: ImageSet, weights: Path) -> str:
    """What a tokenizer was trained from and on, and its file, as digests."""
    source = json.dumps([settings(data), settings(t), images.digest], sort_keys=True)
    return f"{hashlib.sha256(source.encode()).hexdigest()} {sha256(weights)}"


def tokenizer_config(t: TokenizerConfig, image_size: int) -> VQConfig:
    """The tokenizer's configuration, checked against the image size."""
    if t.name and t.name not in TOKENIZERS:
        raise NppkitError(f"tokenizer.name {t.name!r} is unknown: use {', '.join(TOKENIZERS)} or vq")
    try:
        config = TOKENIZERS[t.name] if t.name else VQConfig(**t.vq)
    except TypeError as error:
        raise NppkitError(f"tokenizer.vq: {error}") from None
    config.grid_size(image_size)
    return config


def load_tokenizer(folder: Path) -> VQModel:
    """The frozen tokenizer that a tokenize job saved in `folder`. NppkitError names a missing or damaged file."""
    try:
        model = VQModel(VQConfig(**json.loads((folder / "tokenizer.json").read_text())))
        state = load_file(folder / "tokenizer.safetensors")
        model.load_state_dict({UNUSED: model.quantize.codebook_used, **state})
    except (OSError, ValueError, TypeError, RuntimeError, SafetensorError) as error:
        reason = str(error).splitlines()[0]
        raise NppkitError(f"{folder} holds no tokenizer ({reason}): run the tokenize notebook") from None
    return model.eval().requires_grad_(False)
