"""The code store: every crop's codes in one memory-mapped uint16 file, with labels and a JSON manifest.

A store is a folder: codes.npy (images, crops, N), labels.npy (images,), manifest.json. `nppkit.data.extract` writes it,
the manifest last: a folder without one is not a store. A small store may be packed as codes.npz, to be kept in git.
"""

import json
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated

import numpy as np
import pydantic
import torch
from pydantic import Field, StrictBool, StrictInt, StrictStr
from torch import Tensor

from nppkit.errors import NppkitError
from nppkit.files import json_digest, write_atomic
from nppkit.settings import section, settings
from nppkit.window import as_grid

CHECK_BYTES = 2**28  # stores up to this size are checked code by code on opening, larger ones batch by batch
REMEDIES = {
    "grid_size": "extract at the model's image size, or take a model of this grid",
    "vocab_size": "extract with the model's tokenizer, or take a model of this vocabulary",
    "num_classes": "extract the images that the model was made for, or take a model of this many classes",
    "tokenizer_sha256": "extract with this tokenizer, or take the one that made the codes",
}
DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
UNKNOWN = "unknown"  # tokenizer_sha256 of an imported store whose tokenizer was not named
Length = Annotated[StrictInt, Field(ge=1)]


@section
class Manifest:
    """What a store holds and what it was made from: its manifest.json, by which one store is told from another."""

    images: StrictInt
    crops: StrictInt
    grid_size: Length | Annotated[list[Length], Field(min_length=1)]  # G of an image's G x G, else each axis's length
    vocab_size: StrictInt
    class_names: list[StrictStr]
    tokenizer_sha256: StrictStr
    source_digest: StrictStr  # of the images
    image_size: StrictInt  # pixels; 0: no image was encoded
    crop_kind: StrictStr = ""  # of data.CROPS; an import does not know it
    imported: StrictBool = False

    @classmethod
    def read(cls, folder: Path) -> "Manifest":
        """The manifest of the store in that folder. NppkitError names a missing or damaged file, or the wrong entry."""
        path = folder / "manifest.json"
        try:
            return pydantic.TypeAdapter(cls).validate_python(json.loads(path.read_text()))
        except FileNotFoundError:
            raise NppkitError(f"{path} does not exist: run the tokenize job (make reproduce does), or let it finish") from None
        except pydantic.ValidationError as error:
            first = error.errors(include_url=False)[0]
            wrong = " lacks {}" if first["type"] == "missing" else ": {} is not what it should be"
            raise NppkitError(f"{path}{wrong.format((*first['loc'], 'it')[0])}: extract the codes again") from None
        except (OSError, ValueError, RecursionError) as error:
            raise NppkitError(f"{path} is not valid JSON ({error}): extract the codes again") from None

    def write(self, folder: Path) -> None:
        """Make the arrays in that folder a store."""
        write_atomic(folder / "manifest.json", json.dumps(settings(self), indent=1) + "\n")

    @property
    def digest(self) -> str:
        """sha256 of everything in it."""
        return json_digest(settings(self))


class CodeStore:
    """Codes of a data set, opened read-only. NppkitError if the files do not agree with the manifest.

    codes: (images, crops, N) uint16; labels: (images,); `batch(images, crops)` gives int64 tensors (B, N) and (B,).
    crops, grid_size, vocab_size and num_classes are the manifest's; grid_size is G of an image's G x G, else each axis's length.

    >>> from nppkit.files import home
    >>> store = CodeStore(home() / "results/study/tokenizer/train")
    >>> store.codes.shape, store.vocab_size, store.grid_size
    ((4500, 5, 256), 32, 16)
    """

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        self.manifest = m = Manifest.read(self.folder)
        self.crops, self.vocab_size, self.num_classes = m.crops, m.vocab_size, len(m.class_names)
        self.grid_size = m.grid_size if isinstance(m.grid_size, int) else tuple(m.grid_size)
        packed = self.folder / "codes.npz"
        self.codes = _open_array(packed if packed.exists() else self.folder / "codes.npy")
        self.labels = _open_array(self.folder / "labels.npy")
        self._check()

    def _check(self) -> None:
        codes, shape = self.codes, (self.manifest.images, self.crops, math.prod(as_grid(self.grid_size)))
        if codes.dtype != np.uint16:
            raise NppkitError(f"{self.folder}/codes.npy holds {codes.dtype}, not uint16 codes: extract them again")
        if self.labels.dtype.kind not in "iu":
            raise NppkitError(f"{self.folder}/labels.npy holds {self.labels.dtype}, not integers: extract the codes again")
        if codes.shape != shape or self.labels.shape != shape[:1]:
            raise NppkitError(f"{self.folder}/codes.npy has shape {codes.shape}, its manifest says {shape}: extract it again")
        if len(self.labels) and not 0 <= self.labels.min() <= self.labels.max() < self.num_classes:
            raise NppkitError(f"{self.folder}/labels.npy: a label is outside the {self.num_classes} classes: extract it again")
        if codes.nbytes <= CHECK_BYTES:
            self._check_range(codes)

    def _check_range(self, codes: np.ndarray) -> None:
        if codes.size and codes.max() >= self.vocab_size:
            raise NppkitError(
                f"{self.folder}/codes.npy: code {codes.max()} is beyond the vocabulary of {self.vocab_size}: extract it again"
            )

    def require(self, **wanted: int | str) -> "CodeStore":
        """This store, if it has the wanted grid_size, vocab_size, num_classes, tokenizer_sha256, or those that are given.

        NppkitError names each difference and what to do.
        """
        found = {**vars(self.manifest), "num_classes": self.num_classes}
        wrong = [name for name, value in wanted.items() if value != found[name]]
        if not wrong:
            return self
        if wrong == ["tokenizer_sha256"] and found["tokenizer_sha256"] == UNKNOWN:
            raise NppkitError(f"{self.folder} does not say which tokenizer made it: import it again with --tokenizer FILE")
        lines = [f"{name} is {found[name]}, not {wanted[name]} ({REMEDIES[name]})" for name in wrong]
        raise NppkitError(f"{self.folder} does not fit the model: {'; '.join(lines)}")

    def __len__(self) -> int:
        return self.manifest.images

    def batch(self, images: np.ndarray, crops: np.ndarray) -> tuple[Tensor, Tensor]:
        """Codes (B, N) and labels (B,), int64, of one crop of each image."""
        codes = self.codes[images, crops]
        if self.codes.nbytes > CHECK_BYTES:
            self._check_range(codes)
        return torch.from_numpy(codes.astype(np.int64)), torch.from_numpy(self.labels[images].astype(np.int64))


def prompts(class_names: Iterable[str]) -> tuple[str, ...]:
    """What a transformer that is told names reads of each class: its name; of the ten digits the word."""
    names = tuple(class_names)
    return DIGITS if names == tuple("0123456789") else names


def _open_array(path: Path) -> np.ndarray:
    try:
        found = np.load(path, mmap_mode="r", allow_pickle=False)
        return found["codes"] if path.suffix == ".npz" else found
    except Exception as error:  # a damaged header raises nearly anything
        raise NppkitError(f"{path} cannot be opened ({' '.join(str(error).split())}): extract the codes again") from None
