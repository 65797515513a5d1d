"""Live sections without a browser: a control's change is a change of what is shown, and every number is the package's."""

import html
import re
import shlex
import time

import numpy as np
import pytest
import torch
from ipywidgets.widgets.widget import _instances
from PIL import Image

from nppkit.cost import gpu_hours
from nppkit.errors import NppkitError
from nppkit.gpus import GPUS
from nppkit.grouping import group_targets
from nppkit.model import GPT, GPTConfig
from nppkit.sample import SamplingConfig, sample_codes
from nppkit.schedule import cost_ratio, multi_scale_segments
from nppkit.show import monitor, photographs, plots, pretrained
from nppkit.show.explorers import browser, designer, method, playground, training
from nppkit.study import graph, protocol
from nppkit.study.presets import load_preset, preset_names
from nppkit.study.runs import preset_runs
from nppkit.tokenizer import to_pixels

PAIR = [pretrained.HOME / "results" / "demo" / "runs" / run for run in pretrained.RUNS]


@pytest.fixture(scope="module")
def digits():
    """Eight held-out digits: pixels, labels, codes, tokenizer, and the NPP model."""
    tokenizer = pretrained.load_tokenizer(pretrained.HOME / "results" / "demo" / "tokenizer")
    pixels, labels = pretrained.preset_images(load_preset("demo"), 8, heldout=True)
    return pixels, labels, pretrained.encode(tokenizer, [pixels]), tokenizer, pretrained.load_model(PAIR[1])


def parts(app):
    """The controls by label, and the view, of a live section made by `live`."""
    form, view = app.children
    return {row.children[0].description: row.children[0] for row in form.children}, view


def sets_of(pixels, codes, tokenizer, gpt):
    """What the grouping explorer is given: the digits, and photographs with 16 x 16 codes."""
    images, numbers, blocks = photographs.photographs()
    return {
        "digits": (pixels, codes, gpt.tok_embeddings.weight, tokenizer.quantize.rows()),
        "photographs": (images, numbers, blocks, blocks),
    }


def test_grouping_explorer_shows_what_is_trained(digits):
    """The words name the codes that a position is scored on; the position stays within the patches of a larger side."""
    pixels, _, codes, tokenizer, gpt = digits
    controls, view = parts(method.grouping_explorer(sets_of(pixels, codes, tokenizer, gpt), gpt.config))
    controls["Position"].value = 15
    first = view.value
    targets = ", ".join(str(int(code)) for code in group_targets(codes[:1], 2)[0, 15])
    assert f"Position 15 of 16 sees the class and 15 patches; one prediction is scored on K = 4: {targets}." in first
    assert "16 positions instead of 64" in first and view.value.count("<img") == 2
    controls["Patch side p"].value = 4
    assert controls["Position"].value == 3 and "Position 3 of 4" in view.value
    controls["Image"].value = 1
    assert view.value != first


def test_a_move_of_a_slider_is_one_drawing(digits, monkeypatch):
    """Also where it moves another: a larger patch side takes the position along, and what is seen is drawn once."""
    pixels, _, codes, tokenizer, gpt = digits
    controls, view = parts(method.grouping_explorer(sets_of(pixels, codes, tokenizer, gpt), gpt.config))
    drawn, draw = [], plots.grouping
    monkeypatch.setattr(plots, "grouping", lambda *values: drawn.append(values[-2:]) or draw(*values))
    controls["Patch side p"].value = 8
    assert drawn == [(8, 0)] and "Position 0 of 1" in view.value


def test_grouping_explorer_has_photographs_beside_digits(digits):
    """Their grid is finer: sliders follow it there and back, and the cost is that of the longer sequence."""
    pixels, _, codes, tokenizer, gpt = digits
    controls, view = parts(method.grouping_explorer(sets_of(pixels, codes, tokenizer, gpt), gpt.config))
    controls["Pictures"].value = "photographs"
    assert "64 positions instead of 256" in view.value and controls["Position"].max == 63
    controls["Position"].value = 63
    assert "Position 63 of 64" in view.value
    controls["Pictures"].value = "digits"
    assert "Position 15 of 16" in view.value and "16 positions instead of 64" in view.value


@pytest.mark.parametrize("grid", [3, 4])
def test_grouping_explorer_of_any_pictures(digits, grid):
    """An odd grid has no patches; fewer pictures with a finer grid are left with position and image that the others have."""
    pixels, _, codes, tokenizer, gpt = digits
    few = (pixels[:3], codes[:3, : grid**2], gpt.tok_embeddings.weight, tokenizer.quantize.rows())
    controls, view = parts(method.grouping_explorer({"few": few, "one": tuple(x[:1] for x in few[:2]) + few[2:]}, gpt.config))
    assert controls["Patch side p"].options == ((1,) if grid == 3 else (1, 2, 4)) and "<img" in view.value
    sets = sets_of(pixels[:1], codes[:1], tokenizer, gpt)
    controls, view = parts(method.grouping_explorer(sets, gpt.config))
    controls["Pictures"].value = "photographs"
    controls["Image"].value, controls["Position"].value = controls["Image"].max, 63
    controls["Pictures"].value = "digits"
    assert "Position 15 of 16" in view.value and controls["Image"].value == 0


def test_photographs_of_a_folder_and_what_a_patch_keeps(tmp_path):
    """One's own folder replaces the photographs that are brought; a patch is drawn as the mean of its blocks."""
    (tmp_path / "cats").mkdir()
    for name, grey in (("a", 20), ("b", 200)):
        noise = np.random.default_rng(grey).integers(grey, grey + 50, (150, 140, 3), np.uint8)
        Image.fromarray(noise).save(tmp_path / "cats" / f"{name}.png")
    pixels, codes, blocks = photographs.photographs(str(tmp_path))
    assert pixels.shape == (2, 3, 128, 128) and codes.shape == (2, 256) and blocks.shape == (64, 192)
    one, two = (photographs.patch_pictures(codes, blocks, p).float() for p in (1, 2))
    grouped = (one[..., :8, :8] + one[..., :8, 8:16] + one[..., 8:16, :8] + one[..., 8:16, 8:16]) / 4
    torch.testing.assert_close(two[..., :16:2, :16:2], grouped, atol=1, rtol=0)
    with pytest.raises(NppkitError, match="does not exist"):
        photographs.photographs(str(tmp_path / "none"))
    assert len(photographs.photographs()[0]) >= 2


def test_prediction_explorer_shows_the_models_loss(digits):
    """At p = 1 the loss shown is the cross-entropy of that one code."""
    pixels, labels, codes, tokenizer, gpt = digits
    controls, view = parts(method.prediction_explorer(pixels, codes, torch.from_numpy(labels), tokenizer, gpt))
    controls["Patch side p"].value, controls["Position"].value = 1, 30
    image = controls["Image"].value
    logits = gpt(codes[image][None], torch.from_numpy(labels)[image][None])[0, 30]
    loss = torch.nn.functional.cross_entropy(logits, codes[image, 30]).item()
    assert f"The loss of this patch is {loss:.3f} nats" in view.value


def finish(task):
    task.thread.join(60)
    assert not task.thread.is_alive()
    return task.status.value


def test_live_training_draws_stops_and_compares():
    """A training from the same weights repeats itself; its schedule's mistakes are explained; it can be stopped."""
    gpt = GPT(GPTConfig(dim=16, n_layer=1, n_head=1, vocab_size=16, num_classes=3, grid_size=4, dropout=0.0))
    codes, labels = torch.randint(16, (80, 16), generator=torch.Generator().manual_seed(0)), torch.arange(80) % 3
    initial = {key: value.clone() for key, value in gpt.state_dict().items()}

    def loss(codes, labels, p):
        targets = group_targets(codes, p)
        return -gpt(codes, labels, p).log_softmax(-1).gather(-1, targets).mean()

    live = training.LiveTraining(gpt, initial, loss, codes, labels)
    live.form.controls["epochs"].value = 4
    for _ in range(2):
        live.task.start()
        assert finish(live.task) == "done"
    first, second = live.curves.values()
    assert first == second and len(first) == 40 and live.view.value.startswith("<img")
    live.form.controls["lam"].value = "1/100"
    live.task.start()
    assert "a segment is empty" in live.form.notes["lam"].value and len(live.curves) == 2
    live.form.controls["lam"].value, live.form.controls["epochs"].value = "1/2", 100
    live.task.start()
    live.task.stop()
    assert finish(live.task) == "stopped" and len([*live.curves.values()][-1]) < 1000


def test_designer_agrees_with_the_cost_model():
    """Four levels cost 0.5723 with integer boundaries, 0.572266 ideally, printed 0.572; hours follow the cost model."""
    app = designer.ScheduleDesigner()
    assert "<b>0.5723</b> with these epochs, 0.5723 without rounding" in app.view.value
    hours = gpu_hours(
        designer.PAPER_SIZES[app.form.values["size"]], multi_scale_segments(300, 4, "1/2"), 1_281_167, GPUS["A100-40G"]
    )
    assert f"About {hours:,.0f} GPU-hours" in app.view.value
    app.form.controls["levels"].value = 2
    assert "the paper prints 0.625" in app.view.value


def test_designer_begins_with_the_learning_rate_of_its_base(home):
    """Saved at once, a design trains at the rate of the preset that it is based on."""
    app = designer.ScheduleDesigner()
    for base in ("demo", "imagenet256"):
        app.base.value, app.file.value = base, f"of_{base}.yaml"
        app.button.click()
        saved = load_preset(str(home / f"of_{base}.yaml"))
        assert saved.training.lr == pytest.approx(load_preset(base).training.lr)


def test_designer_explains_what_is_no_schedule():
    """A lambda of 2 is explained beside its field, and the last picture stays."""
    app = designer.ScheduleDesigner()
    before = app.view.value
    app.form.controls["lam"].value = "2"
    assert "outside (0, 1)" in app.form.notes["lam"].value and app.view.value == before
    app.form.controls["kind"].value = designer.KINDS[0]
    assert "<b>1.0000</b>" in app.view.value and app.form.controls["lam"].disabled


def test_saved_presets_are_accepted(home):
    """From each base the file loads, holds the designed schedule for each size, and its runs pass the pipeline's checks."""
    app = designer.ScheduleDesigner()
    app.form.controls["epochs"].value, app.form.controls["lam"].value, app.form.controls["levels"].value = 60, "2/3", 2
    for base in preset_names():
        app.base.value, app.file.value = base, f"my_{base}.yaml"
        app.button.click()
        assert "saved" in app.saved.value
        preset = load_preset(str(home / f"my_{base}.yaml"))
        assert preset.training.epochs == 60 and preset.tokenizer == load_preset(base).tokenizer
        assert {run.recipe for run in preset_runs(preset)} == {"ntp", "npp_p2_lambda2-3"}
        assert cost_ratio(preset_runs(preset)[1].segments(60)) == pytest.approx(0.5)
        assert len(graph.graph(preset)) >= 3 and not protocol.questions(preset) and not preset.confirmatory


def test_saving_refuses_what_would_lose_or_break(home, changed, monkeypatch):
    """An existing file unless the box is ticked, a name that is none, a patch side that the base's grid does not have."""
    app = designer.ScheduleDesigner()
    app.save()
    app.save()
    assert "exists: choose another name" in app.saved.value
    app.replace.value = True
    app.save()
    assert "saved" in app.saved.value
    app.file.value = "demo.yaml"
    app.save()
    assert "demo is a packaged preset: choose another name" in app.saved.value and not (home / "demo.yaml").exists()
    (home / "my folder").mkdir()
    app.file.value = "my folder/mine.yaml"
    app.save()
    assert f"PRESET={html.escape(shlex.quote(str(home / 'my folder/mine.yaml')))}" in app.saved.value
    monkeypatch.setenv("HOME", str(home / "my folder"))
    app.file.value = "~/there.yaml"
    app.save()
    assert (home / "my folder/there.yaml").is_file()
    app.file.value = "schedule.txt"
    app.save()
    assert "named *.yaml" in app.saved.value
    small = changed(load_preset("smoke"), "data.image_size", 16)
    values = {"epochs": 300, "levels": 2, "patch_size": 8, "lam": "1/2", "warmup_epochs": 1.0, "decay_fraction": 0.2, "lr": 1e-4}
    with pytest.raises(NppkitError, match="patch_size 8 does not divide the 4 x 4 grid"):
        designer.designed_preset(small, "x", kind=designer.KINDS[1], **values)


def test_rows_appear_in_raster_order(digits):
    """After each row the picture has one more row of the final image above, and grey below."""
    *_, tokenizer, gpt = digits
    labels, sampling, seen = torch.arange(2), SamplingConfig(cfg_scale=2.0, seed=3), []
    counts = list(playground.draw_rows(gpt, tokenizer, labels, sampling, None, lambda pixels, rows: seen.append((rows, pixels))))
    assert counts == list(range(1, 65)) and [rows for rows, _ in seen] == list(range(1, 9))
    final = to_pixels(tokenizer.decode(sample_codes(gpt, labels, sampling, np.arange(2)).clone()))
    assert torch.equal(seen[-1][1], final)
    grey = [(pixels == 225).all(dim=(0, 1, 3)).sum().item() for _, pixels in seen]
    assert grey == [28, 24, 20, 16, 12, 8, 4, 0]


def test_completion_keeps_the_given_rows(digits):
    """Half of an image is given: its codes stand in every completion, and the rest is drawn."""
    _, _, codes, tokenizer, gpt = digits
    given, drawn = codes[:1, :32], []
    original = playground.partial_pixels
    try:
        playground.partial_pixels = lambda tokenizer, codes, grid: drawn.append(codes)
        list(playground.draw_rows(gpt, tokenizer, torch.zeros(3, dtype=torch.long), SamplingConfig(), given, lambda *_: None))
    finally:
        playground.partial_pixels = original
    assert torch.equal(drawn[-1][:, :32], given.expand(3, -1)) and len(set(map(tuple, drawn[-1][:, 32:].tolist()))) == 3


@pytest.fixture
def play(digits):
    pixels, labels, *_ = digits
    app = playground.Playground(pretrained.trained_runs([]), pixels, labels)
    app.form.controls["pause"].value, app.form.controls["images"].value = 0, 2
    return app


def test_playground_shows_both_checkpoints_and_stops(play):
    """NTP and NPP side by side from one seed; Stop ends it within a code; what was drawn stays."""
    play.task.start()
    assert finish(play.task) == "done"
    pictures = [re.search(r'src="([^"]*)"', view.value)[1] for view in play.views]
    assert "8 of 8 rows drawn" in play.views[0].value and pictures[0] != pictures[1]
    assert "GPT-L_ntp" in play.views[0].value and "GPT-L_npp" in play.views[1].value
    play.form.controls["pause"].value = 0.2
    play.task.start()
    while "1 of 8 rows" not in play.views[0].value:
        time.sleep(0.01)
    play.task.stop()
    assert finish(play.task) == "stopped" and "8 of 8" not in play.views[0].value


def test_playground_explains_a_value_that_does_not_fit(play, monkeypatch):
    """A label that the other checkpoint does not have."""
    small = GPT(GPTConfig(dim=16, n_layer=1, n_head=1, vocab_size=128, num_classes=3, grid_size=8)).eval()
    monkeypatch.setattr(playground, "load_model", lambda run: small)
    play.form.controls["label"].value = 7
    play.task.start()
    assert "has only 3 classes" in play.form.notes["label"].value and play.task.thread is None


@pytest.fixture
def runs():
    return browser.RunBrowser([pretrained.HOME])


def test_browser_sorts_ticks_and_shows_samples(runs, monkeypatch):
    """Sorting twice turns the table round; ticked runs get curves; a chosen run its samples, which stay while it is damaged."""

    def damaged():
        raise OSError("image file is truncated")

    assert list(runs.table["run"]) == sorted(pretrained.RUNS)
    runs.sort("run")
    runs.sort("NLL")
    ascending = list(runs.table["NLL"])
    runs.sort("NLL")
    assert ascending == sorted(ascending) and list(runs.table["NLL"]) == ascending[::-1]
    assert runs.curves.value == "" and runs.grid.value == "" and runs.form.controls["samples"].label == "none"
    runs.ticks[PAIR[0]].value = True
    assert "<img" in runs.curves.value and "evaluated, step 3000 of 3000" in runs.running.value
    runs.form.controls["samples"].value = PAIR[1]
    assert f"samples of {PAIR[1].name}" in (shown := runs.grid.value)
    with monkeypatch.context() as patch:  # which is being copied just now
        patch.setattr(browser, "picture", lambda shown, name: damaged() if name.startswith("samples") else "<img")
        runs.refresh()
    assert runs.grid.value == shown


def test_the_tables_rows_stay_when_it_is_read_again(runs):
    """Following for hours makes no widgets, and whoever is at a checkbox stays there."""
    before = dict(zip(runs.table["run"], runs.rows.children, strict=True))
    runs.sort("minutes")
    runs.sort("minutes")
    assert dict(zip(runs.table["run"], runs.rows.children, strict=True)) == before
    assert "evaluated" in runs.rows.children[0].children[1].value


def test_browser_adds_other_homes(runs, tmp_path):
    """A folder on a shared disk joins the table; one that is none is explained beside the field."""
    (tmp_path / "results/other/runs/GPT-B_ntp_seed7").mkdir(parents=True)
    (tmp_path / "results/other/runs/GPT-B_ntp_seed7/config.json").write_text("{}")
    runs.form.controls["others"].value = str(tmp_path)
    assert "GPT-B_ntp_seed7" in list(runs.table["run"])
    runs.form.controls["others"].value = "/nowhere"
    assert "/nowhere has no results/ folder" in runs.form.notes["others"].value
    runs.form.controls["others"].value = str(tmp_path)
    runs.form.controls["state"].value = "running"
    assert list(runs.table["run"]) == ["GPT-B_ntp_seed7"]


def test_a_home_that_is_named_again_stands_once(runs):
    """Who names the folder that is looked at anyway sees no run twice."""
    runs.form.controls["others"].value = f"{pretrained.HOME}\n{pretrained.HOME}/../{pretrained.HOME.name}"
    assert list(runs.table["run"]) == sorted(pretrained.RUNS) and len(runs.rows.children) == 2


def test_browser_tells_twins_apart(tmp_path):
    """Runs of one id in two presets, and in two homes of one preset: each has its own curve and line."""
    twins = [tmp_path / place / "runs/GPT-B_ntp_seed0" for place in ("a/results/x", "a/results/y", "b/results/x")]
    for run in twins:
        run.mkdir(parents=True)
        for name in ("history.csv", "config.json"):
            (run / name).write_text((PAIR[0] / name).read_text())
    runs = browser.RunBrowser([tmp_path / "a", tmp_path / "b"])
    for run in twins:
        runs.ticks[run].value = True
    named = [f"GPT-B_ntp_seed0 (x, {tmp_path / 'a'})", "GPT-B_ntp_seed0 (y)", f"GPT-B_ntp_seed0 (x, {tmp_path / 'b'})"]
    assert all(f"<b>{name}</b>" in runs.running.value and name in runs.curves.value for name in named)


def test_browser_of_many_runs(tmp_path, monkeypatch):
    """A few rows at a time, because of thousands of messages a kernel loses some; sorting or a name shows others, ticks stay."""
    monkeypatch.setattr(browser, "MOST", 3)
    folders = [tmp_path / f"results/{preset}/runs/GPT-B_ntp_seed{seed}" for preset in ("x", "y") for seed in range(4)]
    for run in folders:
        run.mkdir(parents=True)
        for name in ("history.csv", "config.json"):
            (run / name).write_text((PAIR[0] / name).read_text())
    before = len(_instances)
    runs = browser.RunBrowser([tmp_path])
    assert len(runs.rows.children) == 3 and "3 of 8 runs" in runs.left_out.value and len(_instances) - before < 150
    first = runs.shown[0]
    runs.ticks[first].value = True
    runs.sort("run")  # the other way round: the ticked one is among the last
    assert len(runs.rows.children) == 4 and runs.shown[-1] == first and "<img" in runs.curves.value
    runs.form.controls["named"].value = "y/GPT-B_ntp_seed2"
    assert runs.shown == [folders[6]] and not runs.left_out.value


def test_browser_follows_a_history_that_grows(tmp_path):
    """Follow reads the file again until stopped, whoever writes it."""
    run = tmp_path / "results/demo/runs/GPT-B_ntp_seed0"
    run.mkdir(parents=True)
    lines = (PAIR[0] / "history.csv").read_text().splitlines(keepends=True)
    (run / "config.json").write_text((PAIR[0] / "config.json").read_text())
    (run / "history.csv").write_text("".join(lines[:4]))
    runs = browser.RunBrowser([tmp_path])
    runs.ticks[run].value = True
    assert "running, step 30 of 3000" in runs.running.value
    runs.form.controls["seconds"].value = 1
    runs.task.start()
    (run / "history.csv").write_text("".join(lines[:9]))
    deadline = time.monotonic() + 30
    while "step 80 of 3000" not in runs.running.value:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    runs.task.stop()
    assert finish(runs.task) == "stopped" and "min left" in runs.running.value
    assert monitor.progress_of(run).state == "running"
