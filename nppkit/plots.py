"""Figures. Each function takes data, returns a matplotlib figure, and draws nothing else."""

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

PAPER_X_TICKS = (0, 50, 100, 150, 200, 300, 400, 600, 800)  # equally spaced in the paper's Figure 1
PAPER_Y_TICKS = (2.0, 3.0, 4.0, 4.5, 5.0, 5.5)  # likewise: a step below 4 is twice a step above
SERIES = {"LlamaGen": ("C0", "o", "-"), "LlamaGen-384": ("C1", "s", "--"), "LlamaGen + NPP": ("C2", "^", "-")}


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


def ablation(table: pd.DataFrame, by: str, ours: str) -> Figure:
    """FID against one setting, a line a model size; the baseline without the setting comes first."""
    setting = table[by].map(lambda value: "NTP" if pd.isna(value) else f"{value:g}" if isinstance(value, float) else str(value))
    size = table["model"].str.extract(r"(LlamaGen-\w+)")[0]
    figure, both = plt.subplots(1, 2, figsize=(7, 2.6))
    for axes, column in zip(both, ("paper FID", ours), strict=True):
        for name, part in table.groupby(size):
            known = part[column].notna()
            axes.plot(setting[part.index[known]], part[column][known].astype(float), "o-", label=name)
        axes.set(xlabel=by.replace("_", " "), ylabel=column)
    both[0].legend()
    if table[ours].isna().all():
        both[1].annotate("not run", (0.5, 0.5), xycoords="axes fraction", ha="center")
    return figure


def figure1(data: pd.DataFrame, preset_name: str, ours: str) -> Figure:
    """The published series on the paper's ticks and on ordinary axes, and ours."""
    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(11, 3.4))
    printed = figure1_series(data, "paper GFLOPs printed", "paper FID")
    for axes in (left, middle):
        cost_vs_fid(axes, printed, "paper GFLOPs printed", "paper FID", "size")
        axes.set(xlabel="training cost (GFLOPs an image, as printed)", ylabel="FID (ImageNet 256 x 256, published)")
    paper_ticks(left)
    left.set_title("published, on the paper's uneven ticks")
    corrected = printed["LlamaGen + NPP"]
    middle.plot(
        corrected["paper GFLOPs by its rule"],
        corrected["paper FID"],
        "o--",
        mfc="none",
        color="C2",
        label="NPP, cost by the rule",
    )
    middle.legend()
    middle.set_title("published, on ordinary axes")
    cost_vs_fid(right, figure1_series(data, "our GFLOPs measured", ours), "our GFLOPs measured", ours, "own_size")
    right.set(xlabel="measured training cost (GFLOPs an image)", ylabel=ours.removeprefix("our "))
    right.set_title(f"ours, preset {preset_name}")
    right.ticklabel_format(useOffset=False)
    if data[ours].isna().all():
        right.annotate("not run", (0.5, 0.5), xycoords="axes fraction", ha="center")
    return figure


def figure1_series(table: pd.DataFrame, x: str, y: str) -> dict[str, pd.DataFrame]:
    """The three series of Figure 1 from Table 5; LlamaGen-384 starts from L at 256, as the paper draws it."""
    own = table[table["model"].str.startswith("LlamaGen")].dropna(subset=[x, y])
    large, npp = own["model"].str.contains("384"), own["model"].str.contains("NPP")
    start = (own["model"] == "LlamaGen-L") & large.any()
    return {"LlamaGen": own[~large & ~npp], "LlamaGen-384": own[large | start], "LlamaGen + NPP": own[npp]}


def cost_vs_fid(axes: Axes, series: dict[str, pd.DataFrame], x: str, y: str, size: str) -> None:
    """FID against training cost, marker area by parameters."""
    largest = max((frame[size].max() for frame in series.values() if not frame.empty), default=1)
    for name, frame in series.items():
        if frame.empty:
            continue
        colour, marker, line = SERIES[name]
        axes.plot(frame[x], frame[y], line, marker=marker, markersize=4, color=colour, label=name, linewidth=1)
        axes.scatter(frame[x], frame[y], s=frame[size] / largest * 120 + 15, marker=marker, color=colour, zorder=3)
    if axes.lines:
        axes.legend()


def paper_ticks(axes: Axes) -> None:
    """The original's silently non-uniform axes: its ticks are equally far apart."""
    for axis, ticks in (("x", PAPER_X_TICKS), ("y", PAPER_Y_TICKS)):
        places = np.arange(len(ticks), dtype=float)
        forward, inverse = _piecewise(np.array(ticks, float), places), _piecewise(places, np.array(ticks, float))
        getattr(axes, f"set_{axis}scale")("function", functions=(forward, inverse))
        getattr(axes, f"set_{axis}ticks")(ticks)
    axes.set(xlim=(0, 850), ylim=(2, 5.7))


def _piecewise(known: np.ndarray, values: np.ndarray):
    def mapped(x):
        inside = np.interp(x, known, values)
        slope = (values[-1] - values[-2]) / (known[-1] - known[-2])
        return np.where(np.asarray(x) > known[-1], values[-1] + slope * (np.asarray(x) - known[-1]), inside)

    return mapped
