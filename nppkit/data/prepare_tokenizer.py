"""A preset's tokenizer, frozen: from a release or a file, or trained (train_tokenizer.py); kept in a folder and read again."""

import json
import shutil
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from nppkit.data.config import DataConfig, TokenizerConfig
from nppkit.data.images import CROPS, ImageSet, some_images, source_contents
from nppkit.data.train_tokenizer import all_crops, train_tokenizer
from nppkit.errors import NppkitError
from nppkit.files import first_line, home, json_digest, replacing, sha256, write_atomic
from nppkit.machine.devices import CPU
from nppkit.machine.guard import exclusive
from nppkit.releases import find, load_weights
from nppkit.settings import settings
from nppkit.tokenizer import UNUSED, VQModel
from nppkit.tokenizer_config import VQConfig

MAX_BYTES = 4 * 10**9  # of pixels that a tokenizer trains on; while they are read, memory holds them twice


def prepare_tokenizer(
    t: TokenizerConfig, data: DataConfig, train: ImageSet, folder: Path, progress: Callable = iter, device: torch.device = CPU
) -> tuple[VQModel, list[dict]]:
    """The tokenizer, saved in `folder`: loaded from its weights file, or trained. Returns it and its history.

    It trains on all crops of as many random images as fit 4 GB, which are held in memory, twice while they are read. One that
    was trained from the same already is loaded, without a history: when an extraction is killed, its tokenizer and its codes
    stay.
    """
    weights, origin = folder / "tokenizer.safetensors", folder / "tokenizer.origin"
    if t.weights:
        model = VQModel(t.network)
        load_weights(model, find(t.weights))
        return _kept(model, folder), []
    source = _source(t, data, train)
    if origin.is_file() and weights.is_file() and origin.read_text() == f"{source} {sha256(weights)}":
        return load_tokenizer(folder), []
    crops, size = data.crops, data.image_size
    fitting = MAX_BYTES // (CROPS[crops] * 3 * size**2)
    pixels = all_crops(train if len(train) <= fitting else some_images(train, fitting), crops, size)
    saved = home() / "checkpoints" / "tokenizers" / source[:16]
    with exclusive(saved.parent, saved.name):  # another preset with the same settings may train the same one
        model, history = train_tokenizer(pixels, t.network, t, progress, device, saved, source)
        _kept(model, folder)
        write_atomic(origin, f"{source} {sha256(weights)}")  # what it was trained from and on, and its file
        shutil.rmtree(saved, ignore_errors=True)
    return model.eval(), history


def _kept(model: VQModel, folder: Path) -> VQModel:
    """The tokenizer, in eval mode, its weights and sizes in the folder."""
    with replacing(folder / "tokenizer.safetensors") as temporary:
        save_file({key: value.contiguous() for key, value in model.state_dict().items()}, temporary)
    write_atomic(folder / "tokenizer.json", json.dumps(asdict(model.config)) + "\n")
    return model.eval()


def _source(t: TokenizerConfig, data: DataConfig, images: ImageSet) -> str:
    """Digest of what a tokenizer is trained from and on: settings, images, and the files that settings name."""
    files = [source_contents(find(name)) for name in (t.start, t.perceptual_weights) if name]
    return json_digest([settings(data), settings(t), images.digest, *files])


def load_tokenizer(folder: Path) -> VQModel:
    """The frozen tokenizer that a tokenize job saved in `folder`. NppkitError names a missing or damaged file."""
    try:
        model = VQModel(VQConfig(**json.loads((folder / "tokenizer.json").read_text())))
        state = load_file(folder / "tokenizer.safetensors")
        model.load_state_dict({UNUSED: model.quantize.codebook_used, **state})
    except (OSError, ValueError, TypeError, RuntimeError, SafetensorError) as error:
        raise NppkitError(f"{folder} holds no tokenizer ({first_line(error)}): run the tokenize notebook") from None
    return model.eval().requires_grad_(False)
