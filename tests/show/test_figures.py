"""Figures that compare runs: checked through the series they plot."""

import dataclasses
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from cells import run_cells
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from PIL import Image
from test_tables import finish

from nppkit.show import figures
from nppkit.study import tables
from nppkit.study.runs import Run

FIGURE1 = ("185b2299", "figure1-draw", "figure1-panels", "figure1-uneven", "18e222d0")


@pytest.fixture
def study(home, smoke):
    """Two seeds of B: next-token prediction at FID 10 and 12, p = 2 at 8 and 9."""
    preset = dataclasses.replace(smoke, seeds={"B": 2})
    for seed, (ntp, npp) in enumerate([(10.0, 8.0), (12.0, 9.0)]):
        finish(preset, Run("B", seed=seed), fid=ntp, flops=2e12)
        finish(preset, Run("B", patch_size=2, lam="1/2", seed=seed), fid=npp, flops=1e12)
    return preset


def points(line):
    return list(zip(*(np.asarray(values).tolist() for values in line.get_data()), strict=True))


def test_ablation_shows_means_and_seeds(study):
    """Left the paper's values, right a line through our means and a dot for every seed."""
    table = tables.make_table(study, 2)
    ours = f"our FID{tables.suffix(study)}"
    left, right = figures.ablation(table, tables.seed_values(study, 2), "patch_size", ours).axes
    assert points(left.lines[0]) == [("NTP", 5.46), ("2", 4.47), ("4", 4.92)]
    assert points(right.lines[0])[:2] == [("NTP", 11.0), ("2", 8.5)]
    assert points(right.lines[1]) == [("NTP", 10.0), ("NTP", 12.0), ("2", 8.0), ("2", 9.0)]


def test_figure1_series(study):
    """The paper's three series with its points, its rule's costs in the middle, ours with bars on the right."""
    made = run_cells("figure1_cost_vs_fid", *FIGURE1, study=study)
    left, middle, right = made["figure"].axes
    series = {line.get_label(): points(line) for line in left.lines}
    assert series["LlamaGen"] == [(25.06, 5.46), (83.54, 3.8), (193.35, 3.39), (355.72, 3.1)]
    assert series["LlamaGen-384"] == [(83.54, 3.8), (434.11, 2.62), (798.64, 2.34)]
    assert series["LlamaGen + NPP"] == [(15.7, 4.47), (47.95, 2.76), (102.78, 2.65), (189.11, 2.55)]
    corrected = next(line for line in middle.lines if "rule" in line.get_label())
    assert [round(x, 2) for x, _ in points(corrected)] == [15.7, 52.33, 121.13, 222.84]
    images = study.training.batch_size * study.training.steps_per_epoch * 300
    assert points(right.lines[0]) == [(2e12 / images / 1e9, 11.0)]
    drawn = {made["kinds"][line.get_label()]: line.get_color() for line in right.lines if line.get_label() in made["kinds"]}
    legend = zip(right.get_legend().get_texts(), right.get_legend().legend_handles, strict=True)
    assert {text.get_text(): handle.get_color() for text, handle in legend} == drawn
    (low, high), *_ = right.collections[0].get_segments()[0][:, 1].reshape(1, 2)
    assert (low, high) == pytest.approx((11 - 2**0.5, 11 + 2**0.5))


def test_paper_ticks_are_equally_far_apart(study):
    """The published axes are reproduced as they are: uneven values at even distances."""
    made = run_cells("figure1_cost_vs_fid", *FIGURE1, study=study)
    left = made["left"]
    for axis, ticks in ((left.xaxis, made["ticks"]["x"]), (left.yaxis, made["ticks"]["y"])):
        places = axis.get_transform().transform(np.array(ticks, float))
        np.testing.assert_allclose(np.diff(places), places[1] - places[0], rtol=1e-6)


def test_figure2_shades():
    """A code's shade is the mean brightness of the cells that carry it."""
    pixels = np.zeros((1, 3, 4, 4), np.uint8)
    pixels[..., :2, 2:], pixels[..., 2:, :2], pixels[..., 2:, 2:] = 10, 30, 200  # cells 1, 2 and 3
    codes = np.array([[[0, 1, 1, 3]]], np.uint16)
    store = SimpleNamespace(codes=codes, grid_size=2, vocab_size=4)
    made = run_cells("figure2_method", "figure2-brightness", store=store, pixels=pixels, tokens=torch.arange(4))
    assert made["shades"].tolist() == [[0, 20], [0, 200]]


@pytest.mark.parametrize("p", [1, 2, 4])
def test_figure2_marks_one_target(p):
    """One window of side p is scored; all before it in raster order are inputs."""
    axes, cells = Figure().subplots(), run_cells("figure2_method", "figure2-prediction")
    cells["prediction"](axes, torch.arange(64).view(8, 8), p)
    windows = axes.patches
    targets = [w for w in windows if to_hex(w.get_edgecolor()) == cells["scored"]["ec"].lower() and w.get_facecolor()[3] == 0]
    side = 8 // p
    middle = side // 2 * side + side // 2
    assert len(targets) == 1 and targets[0].get_width() == targets[0].get_height() == p
    assert (targets[0].get_y() + 0.5, targets[0].get_x() + 0.5) == (middle // side * p, middle % side * p)
    assert len(windows) == middle + 1


def test_figure3_draws_the_schedule(home, smoke):
    """The learning rate starts anew in each segment, and the title has the cost with integer boundaries."""
    training = dataclasses.replace(smoke.training, epochs=300, steps_per_epoch=2, lr=1e-3, end_lr=1e-5)
    study = dataclasses.replace(smoke, training=training)
    two, _, four = run_cells("figure3_schedule", "figure3-answer", "979ad300", study=study)["figure"].axes
    steps, rates = four.lines[0].get_data()
    assert steps[np.asarray(rates) == 0].tolist() == [0, 37, 75, 150]
    assert "0.572" in four.get_title(loc="left") and [t.get_text() for t in two.texts] == ["p = 2", "p = 1"]


def test_figure4_places_the_grids(tmp_path):
    """A line for each size, methods side by side; a run that does not exist leaves its place empty."""
    for name, value in (("a", 10), ("b", 200)):
        Image.fromarray(np.full((68, 100, 3), value, np.uint8)).save(tmp_path / f"{name}.png")
    a, b = tmp_path / "a.png", tmp_path / "b.png"
    figure = figures.figure4({"NTP": {"B": a, "L": b}, "NPP": {"B": b}}, rows=1)
    shown = [[int(image.get_array().max()) for image in axes.images] for axes in figure.axes]
    assert shown == [[10], [200], [200], []] and figure.axes[0].images[0].get_array().shape[0] == 34
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["B, NTP", "B, NPP", "L, NTP", "L, NPP"]


def test_curves_average_over_seeds():
    """The thick line is the mean of the seeds that all curves of a panel have at all points; of all without such a seed."""
    frame = pd.DataFrame({"seed": [0, 0, 1], "point": [1, 2, 2], "x": [1, 2, 2], "y": [5.0, 1.0, 3.0]})
    axes = figures.curves({"B": {"NTP": frame}}, "x", "y", "x", "y").axes[0]
    assert points(axes.lines[-1]) == [(1, 5.0), (2, 1.0)] and len(axes.lines) == 2 and axes.get_title() == "B (1 seed)"
    apart = pd.DataFrame({"seed": [1], "point": [1], "x": [1], "y": [2.0]})
    axes = figures.curves({"B": {"NTP": frame, "none yet": pd.DataFrame()}}, "x", "y", "x", "y").axes[0]
    assert axes.get_title() == "B (1 seed)" and len(axes.lines) == 2
    axes = figures.curves({"B": {"NTP": frame, "NPP": apart}}, "x", "y", "x", "y").axes[0]
    assert points(axes.lines[2]) == [(1, 5.0), (2, 2.0)] and axes.get_title() == "B"


def test_curves_are_told_apart_in_gray():
    """Each method has a line of its own kind, and a likelihood's axis ends where the ends of the curves can be told apart."""
    frame = pd.DataFrame({"seed": [0, 0, 0], "point": [1, 2, 3], "x": [1, 2, 3], "heldout_nll": [5.0, 0.9, 0.8]})
    axes = figures.curves({"B": {"NTP": frame, "NPP": frame}}, "x", "heldout_nll", "x", "y").axes[0]
    assert [line.get_linestyle() for line in axes.lines if line.get_label() in ("NTP", "NPP")] == ["-", "--"]
    ends = {name: pd.DataFrame({"seed": [0, 1], "point": [0, 0], "x": [3, 3], "y": [5.0, 7.0]}) for name in ("NTP", "NPP")}
    lines = figures.curves({"B": ends}, "x", "y", "x", "y").axes[0].lines
    assert [line.get_marker() for line in lines] == [".", ".", "o", ".", ".", "s"]
    assert axes.get_ylim() == pytest.approx((0.97 * 0.8, 1.5 * 0.8))


def test_curves_of_a_likelihood_that_was_not_measured_are_empty():
    """A preset that holds no images out has none, at any point; the report is made all the same."""
    frame = pd.DataFrame({"seed": [0, 0], "point": [1, 2], "x": [1, 2], "heldout_nll": [float("nan")] * 2})
    axes = figures.curves({"B": {"NTP": frame}}, "x", "heldout_nll", "x", "y").axes[0]
    assert axes.get_legend_handles_labels()[1] == ["NTP"]


def test_single_points_show_their_seeds():
    """Where a run is one point, each seed is a dot of its own beside the mean; a logarithmic axis has plain labels."""
    frame = pd.DataFrame({"seed": [0, 1], "point": [0, 0], "x": [300, 300], "y": [5.0, 7.0]})
    figure = figures.curves({"B": {"NTP": frame}}, "x", "y", "x", "y", logx=True)
    axes = figure.axes[0]
    assert [(line.get_marker(), points(line)) for line in axes.lines[:2]] == [(".", [(300, 5.0)]), (".", [(300, 7.0)])]
    axes.set_xlim(75, 600)
    figure.canvas.draw()
    shown = [label.get_text() for label in axes.get_xticklabels(which="both") if label.get_text()]
    assert {"100", "200", "500"} <= set(shown) and all(text.isdigit() for text in shown)
