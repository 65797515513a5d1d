"""Plots of one image set, one run, one schedule. Each takes data and returns a matplotlib figure; figures.py compares runs."""

import base64
import io
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from einops import rearrange
from IPython.display import display
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from PIL import Image, ImageChops
from torch import Tensor

from nppkit.files import replacing
from nppkit.grouping import group_targets, patch_grid
from nppkit.schedule import Segment
from nppkit.study.graph import figures_dir
from nppkit.study.presets import Preset

plt.style.use(["default", Path(__file__).parent / "style.mplstyle"])  # and nothing of the user's own settings


GAP = 2  # white pixels between tiled images
GRAY = 8  # of 255: channels that differ by no more are one gray
CURVES = {"loss": "loss (nats)", "heldout_nll": "held-out loss", "lr": "learning rate", "images_per_second": "images / s"}  # axes
VEIL = ListedColormap([(1, 1, 1, 0), (1, 1, 1, 0.6)])  # over what a position does not see


def save_figure(figure: Figure, preset: Preset, name: str) -> list[Path]:
    """Write figures/<preset>/<name>.png and .pdf."""
    folder = figures_dir(preset)
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{name}.{suffix}" for suffix in ("png", "pdf")]
    figure.savefig(paths[0])
    with_palette(Image.open(paths[0])).save(paths[0], optimize=True)
    figure.savefig(paths[1], metadata={"CreationDate": None})
    return paths


def with_palette(picture: Image.Image) -> Image.Image:
    """The picture in 256 colours, or in gray where it has no others: a third of the bytes, and no difference to the eye."""
    red, green, blue = picture.convert("RGB").split()
    differ = [ImageChops.difference(red, other).getextrema()[1] for other in (green, blue)]
    return picture.convert("L") if max(differ) <= GRAY else picture.convert("RGB").quantize(dither=Image.Dither.NONE)


def show(figure: Figure) -> None:
    """Display a figure in a notebook, once, in 256 colours: notebooks are committed with their figures."""
    drawn, small = io.BytesIO(), io.BytesIO()
    figure.savefig(drawn, format="png", dpi=figure.dpi, bbox_inches="tight")
    with_palette(Image.open(drawn)).save(small, format="png", optimize=True)
    display({"image/png": base64.b64encode(small.getvalue()).decode(), "text/plain": repr(figure)}, raw=True)
    plt.close(figure)


def tile(images: Tensor, columns: int) -> np.ndarray:
    """uint8 images (n, 3, S, S) in rows of `columns` on white, as one image (height, width, 3)."""
    edges = ((0, -len(images) % columns), (0, 0), (0, GAP), (0, GAP))
    padded = np.pad(images.numpy(), edges, constant_values=255)
    return rearrange(padded, "(r c) k h w -> (r h) (c w) k", c=columns)[:-GAP, :-GAP]


def save_tiles(path: Path, images: Tensor, columns: int, like: Tensor) -> None:
    """Write the tiled images as PNG: in shades of gray, a third of the bytes, if the images that they are `like` are gray."""
    picture = Image.fromarray(tile(images, columns))
    with replacing(path) as temporary:  # whoever follows the run reads the old or the new one
        picture.convert("L" if (like == like[:, :1]).all() else "RGB").save(temporary, format="PNG", optimize=True)


def read_tiles(path: Path, size: int) -> Tensor:
    """The uint8 images (rows, columns, 3, size, size) of a file that `save_tiles` wrote."""
    with Image.open(path) as picture:
        padded = np.pad(np.asarray(picture.convert("RGB")), ((0, GAP), (0, GAP), (0, 0)))
    tiles = rearrange(torch.from_numpy(padded), "(r h) (c w) k -> r c k h w", h=size + GAP, w=size + GAP)
    return tiles[..., :size, :size]


def side_by_side(videos: Tensor) -> np.ndarray:
    """Videos (n, T, 3, S, S) as one, uint8 (T, height, width, 3)."""
    return np.stack([tile(frames, len(videos)) for frames in videos.unbind(1)])


def image_grid(axes: Axes, images: Tensor, columns: int) -> None:
    """Draw uint8 images (n, 3, S, S) in rows of `columns`."""
    axes.imshow(tile(images, columns), interpolation="nearest")
    axes.set_axis_off()


def image_rows(rows: dict[str, Tensor], mark: int = 0) -> Figure:
    """A titled row of uint8 images (n, 3, S, S) for each entry; a line under the first `mark` rows of pixels."""
    figure = Figure(figsize=(7, 1.05 * len(rows)))
    for axes, (title, images) in zip(figure.subplots(len(rows), 1, squeeze=False)[:, 0], rows.items(), strict=True):
        image_grid(axes, images, len(images))
        axes.set_title(title, loc="left")
        if mark:
            axes.axhline(mark - 0.5, color="C1", linewidth=1)
    return figure


def shade_segments(axes: Axes, segments: tuple[Segment, ...], labels: bool = True) -> None:
    """Mark each segment's patch side on an axis of schedule epochs."""
    for i, segment in enumerate(segments):
        axes.axvspan(segment.start, segment.end, color="0.5", alpha=0.12 * (i % 2), linewidth=0)
        if labels:
            middle, above = (segment.start + segment.end) / 2, axes.get_xaxis_transform()
            drawn = " or 1, drawn" * (segment.coarse < 1)
            axes.text(middle, 1, f"p = {segment.patch_size}{drawn}", transform=above, ha="center", va="bottom")


def code_colours(rows: Tensor) -> ListedColormap:
    """A colour for each codebook row (V, D): codes that lie close together get close colours.

    Codes are ranked along the codebook's first principal axis and take cividis, which is safe for colour-blind readers.
    """
    place = principal_axes(rows, rows, 1)[:, 0].argsort().argsort() / (len(rows) - 1)
    return ListedColormap(plt.get_cmap("cividis")(place))


def principal_axes(x: Tensor, basis: Tensor, n: int = 2) -> np.ndarray:
    """Coordinates (m, n) of rows x (m, C) on the first n principal axes of `basis` (V, C)."""
    mean = basis.mean(0)
    axes = np.linalg.svd((basis - mean).numpy(), full_matrices=False)[2][:n]
    signs = np.sign(axes[np.arange(n), np.abs(axes).argmax(1)])  # a singular vector's sign is arbitrary
    return (x - mean).numpy() @ (axes * signs[:, None]).T


def code_grid(axes: Axes, codes: Tensor, colours: ListedColormap, patch_size: int = 1, position: int | None = None) -> None:
    """Codes (N,) as a coloured G x G grid with its patch windows; `position` outlines one patch and fades what it cannot see."""
    grid = patch_grid(len(codes), 1)
    axes.imshow(codes.view(grid, grid), cmap=colours, vmin=0, vmax=colours.N - 1, interpolation="nearest")
    if grid <= 8:
        for (y, x), code in np.ndenumerate(codes.view(grid, grid).numpy()):
            dark = sum(colours(int(code))[:3]) < 1.5
            axes.text(x, y, code, ha="center", va="center", fontsize=6, color="white" if dark else "black")
    patch_windows(axes, grid, patch_size, 1, position)
    axes.set_axis_off()


def patch_windows(axes: Axes, grid: int, patch_size: int, cell: float, position: int | None = None) -> None:
    """Outline the p x p windows of a grid whose cells are `cell` wide, veil those after `position`, and mark that one."""
    side, width = patch_grid(grid * grid, patch_size), patch_size * cell
    edges, end = np.arange(side + 1) * width - 0.5, grid * cell - 0.5
    axes.hlines(edges, -0.5, end, color="white", linewidth=1.2)
    axes.vlines(edges, -0.5, end, color="white", linewidth=1.2)
    if position is not None:
        later = (np.arange(side * side) > position).reshape(side, side)
        axes.imshow(later, cmap=VEIL, vmin=0, vmax=1, extent=(-0.5, end, end, -0.5), interpolation="nearest")
        corner = (edges[position % side], edges[position // side])
        axes.add_patch(Rectangle(corner, width, width, fill=False, edgecolor="#D55E00", linewidth=2.5))


def target_matrix(axes: Axes, num_tokens: int, patch_size: int, position: int | None = None) -> None:
    """Which image tokens each position of the sequence is scored on: K marks in each column (Eq. 2)."""
    targets = group_targets(torch.arange(num_tokens)[None], patch_size)[0].numpy()  # (n, K)
    marks = np.zeros((num_tokens, len(targets)))
    np.put_along_axis(marks, targets.T, 1, 0)
    if position is not None:
        marks[targets[position], position] = 2
    axes.imshow(marks, cmap=ListedColormap(["white", "#0072B2", "#D55E00"]), vmin=0, vmax=2, aspect="auto", interpolation="none")
    axes.xaxis.get_major_locator().set_params(integer=True, min_n_ticks=1)
    axes.set(xlabel="position in the sequence", ylabel="image token, raster order")


def grouping(image: Tensor, codes: Tensor, colours: ListedColormap, patch_size: int, position: int) -> Figure:
    """An image (3, S, S) and its codes (N,) cut into patches; what one position sees and what it is scored on."""
    figure = Figure(figsize=(9, 3.1), layout="none")  # drawn at every move of a slider: no search for margins
    figure.subplots_adjust(left=0.01, right=0.99, bottom=0.15, top=0.91, wspace=0.24)
    left, middle, right = figure.subplots(1, 3, width_ratios=(1, 1, 1.15))
    image_grid(left, image[None], 1)
    grid = patch_grid(len(codes), 1)
    patch_windows(left, grid, patch_size, image.shape[-1] / grid, position)
    code_grid(middle, codes, colours, patch_size, position)
    target_matrix(right, len(codes), patch_size, position)
    for axes, title in ((left, "image"), (middle, "codes; faded: not yet seen"), (right, "scored on")):
        axes.set_title(title, loc="left")
    return figure


def patch_embeddings(vocabulary: Tensor, patches: Tensor, mine: Tensor, colours: ListedColormap, position: int) -> Figure:
    """Patch embeddings (m, C) of many images and of this one (n, C), on the principal axes of the token embeddings (V, C)."""
    figure = Figure(figsize=(6, 3.1), layout="none")
    axes = figure.add_axes((0.12, 0.15, 0.55, 0.82))
    axes.scatter(*principal_axes(patches, vocabulary).T, s=3, color="0.75", label="patches of all images", rasterized=True)
    tokens = principal_axes(vocabulary, vocabulary)
    axes.scatter(*tokens.T, c=np.arange(colours.N), cmap=colours, s=14, label="the codes' own embeddings")
    own = principal_axes(mine, vocabulary)
    axes.plot(*own.T, "x", color="C0", markersize=5, label="this image's patches")
    axes.plot(*own[position], "o", mfc="none", color="C1", markersize=11, markeredgewidth=2, label="the marked patch")
    axes.set(xlabel="first principal axis", ylabel="second principal axis")
    axes.legend(fontsize=7, loc="upper left", bbox_to_anchor=(1, 1))
    return figure


def all_sides(codes: Tensor, colours: ListedColormap, patch_sizes: tuple[int, ...] = (1, 2, 4, 8)) -> Figure:
    """One image's codes (N,) at several patch sides, and what each position is scored on."""
    figure = Figure(figsize=(9, 4.6))
    for (top, bottom), p in zip(figure.subplots(2, len(patch_sizes)).T, patch_sizes, strict=True):
        code_grid(top, codes, colours, p)
        target_matrix(bottom, len(codes), p)
        top.set_title(f"p = {p}: {len(codes) // p**2} patch{'es' * (p * p < len(codes))} of {p * p}", loc="left")
        bottom.set_ylabel("image token" if p == patch_sizes[0] else "")
    return figure


def prediction(codes: Tensor, probabilities: Tensor, colours: ListedColormap, patch_size: int, position: int) -> Figure:
    """What one position predicts, (V,), and the K codes of its patch, marked in the image's codes (N,) and below the bars."""
    figure = Figure(figsize=(9, 2.8), layout="none")
    figure.subplots_adjust(left=0.01, right=0.99, bottom=0.16, top=0.9, wspace=0.22)
    left, right = figure.subplots(1, 2, width_ratios=(1, 2.2))
    code_grid(left, codes, colours, patch_size, position)
    left.set_title("the patch to predict", loc="left")
    targets = group_targets(codes[None], patch_size)[0, position]
    right.bar(np.arange(colours.N), probabilities, color=colours(np.arange(colours.N)), width=1)
    right.plot(targets, probabilities[targets], "v", color="C1", label=f"its K = {len(targets)} codes", clip_on=False)
    right.set(xlabel="code", ylabel="predicted probability", xlim=(-1, colours.N), ylim=(0, None))
    right.legend()
    return figure


def design(segments: tuple[Segment, ...], rates: np.ndarray, num_tokens: int) -> Figure:
    """Learning rate (one value a step, evenly spaced), sequence length and cost so far over the schedule epochs."""
    figure, end = Figure(figsize=(7, 5.2)), segments[-1].end
    rows = figure.subplots(3, 1, sharex=True)
    rows[0].plot(np.linspace(0, end, len(rates)), rates)
    edges = [0, *(s.end for s in segments)]
    rows[1].stairs([num_tokens // s.patch_size**2 for s in segments], edges, color="C0", baseline=None, linewidth=1.5)
    lengths = sorted({num_tokens // s.patch_size**2 for s in segments})
    rows[1].set(yscale="log", ylim=(lengths[0] / 2, lengths[-1] * 2))
    rows[1].set_yticks(lengths, lengths, minor=False)
    rows[1].set_yticks([], minor=True)
    spent = np.cumsum([0, *((s.end - s.start) / s.patch_size**2 / end for s in segments)])
    rows[2].plot(edges, spent, "-", color="C0", label="this schedule")
    rows[2].plot([0, end], [0, 1], "--", color="C1", label="next-token prediction")
    rows[2].legend(loc="upper left")
    for axes, label in zip(rows, ("learning rate", "positions", "share of NTP's cost"), strict=True):
        axes.set_ylabel(label)
    for i, axes in enumerate(rows):
        shade_segments(axes, segments, labels=i == 0)
    rows[2].set(xlabel="schedule epoch", xlim=(0, end))
    return figure


def run_curves(histories: dict[str, pd.DataFrame], against: str = "epoch") -> Figure:
    """Loss, held-out loss, learning rate and throughput of several runs over schedule epochs, or over another column."""
    figure = Figure(figsize=(7, 6.2))
    rows = figure.subplots(len(CURVES), 1, sharex=True)
    styles = ("-", "--", ":", "-.")
    for axes, (column, label) in zip(rows, CURVES.items(), strict=True):
        for i, (name, frame) in enumerate(histories.items()):
            known = frame.reindex(columns=[against, column]).dropna()
            look = {"color": f"C{i % 7}", "linewidth": 1.2, "marker": "." if column == "heldout_nll" else ""}  # which are few
            axes.plot(known[against], known[column], styles[i % 4], label=name, **look)
        axes.set_ylabel(label)
    if histories:
        rows[0].legend(fontsize=7)
    rows[-1].set_xlabel("schedule epoch" if against == "epoch" else against)
    return figure


def losses(curves: dict[str, list[float]], segments: tuple[Segment, ...] = (), steps_per_epoch: int = 1) -> Figure:
    """Training losses over the steps, each step's faint and their running mean in front."""
    figure = Figure(figsize=(7, 2.6))
    axes = figure.subplots()
    for i, (name, values) in enumerate(curves.items()):
        axes.plot(values, color=f"C{i}", alpha=0.2, linewidth=0.8)
        smooth = pd.Series(values, dtype=float).ewm(span=20).mean()
        axes.plot(smooth, ("-", "--", ":")[i % 3], color=f"C{i}", label=name)
    steps = tuple(Segment(s.patch_size, s.start * steps_per_epoch, s.end * steps_per_epoch) for s in segments)
    shade_segments(axes, steps)
    axes.set(xlabel="optimiser step", ylabel="loss (nats)")
    if len(curves) > 1:
        axes.legend()
    return figure
