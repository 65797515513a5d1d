"""Sampling: next-token decoding with a key-value cache, guidance, temperature, top-k and top-p.

A sample's label and noise belong to its index, so the same images come whatever the batch size or
the number of processes.
"""

import functools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from numbers import Integral, Real

import numpy as np
import torch
from torch import Tensor, nn

from nppkit import noise
from nppkit.errors import NppkitError
from nppkit.grouping import require_range
from nppkit.model import GPT, KVCache, StaticKVCache, evaluating


@dataclass(frozen=True)
class SamplingConfig:
    """How tokens are drawn. top_k 0 and top_p 1 filter nothing, top_k 1 leaves the most likely token alone.

    cfg_scale: of classifier-free guidance, 1 is none; cfg_interval: the last token that is guided, counted as LlamaGen does from
    0 at the second, -1 for all; seed: of the noise, which belongs to (seed, sample's index, token).
    compile: the decoding step as one CUDA graph, for GPUs; shares: of the classes among labels that are drawn, none: all alike.
    NppkitError for values out of range.

    >>> SamplingConfig(cfg_scale=2.0, top_k=100).temperature
    1.0
    """

    cfg_scale: float = 1.0
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    cfg_interval: int = -1
    seed: int = 0
    compile: bool = False
    shares: tuple[float, ...] = ()

    def __post_init__(self):
        whole = ("top_k", "cfg_interval", "seed")
        for name in ("cfg_scale", "temperature", "top_p", *whole):
            value, kind = getattr(self, name), Integral if name in whole else Real
            if not (isinstance(value, kind) and math.isfinite(value)):
                raise NppkitError(f"{name} {value!r} is not {'an integer' if name in whole else 'a number: 1 changes nothing'}")
        if self.temperature <= 0:
            raise NppkitError(f"temperature {self.temperature} must be above 0: 1 leaves the logits as they are")
        if not 0 < self.top_p <= 1:
            raise NppkitError(f"top_p {self.top_p} is outside (0, 1]: 1 keeps every token")
        if self.top_k < 0 or self.cfg_scale < 0:
            raise NppkitError(f"top_k {self.top_k} and cfg_scale {self.cfg_scale} must not be negative")
        object.__setattr__(self, "shares", tuple(map(float, self.shares)))
        _check_shares(self.shares)


def _check_shares(shares: tuple[float, ...]) -> None:
    if len(shares) and not (min(shares) >= 0 and math.isclose(sum(shares), 1, abs_tol=1e-6)):
        raise NppkitError(f"shares {tuple(shares)} must be 0 or more each and 1 together")


def filter_logits(logits: Tensor, top_k: int = 0, top_p: float = 1.0) -> Tensor:
    """Logits (..., V) with -inf outside the top k, then outside the nucleus: kept while the mass before is <= top_p."""
    if 0 < top_k < logits.shape[-1]:
        smallest = logits.topk(top_k).values[..., -1:]
        logits = logits.masked_fill(logits < smallest, -torch.inf)
    if top_p < 1:
        ordered, order = logits.sort(-1, descending=True)
        p = ordered.softmax(-1)
        mass_before = p.cumsum(-1) - p
        remove = torch.zeros_like(mass_before, dtype=torch.bool).scatter(-1, order, mass_before > top_p)
        logits = logits.masked_fill(remove, -torch.inf)
    return logits


def guide(logits: Tensor, cfg_scale: float) -> Tensor:
    """Classifier-free guidance, uncond + s * (cond - uncond), of stacked logits (2 B, V) -> (B, V)."""
    cond, uncond = logits.chunk(2)
    return uncond + cfg_scale * (cond - uncond)


def pick(logits: Tensor, u: Tensor) -> Tensor:
    """Draw one token per row of logits (B, V) by inverting the distribution at u (B,) in [0, 1)."""
    cumulative = logits.double().softmax(-1).cumsum(-1)
    index = torch.searchsorted(cumulative, (u * cumulative[:, -1])[:, None], right=True)[:, 0]
    return index.clamp(max=logits.shape[-1] - 1)


def sample_labels(index: np.ndarray, num_classes: int, seed: int, shares: tuple[float, ...] = ()) -> np.ndarray:
    """Class labels (n,) of the samples with these indices (n,): a pure function of (seed, index), uniform or in these shares.

    NppkitError for no classes, shares of another number of them, or a seed or index that is not an integer.

    >>> sample_labels(np.arange(5), num_classes=10, seed=0).tolist() == sample_labels(np.arange(9), 10, 0)[:5].tolist()
    True
    """
    if num_classes < 1:
        raise NppkitError(f"num_classes {num_classes}: give one or more")
    if not len(shares):
        return noise.integers(num_classes, seed, noise.SAMPLE_LABEL, index)
    _check_shares(shares)
    if len(shares) != num_classes:
        raise NppkitError(f"{len(shares)} shares are not those of {num_classes} classes: give one a class")
    edges = np.cumsum(shares)
    return np.searchsorted(edges, noise.uniform(seed, noise.SAMPLE_LABEL, index) * edges[-1], side="right")


def decoder(model: GPT, batch_size: int, device: torch.device, dtype: torch.dtype) -> Callable[[Tensor, int], Tensor]:
    """The decoding step of a new batch: (embeddings (B, C), position) -> logits (B, V)."""
    caches = [KVCache(model.config, batch_size, device, dtype) for _ in model.layers]
    return lambda x, position: model.decode(x, position, caches)


def compiled_decoder(model: GPT, batch_size: int, device: torch.device, dtype: torch.dtype) -> Callable[[Tensor, int], Tensor]:
    """The same with static shapes, under torch.compile, which makes a CUDA graph of it."""
    caches, decode = _compiled(model, batch_size, device, dtype)
    for cache in caches:
        cache.length.zero_()
    positions = torch.arange(model.config.positions, device=device)[:, None]
    return lambda x, position: decode(x, positions[position], caches)


@functools.lru_cache(maxsize=4)  # whole batches and the last one, guided and not: torch compiles eight at most, then none
def _compiled(model: GPT, *shape: int | torch.device | torch.dtype) -> tuple[nn.ModuleList, Callable]:
    """Caches that stay where they are from batch to batch, as a CUDA graph needs them, and the step."""
    caches = nn.ModuleList(StaticKVCache(model.config, *shape) for _ in model.layers)
    return caches, torch.compile(model.decode, mode="reduce-overhead", dynamic=False)


def _begin(model: GPT, labels: Tensor, compiled: bool) -> tuple[Callable[[Tensor, int], Tensor], Tensor]:
    """The decoding step of a new batch that has seen all of its condition but the last embedding (B, C), which comes with it."""
    dtype, kind = model.output.weight.dtype, labels.device.type
    if torch.is_autocast_enabled(kind):
        dtype = torch.get_autocast_dtype(kind)
    step = (compiled_decoder if compiled else decoder)(model, len(labels), labels.device, dtype)
    *before, last = model.condition(labels).unbind(1)
    for position, x in enumerate(before):
        step(x, position)
    return step, last


@torch.inference_mode()
def decode_tokens(
    model: GPT, labels: Tensor, config: SamplingConfig, index: np.ndarray | None = None, prefix: Tensor | None = None
) -> Iterator[Tensor]:
    """Yield the codes (B,) of one grid cell after another, in raster order, of a model that is in eval mode.

    labels: (B,) integers, num_classes is "no class"; index: (B,) sample indices that decide the noise, without them 0 ... B - 1;
    prefix: (B, n) codes that are given and not drawn. NppkitError for other shapes, values that are no integers or out of range,
    and logits that are not finite: no token comes of them; on a GPU, which is not waited for at each token, at the end.
    """
    c, device = model.config, labels.device
    for name, rows, axes in (("labels", labels, 1), ("index", index, 1), ("prefix", prefix, 2)):
        if rows is not None and (np.ndim(rows) != axes or not 0 < len(rows) == len(labels)):
            raise NppkitError(f"{name} {[*np.shape(rows)]} for labels {[*labels.shape]}: give one label or more, a row for each")
    index = np.arange(len(labels)) if index is None else np.asarray(index)
    labels = require_range(labels, c.num_classes + 1, "labels")
    if prefix is not None:
        prefix = require_range(prefix, c.vocab_size, "prefix codes")
    guided = config.cfg_scale != 1
    if guided:
        labels = torch.cat([labels, torch.full_like(labels, c.num_classes)])
    step, x = _begin(model, labels, config.compile)
    u = torch.from_numpy(noise.uniform(config.seed, noise.SAMPLE_TOKEN, index[:, None], np.arange(c.block_size))).to(device)
    finite = torch.ones((), dtype=torch.bool, device=device)
    for position in range(c.block_size):
        logits = step(x, c.prefix - 1 + position).float()
        if guided:
            off = -1 < config.cfg_interval < position - 1  # LlamaGen counts from the second token
            logits = logits.chunk(2)[0] if off else guide(logits, config.cfg_scale)
        finite = finite & (logits := logits / config.temperature).isfinite().all()
        if (device.type == "cpu" or position == c.block_size - 1) and not finite:
            raise NppkitError(
                f"logits at or before token {position} are not finite: check the weights, cfg_scale and temperature"
            )
        logits = filter_logits(logits, config.top_k, config.top_p)
        codes = pick(logits, u[:, position])
        if prefix is not None and position < prefix.shape[1]:
            codes = prefix[:, position]
        yield codes
        x = model.tok_embeddings(codes)
        x = torch.cat([x, x]) if guided else x


def sample_codes(model: GPT, labels: Tensor, config: SamplingConfig, index: np.ndarray | None = None) -> Tensor:
    """Codes (B, N) int64 of one batch of images (Section 3.1: guidance, temperature 1).

    labels: (B,) integers, a class for each image, num_classes for "no class"; index: (B,) integers, each image's noise: the
    same image comes of the same label, index and seed, whatever else is in the batch; without them 0 ... B - 1. A model in
    training mode is in eval mode meanwhile: dropout is off. NppkitError for other shapes, values that are no integers or out of
    range, and logits that are not finite.

    >>> from nppkit import GPTConfig
    >>> model = GPT(GPTConfig(dim=16, n_layer=1, n_head=2, vocab_size=32, num_classes=10, grid_size=4)).eval()
    >>> labels, index = torch.tensor([3, 7]), np.arange(2)  # the noise of a sample belongs to its index
    >>> tuple(sample_codes(model, labels, SamplingConfig(cfg_scale=2.0, seed=1), index).shape)
    (2, 16)
    """
    with evaluating(model):
        return torch.stack(list(decode_tokens(model, labels, config, index)), 1)
