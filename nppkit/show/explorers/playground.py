"""The sampling playground: images appear row by row, from two checkpoints with the same seed."""

import html
import itertools
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import ipywidgets as w
import numpy as np
import torch
from torch import Tensor

from nppkit.errors import NppkitError
from nppkit.model import GPT
from nppkit.sample import SamplingConfig, decode_tokens
from nppkit.show import plots
from nppkit.show.pretrained import encode, load_model, load_tokenizer, tokenizer_folder
from nppkit.show.widgets import Form, Task, control, picture
from nppkit.tokenizer import VQModel, to_pixels

GIVEN_LINE = (213, 94, 0)  # Okabe and Ito's vermilion


class Playground:
    """Sampling from trained checkpoints, row by row, two side by side with the same seed; completion of a given image."""

    def __init__(self, runs: dict[str, Path], pixels: Tensor, labels: np.ndarray):
        self.runs, self.pixels, self.labels, names = runs, pixels, labels, list(runs)
        config = load_model(runs[names[0]]).config
        classes = [("one of each", -1), *((str(c), c) for c in range(config.num_classes))]
        self.form = Form(
            first=control(w.Dropdown, "Checkpoint", options=names),
            second=control(w.Dropdown, "Beside it", options=["none", *names], value=names[1] if names[1:] else "none"),
            label=control(w.Dropdown, "Class", options=classes),
            images=control(w.IntSlider, "Images", min=1, max=10, value=10),
            cfg_scale=control(w.FloatSlider, "Guidance scale", min=1, max=6, step=0.25, value=2),
            temperature=control(w.FloatSlider, "Temperature", min=0.1, max=2, step=0.05, value=1),
            top_k=control(w.IntSlider, "Top-k (0: off)", min=0, max=config.vocab_size, value=0),
            top_p=control(w.FloatSlider, "Top-p (1: off)", min=0.05, max=1, step=0.05, value=1),
            seed=control(w.BoundedIntText, "Seed", min=0, max=10**6, value=0),
            given_rows=control(w.IntSlider, "Rows given", min=0, max=config.grid_size, value=0),
            given_image=control(w.IntSlider, "of image", min=0, max=len(pixels) - 1, value=0),
            pause=control(w.FloatSlider, "Pause a row (s)", min=0, max=1, step=0.05, value=0.1),
        )
        self.task = Task("Sample", lambda: self.form.evaluate(self.prepare))
        self.views = [w.HTML(layout=w.Layout(width="50%")) for _ in range(2)]
        self.box = w.VBox([self.form.box, self.task.box, w.HBox(self.views)])

    def prepare(self, first: str, second: str, pause: float, **values) -> tuple[int, Iterator]:
        """The number of codes to draw, and both checkpoints' decoding side by side."""
        chosen, steps, total = [name for name in (first, second) if name != "none"], [], 0
        self.views[1].value = ""
        for name, view in zip(chosen, self.views, strict=False):
            gpt, tokenizer = load_model(self.runs[name]), load_tokenizer(tokenizer_folder(self.runs[name]))
            steps.append(self.decode(gpt, tokenizer, name, view, pause, **values))
            total = max(total, gpt.config.block_size)
        return total, itertools.zip_longest(*steps)

    def decode(self, gpt, tokenizer, name, view, pause, label, images, seed, given_rows, given_image, **filters) -> Iterator[int]:
        """Draw the codes of one checkpoint and show every finished row."""
        if label >= gpt.config.num_classes:
            raise NppkitError(f"label {label}: {name} has only {gpt.config.num_classes} classes: choose a lower one")
        labels = torch.arange(images) % gpt.config.num_classes if label < 0 else torch.full((images,), label)
        given = self.given(gpt, tokenizer, name, given_rows, given_image)
        if given is not None and label < 0:
            labels = torch.full((images,), int(self.labels[given_image]))
        sampling = SamplingConfig(seed=seed, **filters)
        mark = given_rows * tokenizer.config.downsampling

        def show_rows(pixels: Tensor, rows: int) -> None:
            alt = f"{images} images of {name}, {rows} of {gpt.config.grid_size} rows drawn"
            view.value = f"<b>{html.escape(name)}</b><br>{picture(contact_sheet(pixels, mark), alt, 3)}<br>{alt}"

        return draw_rows(gpt, tokenizer, labels, sampling, given, show_rows, pause)

    def given(self, gpt: GPT, tokenizer: VQModel, name: str, rows: int, image: int) -> Tensor | None:
        """The codes (1, rows * G) of an image's first rows. NppkitError if the checkpoint is for images of another size."""
        if rows == 0:
            return None
        codes, grid = encode(tokenizer, [self.pixels[image][None]]), gpt.config.grid_size
        if codes.shape[1] != grid**2:
            raise NppkitError(f"given_rows: the images here have {codes.shape[1]} codes, {name} draws {grid**2}: set it to 0")
        return codes[:, : rows * grid]


def draw_rows(
    gpt: GPT, tokenizer: VQModel, labels: Tensor, sampling: SamplingConfig, given: Tensor | None, show_rows: Callable, pause=0.0
) -> Iterator[int]:
    """Draw one code of every image after another; after each row of the grid, show_rows(pixels, rows drawn)."""
    grid, drawn = gpt.config.grid_size, []
    prefix = None if given is None else given.expand(len(labels), -1)
    for codes in decode_tokens(gpt, labels, sampling, np.arange(len(labels)), prefix):
        drawn.append(codes)
        if len(drawn) % grid == 0:
            show_rows(partial_pixels(tokenizer, torch.stack(drawn, 1), grid), len(drawn) // grid)
            time.sleep(pause)
        yield len(drawn)


@torch.inference_mode()
def partial_pixels(tokenizer: VQModel, codes: Tensor, grid: int) -> Tensor:
    """uint8 images (B, 3, S, S) of the first rows of codes (B, n); what is not drawn yet is light grey."""
    missing = grid * grid - codes.shape[1]
    pixels = to_pixels(tokenizer.decode(torch.nn.functional.pad(codes, (0, missing))))
    pixels[:, :, pixels.shape[-1] - missing // grid * tokenizer.config.downsampling :] = 225
    return pixels


def contact_sheet(pixels: Tensor, mark: int = 0) -> np.ndarray:
    """uint8 images (n, 3, S, S) in rows of five on one white canvas (H, W, 3), a line under the first `mark` pixel rows."""
    if mark:
        pixels = pixels.clone()
        pixels[:, :, mark - 1] = torch.tensor(GIVEN_LINE, dtype=torch.uint8)[:, None]
    return plots.tile(pixels, min(5, len(pixels)))
