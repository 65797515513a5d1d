"""Writing code stores: extraction with the frozen tokenizer, and a look at random rows.

    torchrun --nproc-per-node 8 -m nppkit codes extract PRESET     # or one process each: --rank R --world-size W

Codes go to codes.npy.<key>.part, where the key stands for all that decides them. Each process notes the images that
are safely there, so that a killed extraction continues; whoever finishes last renames the file and writes the manifest.
"""

import contextlib
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
import torch
from torch import Tensor

from nppkit import noise
from nppkit.data.codes import UNKNOWN, CodeStore, Manifest
from nppkit.data.images import CROPS, ImageSet, crop_images
from nppkit.errors import NppkitError
from nppkit.files import check_space, remedy, save_arrays, savez_lzma, sync, write_atomic
from nppkit.machine.processes import Processes
from nppkit.tokenizer import VQModel, images_at_once, to_model_range, to_pixels
from nppkit.window import as_grid


class Part:
    """codes.npy while it grows, written by one or more processes, and the images whose codes are on disk."""

    def __init__(self, folder: Path, manifest: Manifest, rank: int, world_size: int):
        self.folder, self.manifest = folder, manifest
        self.shape = (manifest.images, manifest.crops, math.prod(as_grid(manifest.grid_size)))
        self.path = folder / f"codes.npy.{manifest.digest[:12]}.part"
        self.log = folder / f"{self.path.name}.{rank}-of-{world_size}.json"
        folder.mkdir(parents=True, exist_ok=True)
        self._discard_others()
        self.written = self._open()  # before this process began, bool (images,)
        self.ranges = _read_ranges(self.log)

    def _discard_others(self) -> None:
        """Remove what is left of another tokenizer, source, size or kind of crops."""
        for path in self.folder.glob("codes.npy.*.part*"):
            if not path.name.startswith(self.path.name):
                path.unlink(missing_ok=True)
                if path.suffix == ".part":
                    print(f"{path}: discarded, because tokenizer, images, size or crops have changed")

    def _open(self) -> np.ndarray:
        """Find the file or begin it, and return what is in it. Processes that start together do the same to it."""
        size, codes, manifest = 2 * math.prod(self.shape), self.folder / "codes.npy", self.folder / "manifest.json"
        if not self.path.exists():
            if codes.exists() and not manifest.exists() and self.done().all():
                return np.ones(self.shape[0], bool)  # killed between the renaming and the manifest
            check_space(self.folder, size, "the codes")
            for log in self._logs():
                log.unlink(missing_ok=True)  # notes about a file that is gone
        self.path.touch()
        with open(self.path, "r+b") as file:
            self.offset = write_header(file, self.shape)
            file.truncate(self.offset + size)
        return self.done()

    def _logs(self) -> list[Path]:
        return list(self.folder.glob(f"{self.path.name}.*.json"))

    def done(self) -> np.ndarray:
        """Which images any process has noted as written, bool (images,)."""
        done = np.zeros(self.shape[0], bool)
        for start, stop in (pair for log in self._logs() for pair in _read_ranges(log)):
            done[start:stop] = True
        return done

    def write(self, start: int, codes: np.ndarray) -> None:
        """Codes (b, crops, N) of the images from `start` on; they are on disk before they are noted."""
        try:
            with open(self.path, "r+b") as file:
                file.seek(self.offset + 2 * start * math.prod(self.shape[1:]))
                file.write(codes.astype("<u2").tobytes())
            sync(self.path)
        except OSError as error:
            raise NppkitError(f"{self.path} could not be written ({error}): {remedy(error)}; what it holds is kept") from None
        if self.ranges and self.ranges[-1][1] == start:
            self.ranges[-1][1] = start + len(codes)
        else:
            self.ranges.append([start, start + len(codes)])
        write_atomic(self.log, json.dumps(self.ranges))

    def complete(self, labels: np.ndarray) -> None:
        """Make it a store, if all images are there; processes that finish together may both try."""
        if self.written.all() or self.done().all():
            publish(self.path, self.folder, labels, self.manifest)
            for path in (*self._logs(), *self.folder.glob(f".{self.path.name}*")):
                path.unlink(missing_ok=True)


def _read_ranges(log: Path) -> list[list[int]]:
    """The [start, stop] pairs of a process; none if its notes are gone or damaged, which only costs time."""
    try:
        return [[int(start), int(stop)] for start, stop in json.loads(log.read_text())]
    except (OSError, ValueError, TypeError):
        return []


def write_header(file: BinaryIO, shape: tuple[int, ...]) -> int:
    """Begin a .npy file of uint16; returns where the data starts."""
    np.lib.format.write_array_header_1_0(file, {"descr": "<u2", "fortran_order": False, "shape": shape})
    return file.tell()


def publish(part: Path, folder: Path, labels: np.ndarray, manifest: Manifest) -> None:
    """Labels, then codes.npy, then the manifest, so that no moment shows a wrong store."""
    if stored_manifest(folder) != manifest:
        for name in ("manifest.json", *["codes.npz"] * part.exists()):  # another store's: packed codes are opened first
            (folder / name).unlink(missing_ok=True)
    save_arrays(folder / "labels.npy", np.save, arr=labels)
    with contextlib.suppress(FileNotFoundError):  # another process, or this one before it was killed, has done it
        part.replace(folder / "codes.npy")
        (folder / "codes.npz").unlink(missing_ok=True)
    manifest.write(folder)


def write_store(folder: Path, manifest: Manifest, codes: np.ndarray, labels: np.ndarray) -> None:
    """Codes (images, crops, N) and labels (images,) as a store, in place of what was there."""
    save_arrays(part := folder / "codes.npy.part", np.save, arr=codes.astype(np.uint16))
    publish(part, folder, labels, manifest)


def stored_manifest(folder: Path) -> Manifest | None:
    """The manifest of the store in a folder; None where there is none, or a damaged one."""
    try:
        return Manifest.read(folder)
    except NppkitError:
        return None


def open_complete(folder: Path, manifest: Manifest) -> CodeStore | None:
    """The store in the folder, if it is whole and the one that the manifest describes."""
    try:
        return CodeStore(folder) if stored_manifest(folder) == manifest else None
    except NppkitError:
        return None


def _open_imported(folder: Path, manifest: Manifest) -> CodeStore | None:
    """An imported store in place of the one that the manifest describes. NppkitError if they differ in what both know."""
    stored = stored_manifest(folder)
    if not (stored and stored.imported):
        return None
    found, wanted = vars(stored), vars(manifest)
    wrong = [key for key in ("images", "grid_size", "vocab_size", "image_size") if found[key] != wanted[key]]
    wrong += ["tokenizer_sha256"] * (stored.tokenizer_sha256 not in (UNKNOWN, manifest.tokenizer_sha256))
    if wrong:
        key = wrong[0]
        raise NppkitError(f"{folder} was imported with {key} {found[key]}, not {wanted[key]}: remove it, or import others")
    return CodeStore(folder)


def extract_codes(
    model: VQModel,
    images: ImageSet,
    folder: str | Path,
    crops: str,
    image_size: int,
    tokenizer_sha256: str,
    batch_size: int = 64,
    progress: Callable = iter,
    rank: int = 0,
    world_size: int = 1,
    packed: bool = False,
) -> CodeStore | None:
    """Encode every crop of every image with the frozen tokenizer, batched over images, and open the store.

    Process `rank` of `world_size` encodes its share of the batches; a batch is the same images whoever encodes it. What
    is already there is not encoded again, imported codes neither. None while other processes are still at work. packed: as
    codes.npz. NppkitError for unfit arguments, and for an imported store of another size.
    """
    folder, manifest = Path(folder), _manifest(model, images, crops, image_size, tokenizer_sha256)
    if not 0 <= rank < world_size:
        raise NppkitError(f"rank {rank} is not one of {world_size} processes: count from 0")
    if batch_size < 1:
        raise NppkitError(f"batch_size {batch_size}: give 1 image or more")

    def encoded(index: np.ndarray) -> np.ndarray:
        pixels = np.stack([_item(images, int(i), crops, image_size) for i in index])  # (b, crops, frames, S, S, 3)
        return encode_pixels(model, pixels.reshape(-1, *pixels.shape[3:])).reshape(len(index), manifest.crops, -1)

    store, labels = _open_imported(folder, manifest), images.labels[:: images.frames]
    if store is None:
        store = filled(folder, manifest, labels, encoded, batch_size, Processes(rank, world_size), progress)
    return None if store is None else in_form(store, packed)


def filled(
    folder: Path, manifest: Manifest, labels: np.ndarray, code: Callable, batch_size: int, processes: Processes, show: Callable
) -> CodeStore | None:
    """The store that the manifest describes, once this and all other processes have filled their shares; None before.

    code(index): the codes (b, crops, N) of the images at an index (b,). What is on disk is not made again.
    """
    if (store := open_complete(folder, manifest)) is not None:
        return store
    part, starts = Part(folder, manifest, processes.rank, processes.size), range(0, manifest.images, batch_size)
    mine, done = starts[processes.share(len(starts))], part.written
    for start in show([start for start in mine if not done[start : start + batch_size].all()]):
        part.write(start, code(np.arange(start, min(start + batch_size, manifest.images))))
    part.complete(labels)
    return CodeStore(folder) if stored_manifest(folder) == manifest else None


def in_form(store: CodeStore, packed: bool) -> CodeStore:
    """The store with its codes in codes.npy, or packed in codes.npz, whichever it held them in.

    Packed they take a fraction of the room, and are read into memory as a whole.
    """
    plain, small = store.folder / "codes.npy", store.folder / "codes.npz"
    if packed != plain.exists():
        return store
    if packed:
        save_arrays(small, savez_lzma, codes=store.codes)
    else:
        save_arrays(plain, np.save, arr=store.codes)
    (plain if packed else small).unlink(missing_ok=True)
    return CodeStore(store.folder)


def _manifest(model: VQModel, images: ImageSet, crops: str, image_size: int, tokenizer_sha256: str) -> Manifest:
    """All that decides the codes."""
    shape = len(images) // images.frames, CROPS[crops], _grid(model, images, image_size)
    origin = model.config.codebook_size, list(images.class_names), tokenizer_sha256, images.digest
    return Manifest(*shape, *origin, image_size, crops)


def _grid(model: VQModel, images: ImageSet, image_size: int) -> int | list[int]:
    """The grid of an image's codes, or of a video's."""
    side = model.config.grid_size(image_size)
    return side if images.frames == 1 else [images.frames, side, side]


def _item(images: ImageSet, i: int, crops: str, image_size: int) -> np.ndarray:
    """All crops of an image, or of a video's frames: uint8 (crops, frames, S, S, 3)."""
    frames = range(i * images.frames, (i + 1) * images.frames)
    return np.stack([crop_images(images.load(frame), crops, image_size) for frame in frames], 1)


@torch.inference_mode()
def encode_pixels(model: VQModel, pixels: np.ndarray) -> np.ndarray:
    """Codes (n, N) of uint8 images (n, S, S, 3)."""
    device = next(model.parameters()).device
    parts = torch.from_numpy(pixels).permute(0, 3, 1, 2).split(images_at_once(pixels.shape[1], device))
    return torch.cat([model.encode(to_model_range(part.to(device))).cpu() for part in parts]).numpy()


class Rows(NamedTuple):
    """Some crops, or frames, (n, 3, S, S) and what their stored codes decode to, uint8, and the share of codes found again."""

    originals: Tensor
    decoded: Tensor
    reproduced: float


@torch.inference_mode()
def verify_rows(store: CodeStore, images: ImageSet, tokenizer: VQModel, n: int = 10, seed: int = 0) -> Rows:
    """Random rows of a store beside the crops that they should stand for, encoded once more for comparison.

    The share is 1 but for rounding on another device; near 1 / vocabulary the rows belong to other images, crops or
    another tokenizer. NppkitError if the store is of other images, other labels or unknown crops.
    """
    if not np.array_equal(store.labels, images.labels[:: images.frames]):
        raise NppkitError(f"{store.folder} has the labels of other images: give those that the codes were extracted from")
    store.require(grid_size=_grid(tokenizer, images, store.manifest.image_size), vocab_size=tokenizer.config.codebook_size)
    index = noise.permutation(len(store), seed, noise.PERMUTATION, 2**35)[:n]
    crop = noise.integers(store.crops, seed, noise.CROP, np.arange(len(index)))
    kind, side = _crop_kind(store), store.manifest.image_size
    pixels = np.concatenate([_item(images, int(i), kind, side)[c] for i, c in zip(index, crop, strict=True)])
    codes = store.batch(index, crop)[0].reshape(len(pixels), -1)
    decoded = to_pixels(tokenizer.decode(codes.to(next(tokenizer.parameters()).device))).cpu()
    reproduced = float((encode_pixels(tokenizer, pixels) == codes.numpy()).mean())
    return Rows(torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous(), decoded, reproduced)


def _crop_kind(store: CodeStore) -> str:
    """The store's kind of crops; an imported store's follows from their number (ten: the first half of ten_crop)."""
    kinds = {count: kind for kind, count in CROPS.items()} | {10: "ten_crop"}
    kind = store.manifest.crop_kind or kinds.get(store.crops)
    if kind is None:
        raise NppkitError(f"{store.folder} has {store.crops} crops an image, of a kind that is not known: use {', '.join(CROPS)}")
    return kind
