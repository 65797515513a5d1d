"""Texts: the documents that Python's standard library brings, as windows of bytes in a code store."""

import hashlib
import lzma
import math
from pathlib import Path

import numpy as np

from nppkit import noise
from nppkit.data.codes import CodeStore, Manifest
from nppkit.data.config import DataConfig
from nppkit.data.extract import in_form, write_store
from nppkit.errors import NppkitError

VOCABULARY = 256  # a code is a byte


def documents() -> dict[str, str]:
    """The topics of Python's `help` by name: parts of its language reference (English; PSF licence).

    They quote each other: a paragraph is kept in the first topic alone, so that nothing is both trained on and held out.
    """
    from pydoc_data.topics import topics

    first, kept = {}, {}
    for name, text in sorted(topics.items()):
        paragraphs = [p for p in text.split("\n\n") if first.setdefault(" ".join(p.split()), name) == name]
        kept[name] = "\n\n".join(paragraphs)
    return {name: text for name, text in kept.items() if text.strip()}


def study_texts(data: DataConfig) -> tuple[dict[str, str], dict[str, str]]:
    """A preset's training and held-out documents, drawn at random once with a fixed seed. NppkitError for too many held out."""
    found = documents()
    order = [list(found)[i] for i in noise.permutation(len(found), 0, noise.PERMUTATION, 2**32)][: data.limit or None]
    if not 0 < data.heldout < len(order):
        raise NppkitError(f"data.heldout {data.heldout}: hold out at least one of {len(order)} documents, and not all of them")
    return tuple({name: found[name] for name in names} for names in (order[data.heldout :], order[: data.heldout]))


def windows(texts: dict[str, str], length: int) -> np.ndarray:
    """The documents' bytes one after the other, uint8 (n, length); what does not fill a window is left out."""
    content = np.frombuffer("\n\n".join(texts.values()).encode(), np.uint8)
    if len(content) < length:
        raise NppkitError(f"data.window {length} is longer than the text of {len(content)} bytes: use a shorter one")
    return content[: len(content) // length * length].reshape(-1, length)


def store_text(folder: Path, content: np.ndarray, packed: bool = False) -> CodeStore:
    """Windows (n, length) as a code store of one class, whose grid has one axis."""
    digest, grid = hashlib.sha256(content.tobytes()).hexdigest(), [content.shape[1]]
    about = Manifest(len(content), 1, grid, VOCABULARY, ["text"], "bytes", digest, image_size=0)
    write_store(folder, about, content[:, None], np.zeros(len(content), np.int64))
    return in_form(CodeStore(folder), packed)


def baselines(training: np.ndarray, heldout: np.ndarray) -> dict[str, float]:
    """What simple models of the training text say of the held-out one, in nats a byte: what a transformer must beat.

    Frequencies of bytes, and of bytes behind a byte, each counted once more than seen; and what xz needs for it behind the other.
    """
    seen, new = training.ravel(), heldout.ravel()
    pairs = np.bincount(seen[:-1] * np.int64(VOCABULARY) + seen[1:], minlength=VOCABULARY**2).reshape(VOCABULARY, VOCABULARY) + 1
    single = np.bincount(seen, minlength=VOCABULARY) + 1
    packed = [len(lzma.compress(content, preset=9)) for content in (seen.tobytes(), seen.tobytes() + new.tobytes())]
    return {
        "bytes_alone": float(-np.log(single / single.sum())[new].mean()),
        "bytes_behind_a_byte": float(-np.log(pairs / pairs.sum(1, keepdims=True))[new[:-1], new[1:]].mean()),
        "xz": (packed[1] - packed[0]) * 8 * math.log(2) / len(new),
    }
