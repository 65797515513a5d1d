"""Notebooks: how they are committed, and that each runs from top to bottom at smoke size."""

import itertools
import json
import re
import subprocess
import sys
from pathlib import Path

import nbclient
import nbformat
import numpy as np
import pandas as pd
import papermill
import pytest
import yaml
from PIL import Image

from nppkit import cli, files, releases
from nppkit.jobs import launch, plan
from nppkit.show import widgets
from nppkit.study import graph, presets, published, results, runs

pytestmark = pytest.mark.usefixtures("warm_kernels")

NOTEBOOKS = Path(__file__).parents[1] / "notebooks"
RUNNING = ("tokenize", "tokenize_text", "train", "evaluate")
TRAINING = ("start_here", "npp_in_your_model")  # read with outputs, and too slow to be compared with them again
ALL = sorted(path.stem for path in NOTEBOOKS.glob("*.ipynb"))
READING = [name for name in ALL if name not in RUNNING]
CONFIRMED = re.compile(r"protocol\.finding\(|Ablation\(|claims\.verdicts\(")  # what tells of the preset that confirms this one


def read(name):
    return nbformat.read(NOTEBOOKS / f"{name}.ipynb", as_version=4)


def code(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


@pytest.mark.parametrize("name", ALL)
def test_committed_form(name):
    """A title first, prose before every code cell, short cells, no widgets, no error, below 300 kB."""
    notebook = read(name)
    nbformat.validate(notebook)
    assert notebook.metadata.kernelspec.name == "python3" and "widgets" not in notebook.metadata
    assert notebook.cells[0].source.startswith("# ")
    assert len(notebook.cells) - len(code(notebook)) >= len(code(notebook)) - 1
    assert max(len(cell.source.splitlines()) for cell in code(notebook)) <= 25
    assert not any(output.output_type == "error" for cell in code(notebook) for output in cell.outputs)
    assert (NOTEBOOKS / f"{name}.ipynb").stat().st_size < 300_000


@pytest.mark.parametrize("name", ALL)
def test_a_notebook_begins_with_its_question(name):
    """In italics before the first code; those that read results say how sure the answer is, explorers what to try first.

    The claims and the report are verdicts: how sure they are is all that they say.
    """
    cells = read(name).cells
    before = itertools.takewhile(lambda cell: cell.cell_type == "markdown", cells)
    assert re.search(r"^\*[^*]+\?[^*]*\*", "\n".join(cell.source for cell in before), re.M)
    outputs = [out.get("data", {}).get("text/markdown", "") for cell in code(read(name)) for out in cell.outputs]
    said = "\n".join([*(cell.source for cell in cells if cell.cell_type == "markdown"), *outputs])
    assert name not in READING or name in ("claims", "report", "tokenize_text") or "how sure" in said.lower()
    assert not name.startswith("explore_") or "**Try first**: " in said


@pytest.mark.parametrize("name", ALL)
def test_committed_parameters(name):
    """The first code cell is the interface: typed literals, tagged for papermill, and checked in the next cell."""
    first, second = code(read(name))[:2]
    assert "parameters" in first.metadata.tags and {"preset", "machine"} & launch.declared_parameters(first.source).keys()
    assert "launch.notebook_parameters(globals())" in second.source


@pytest.mark.parametrize("name", ALL)
def test_committed_outputs(name):
    """Running notebooks are committed without outputs; reading notebooks with them, executed in order.

    What a cell displays links to no page of docs: in the web site such a link of an output leads nowhere.
    """
    cells = code(read(name))
    if name in RUNNING:
        assert all(not cell.outputs and cell.execution_count is None for cell in cells)
    else:
        assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
        assert any(cell.outputs for cell in cells)
    assert not re.search(r"\]\([^)]*\.md", json.dumps([cell.outputs for cell in cells]))


@pytest.mark.parametrize("name", READING)
def test_committed_figures(name):
    """A cell that shows a figure has it as a picture, and a live section has the line that stands for it without a kernel."""
    for cell in code(read(name)):
        if "plots.show(" in cell.source or "page.figure()" in cell.source:
            assert any("image/png" in output.get("data", {}) for output in cell.outputs), cell.source
        if "widgets.show(" in cell.source:
            assert [output.data["text/plain"] for output in cell.outputs] == [widgets.WITHOUT_KERNEL]


@pytest.fixture(scope="module")
def smoke_home(tmp_path_factory, warm_kernels):
    """A results home in which the default run of `smoke` is tokenized, trained and evaluated."""
    folder = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NPPKIT_HOME", str(folder))
        preset = presets.load_preset("smoke")
        launch.ensure(graph.evaluate_job(preset, runs.find_run(preset, "GPT-B_npp_p2_lambda1-2_seed0")))
        yield folder


def test_a_figure_is_shown_when_its_cell_ends():
    """In a forked kernel as in a started one, without a word of the notebook's."""
    asks = "import os\nprint(os.environ.get('NPPKIT_FORKED') == str(os.getpid()))"
    cells = [nbformat.v4.new_code_cell(source) for source in (asks, "import matplotlib.pyplot as plt\nplt.plot([1]);")]
    notebook = nbformat.v4.new_notebook(cells=cells)
    nbclient.execute(notebook, kernel_name="python3")
    assert notebook.cells[0].outputs[0].text == "True\n"
    assert [list(out.data) for out in notebook.cells[1].outputs] == [["text/plain", "image/png"]]


def test_running_notebooks(smoke_home):
    """tokenize, train and evaluate leave results, a sample grid, executed copies and completion records."""
    run = smoke_home / "results/smoke/runs/GPT-B_npp_p2_lambda1-2_seed0"
    for name in ("config.json", "history.csv", "metrics.json", "samples.png", "train.ipynb", "evaluate.ipynb"):
        assert (run / name).stat().st_size > 0
    assert {p.name for p in run.glob("*.record.json")} == {"train.record.json", "evaluate.record.json"}
    tokenizer = json.loads((smoke_home / "results/smoke/tokenizer/metrics.json").read_text())
    assert tokenizer["codes_used"] > 1 and tokenizer["reconstruction_fid"] > tokenizer["real_fid"] > 0


def test_new_pictures_of_a_class(smoke_home, tmp_path, capsys):
    """`nppkit draw` writes as many pictures as asked for: the same of one seed, others of another; a class must be known."""
    words = ["draw", "smoke", "GPT-B_npp_p2_lambda1-2_seed0", "3"]
    for folder, count, *more in (("a", "3"), ("b", "2"), ("c", "2", "--seed", "1")):
        assert cli.call([*words, count, str(tmp_path / folder), *more, "--device", "cpu"]) == 0
    a, b, c = ([np.asarray(Image.open(path)) for path in sorted((tmp_path / folder).glob("3_*.png"))] for folder in "abc")
    assert len(a) == 3 and a[0].shape == (32, 32, 3) and not np.array_equal(a[0], a[1])
    assert np.array_equal(a[:2], b) and not np.array_equal(b, c)
    assert cli.call(["draw", "smoke", words[2], "cats", "1", str(tmp_path)]) == 1
    assert "1 pictures of class 'cats': draw one or more of one of 0, 1, 2" in capsys.readouterr().err


def test_pictures_are_drawn_as_the_numbers_are():
    """An evaluation's samples have its temperature, top-k and top-p: its notebook makes no sampling settings of its own."""
    source = "".join(cell.source for cell in code(read("evaluate")))
    assert "SamplingConfig(" not in source and source.count("evaluate.sampling_roles(settings, settings.common_guidance") == 2


@pytest.mark.parametrize("name", READING)
def test_notebooks_say_what_they_write_and_read(name):
    """The graph expects the figures that a notebook's cells save, and the presets that they load, and no others."""
    says, source = graph.says_of_itself(name), "".join(cell.source for cell in code(read(name)))
    saved = re.findall(r'save_figure\(\w+, study, f?"([^"]*)"', source)
    if saved:
        assert says.get("figures", [""]) == [figure.removeprefix(name) for figure in saved]
    confirmed = dict.fromkeys(("confirmatory", "control"), "") if CONFIRMED.search(source) else {}
    assert set(confirmed) <= set(says.get("reads", []))
    through = {"tokenizer_of": "tokenizer_preset(study)", **confirmed}  # where not by load_preset, or several
    through |= {"tokens": "tokens.kinds(study)"} | ({"domains": "claims.verdicts"} if name == "claims" else {})
    if "article.Article(study)" in source:  # which loads those that study/article.py names
        facts = (NOTEBOOKS.parent / "nppkit/study/article.py").read_text()
        through |= {key: "article.Article(study)" for key in says["reads"] if f"study.{key}" in facts}
    assert all(through.get(key, f"load_preset(study.{key}") in source for key in says.get("reads", []))


def test_a_page_is_made_again_when_a_preset_that_it_tells_of_has_new_results(tmp_path, monkeypatch):
    """Not those alone that it names: verdicts come from the preset that confirms it, its control, and its other images."""
    monkeypatch.setenv("NPPKIT_HOME", str(tmp_path))
    study, digits = presets.load_preset("study"), presets.load_preset("digits")
    for name in ("table3_lambda", "gain", "when_it_pays", "figure1_cost_vs_fid", "figure4_samples", "equal_compute"):
        assert {"digits", "digits_restart"} <= graph.report_job(study, name).config.keys()
    told = graph.report_job(study, "claims").config.keys()
    assert {"digits", "digits_restart", "photographs"} <= told
    assert {"study", "photographs", "photographs_pilot", "photographs_rates"} <= graph.report_job(digits, "report").config.keys()
    before = graph.report_job(study, "table3_lambda").digest
    run = next(run for run in runs.preset_runs(digits))
    record = graph.evaluate_job(digits, run).record
    record.parent.mkdir(parents=True)
    record.write_text(json.dumps({"config_digest": "", "outputs": {"metrics.json": "new"}, "upstream": {}}))
    assert graph.report_job(study, "table3_lambda").digest != before


@pytest.mark.parametrize("name", [name for name in READING if name in published.REPORTS])
def test_reading_notebooks(smoke_home, name):
    """Tables and figure are made from the runs that exist, and the others say "not run"."""
    preset = presets.load_preset("smoke")
    job = graph.report_job(preset, name)
    launch.execute(job, {})
    assert all((job.folder / output).stat().st_size > 0 for output in job.outputs)
    if name != "figure1_cost_vs_fid":
        text = (job.folder / f"{name}.md").read_text()
        assert ("1 seed" in text) == (name in ("table1_main", "table2_patch_size", "table4_levels", "table5_cost"))
        assert "not run" in text


@pytest.mark.parametrize(
    ("preset", "name"),
    [("study", name) for name in graph.reports(presets.load_preset("study"))]
    + [("digits", "report"), ("text", "text"), ("video", "video"), ("patches", "patches"), ("names", "names")],
)
def test_declared_figures_are_those_saved(preset, name):
    """What makes a report complete names every figure that its notebook saves, and no other."""
    sources = "".join(cell.source for cell in code(read(name)))
    names = re.findall(r'(?:save_figure\(\w+, study|Ablation\(study), "(\w+)"\)', sources)
    saved = {f"{figure}.{suffix}" for figure in names for suffix in ("png", "pdf")}
    outputs = graph.report_job(presets.load_preset(preset), name).outputs
    assert {output.split("/")[-1] for output in outputs if "figures" in output} == saved


@pytest.mark.parametrize("name", TRAINING)
def test_training_notebooks(name, tmp_path):
    """A training too short to learn anything still runs from top to bottom, checks included."""
    out = tmp_path / "out.ipynb"
    papermill.execute_notebook(NOTEBOOKS / f"{name}.ipynb", out, {"epochs": 4}, cwd=NOTEBOOKS, progress_bar=False)
    assert out.exists()


def test_start_here_trains_in_forty_lines():
    """Data, model, optimiser and loop of the training on the spot, all of them in the notebook."""
    cells = [cell for cell in code(read("start_here")) if "training" in cell.metadata.get("tags", [])]
    lines = [line for cell in cells for line in cell.source.splitlines()]
    assert 20 < len(lines) <= 40 and any("patch_loss" in line for line in lines)


def test_plain_papermill(smoke_home, tmp_path):
    """`papermill train.ipynb out.ipynb -p ...` works without the launcher, from any folder."""
    command = [
        sys.executable,
        "-m",
        "papermill",
        NOTEBOOKS / "train.ipynb",
        tmp_path / "out.ipynb",
        "-p",
        "options",
        "threads=1",
        "--no-progress-bar",
    ]
    subprocess.run([str(part) for part in command], cwd=tmp_path, check=True, capture_output=True)
    assert (tmp_path / "out.ipynb").exists()


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"epochs": 3}, "unknown parameter 'epochs'"),
        ({"options": "threads=many"}, "options: threads: 'many' is not an int"),
        ({"run": 3}, "parameter run: 3 is not a text"),
        ({"preset": "x'); open('/tmp/nppkit-injected', 'w')  #"}, "is unknown"),
    ],
)
def test_plain_papermill_refuses(smoke_home, tmp_path, parameters, message):
    """An unknown name, a wrong type, or code in a string stops the notebook in its second cell, and runs nothing."""
    with pytest.raises(papermill.PapermillExecutionError) as error:
        papermill.execute_notebook(
            NOTEBOOKS / "train.ipynb", tmp_path / "out.ipynb", parameters, cwd=tmp_path, progress_bar=False
        )
    assert message in str(error.value)
    assert not Path("/tmp/nppkit-injected").exists()


def test_launcher_leaves_a_failed_notebook_and_no_record(smoke_home, monkeypatch):
    """A failed job leaves its executed notebook with the error for reading, and no completion record."""
    preset = presets.load_preset("smoke")
    job = graph.train_job(preset, runs.find_run(preset, "GPT-B_ntp_seed0"))
    with pytest.raises(launch.NppkitError, match=r"failed: NppkitError: device 'gpu9'.*train\.ipynb"):
        launch.execute(job, {"device": "gpu9"})
    assert (job.folder / "train.ipynb").exists() and not job.record.exists()


def test_the_whole_path_of_a_text(home):
    """Three documents become windows, two runs are trained, and the page has the numbers of their last held-out look."""
    content = yaml.safe_load((presets.FOLDER / "text.yaml").read_text())
    content["data"] |= {"window": 16, "heldout": 1, "limit": 3}
    content["models"] = {"B": {"dim": 8, "n_layer": 1, "n_head": 2, "multiple_of": 8}}
    content["training"] |= {"epochs": 6, "steps_per_epoch": 1, "heldout_every": 2}
    content |= {"runs": {"B": ["ntp", "npp_p4_lambda2-3", "ntp_epochs3"]}, "seeds": {"B": 1}, "equal_flops": {"B": [3, 12]}}
    (home / "mine.yaml").write_text(yaml.safe_dump(content))
    preset = presets.load_preset(str(home / "mine.yaml"))
    assert [job.notebook for job in graph.graph(preset)] == ["tokenize_text", "train", "train", "train", "text"]
    job = graph.report_job(preset, "text")
    launch.ensure(job)
    table = pd.read_csv(job.folder / "text.csv", index_col="run")
    for name, run in (("K = 1", "ntp"), ("K = 4, then 1", "npp_p4_lambda2-3")):
        last = pd.read_csv(job.folder / f"runs/GPT-B_{run}_seed0/history.csv").iloc[-1]
        assert float(table.loc[name, "held-out nats a byte"]) == pytest.approx(last["heldout_nll"], abs=0.005)
        assert last["patch_size"] == 1 and last["epoch"] == 6
    said = str([cell.get("outputs") for cell in nbformat.read(job.folder / "text.ipynb", 4).cells])  # of one seed
    assert "These seeds cannot tell" in said and "survive" not in said and "nan" not in said
    with pytest.raises(launch.NppkitError, match="no images to evaluate"):
        launch.find_job("evaluate", preset, "GPT-B_ntp_seed0")


def test_the_whole_path_of_a_video(home):
    """Videos become codes, three runs are trained and scored, the page shows what was drawn, and `nppkit draw` writes GIFs."""
    content = yaml.safe_load((presets.FOLDER / "video.yaml").read_text())
    content["data"] |= {"heldout": 30, "limit": 90, "frames": 4}
    content |= {"tokenizer": {"steps": 2}, "extractor": {"steps": 2}}
    content["models"] = {"B": {"dim": 12, "n_layer": 1, "n_head": 2, "multiple_of": 8}}
    content["training"] |= {"epochs": 6, "steps_per_epoch": 1, "heldout_every": 2}
    content["evaluation"] = {"samples": 10, "select_samples": 5, "guidance": [1.0], "common_guidance": 1.0}
    content |= {"runs": {"B": ["ntp", "npp_p2_lambda1-2", "ntp_epochs3"]}, "seeds": {"B": 1}, "equal_flops": {"B": [3, 12]}}
    (home / "mine.yaml").write_text(yaml.safe_dump(content))
    preset = presets.load_preset(str(home / "mine.yaml"))
    assert [job.notebook for job in graph.graph(preset)] == ["tokenize", *["train"] * 3, *["evaluate"] * 3, "video"]
    job = graph.report_job(preset, "video")
    launch.ensure(job)
    table = pd.read_csv(job.folder / "video.csv", index_col="run")
    metrics = json.loads((job.folder / "runs/GPT-B_npp_p2_lambda1-2_seed0/metrics.json").read_text())
    assert float(table.loc["NPP, 2 x 2 x 2", "held-out nats a token"]) == pytest.approx(metrics["heldout_nll"], abs=0.005)
    assert metrics["contract"]["frames"] == 4 and metrics["contract"]["reference"].startswith("240 own images")
    gifs = [
        output for cell in code(nbformat.read(job.folder / "video.ipynb", 4)) for output in cell.outputs if "gif" in str(output)
    ]
    assert str(gifs).count("data:image/gif;base64") == 5
    assert cli.call(["draw", preset.source, "GPT-B_ntp_seed0", "3", "2", str(home / "drawn"), "--device", "cpu"]) == 0
    with Image.open(home / "drawn/3_0001.gif") as drawn:
        assert drawn.size == (32, 32) and drawn.n_frames > 1
    with pytest.raises(launch.NppkitError, match="runs of texts, videos and names are not planned"):
        plan.report(preset, 0.4)


def test_the_whole_path_of_names(home):
    """Models told names are trained and scored; the page has them beside one with a class token; `nppkit draw` draws."""
    content = yaml.safe_load((presets.FOLDER / "smoke.yaml").read_text())
    content["data"] |= {"heldout": 20, "limit": 120}
    content |= {"tokenizer": content["tokenizer"] | {"steps": 2}, "extractor": {"steps": 2}}
    content["training"] |= {"epochs": 6, "batch_size": 8}
    content["evaluation"] |= {"samples": 20, "select_samples": 10, "batch_size": 20}
    (home / "token.yaml").write_text(yaml.safe_dump({**content, "runs": {"B": ["ntp"]}}))
    content["training"]["condition"] = "names"
    content |= {"runs": {"B": ["ntp", "npp_p2_lambda1-2", "ntp_epochs3"]}, "equal_flops": {"B": [3, 12]}}
    content |= {"reports": ["names"], "tokenizer_of": str(home / "token.yaml")}
    (home / "mine.yaml").write_text(yaml.safe_dump(content))
    preset, token = (presets.load_preset(str(home / f"{name}.yaml")) for name in ("mine", "token"))
    assert [job.notebook for job in graph.graph(preset)] == ["tokenize", *["train"] * 3, *["evaluate"] * 3, "names"]
    job, ntp = graph.report_job(preset, "names"), runs.find_run(preset, "GPT-B_ntp_seed0")
    launch.ensure(graph.evaluate_job(token, ntp))
    launch.ensure(job)
    config = json.loads((job.folder / "runs/GPT-B_npp_p2_lambda1-2_seed0/config.json").read_text())
    assert config["model"]["names"][3] == "three" and config["training"]["condition"] == "names"
    table = pd.read_csv(job.folder / "names.csv", dtype={"held-out nats a token": float}).set_index(["told", "run"])
    for told, of in (("a name", preset), ("a class token", token)):
        metrics = json.loads((graph.run_dir(of, ntp) / "metrics.json").read_text())
        assert table.loc[(told, "NTP"), "held-out nats a token"] == pytest.approx(metrics["heldout_nll"], abs=0.005)
    assert cli.call(["draw", preset.source, ntp.id, "3", "2", str(home / "drawn"), "--device", "cpu"]) == 0
    assert len(list((home / "drawn").glob("3_*.png"))) == 2
    with pytest.raises(launch.NppkitError, match="runs of texts, videos and names are not planned"):
        plan.report(preset, 0.4)


@pytest.mark.parametrize(
    "better",
    [("heads", "drawn"), pytest.param(("offset", "attention", "linear", "heads", "drawn"), marks=pytest.mark.slow)],
    ids=["two", "all"],
)
def test_the_whole_path_of_better_patches(smoke_home, better):
    """Alternatives to the mean are trained and scored; the page has their differences to the mean, and says what is missing."""
    content = {"base": "smoke", "tokenizer_of": "smoke", "description": "patches", "reports": ["patches"], "tokenizer_threads": 1}
    content["training"] = {"epochs": 12, "heldout_every": 3, "log_every": 1}
    content["evaluation"] = {"samples": 20, "select_samples": 10, "guidance": [1.0], "common_guidance": 1.0, "kid_subsets": 2}
    mean = "npp_p2_lambda1-2"
    recipes = [mean, f"{mean}_epochs10_heads", *(f"{mean}_{kind}" for kind in better)]
    content |= {"runs": {"B": recipes}, "seeds": {"B": 1, f"B_{mean}": 2}}
    (smoke_home / f"better{len(better)}.yaml").write_text(yaml.safe_dump(content))
    preset = presets.load_preset(str(smoke_home / f"better{len(better)}.yaml"))
    job = graph.report_job(preset, "patches")
    for run in runs.preset_runs(preset):
        if run.seed == 0:
            launch.ensure(graph.evaluate_job(preset, run))
    launch.execute(job, {})
    table = pd.read_csv(job.folder / "patches.csv", index_col=["at", "difference"])
    nll = {
        run.recipe: json.loads((graph.run_dir(preset, run) / "metrics.json").read_text())["heldout_nll"]
        for run in runs.preset_runs(preset)
        if run.seed == 0
    }
    for (at, name), row in table.iterrows():
        recipe = mean + "_epochs10" * ((at, name) == ("equal FLOPs", "p = 2 heads")) + f"_{name.split()[-1]}"
        found = float(row["held-out nats a token"].removesuffix(" (one seed)"))
        assert found == pytest.approx(nll[recipe] - nll[mean], rel=0.01, abs=1e-4) and row["seeds"] == 1
    assert len(table) == 2 * len(better) and table.loc[("equal FLOPs", "p = 2 heads"), "cost / mean's"] < 1
    said = str([cell.outputs for cell in code(nbformat.read(job.folder / "patches.ipynb", 4))])
    assert f"{len(recipes)} of {len(recipes) + 1} runs are done; with fewer than 2 seeds" in said
    assert "seeds that are not in yet: npp_p2_lambda1-2 1" in said


def test_the_models_of_another_preset_are_scored_again(smoke_home):
    """Nothing is trained: the other preset's checkpoint is sampled as this one says, and its cost is the other's."""
    content = {"base": "smoke", "description": "again", "models_of": "smoke", "tokenizer_threads": 1}
    content["evaluation"] = {"temperature": 0.5}
    run = runs.find_run(presets.load_preset("smoke"), "GPT-B_npp_p2_lambda1-2_seed0")
    (smoke_home / "again.yaml").write_text(yaml.safe_dump(content | {"runs": {run.size: [run.recipe]}}))
    preset, other = presets.load_preset(str(smoke_home / "again.yaml")), presets.load_preset("smoke")
    launch.ensure(graph.evaluate_job(preset, run))
    again, before = results.run_result(preset, run), results.run_result(other, run)
    same = [key for key in again if again[key] == before[key]]
    assert {"heldout_nll", "flops", "seconds", "parameters"} <= set(same) and not {"fid", "kid", "contract"} & set(same)
    assert sorted(path.name for path in graph.run_dir(preset, run).glob("*.json")) == ["evaluate.record.json", "metrics.json"]
    pd.testing.assert_frame_equal(results.histories(preset, run), results.histories(other, run))


def test_the_example_of_a_trained_model_in_ones_own_code(smoke_home):
    """What docs/your_images.md shows draws pictures of the class, with the names of another preset in it."""
    shown = re.findall(r"```python\n(.*?)```", (graph.NOTEBOOKS.parent / "docs/your_images.md").read_text(), re.S)
    (example,) = (code for code in shown if "sample_codes" in code)
    for ours, theirs in {"mine.yaml": "smoke", "cats": "3"}.items():
        assert example.count(f'"{ours}"') == 1
        example = example.replace(f'"{ours}"', f'"{theirs}"')
    launch.ensure(graph.train_job(presets.load_preset("smoke"), runs.Run.parse("GPT-B_npp_p2_lambda1-2_seed0")))
    found = {}
    exec(example, found)
    assert found["pixels"].shape == (12, 3, 32, 32) and found["pixels"].dtype.itemsize == 1 and found["pixels"].float().std() > 1


def test_an_unreadable_image_stops_before_any_work(home):
    """A bad file in the image folder ends the tokenize job in one line that names it, before anything is trained or written."""
    folder = home / "images" / "digit"
    folder.mkdir(parents=True)
    for i in range(3):
        Image.new("RGB", (32, 32)).save(folder / f"{i}.png")
    (folder / "1.png").write_text("no image")
    data = {"source": "folder", "path": "images", "image_size": 32, "heldout": 1}
    content = yaml.safe_load((presets.FOLDER / "smoke.yaml").read_text()) | {"data": data}
    (home / "mine.yaml").write_text(yaml.safe_dump(content))
    job = graph.tokenize_job(presets.load_preset(str(home / "mine.yaml")))
    with pytest.raises(launch.NppkitError, match=r"tokenize failed: NppkitError: 1 of 3 images in .*1\.png") as error:
        launch.execute(job, {"threads": 1})
    assert "\n" not in str(error.value)
    assert {path.name for path in job.folder.iterdir() if not path.name.startswith(".")} == {"tokenize.ipynb"}


@pytest.mark.slow
def test_released_weights_give_the_trained_models_numbers(smoke_home):
    """A trained model, exported to LlamaGen's container and evaluated as released weights, scores exactly the same."""
    preset = presets.load_preset("smoke")
    run, other = (runs.find_run(preset, f"GPT-B_{recipe}_seed0") for recipe in ("npp_p2_lambda1-2", "ntp"))
    releases.export(max(graph.checkpoint_dir(preset, run).glob("step_*")), smoke_home / "weights/c2i.pt")
    content = yaml.safe_load((presets.FOLDER / "smoke.yaml").read_text())
    content |= {"tokenizer_of": "smoke", "runs": {"B": ["ntp"]}, "weights": {other.id: "weights/c2i.pt"}}
    (smoke_home / "released.yaml").write_text(yaml.safe_dump(content))
    released = presets.load_preset(str(smoke_home / "released.yaml"))
    launch.ensure(graph.evaluate_job(released, other))
    folders = graph.run_dir(preset, run), graph.run_dir(released, other)
    ours, theirs = (json.loads((folder / "metrics.json").read_text()) for folder in folders)
    assert (ours["guidance"], ours["heldout_nll"]) == (theirs["guidance"], theirs["heldout_nll"])
    assert theirs["weights"]["sha256"] == files.sha256(smoke_home / "weights/c2i.pt")


@pytest.mark.slow
def test_sampling_on_two_devices_gives_the_same_numbers(smoke_home):
    """The evaluate notebook on two devices draws the same tokens, so every metric is the same to the last digit."""
    preset = presets.load_preset("smoke")
    job = graph.evaluate_job(preset, runs.find_run(preset, "GPT-B_npp_p2_lambda1-2_seed0"))
    before = json.loads((job.folder / "metrics.json").read_text())
    launch.execute(job, {"devices": 2, "device": "cpu"})
    assert json.loads((job.folder / "metrics.json").read_text()) == before
    assert len(list(graph.checkpoint_dir(preset, runs.Run.parse(before["run"])).glob("drawn_*/manifest.json"))) == 4
