"""README's picture: real and generated digits, and real and generated photographs, from the committed sample grids.

    python benchmarks/beside.py    # seconds; needs the photographs (EXTRAS=dev,photos)

A column a class; generated images of one place have the same class and noise in both methods. Nothing is chosen: the first
rows of each run's grid, and the first training images of each class in a fixed random order.
"""

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.figure import Figure
from PIL import Image

from nppkit.data import images, sources
from nppkit.show import plots
from nppkit.study import graph, presets, runs

ROWS = 3
METHODS = {"next-token prediction": "GPT-B_ntp_seed0", "next patch prediction": "GPT-B_npp_p2_lambda1-2_seed0"}


def real(preset: presets.Preset) -> np.ndarray:
    """Training images, ROWS of each class, tiled like a sample grid."""
    training, _ = sources.study_images(preset.data)
    mixed = images.some_images(training, len(training))
    columns = [np.flatnonzero(mixed.labels == c)[:ROWS] for c in range(len(mixed.class_names))]
    pixels = images.reference_pixels(mixed.subset(np.stack(columns, 1).ravel()), preset.data.image_size)
    return plots.tile(torch.from_numpy(pixels), len(columns))


def generated(preset: presets.Preset, run: str) -> np.ndarray:
    """The first ROWS of a run's committed grid."""
    path = graph.run_dir(preset, runs.find_run(preset, run)) / "samples.png"
    return np.asarray(Image.open(path).convert("RGB"))[: ROWS * (preset.data.image_size + plots.GAP) - plots.GAP]


def main() -> None:
    solar = presets.load_preset("solar")
    figure = Figure(figsize=(9, 2.9))
    for line, preset in zip(figure.subplots(2, 3), (presets.load_preset("study"), solar), strict=True):
        panels = {"real": real(preset), **{name: generated(preset, run) for name, run in METHODS.items()}}
        for axes, (name, picture) in zip(line, panels.items(), strict=True):
            axes.imshow(picture, interpolation="none" if picture.shape[1] > 400 else "nearest")
            axes.set_axis_off()
            axes.set_title(name if preset is not solar else "", loc="left")
    figure.set_dpi(plt.rcParams["savefig.dpi"])
    print(*plots.save_figure(figure, solar, "beside"), sep="\n")


if __name__ == "__main__":
    main()
