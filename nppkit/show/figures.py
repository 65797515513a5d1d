"""Figures that compare runs: the paper's and ours. Each takes data and returns a matplotlib figure."""

from collections.abc import Iterable
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import LogLocator
from PIL import Image
from torch import Tensor

from nppkit.grouping import patch_grid
from nppkit.schedule import Segment, cost_ratio, learning_rate

INPUT, TARGET = "#56B4E9", "#D55E00"  # what a prediction has seen, and what it is scored on


def ablation(table: pd.DataFrame, seeds: pd.DataFrame, by: str, ours: str) -> Figure:
    """FID against one setting, the paper's and ours: a line a model size through the means, a dot a seed."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(7, 2.6))
    size = table["model"].str.extract(r"LlamaGen-(\w+)")[0]
    for number, (name, part) in enumerate(table.groupby(size)):
        places = settings(part[by])
        left.plot(places, part["paper FID"].astype(float), "o-", color=f"C{number}", label=f"LlamaGen-{name}")
        right.plot(places, part[ours].astype(float), "-", color=f"C{number}")
        dots = seeds[seeds["size"] == name]
        right.plot(settings(dots[by]), dots["fid"], "o", color=f"C{number}", markersize=4, alpha=0.7)
    for axes, column in ((left, "paper FID"), (right, ours)):
        axes.set(xlabel=by.replace("_", " "), ylabel=column)
    left.legend()
    _say_not_run(right, seeds.empty)
    return figure


def settings(values: pd.Series) -> list[str]:
    """Values of a setting as categories; the baseline has none."""
    return ["NTP" if pd.isna(v) else f"{v:g}" if isinstance(v, float) else str(v) for v in values]


def _say_not_run(axes: Axes, empty: bool) -> None:
    if empty:
        axes.annotate("not run", (0.5, 0.5), xycoords="axes fraction", ha="center")


def figure2(image: Tensor, shades: Tensor, patch_sizes: Iterable[int] = (1, 2, 4)) -> Figure:
    """The method on a real image (3, S, S): what a prediction has seen, and the K tokens it is scored on.

    shades (N,) are the greys in which the image's codes are drawn.
    """
    sides = list(patch_sizes)
    figure, panels = plt.subplots(1, len(sides) + 1, figsize=(1.9 * (len(sides) + 1), 3.0))
    panels[0].imshow(image.permute(1, 2, 0), interpolation="nearest")
    panels[0].set_title("image")
    for axes, p in zip(panels[1:], sides, strict=True):
        _prediction(axes, shades, p)
    for axes in panels:
        axes.set(xticks=[], yticks=[])
        axes.grid(False)
    marks = [Rectangle((0, 0), 1, 1, fc=INPUT, alpha=0.45), Rectangle((0, 0), 1, 1, fc="none", ec=TARGET, lw=2)]
    figure.legend(marks, ["patch tokens it has seen (and the class)", "its K targets"], loc="outside lower center", ncols=2)
    return figure


def _prediction(axes: Axes, shades: Tensor, p: int) -> None:
    """The token grid, one prediction in its middle, and the windows of side p."""
    grid = patch_grid(len(shades), 1)
    side, middle = grid // p, (grid // p) // 2 * (grid // p) + (grid // p) // 2
    axes.imshow(shades.reshape(grid, grid), interpolation="nearest")
    for place in range(middle + 1):
        row, column = divmod(place, side)
        style = dict(fc="none", ec=TARGET, lw=2, zorder=3) if place == middle else dict(fc=INPUT, alpha=0.45)
        axes.add_patch(Rectangle((column * p - 0.5, row * p - 0.5), p, p, **style))
    for line in range(0, grid + 1, p):
        axes.axhline(line - 0.5, color="0.5", linewidth=0.4)
        axes.axvline(line - 0.5, color="0.5", linewidth=0.4)
    axes.set_title(f"p = {p}, K = {p**2}\n{side**2} patch tokens")


def figure3(
    schedules: dict[str, tuple[Segment, ...]], steps_per_epoch: int, base_lr: float, end_lr: float, **shape: float
) -> Figure:
    """Coarse-to-fine schedules one below the other: segments, learning rate, and cost relative to next-token prediction.

    The arguments of the learning rate are those of `schedule.learning_rate`.
    """
    figure, rows = plt.subplots(len(schedules), 1, figsize=(7, 1.25 * len(schedules) + 0.4), sharex=True)
    for axes, (name, segments) in zip(rows, schedules.items(), strict=True):
        steps = range(segments[-1].end * steps_per_epoch)
        rates = [learning_rate(step, segments, steps_per_epoch, base_lr, end_lr, **shape) for step in steps]
        axes.plot(np.array(steps) / steps_per_epoch, rates, color="C0")
        for segment in segments:
            shade = 0.08 * np.log2(segment.patch_size)
            axes.axvspan(segment.start, segment.end, color="C1", alpha=shade, linewidth=0)
            axes.text((segment.start + segment.end) / 2, 0.35 * base_lr, f"p = {segment.patch_size}", ha="center")
        axes.set(ylabel="learning rate", xlim=(0, segments[-1].end), ylim=(0, 1.1 * base_lr))
        axes.set_title(f"{name}: cost {cost_ratio(segments):.3f} of next-token prediction", loc="left")
    rows[-1].set_xlabel("schedule epoch")
    return figure


def figure4(grids: dict[str, dict[str, Path]], rows: int = 3, side: int = 34) -> Figure:
    """Sample grids of runs: method -> model size -> its samples.png, of which the first rows (of `side` pixels) are shown.

    A column for each method, a line for each size.
    """
    sizes = list(dict.fromkeys(size for grid in grids.values() for size in grid))
    shape = dict(nrows=max(1, len(sizes)), ncols=len(grids), squeeze=False)
    widths = [Image.open(file).width for grid in grids.values() for file in grid.values()]
    height = 0.3 + 3.6 * rows * side / max(widths, default=10 * side)
    figure, panels = plt.subplots(**shape, figsize=(3.6 * shape["ncols"], height * shape["nrows"]))
    for axes in panels.flat:
        axes.set_axis_off()
    for size, line in zip(sizes, panels, strict=False):
        for axes, (method, files) in zip(line, grids.items(), strict=True):
            axes.set_title(f"{size}, {method}", loc="left")
            if size in files:
                axes.imshow(np.asarray(Image.open(files[size]).convert("RGB"))[: rows * side], interpolation="none")
    return figure


LINES = ("-", "o"), ("--", "s"), (":", "^"), ("-.", "D")  # of methods, so that they are told apart in gray
CUT = 1.5  # a likelihood's axis ends at so many times its lowest value


def curves(panels: dict[str, dict[str, pd.DataFrame]], x: str, y: str, xlabel: str, ylabel: str, logx: bool = False) -> Figure:
    """y against x: a panel for each name, in it a label for each frame.

    Thin lines are seeds (small dots where a run is one point), the thick line is their mean: of the seeds that everything in a
    panel has, if there are any, so that means differ as the paired differences do.
    """
    figure, row = plt.subplots(1, len(panels), figsize=(3.5 * len(panels), 2.8), squeeze=False)
    for axes, (title, frames) in zip(row[0], panels.items(), strict=True):
        shared = shared_seeds(frames)
        for number, (label, frame) in enumerate(frames.items()):
            known = frame[frame["seed"].isin(shared)] if shared and not frame.empty else frame
            _seeds(axes, known, x, y, f"C{number}", label, *LINES[number % len(LINES)])
        seeds = f" ({len(shared)} seed{'s' * (len(shared) > 1)})" if shared else ""
        axes.set(title=title + seeds, xlabel=xlabel, xscale="log" if logx else "linear")
        if logx:
            axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axes.xaxis.set_major_formatter("{x:g}")
            axes.xaxis.set_minor_formatter("")
        _say_not_run(axes, all(frame.empty for frame in frames.values()))
        if y == "heldout_nll" and axes.lines:  # the ends are what is compared; the spike at a switch goes beyond
            lowest = min(frame[y].min() for frame in frames.values() if not frame.empty)
            axes.set_ylim(0.97 * lowest, CUT * lowest)
        if axes.lines:
            axes.legend()
    row[0][0].set_ylabel(ylabel)
    return figure


def shared_seeds(frames: dict[str, pd.DataFrame]) -> set[int]:
    """The seeds that every frame has at every one of its points; frames without rows do not count."""
    found = [set(part["seed"]) for frame in frames.values() if not frame.empty for _, part in frame.groupby("point")]
    return set.intersection(*found) if found else set()


def _seeds(axes: Axes, frame: pd.DataFrame, x: str, y: str, colour: str, label: str, line: str, marker: str) -> None:
    if frame.empty:
        return
    known = frame.dropna(subset=[x, y])
    for _, part in known.groupby("seed"):
        axes.plot(part[x], part[y], color=colour, linewidth=0.6, alpha=0.5, marker="." if len(part) == 1 else None)
    mean = known.groupby("point")[[x, y]].mean()
    axes.plot(mean[x], mean[y], line, color=colour, marker=marker if len(mean) < 12 else None, markersize=5, label=label)
