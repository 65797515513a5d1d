"""Which codes each optimiser step sees: a pure function of (seed, step, sample)."""

import functools

import numpy as np
import torch
from torch import Tensor

from nppkit import noise
from nppkit.data.codes import CodeStore

permuted = functools.lru_cache(maxsize=2)(noise.permutation)  # the same one for every step of a visit


def batch_at(store: CodeStore, step: int, batch_size: int, seed: int, label_dropout: float = 0.0) -> tuple[Tensor, Tensor]:
    """The global batch of one step: codes (B, N) and labels (B,), some replaced by "unconditional".

    Sample s = step * B + slot is image number s mod n of visit s // n of the data, in that visit's random order.
    """
    slot = np.arange(batch_size)
    visit, position = np.divmod(step * batch_size + slot, len(store))
    orders = {v: permuted(len(store), seed, noise.PERMUTATION, v) for v in np.unique(visit).tolist()}
    images = np.concatenate([order[position[visit == v]] for v, order in orders.items()])
    crops = noise.integers(store.crops, seed, noise.CROP, step, slot)
    codes, labels = store.batch(images, crops)
    dropped = noise.uniform(seed, noise.LABEL_DROPOUT, step, slot) < label_dropout
    labels[torch.from_numpy(dropped)] = store.num_classes
    return codes, labels
