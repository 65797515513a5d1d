"""Released weights in and out: LlamaGen's and NPP's files, read without running anything they hold.

A release is a pickle. It is read by torch's restricted unpickler, compared with the model by name and shape,
and converted once to safetensors with a JSON file beside it. `export` writes what LlamaGen's scripts read.
"""

import argparse
import dataclasses
import functools
import json
import re
import sys
import zipfile
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from nppkit.errors import NppkitError
from nppkit.files import first_line, home, located, noted, replacing, sha256, write_atomic
from nppkit.model import GPT, MODELS, GPTConfig, count_parameters
from nppkit.release_table import RELEASES, Release, local
from nppkit.tokenizer import UNUSED, UNUSED_LENGTH, VQModel
from nppkit.tokenizer_config import TOKENIZERS, VQConfig

CONTAINERS = ("model", "module", "state_dict")  # of DDP, of DeepSpeed, of others; FSDP saves the state dict bare
EMA = ("ema", "model_ema", "ema_model")  # moving averages, by LlamaGen, timm and others: read where there are no other weights
# What wrappers leave in names, alone or nested, anywhere: torch.compile, DistributedDataParallel, FSDP, recomputed activations
WRAPPERS = ("_fsdp_wrapped_module.", "_checkpoint_wrapped_module.", "_orig_mod.", "module.")
LIGHTNING = "model"  # at the beginning of all, or of all but a moving average's
NUMBERS = (torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.bool)  # bool: which codes a tokenizer has used
COMPUTED = ("freqs_cis", "n_averaged")  # LlamaGen's rotary table follows from the configuration; torch's count of averaged models


def fetch(name: str) -> Path:
    """The file of that release: the one in weights/<repository>/, or downloaded there by the hub's client.

    Both repositories have a c2i_B_256.pt, so each has its folder. The client takes up a broken connection where it
    ended; whether also after a restart is for its version to say. NppkitError for an unknown or unpublished release,
    and where nothing can be downloaded; it says which file to put where.
    """
    if name not in RELEASES:
        raise NppkitError(f"release {name!r} is unknown: use one of {', '.join(RELEASES)}")
    release = RELEASES[name]
    if not release.repo:
        row = f"for the {release.size}-384 row there is LlamaGen-{release.size}-384"
        raise NppkitError(f"{name}: its weights were not released: train it, or use NPP-{release.size}-256 ({row})")
    path = home() / local(name)
    return path if path.is_file() else _download(release, path)


def find(name: str) -> Path:
    """The file that a preset means: a release by its name, or a path."""
    return fetch(name) if name in RELEASES else located(name)


def _download(release: Release, path: Path) -> Path:
    remedy = f"put {release.file} of https://huggingface.co/{release.repo} there"
    try:
        from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url
    except ImportError:
        raise NppkitError(f"{path} does not exist: {remedy}, or install huggingface_hub to download it") from None
    try:
        found = Path(hf_hub_download(release.repo, release.file, local_dir=path.parent))
        expected = get_hf_file_metadata(hf_hub_url(release.repo, release.file)).etag  # of a large file its sha256
    except Exception as error:  # OSError, or of the HTTP library, which changes with the hub client's version
        raise NppkitError(f"{path} cannot be downloaded ({first_line(error)}): {remedy}") from None
    if sha256(found) != expected:
        found.unlink()
        raise NppkitError(f"{path} was downloaded with another sha256 than the hub states, {expected}: fetch it again")
    return found


def read_state(path: Path) -> tuple[dict[str, Tensor], str]:
    """State dict of a release or a safetensors file, wrappers' prefixes removed, and the kind of container.

    A pickle may hold tensors, plain containers and argparse.Namespace (LlamaGen's "args"). NppkitError for
    anything else, which is not run, and for a missing or damaged file.
    """
    if not path.is_file():
        raise NppkitError(f"{path} does not exist: give the path of a weights file")
    if path.suffix == ".safetensors":
        return _unwrap(_read_safetensors(path), path), "safetensors"
    content = _unpickle(path)
    found = [k for k in (*CONTAINERS, *EMA) if isinstance(content, dict) and _is_state(content.get(k))]
    state = _unwrap(content[_first(found, path)] if found else content, path)
    if not state:
        raise NppkitError(f"{path} holds no state dict, alone or under {', '.join((*CONTAINERS, *EMA))}: give a weights file")
    return state, found[0] if found else "bare"


def _first(found: list[str], path: Path) -> str:
    """The first of the weights that a file holds; where there are more, or a moving average, it is said."""
    if len(found) > 1 or found[0] in EMA:
        print(f"{path}: {found[0]} is read{', not ' * (len(found) > 1)}{', '.join(found[1:])}", file=sys.stderr)
    return found[0]


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise NppkitError(f"{path} is damaged ({first_line(error)}): make it again or get it again") from None


def _unpickle(path: Path) -> object:
    lazy = zipfile.is_zipfile(path)  # a release's optimiser, two thirds of it, then stays on disk
    try:
        if lazy and (damaged := _damaged_part(path, path.stat().st_mtime_ns)):  # torch looks at no checksum
            raise zipfile.BadZipFile(damaged)
        with torch.serialization.safe_globals([argparse.Namespace]):
            return torch.load(path, map_location="cpu", weights_only=True, mmap=lazy)
    except Exception as error:  # a damaged pickle raises nearly anything
        refused = re.search(r"GLOBAL ([\w.]+)", str(error))
        damage = f"is no weights file, or damaged ({type(error).__name__})"
        reason = f"holds {refused[1]}, which could run code, and was refused" if refused else damage
        raise NppkitError(f"{path} {reason}: get it from its publisher") from None


@functools.lru_cache(maxsize=64)
def _damaged_part(path: Path, changed: int) -> str | None:
    """The first part of a zip file whose checksum is wrong, of a file of that time."""
    with zipfile.ZipFile(path) as content:
        return content.testzip()


def _is_state(content: object) -> bool:
    """Whether it is a state dict; not, e.g., settings of the same name."""
    pairs = content.items() if isinstance(content, dict) else ()
    return bool(pairs) and all(isinstance(key, str) and isinstance(value, Tensor) for key, value in pairs)


def _unwrap(content: object, path: Path) -> dict[str, Tensor]:
    """Names and tensors without wrappers' prefixes and computed tables; empty if it is no state dict."""
    if not _is_state(content):
        return {}
    names = {key: functools.reduce(lambda name, part: name.replace(part, ""), WRAPPERS, key) for key in content}
    first = {name.split(".")[0] for name in names.values()}
    if found := [name for name in (LIGHTNING, *EMA) if name in first] if first <= {LIGHTNING, *EMA} else []:
        prefix = _first(found, path) + "."
        names = {key: name.removeprefix(prefix) for key, name in names.items() if name.startswith(prefix)}
    return {name: content[key] for key, name in names.items() if key.split(".")[-1] not in COMPUTED}


def release_config(path: Path, grid_size: int = 0, n_head: int = 0) -> GPTConfig | VQConfig:
    """The configuration that a release's weights show, and two numbers that they do not.

    grid_size: 16 for models of 256 pixels, 24 for 384; 0 takes what `known_grid` knows. n_head: 0 takes it from the
    family's table by width and depth. NppkitError where neither is known, and for a file of something else.
    """
    state, _ = read_state(path)
    if "quantize.embedding.weight" in state:
        return next((c for c in TOKENIZERS.values() if _empty(c).state_dict().keys() == state.keys()), TOKENIZERS["VQ-16"])
    if not (grid_size := grid_size or known_grid(path)):
        raise NppkitError(f"{path}: weights do not hold the grid size, and this is no release's name: give it, 16 at 256 pixels")
    return _gpt_config(state, path, grid_size, n_head)


def _gpt_config(state: dict[str, Tensor], path: Path, grid_size: int, n_head: int) -> GPTConfig:
    try:
        (vocab_size, dim), classes = state["tok_embeddings.weight"].shape, len(state["cls_embedding.embedding_table.weight"])
        hidden, rows = len(state["layers.0.feed_forward.w1.weight"]), len(state["layers.0.attention.wqkv.weight"])
    except KeyError as error:
        raise NppkitError(f"{path} is not a transformer's weights ({error} is missing): give a release's file") from None
    except (ValueError, TypeError):
        raise NppkitError(f"{path} has weights of other shapes than a transformer's, as a shard: give a release's file") from None
    n_layer = sum(key.endswith("attention_norm.weight") for key in state)
    n_head = n_head or next((m["n_head"] for m in MODELS.values() if (m["dim"], m["n_layer"]) == (dim, n_layer)), 0)
    if not n_head:
        raise NppkitError(f"{path}: weights do not hold n_head, and {n_layer} layers of {dim} are no model of LlamaGen: give it")
    sizes = dict(dim=dim, n_layer=n_layer, n_head=n_head, vocab_size=vocab_size, num_classes=classes - 1, grid_size=grid_size)
    config = GPTConfig(**sizes)
    kv_heads = (rows // config.head_dim - n_head) // 2
    multiple_of = config.multiple_of if config.hidden_dim == hidden else hidden  # another family rounds otherwise
    return dataclasses.replace(config, n_kv_head=0 if kv_heads == n_head else kv_heads, multiple_of=multiple_of)


def check_state(state: dict[str, Tensor], model: torch.nn.Module, path: str | Path) -> None:
    """NppkitError with one line that names the file and the missing, unexpected, wrongly shaped and not finite tensors."""
    ours = {key: tuple(value.shape) for key, value in model.state_dict().items()}
    theirs = {key: tuple(value.shape) for key, value in state.items()}
    wrong = [f"{k} is {theirs[k]}, not {ours[k]}" for k in ours if k in theirs and ours[k] != theirs[k]]
    missing, unexpected = [k for k in ours if k not in theirs], [k for k in theirs if k not in ours]
    found = {"missing": missing, "unexpected": unexpected, "wrong shape": wrong}
    if text := "; ".join(f"{what}: {_some(names)}" for what, names in found.items() if names):
        raise NppkitError(f"{path} does not fit this {type(model).__name__} ({text}): check the size and the file")
    check_numbers(state, path)


def check_numbers(state: dict[str, Tensor], path: str | Path) -> None:
    """NppkitError with one line that names the file and what in it is NaN, infinite, or no dense tensor of such numbers."""
    if odd := [
        f"{key} ({v.dtype}, {v.layout})" for key, v in state.items() if v.dtype not in NUMBERS or v.layout != torch.strided
    ]:
        raise NppkitError(f"{path} holds {_some(odd)}: give it as a dense tensor of 16, 32 or 64 bits")
    if bad := [key for key, value in state.items() if value.is_floating_point() and not value.isfinite().all()]:
        raise NppkitError(f"{path} holds NaN or Inf in {_some(bad)}: get the file again, or take an earlier checkpoint")


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def load_weights(model: torch.nn.Module, path: Path) -> str:
    """Load a release, an export or a safetensors file into the model; returns the file's sha256.

    NppkitError if it does not fit, or is known to be of another grid, which is not among a transformer's weights.
    """
    state, _ = read_state(path)
    if isinstance(model, VQModel):
        state.setdefault(UNUSED, model.quantize.codebook_used)
    check_state(state, model, path)
    grid = model.config.grid_size if isinstance(model, GPT) else 0
    if grid and (known := known_grid(path)) not in (0, grid):
        raise NppkitError(f"{path} was trained on a grid of {known} x {known}, and the codes have {grid} x {grid}")
    model.load_state_dict(state)
    return sha256(path)


def known_grid(path: Path) -> int:
    """The grid side that a transformer's file is known to be of, by a release's name or by what `convert` wrote; 0: unknown."""
    config = noted(path.with_suffix(".json")).get("config") if path.suffix == ".safetensors" else None
    image_size = next((r.image_size for r in RELEASES.values() if r.file == path.name), 0)  # 0: no release's name
    return (config.get("grid_size") if isinstance(config, dict) else 0) or TOKENIZERS["VQ-16"].grid_size(image_size)


def convert(source: Path, out: Path, config: GPTConfig | VQConfig) -> dict:
    """Write a release as safetensors `out`, and as JSON beside it what it was; returns the latter."""
    if out.suffix != ".safetensors":
        raise NppkitError(f"{out}: the converted file is named *.safetensors")
    state, kind = read_state(source)
    check_state(state, model := _empty(config), source)
    about = {"source": source.name, "sha256": sha256(source), "container": kind, "class": type(model).__name__}
    settings = {key: value for key, value in dataclasses.asdict(config).items() if key != "names"}  # releases have class tokens
    about |= {"config": settings, "parameters": count_parameters(model)}
    with replacing(out) as temporary:
        save_file({key: value.clone().contiguous() for key, value in state.items()}, temporary)  # tensors may share memory
    write_atomic(out.with_suffix(".json"), json.dumps(about, indent=1) + "\n")
    return about


def _empty(config: GPTConfig | VQConfig) -> GPT | VQModel:
    """A model of these sizes without weights."""
    with torch.device("meta"):
        return GPT(config) if isinstance(config, GPTConfig) else VQModel(config)


def export(checkpoint: Path, out: Path) -> None:
    """Write the weights of a training checkpoint, or of any weights file, as LlamaGen's scripts read them.

    NppkitError for a damaged file or one of no model's weights, for a training that is still on patches, and for one that was
    told names in place of class tokens.
    """
    file = checkpoint / "model.safetensors" if checkpoint.is_dir() else checkpoint
    state, _ = read_state(file)
    note = noted(file.with_name("state.json"))
    check_numbers(state, file)
    if note.get("files", {}).get(file.name, "") not in ("", sha256(file)):
        raise NppkitError(f"{file} is damaged: take another checkpoint")
    if note.get("condition") == "names":
        raise NppkitError(f"{checkpoint} was trained on names of classes, which LlamaGen does not read: draw from it here")
    if note.get("patches_left"):
        raise NppkitError(f"{checkpoint} still trains on patches: take a checkpoint of the end")
    if patches := [key for key in state if key.startswith("windows.")]:
        raise NppkitError(f"{checkpoint} holds {_some(patches)}: it still trains on patches; take a checkpoint of the end")
    if not {"tok_embeddings.weight", "quantize.embedding.weight"} & state.keys():
        raise NppkitError(f"{file} holds no transformer's or tokenizer's weights: give a checkpoint's folder")
    if "quantize.embedding.weight" in state:
        state.setdefault(UNUSED, torch.zeros(UNUSED_LENGTH))
    with replacing(out) as temporary:
        torch.save({"model": state}, temporary)
