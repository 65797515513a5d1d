"""Plots of one image set, one run, one schedule. Each takes data and returns a matplotlib figure; figures.py compares runs."""

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from IPython.display import display
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from nppkit.presets import Preset
from nppkit.runs import figures_dir
from nppkit.schedule import Segment, learning_rate

plt.style.use(Path(__file__).parent / "style.mplstyle")


def save_figure(figure: Figure, preset: Preset, name: str) -> list[Path]:
    """Write figures/<preset>/<name>.png and .pdf."""
    folder = figures_dir(preset)
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{name}.{suffix}" for suffix in ("png", "pdf")]
    for path in paths:
        figure.savefig(path, metadata={"CreationDate": None} if path.suffix == ".pdf" else None)
    return paths


def show(figure: Figure) -> None:
    """Display a figure in a notebook, once."""
    display(figure)
    plt.close(figure)


def tile(images: Tensor, columns: int, gap: int = 2) -> np.ndarray:
    """uint8 images (n, 3, S, S) in rows of `columns` on white, as one image (height, width, 3)."""
    images = images.numpy().transpose(0, 2, 3, 1)
    rows, side = -(-len(images) // columns), images.shape[1]
    canvas = np.full((rows * (side + gap) - gap, columns * (side + gap) - gap, 3), 255, np.uint8)
    for i, image in enumerate(images):
        y, x = (side + gap) * (i // columns), (side + gap) * (i % columns)
        canvas[y : y + side, x : x + side] = image
    return canvas


def image_grid(axes: Axes, images: Tensor, columns: int) -> None:
    """Draw uint8 images (n, 3, S, S) in rows of `columns`."""
    axes.imshow(tile(images, columns), interpolation="nearest")
    axes.set_axis_off()


def reconstructions(originals: Tensor, decoded: Tensor) -> Figure:
    """Images (n, 3, S, S) above what the tokenizer makes of them."""
    figure, rows = plt.subplots(2, 1, figsize=(7, 2.2))
    for axes, images, title in zip(rows, (originals, decoded), ("source images", "decoded from their codes"), strict=True):
        image_grid(axes, images, len(images))
        axes.set_title(title, loc="left")
    return figure


def samples(generated: Tensor, nearest: Tensor, title: str, columns: int = 10) -> Figure:
    """Generated images beside the training images nearest to them in feature space."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(8, 4.3))
    image_grid(left, generated, columns)
    image_grid(right, nearest, columns)
    left.set_title(title, loc="left")
    right.set_title("nearest training images", loc="left")
    return figure


def schedule(segments: tuple[Segment, ...], steps_per_epoch: int, base_lr: float, end_lr: float) -> Figure:
    """Learning rate and patch side over the schedule epochs."""
    total = segments[-1].end * steps_per_epoch
    steps = np.unique(np.linspace(0, total - 1, 3000).astype(int))
    rates = [learning_rate(int(s), segments, steps_per_epoch, base_lr, end_lr) for s in steps]
    figure, axes = plt.subplots(figsize=(6, 2.4))
    axes.plot(steps / steps_per_epoch, rates)
    shade_segments(axes, segments)
    axes.set(xlabel="schedule epoch", ylabel="learning rate")
    return figure


def shade_segments(axes: Axes, segments: tuple[Segment, ...]) -> None:
    """Mark each segment's patch side on an axis of schedule epochs."""
    for i, segment in enumerate(segments):
        axes.axvspan(segment.start, segment.end, color="0.5", alpha=0.12 * (i % 2), linewidth=0)
        axes.annotate(
            f"p = {segment.patch_size}",
            ((segment.start + segment.end) / 2, 1),
            xycoords=("data", "axes fraction"),
            ha="center",
            va="bottom",
        )


def history(frame: pd.DataFrame, segments: tuple[Segment, ...]) -> Figure:
    """Loss, learning rate and throughput of a run over the schedule epochs."""
    figure, rows = plt.subplots(3, 1, figsize=(6, 5), sharex=True)
    columns = {"loss": "loss (nats)", "lr": "learning rate", "images_per_second": "images / s"}
    for axes, (column, label) in zip(rows, columns.items(), strict=True):
        for _, part in frame.groupby("segment"):
            axes.plot(part["epoch"], part[column], color="C0", linewidth=1)
        axes.set_ylabel(label)
    shade_segments(rows[0], segments)
    rows[-1].set_xlabel("schedule epoch")
    return figure


def guidance(frame: pd.DataFrame, label: str) -> Figure:
    """FID and agreement against the guidance scale."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(7, 2.6))
    left.plot(frame["cfg_scale"], frame["fid"], "o-", label="reported seed")
    left.plot(frame["cfg_scale"], frame["select_fid"], "s--", label="selecting seed")
    left.set(xlabel="guidance scale", ylabel=f"FID ({label})" if label else "FID")
    left.legend()
    right.plot(frame["cfg_scale"], frame["agreement"], "o-")
    right.set(xlabel="guidance scale", ylabel="classifier agreement")
    return figure


def step_times(row: dict) -> Figure:
    """Step time against patch side, with the ideal 1 / p**2 and the fit a + b / p**2, of the benchmarks' `patches` row."""
    sides = np.array([int(p) for p in row["seconds"] if p.isdigit()])
    times = [row["seconds"][str(p)] for p in sides]
    median, low, high = (np.array([t[key] for t in times]) for key in ("median", "min", "max"))
    smooth = np.geomspace(sides[0], sides[-1], 100)
    figure, axes = plt.subplots(figsize=(5, 3.2))
    axes.plot(smooth, median[0] / smooth**2, "--", color="0.4", label="ideal, t(1) / p²")
    axes.plot(smooth, row["a"] + row["b"] / smooth**2, color="C1", label=f"{row['a']:.2g} s + {row['b']:.3g} s / p²")
    axes.errorbar(sides, median, (median - low, high - median), fmt="o", color="C0", capsize=3, label="measured, with spread")
    axes.set(xscale="log", yscale="log", xlabel="patch side p", ylabel="forward + backward (s)")
    axes.set_xticks(sides, [str(p) for p in sides])
    axes.minorticks_off()
    axes.legend()
    return figure


def time_shares(operations: pd.DataFrame) -> Figure:
    """Where a step's time goes: the share of each kind of operation."""
    share = operations.groupby("kind")["seconds"].sum().sort_values() / operations["seconds"].sum()
    figure, axes = plt.subplots(figsize=(5, 0.6 + 0.3 * len(share)))
    axes.barh(share.index, 100 * share)
    axes.set_xlabel("share of the step's time (%)")
    return figure


def roofline(operations: pd.DataFrame, peak: float, bandwidth: float) -> Figure:
    """Rate of every product against its FLOPs per byte, under the machine's two limits; marker area by time.

    peak: FLOP/s, bandwidth: bytes/s.
    """
    products = operations[operations["flops"] > 0]
    intensity, rate = products["flops"] / products["bytes"], products["flops"] / products["seconds"]
    x = np.geomspace(min(1, intensity.min()), 2 * intensity.max(), 200)
    figure, axes = plt.subplots(figsize=(5, 3.2))
    axes.plot(x, np.minimum(peak, x * bandwidth) / 1e9, color="0.4", label="copy bandwidth, yardstick")
    for i, (kind, part) in enumerate(products.groupby("kind")):
        area = 15 + 400 * part["seconds"] / operations["seconds"].sum()
        axes.scatter(intensity[part.index], rate[part.index] / 1e9, s=area, color=f"C{i}", marker="os^D"[i % 4], label=kind)
    axes.set(xscale="log", yscale="log", xlabel="FLOPs per byte, least traffic", ylabel="GFLOP/s")
    axes.legend()
    return figure
