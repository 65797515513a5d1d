"""Figures that compare runs: the paper's and ours. Each takes data and returns a matplotlib figure."""

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator
from PIL import Image

from nppkit.study import protocol, verdicts

QUESTIONS = {
    protocol.EQUAL_EPOCHS.text: "NPP minus NTP",
    protocol.EQUAL_FLOPS: "NPP minus NTP at equal FLOPs",
    protocol.PATCHES.text: "patches of 4 x 4 minus 2 x 2",
    protocol.LEVELS.text: "four patch sizes minus two",
    protocol.LAMBDA.text: "patches for 4/5 of training minus 1/2",
    protocol.SCHEDULE.text: "NTP: warm-up and decay minus constant rate",
}
COLOURS = {verdicts.SUPPORTED: "C2", verdicts.REFUTED: "C1", verdicts.NO_MATTER: "C0", verdicts.UNDECIDED: "0.35"}


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
        known = [frame[y] for frame in frames.values() if not frame.empty and frame[y].notna().any()]
        if y == "heldout_nll" and known:  # the ends are what is compared; the spike at a switch goes beyond
            low, high = min(values.min() for values in known), max(values.max() for values in known)
            axes.set_ylim(0.97 * low, min(CUT * low, 1.03 * high))
        if axes.lines:
            axes.legend()
    row[0][0].set_ylabel(ylabel)
    return figure


def forest(families: dict[str, pd.DataFrame], controlled: str = "") -> Figure:
    """Each family of questions (`protocol.summary`) with its intervals and verdicts, one below the other; its name is the axis's.

    Hollow: the 95 % intervals of the study before it. controlled: the family whose first question has a control.
    """
    lengths = [len(rows) for rows in families.values()]
    shape = dict(figsize=(7.6, 0.5 * sum(lengths) + 1.3), height_ratios=lengths, layout="constrained")
    figure, panels = plt.subplots(len(families), **shape)
    for axes, (name, rows) in zip(panels, families.items(), strict=True):
        axes.axvspan(-protocol.MARGIN, protocol.MARGIN, color="0.92", linewidth=0)
        axes.axvline(0, color="0.6", linewidth=0.8)
        for place, (_, row) in enumerate(rows.iterrows()):
            _question(axes, place, row, name == controlled and place == 0)
        axes.set_yticks(range(len(rows)), rows["contrast"].map(QUESTIONS) + " (" + rows["size"] + ")")
        axes.set(xlim=(-7.2, 6.4), ylim=(len(rows) - 0.4, -0.6), xlabel=f"{name}; lower is better for the first named")
        axes.grid(axis="y", visible=False)
    return figure


def _question(axes: Axes, place: int, row: pd.Series, controlled: bool) -> None:
    """A question's interval, above that of the study before it, and its verdict on the right."""
    colour = COLOURS.get(row["verdict"], "0.35")
    verdict = dict(color=colour, markersize=6, elinewidth=1.8)
    before = dict(color="0.35", mfc="white", markersize=4, elinewidth=0.9)
    for prefix, y, look in (("", place, verdict), ("first_", place + 0.28, before)):
        mean, low, high = (row[f"{prefix}{end}"] for end in ("mean", "low", "high"))
        axes.errorbar(mean, y, xerr=[[mean - low], [high - mean]], fmt="o", **look)
    said = row["verdict"] + (f" ({row['diverged']} diverged)" if row["diverged"] else "")
    said += "; see its control" * (controlled and not pd.isna(row["mean"]))
    axes.text(1.02, place, said, transform=axes.get_yaxis_transform(), va="center", color=colour)


def gains(kinds: pd.DataFrame) -> Figure:
    """What NPP gains on each kind of codes against what a token says (`study.tokens.kinds`): left FID, right held-out bits."""
    figure, row = plt.subplots(1, 2, figsize=(7, 2.9))
    alike = list(kinds.groupby(kinds["images"] + ", " + kinds["grid"], sort=False))
    for axes, key, label in zip(row, ("fid", "less"), ("FID, NPP minus NTP", "bits a token, NPP minus NTP"), strict=True):
        for number, (name, part) in enumerate(alike):
            mean, low, high = (np.array([getattr(i, end) for i in part[key]]) for end in ("mean", "low", "high"))
            look = dict(fmt="os^D"[number], color=f"C{number}", markersize=5, elinewidth=1)
            axes.errorbar(part["bits"], mean, yerr=(mean - low, high - mean), label=name, **look)
            for codes, *place in zip(part["codes"], part["bits"], mean, strict=True):
                axes.annotate(codes, place, (4, 4), textcoords="offset points", fontsize=7, color=f"C{number}")
        axes.axhline(0, color="0.6", linewidth=0.8)
        axes.set(xlabel="bits a token (NTP, held-out)", ylabel=label)
    if alike:
        figure.legend(*row[0].get_legend_handles_labels(), fontsize=7, loc="outside upper center", ncols=4)
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
