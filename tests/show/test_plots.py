"""Plots of one image, schedule or run: what is drawn is what is trained (the numbers, not the pixels)."""

import base64
import dataclasses
import io
import itertools
import re

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch
from cells import run_cells
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from PIL import Image

from nppkit.schedule import multi_scale_segments
from nppkit.show import plots
from nppkit.study.runs import Run
from nppkit.training.config import TrainingConfig

SEEN_BY = {  # linear RGB as people without one kind of cone see it (Machado, Oliveira and Fernandes 2009, severity 1)
    "everyone": [[1, 0, 0], [0, 1, 0], [0, 0, 1]],
    "protanopes": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deuteranopes": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    "tritanopes": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
}


def lab_colours(colours, seen_by):
    """CIE L*a*b* (n, 3) of sRGB colours (n, 3), as these people see them; a difference of 2.3 is just noticed."""
    linear = np.where(colours <= 0.04045, colours / 12.92, ((colours + 0.055) / 1.055) ** 2.4) @ np.transpose(SEEN_BY[seen_by])
    xyz = [[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]
    x, y, z = np.cbrt(linear.clip(1e-3, 1) @ np.transpose(xyz) / [0.9505, 1, 1.089]).T
    return np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], 1)


@pytest.mark.parametrize("people", SEEN_BY)
def test_colour_blind_readers_tell_lines_and_codes_apart(people):
    """Any two line colours differ by five times what is just noticed, and codes in the colours' order get ever lighter."""
    lines = np.array([to_rgb(colour) for colour in plt.rcParams["axes.prop_cycle"].by_key()["color"]])
    for a, b in itertools.combinations(lab_colours(lines, people), 2):
        assert np.linalg.norm(a - b) > 12
    colours = plots.code_colours(torch.arange(128.0)[:, None])(np.arange(128))[:, :3]
    lightness = lab_colours(colours, people)[:, 0]
    assert (np.diff(lightness) * np.sign(lightness[-1] - lightness[0]) > 0.1).all()


def test_codes_that_are_close_have_close_colours():
    """Colours follow the order on the codebook's first principal axis, and each code has its own."""
    place = torch.tensor([3.0, 1.0, 2.0, 0.0])
    colours = plots.code_colours(torch.stack([place, 0.01 * place.flip(0)], 1))
    light = np.array([colours(i)[:3] for i in range(4)]).sum(1)
    ranks = light.argsort().argsort().tolist()
    assert ranks in ([3, 1, 2, 0], [0, 2, 1, 3])


def test_principal_axes_are_those_of_the_basis():
    """Coordinates along the direction in which the basis varies most come first; the sign is fixed."""
    basis = torch.randn(50, 3, generator=torch.Generator().manual_seed(0)) * torch.tensor([1.0, 10.0, 0.1])
    own = plots.principal_axes(basis, basis)
    assert np.corrcoef(own[:, 0], basis[:, 1])[0, 1] > 0.99
    np.testing.assert_allclose(own, plots.principal_axes(basis, basis.clone()))


def test_each_column_of_the_targets_has_its_window():
    """At p = 2 on a 4 x 4 grid position 1 is scored on tokens 2, 3, 6, 7: K marks, the chosen column's in another colour."""
    axes = Figure().subplots()
    plots.target_matrix(axes, 16, 2, position=1)
    marks = np.asarray(axes.images[0].get_array())
    assert marks.shape == (16, 4) and (marks > 0).sum(0).tolist() == [4] * 4
    assert np.flatnonzero(marks[:, 1] == 2).tolist() == [2, 3, 6, 7] and (marks == 2).sum() == 4


@pytest.mark.parametrize("patch_size", [1, 2, 4, 8])
def test_positions_are_whole_numbers(patch_size):
    """Also where a single position is the whole image."""
    axes = Figure().subplots()
    plots.target_matrix(axes, 64, patch_size)
    assert all(tick == int(tick) for tick in axes.get_xticks())


def test_windows_veil_what_comes_later():
    """Lines around four windows, those after the chosen one veiled, and one mark around it."""
    axes = Figure().subplots()
    plots.patch_windows(axes, 4, 2, 1, position=1)
    rows, columns = ([line[0].tolist() for line in lines.get_segments()] for lines in axes.collections)
    assert rows == [[-0.5, y] for y in (-0.5, 1.5, 3.5)] and columns == [[x, -0.5] for x in (-0.5, 1.5, 3.5)]
    (veil,), (mark,) = axes.images, axes.patches
    assert veil.get_array().tolist() == [[False, False], [True, True]] and veil.get_extent() == [-0.5, 3.5, 3.5, -0.5]
    assert mark.get_xy() == (1.5, -0.5) and mark.get_width() == 2


def test_the_design_ends_at_the_relative_cost():
    """The cost so far ends at the schedule's cost ratio: 0.625 of next-token prediction for two levels."""
    segments = multi_scale_segments(10, 2, "1/2")
    figure = plots.design(segments, np.linspace(0, 1, 50), num_tokens=64)
    rates, lengths, cost = figure.axes
    np.testing.assert_allclose(cost.lines[0].get_ydata(), [0, 0.125, 0.625])
    assert len(rates.lines[0].get_ydata()) == 50 and lengths.patches[0].get_data().values.tolist() == [16, 64]


def test_curves_of_several_runs_differ_in_more_than_colour():
    """A run a line with a style of its own, over the chosen column."""
    frame = pd.DataFrame({"epoch": [1, 2], "minutes": [3, 5], "loss": [4, 3], "lr": 0.1, "images_per_second": 7})
    figure = plots.run_curves({"a": frame, "b": frame}, "minutes")
    first, second = figure.axes[0].lines
    assert first.get_linestyle() != second.get_linestyle() and list(first.get_xdata()) == [3, 5]
    assert figure.axes[-1].get_xlabel() == "minutes"


def test_the_prediction_marks_the_codes_of_the_patch():
    """Triangles stand on the predicted probabilities of the K targets."""
    codes, probabilities = torch.arange(16), torch.linspace(0, 1, 16)
    colours = plots.code_colours(torch.randn(16, 3, generator=torch.Generator().manual_seed(0)))
    bars = plots.prediction(codes, probabilities, colours, 2, 1).axes[1]
    assert bars.lines[0].get_xdata().tolist() == [2, 3, 6, 7]
    np.testing.assert_allclose(bars.lines[0].get_ydata(), probabilities[[2, 3, 6, 7]])


@pytest.mark.parametrize(("colour", "mode"), [((250, 250, 250), "L"), ((250, 246, 243), "L"), ((250, 240, 250), "P")])
def test_figures_in_notebooks_are_small(monkeypatch, colour, mode):
    """A figure is shown as a PNG of 256 colours, or in gray, beside its own name, whichever way it was made, and closed."""
    shown = []
    monkeypatch.setattr(plots, "display", lambda bundle, raw: shown.append(bundle))
    figure = Figure((2, 1), dpi=100, facecolor=[value / 255 for value in colour])
    plots.show(figure)
    with Image.open(io.BytesIO(base64.b64decode(shown[0]["image/png"]))) as picture:
        assert picture.mode == mode and abs(picture.width - 200) < 60
    assert shown[0]["text/plain"] == repr(figure)


@pytest.mark.parametrize(("gray", "mode"), [(True, "L"), (False, "RGB")])
def test_saved_tiles_are_gray_like_the_data(tmp_path, gray, mode):
    """Samples of a model of gray images are saved in gray, whatever small tints the tokenizer leaves; others in colour."""
    like = torch.randint(256, (4, 1 if gray else 3, 8, 8), dtype=torch.uint8).expand(4, 3, 8, 8)
    samples = torch.randint(256, (6, 3, 8, 8), dtype=torch.uint8)
    plots.save_tiles(tmp_path / "samples.png", samples, 3, like)
    saved = Image.open(tmp_path / "samples.png")
    assert saved.mode == mode and np.asarray(saved.convert("RGB")).shape == (18, 28, 3)
    assert gray or np.array_equal(np.asarray(saved), plots.tile(samples, 3))
    assert [path.name for path in tmp_path.iterdir()] == ["samples.png"]
    again = plots.read_tiles(tmp_path / "samples.png", 8)
    assert again.shape == (2, 3, 3, 8, 8) and (gray or torch.equal(again.flatten(0, 1), samples))


def test_videos_side_by_side():
    """Frame t of the whole is every video's frame t in a row."""
    videos = torch.randint(256, (2, 5, 3, 4, 4), dtype=torch.uint8)
    assert plots.side_by_side(videos).shape == (5, 4, 10, 3)
    assert np.array_equal(plots.side_by_side(videos)[3], plots.tile(videos[:, 3], 2))


@pytest.mark.parametrize("changes", [{"lr_schedule": "constant"}, {"warmup_epochs": 0, "decay_fraction": 0}])
def test_the_rate_drawn_is_the_rate_trained(smoke, changes):
    """Without warm-up and decay, or at a constant rate, the curve is flat; with the paper's it is not."""
    training = TrainingConfig(epochs=8, steps_per_epoch=5, lr=2e-3)
    spec = Run("B", patch_size=2, lam="1/2")
    drawn = []
    for used in (dataclasses.replace(training, **changes), training):
        study = dataclasses.replace(smoke, training=used)
        cell = run_cells("train", "train-09", study=study, spec=spec, segments=spec.segments(8))
        drawn.append(set(cell["axes"].lines[0].get_ydata()))
    assert drawn[0] == {2e-3} and len(drawn[1]) > 5


def test_guess_mixes_real_and_generated(smoke):
    """Every picture is in the grid once, shuffled, and the folded answers say which is which in its order."""
    shades = torch.arange(30, dtype=torch.uint8)[:, None, None, None].expand(30, 3, 4, 4)  # 0-14 real, 15-29 generated
    study = dataclasses.replace(smoke, data=dataclasses.replace(smoke.data, image_size=4))
    given = {"pixels": shades[:15], "generated": shades[15:], "study": study}
    made = run_cells("evaluate", "answers", **given)
    grid, answers = made["axes"].images[0].get_array(), made["answers"].data
    seen = [int(grid[6 * (i // 12), 6 * (i % 12), 0]) for i in range(30)]
    letters = re.search("<pre>(.*)</pre>", answers, re.DOTALL)[1].split()
    assert sorted(seen) == list(range(30)) and seen != sorted(seen)
    assert letters == ["G" if shade >= 15 else "R" for shade in seen] and answers.startswith("<details>")
