"""Moving digits: each MNIST digit in a video of its own, in which it bounces off the edges; and videos as GIFs."""

import hashlib
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image
from torch import Tensor

from nppkit import noise
from nppkit.data.images import ImageSet

FASTEST = 3  # pixels a frame along an axis; at least one
MILLISECONDS = 150  # that a GIF shows a frame


def moving_digits(digits: ImageSet, frames: int, seed: int) -> ImageSet:
    """A video of `frames` for each digit, cut out of its black margin; the images are the frames, one video after the other.

    Where a digit starts and how fast it moves is a pure function of (seed, its index).
    """

    def frame(i: int) -> Image.Image:
        video, time = divmod(i, frames)
        whole = digits.load(video)
        digit = whole.crop(whole.getbbox())
        room = np.subtract(whole.size, digit.size)
        start, speed = motion(seed, video, room)
        canvas = Image.new("RGB", whole.size)
        canvas.paste(digit, tuple(map(int, bounced(start + speed * time, room))))
        return canvas

    digest = hashlib.sha256(f"{digits.digest} {frames} frames, seed {seed}, {FASTEST} pixels".encode()).hexdigest()
    return ImageSet(np.repeat(digits.labels, frames), digits.class_names, digest, frame, frames)


def motion(seed: int, video: int, room: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Pixels (right, down) at the first frame, from 0 to `room`, and pixels a frame, 1 to FASTEST in either direction."""
    axis = np.arange(2)
    ends = enumerate((room + 1, FASTEST, 2))
    start, speed, back = (noise.integers(end, seed, noise.MOTION, video, draw, axis) for draw, end in ends)
    return start, (1 + speed) * (1 - 2 * back)


def bounced(place: np.ndarray, room: np.ndarray) -> np.ndarray:
    """Where something is between walls at 0 and `room` that would be at `place` without them.

    >>> bounced(np.array([3, 7, -1, 13]), np.full(4, 6)).tolist()
    [3, 5, 1, 1]
    """
    return room - abs(room - place % np.maximum(2 * room, 1))


def save_picture(frames: Tensor, file: Path | BinaryIO, scale: int = 1) -> None:
    """One uint8 image (1, 3, H, W) as PNG, a video (T, 3, H, W) as a GIF without end; each pixel a square of that side."""
    shown = (Image.fromarray(frame.permute(1, 2, 0).numpy()) for frame in frames)
    first, *rest = (image.resize((scale * image.width, scale * image.height), Image.Resampling.NEAREST) for image in shown)
    moving = dict(save_all=True, append_images=rest, duration=MILLISECONDS, loop=0) if rest else {}
    first.save(file, "GIF" if rest else "PNG", **moving)
