"""Data that change after a study was made from them, presets of one name, and looking, which changes nothing."""

import dataclasses
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from test_runs import complete

from nppkit.errors import NppkitError
from nppkit.jobs import launch, targets, workers
from nppkit.study import graph, models, presets, records
from nppkit.study.runs import Run

ROOT = Path(__file__).parents[2]


def drawing(monkeypatch, *names):
    """Stand-ins for a run that knows these classes: every call draws two pictures. How they were to be sampled is listed."""
    store, trained, asked = SimpleNamespace(manifest=SimpleNamespace(class_names=list(names))), torch.nn.Identity(), []
    monkeypatch.setattr(models, "CodeStore", lambda folder: store)
    trained.config = SimpleNamespace(num_classes=len(names))
    monkeypatch.setattr(models, "load_trained", lambda *_: trained)
    monkeypatch.setattr(models, "load_tokenizer", lambda *_: torch.nn.Identity())
    monkeypatch.setattr(models, "rounded", lambda model, _: model)
    pictures = torch.zeros(2, 3, 8, 8, dtype=torch.uint8)
    monkeypatch.setattr(models, "generate", lambda *args: asked.append(args[2]) or (pictures, None))
    return asked


def test_pictures_are_of_the_class_and_guidance_that_are_asked(home, monkeypatch, smoke):
    """All labels are the class's; without --guidance it is the preset's common scale."""
    asked = drawing(monkeypatch, "cat", "dog")
    for scale, folder in ((None, "common"), (3.0, "own")):
        models.draw_pictures(smoke, Run("B"), "dog", 2, home / folder, scale, 7, "cpu")
    assert [(c.cfg_scale, c.seed, c.shares) for c in asked] == [(1.5, 7, (0.0, 1.0)), (3.0, 7, (0.0, 1.0))]


def test_pictures_of_a_class_with_a_slash_in_its_name(home, monkeypatch, smoke):
    """Solar cells have a probability of a defect of 1/3; another seed's pictures are not written over them."""
    drawing(monkeypatch, "mono, defect 1/3")
    models.draw_pictures(smoke, Run("B"), "mono, defect 1/3", 2, home / "out", None, 0, "cpu")
    assert sorted(path.name for path in (home / "out").iterdir()) == [f"mono, defect 1-3_000{i}.png" for i in (0, 1)]
    with pytest.raises(NppkitError, match=r"mono, defect 1-3_0000\.png is there: name another folder, or remove it"):
        models.draw_pictures(smoke, Run("B"), "mono, defect 1/3", 2, home / "out", 3.0, 7, "cpu")


def test_pictures_are_not_drawn_for_a_folder_that_cannot_be_made(home, monkeypatch, smoke):
    """Where a file stands in its place, it is said before the work that would be lost."""
    asked = drawing(monkeypatch, "cat", "dog")
    (home / "out").write_text("mine")
    with pytest.raises(FileExistsError):
        models.draw_pictures(smoke, Run("B"), "dog", 2, home / "out", None, 0, "cpu")
    assert asked == []


def test_other_settings_of_released_weights_score_them_again(home, smoke, changed):
    """Heads and the rotary base are not among the weights: with others the same file is another model."""
    released = dataclasses.replace(smoke, weights={"GPT-B_ntp_seed0": "mine.safetensors"})
    other = changed(released, "models.B", {**smoke.models["B"], "rope_base": 500})
    assert graph.evaluate_job(released, Run("B")).digest != graph.evaluate_job(other, Run("B")).digest


def test_a_preset_in_a_folder_whose_name_is_no_text(home, smoke):
    """Names of folders are bytes, and need not be UTF-8: the note of whose results these are holds them."""
    mine = dataclasses.replace(smoke, name="mine", source="/tmp/p\udcff/mine.yaml")
    graph.claim(mine)
    graph.claim(mine)  # reads what the first wrote
    assert (graph.results_dir(mine) / ".preset").read_bytes() == b"/tmp/p\xff/mine.yaml"


@pytest.mark.parametrize("missing", ["equal_flops", "coarse"])
def test_a_page_that_a_preset_cannot_fill_is_refused(missing):
    """Before the trainings, and not after them by a page that finds nothing to show."""
    study = presets.load_preset("study")
    lacking = dataclasses.replace(study, **{missing: type(getattr(study, missing))()})
    page = {"equal_flops": "equal_compute", "coarse": "when_it_pays"}[missing]
    assert graph.reports(study)
    with pytest.raises(NppkitError, match=f"reports: {page} shows its {missing}: set that, or take {page} away"):
        graph.reports(lacking)


def test_a_release_that_is_replaced_makes_its_numbers_again(home):
    """Both repositories call their file c2i_B_256.pt: what was scored and what was encoded with one is not the other's."""
    preset = presets.load_preset("imagenet256-eval")
    jobs = {"LlamaGen/c2i_B_256.pt": graph.evaluate_job(preset, Run("B")), "LlamaGen/vq_ds16_c2i.pt": graph.tokenize_job(preset)}
    for file, job in jobs.items():
        path = home / "weights" / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"one")
        complete(job)
        assert f"weights/{file}" in records.recorded_inputs(job) and not records.changed_input(job)
        path.write_bytes(b"other")
        assert records.changed_input(job) == f"{path} has changed: 1 replaced ({path.name})"


@pytest.mark.parametrize(
    ("make", "setting"),
    [
        (lambda preset: graph.evaluate_job(preset, Run("B")), "evaluation.reference"),
        (graph.tokenize_job, "data.path"),
        (graph.tokenize_job, "data.heldout_path"),
        (graph.tokenize_job, "tokenizer.weights"),
        (graph.tokenize_job, "tokenizer.start"),
        (graph.tokenize_job, "tokenizer.perceptual_weights"),
        (graph.tokenize_job, "extractor.weights"),
    ],
)
def test_every_file_that_a_preset_names_is_an_input(home, smoke, changed, make, setting):
    """By its job's record, so that what was made from the file that stood there is made again from another one."""
    preset = changed(changed(smoke, "data.path", "images.npz"), "data.source", "npz")
    preset = changed(preset, "extractor.name", "efficientnet-lite0")
    assert "this.npz" in make(changed(preset, setting, "this.npz")).inputs


def test_a_folder_of_weights_is_named(home, smoke):
    """A checkpoint is a folder; its weights are a file in it."""
    (home / "step_00000300").mkdir()
    preset = dataclasses.replace(smoke, weights={"GPT-B_ntp_seed0": "step_00000300"})
    with pytest.raises(NppkitError, match=r"step_00000300 is a folder: name the file in it, of a checkpoint model\.safetensors"):
        graph.evaluate_job(preset, Run("B"))


def test_a_link_is_a_preset_of_its_own_name(home):
    """And of its own place: the kernels of its jobs are given the link, not what it leads to."""
    own = save(home)
    (home / "linked.yaml").symlink_to(home / "mine.yaml")
    linked = presets.load_preset(str(home / "linked.yaml"))
    assert linked.name == presets.load_preset(linked.source).name == "linked"
    (home / "place").symlink_to(home)
    graph.claim(own)
    graph.claim(presets.load_preset(str(home / "place/mine.yaml")))  # the same file, by a folder that is a link


def test_a_damaged_note_names_no_owner(home):
    """What is no path claims nothing, and is written again."""
    own, note = save(home), home / "results/mine/.preset"
    note.parent.mkdir(parents=True)
    note.write_text("a\0b")
    graph.claim(own)
    assert note.read_text() == own.source


def test_relative_names_are_found_from_a_notebook(home, monkeypatch):
    """A kernel works in notebooks/: what is not there is looked for where results/ is, as every path in a preset."""
    save(home)
    (home / "below").mkdir()
    monkeypatch.chdir(home / "below")
    assert presets.load_preset("mine.yaml").source == str(home / "mine.yaml")
    borrower = dataclasses.replace(presets.load_preset("mine.yaml"), name="other", tokenizer_of="mine.yaml")
    assert graph.tokenizer_dir(borrower) == home / "results/mine/tokenizer"


@pytest.fixture
def study(home):
    """A finished preset on a folder of images."""
    for name in ("cat/0.png", "cat/1.png", "dog/0.png", "dog/1.png"):
        path = home / "data" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), (len(name), int(name[4]), 0)).save(path)
    preset = save(home, lr=1e-3)
    for job in graph.graph(preset):
        complete(job)
    return preset


def save(home, name="mine", **training):
    """A preset of one run as a file."""
    content = yaml.safe_load((presets.FOLDER / "smoke.yaml").read_text())
    content |= {"data": {"source": "folder", "path": "data", "heldout": 1}, "runs": {"B": ["ntp"]}, "reports": [], "seeds": {}}
    content["training"] |= training
    path = home / f"{name}.yaml"
    path.write_text(yaml.safe_dump(content))
    return presets.load_preset(str(path))


def files_below(home):
    return {path: path.read_bytes() for path in home.rglob("*") if path.is_file() and "contents" not in path.parts}


def test_changed_data_make_all_that_depends_on_them_again(study, home):
    """One line names the image; tokenizer, run and tables follow; the other way round all is valid again."""
    assert graph.stale(study) == {}
    Image.new("RGB", (8, 8)).save(home / "data/cat/new.png")
    reasons = graph.stale(study)
    assert reasons["tokenize"] == f"{home}/data has changed: 1 added (cat/new.png)"
    jobs = graph.graph(study)
    assert reasons.keys() == {job.name for job in jobs if job.upstream} | {"tokenize"}
    assert reasons["train GPT-B_ntp_seed0"] == "tokenize runs again"
    (home / "data/cat/new.png").unlink()
    assert graph.stale(study) == {}


def test_without_the_data_results_are_valid_and_it_is_said(study, home):
    """A clone without the images takes what is recorded, and says so in one line."""
    shutil.rmtree(home / "data")
    assert graph.set_aside_stale(study) == [
        f"{home}/data is not there to be compared: what was made from it is taken as recorded: tokenize and what follows"
    ]


def test_data_that_change_while_they_are_read(study, home):
    """A record never says that codes are of images which came later."""
    job = graph.tokenize_job(study)
    before = records.read_inputs(job)
    Image.new("RGB", (8, 8)).save(home / "data/dog/new.png")
    with pytest.raises(NppkitError, match="data has changed while it was read: run it again"):
        records.write_record(job, before)


def test_a_table_of_a_notebook_opened_by_hand_notices(study, home, monkeypatch):
    """`ensure`, by which notebooks make what they need, asks the images too."""
    ran = []
    monkeypatch.setattr(launch, "execute", lambda job, values: ran.append(job.name))
    launch.ensure(graph.tokenize_job(study))
    assert ran == []
    (home / "data/dog/1.png").unlink()
    launch.ensure(graph.tokenize_job(study))
    assert ran == ["tokenize"]
    launch.ensure(graph.train_job(study, Run("B")))  # whose own inputs are the same: the codes are of other images
    assert ran[1:] == ["tokenize", "train GPT-B_ntp_seed0"]


def test_looking_changes_nothing(study, home):
    """`stale` and `outlook` name what a changed preset would make again, and leave every file as it is."""
    other, before = save(home, lr=2e-3), files_below(home)
    reasons = graph.stale(other)
    assert "train GPT-B_ntp_seed0" in reasons and "tokenize" not in reasons
    assert all("configuration has changed" in line for line in graph.outlook(other, reasons))
    assert files_below(home) == before
    train = graph.train_job(other, graph.preset_runs(other)[0])
    assert not targets.expected_record(train, True).exists() and targets.expected_record(train, False) == train.record


@pytest.mark.parametrize("look", ["--dry-run", "--summary", "--dag"])
def test_snakemake_that_looks_changes_nothing(study, home, look):
    """Snakemake's own ways to look say what would run again, and leave every record where it is."""
    save(home, lr=2e-3)
    before = {path: content for path, content in files_below(home).items() if path.suffix in (".json", ".stale")}
    command = [sys.executable, "-m", "snakemake", look, "--cores", "1", "--workflow-profile", "none"]
    command += ["--snakefile", str(ROOT / "Snakefile"), "--config", f"preset={home}/mine.yaml"]
    env = {**os.environ, "NPPKIT_HOME": str(home)}
    result = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)
    assert result.returncode == 0 and "train GPT-B_ntp_seed0 will run again: its configuration" in result.stderr, result.stderr
    assert {path: content for path, content in files_below(home).items() if path.suffix in (".json", ".stale")} == before


def test_an_edit_undone_finds_its_results(study, home):
    """Records that were set aside for an edit are back when the edit is undone before anything ran."""
    before = {path: content for path, content in files_below(home).items() if path.suffix == ".json"}
    assert graph.set_aside_stale(save(home, lr=2e-3))
    train = graph.train_job(study, graph.preset_runs(study)[0])
    assert not train.record.exists() and train.stale.exists()
    assert graph.set_aside_stale(save(home, lr=1e-3)) == []
    assert {path: content for path, content in files_below(home).items() if path.suffix == ".json"} == before
    complete(train, "y")
    assert not train.stale.exists() and graph.stale(study)["evaluate GPT-B_ntp_seed0"].endswith("GPT-B_ntp_seed0 have changed")


def test_two_presets_of_one_name_do_not_share_results(study, home):
    """The second file is told whose results lie there; when the first is gone, they are its own."""
    graph.set_aside_stale(study)
    (home / "elsewhere").mkdir()
    other, before = save(home / "elsewhere", lr=2e-3), files_below(home)
    with pytest.raises(NppkitError, match=rf"mine holds the results of {home}/mine\.yaml: give .*elsewhere/mine\.yaml another"):
        graph.set_aside_stale(other)
    assert files_below(home) == before
    (home / "mine.yaml").unlink()
    assert graph.set_aside_stale(other)


@pytest.mark.parametrize("work", ["train", "sample", "extract", "draw", "evaluate"])
def test_codes_of_other_settings_are_not_used(home, smoke, changed, monkeypatch, work):
    """A preset is edited, and work without a notebook would go on with the codes, and the results, of the one before."""
    complete(graph.tokenize_job(smoke))
    other = changed(smoke, "data.image_size", 64)
    commands = {
        "train": lambda p: workers.train(p, "GPT-B_ntp_seed0"),
        "sample": lambda p: workers.sample(p, "GPT-B_ntp_seed0"),
        "extract": lambda p: workers.extract(p, False, 0, 1, "cpu", 8),
        "evaluate": lambda p: models.evaluate_file(p, str(home / "some.npz")),
        "draw": lambda p: models.draw_pictures(p, Run("B"), "7", 2, home / "out", None, 0, "cpu"),
    }
    monkeypatch.setattr(workers, "study_images", lambda data: (None, None))
    np.savez(home / "some.npz", np.zeros((2, 32, 32, 3), np.uint8))
    again = r"tokenizer holds codes of other settings than preset smoke has today: nppkit run smoke tokenize makes them again"
    with pytest.raises(NppkitError, match=again):
        commands[work](other)
    with pytest.raises(Exception, match=r"^(?!.*other settings)"):  # the right ones are used, and found to be none
        commands[work](smoke)


def test_windows_of_another_length_are_not_trained_on(home, changed):
    """A text's windows are made by a notebook of their own, and the same command makes them again."""
    text = presets.load_preset("text")
    complete(graph.tokenize_job(text))
    with pytest.raises(NppkitError, match="nppkit run text tokenize makes them again"):
        graph.check_codes(graph.train_job(changed(text, "data.window", 64), Run("B")))
    graph.check_codes(graph.train_job(text, Run("B")))


@pytest.mark.parametrize("work", ["train", "sample", "extract"])
def test_work_without_a_notebook_claims_the_results(home, smoke, monkeypatch, work):
    """Another file's preset of the same name has results of its own."""
    for folder in ("a", "b"):
        (home / folder).mkdir()
        (home / folder / "mine.yaml").write_text("base: smoke\ndescription: d\nruns: {B: [ntp]}\n")
    first, second = (presets.load_preset(str(home / folder / "mine.yaml")) for folder in ("a", "b"))
    graph.claim(first)
    commands = {
        "train": lambda p: workers.train(p, "GPT-B_ntp_seed0"),
        "sample": lambda p: workers.sample(p, "GPT-B_ntp_seed0"),
        "extract": lambda p: workers.extract(p, False, 0, 1, "cpu", 8),
    }
    with pytest.raises(NppkitError, match=r"results/mine holds the results of .*a/mine\.yaml: give .*b/mine\.yaml another name"):
        commands[work](second)


def test_a_model_of_other_classes_is_refused(home, smoke, monkeypatch):
    """A released model's rows of classes are those of its own data; codes of one class alone say nothing of them."""
    monkeypatch.setattr(models, "find", lambda name: home / name)
    monkeypatch.setattr(models, "load_weights", lambda model, path: None)
    monkeypatch.setattr(models, "known_grid", lambda path: 8)
    monkeypatch.setattr(models, "release_config", lambda *_: SimpleNamespace(num_classes=9))
    preset = dataclasses.replace(smoke, weights={"GPT-B_ntp_seed0": "nine.pt"})
    store = SimpleNamespace(num_classes=10, grid_size=8, vocab_size=32)
    with pytest.raises(NppkitError, match=r"nine\.pt knows 9 classes, the codes 10: take weights of the same classes"):
        models.load_trained(preset, Run("B"), store)
    assert models.load_trained(preset, Run("B"), SimpleNamespace(**{**vars(store), "num_classes": 1})).config.num_classes == 9
