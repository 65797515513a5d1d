"""LlamaGen's own codes, folders of one .npy file an image, as a code store."""

import hashlib
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np

from nppkit.data.codes import UNKNOWN, CodeStore, Manifest
from nppkit.data.config import MAX_VOCABULARY
from nppkit.data.extract import publish, stored_manifest, write_header
from nppkit.errors import NppkitError
from nppkit.files import check_space, sync
from nppkit.machine.guard import exclusive
from nppkit.tokenizer_config import TOKENIZERS


def import_llamagen(
    codes: list[Path],
    labels: Path,
    folder: str | Path,
    vocab_size: int = TOKENIZERS["VQ-16"].codebook_size,
    class_names: list[str] | None = None,
    tokenizer_sha256: str = UNKNOWN,
    image_size: int = 0,
    progress: Callable = iter,
) -> CodeStore:
    """LlamaGen's folders of {i}.npy, codes (1, crops, N) and labels (1,), as a store; several code folders add crops.

    Without class_names the classes are 0 ... the largest label; image_size 0 is VQ-16's 16 pixels a code. NppkitError
    names the first file that is missing, not of integers, out of range, or of another shape than the first, and a folder that
    holds codes that were extracted, or that another process imports to.
    """
    folder, codes, labels = Path(folder), list(map(Path, codes)), Path(labels)
    _check_given(vocab_size, image_size, class_names or [])
    if (there := stored_manifest(folder)) and not there.imported:
        raise NppkitError(f"{folder} holds codes that were extracted here: remove the folder, or name another")
    n, sets = _count_files([*codes, labels]), len(codes)
    _, crops, tokens = first = _check_shape(codes[0] / "0.npy")
    grid, shape = math.isqrt(tokens), (n, sets * crops, tokens)
    with exclusive(folder, "codes"):
        check_space(folder, 2 * math.prod(shape), "the codes")
        part, digest, targets = folder / "codes.npy.import.part", hashlib.sha256(), np.zeros(n, np.int64)
        with open(part, "wb") as file:
            write_header(file, shape)
            for i in progress(range(n)):
                row = np.concatenate([_read_codes(path / f"{i}.npy", first, vocab_size) for path in codes]).tobytes()
                targets[i] = _read_label(labels / f"{i}.npy", class_names)
                digest.update(row)
                file.write(row)
        sync(part)
        digest.update(targets.tobytes())
        names = class_names or [str(label) for label in range(targets.max() + 1)]
        side = image_size or grid * TOKENIZERS["VQ-16"].downsampling
        about = n, shape[1], grid, vocab_size, names, tokenizer_sha256, digest.hexdigest(), side
        publish(part, folder, targets, Manifest(*about, imported=True))
    return CodeStore(folder)


def _check_given(vocab_size: int, image_size: int, names: list[str]) -> None:
    if vocab_size > MAX_VOCABULARY:
        raise NppkitError(f"vocab_size {vocab_size} does not fit uint16: {MAX_VOCABULARY:,} at most")
    if image_size < 0:
        raise NppkitError(f"image_size {image_size}: give pixels, or 0 for VQ-16's")
    if len(names) > len(set(names)):
        raise NppkitError(f"class name {max(names, key=names.count)!r} stands twice: tell the classes apart")
    if bad := [name for name in names if not (name.strip() and name.isprintable())]:
        raise NppkitError(f"class name {bad[0]!r}: give each class a printable one, in UTF-8")


def _count_files(folders: list[Path]) -> int:
    """How many there are, n. NppkitError if a folder lacks one of 0.npy ... {n - 1}.npy."""
    numbers = {}
    for folder in folders:
        if not folder.is_dir():
            raise NppkitError(f"{folder} does not exist: give a folder of 0.npy, 1.npy, ...")
        numbers[folder] = {int(p.stem) for p in folder.iterdir() if p.suffix == ".npy" and p.stem.isdecimal()}
    n = max((max(found) + 1 for found in numbers.values() if found), default=1)
    for folder, found in numbers.items():
        if len(found) < n:
            missing = next(i for i in range(n) if i not in found)
            raise NppkitError(f"{folder}/{missing}.npy is missing: of {n} files, {n - len(found)} are; copy or extract them")
    return n


def _load_integers(path: Path) -> np.ndarray:
    try:
        array = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise NppkitError(f"{path} cannot be read ({error}): copy or extract it again") from None
    if not isinstance(array, np.ndarray) or array.dtype.kind not in "iu":
        kind = getattr(array, "dtype", "several arrays")
        raise NppkitError(f"{path} holds {kind}, not integers, and rounding would change codes: extract it again")
    return array


def _check_shape(path: Path) -> tuple[int, ...]:
    """The shape (1, crops, N) of a file of codes, N a square number."""
    shape = _load_integers(path).shape
    if len(shape) != 3 or shape[0] != 1 or 0 in shape or math.isqrt(shape[2]) ** 2 != shape[2]:
        raise NppkitError(f"{path} has shape {shape}, not (1, crops, tokens of a square grid): give a folder of codes")
    return shape


def _read_codes(path: Path, shape: tuple[int, ...], vocab_size: int) -> np.ndarray:
    """uint16 (crops, N)."""
    codes = _load_integers(path)
    if codes.shape != shape:
        raise NppkitError(f"{path} has shape {codes.shape}, 0.npy of the first folder {shape}: extract all in one way")
    if codes.min() < 0 or codes.max() >= vocab_size:
        raise NppkitError(
            f"{path} holds codes {codes.min()} to {codes.max()}, not of a vocabulary of {vocab_size}: give its size"
        )
    return codes[0].astype("<u2")


def _read_label(path: Path, class_names: list[str] | None) -> int:
    label = _load_integers(path)
    if label.size != 1 or label.min() < 0:
        raise NppkitError(f"{path} is not one class label: give the folder of labels")
    if class_names and label.max() >= len(class_names):
        raise NppkitError(f"{path} holds label {label.max()}, but there are {len(class_names)} class names: give them all")
    return int(label.reshape(()))
