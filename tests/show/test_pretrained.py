"""The trained pair of the package: it is small, as it was made, loads, and draws."""

import json
import shutil

import numpy as np
import pytest
import torch

from nppkit.errors import NppkitError
from nppkit.files import sha256
from nppkit.sample import SamplingConfig, sample_codes
from nppkit.show import monitor, pretrained
from nppkit.study import graph
from nppkit.study.presets import load_preset

PAIR = [pretrained.HOME / "results" / "demo" / "runs" / run for run in pretrained.RUNS]
TOKENIZER = pretrained.HOME / "results" / "demo" / "tokenizer"


def test_the_pair_is_below_two_megabytes():
    """With tokenizer, results and samples."""
    assert sum(path.stat().st_size for path in pretrained.HOME.rglob("*") if path.is_file()) < 2e6


def test_the_weights_are_those_that_were_made():
    """made.json names the command and every weight file's digest; both runs are complete and of one seed."""
    made = json.loads((pretrained.HOME / "made.json").read_text())
    assert made["command"] == "nppkit pair" and len(made["sha256"]) == 3
    assert all(sha256(pretrained.HOME / name) == digest for name, digest in made["sha256"].items())
    for run in PAIR:
        config, history = json.loads((run / "config.json").read_text()), (run / "history.csv").read_text().splitlines()
        assert config["preset"] == "demo" and float(history[-1].split(",")[1]) == config["training"]["epochs"]


def test_models_predict_held_out_digits_as_their_metrics_say():
    """The held-out likelihood of the loaded model is the one that its evaluation recorded."""
    tokenizer = pretrained.load_tokenizer(TOKENIZER)
    pixels, labels = pretrained.preset_images(load_preset("demo"), heldout=True)
    codes, labels = pretrained.encode(tokenizer, pixels.split(100)), torch.from_numpy(labels)
    for run in PAIR:
        with torch.inference_mode():
            logits = pretrained.load_model(run)(codes, labels)
        nll = torch.nn.functional.cross_entropy(logits.flatten(0, 1), codes.flatten()).item()
        recorded = json.loads((run / "metrics.json").read_text())["heldout_nll"]
        assert nll == pytest.approx(recorded, abs=1e-3)  # a code at a tie may flip with the batch that is encoded


def test_ntp_and_npp_draw_differently_from_one_seed():
    """Two models, not one twice."""
    labels, index = torch.arange(4), np.arange(4)
    first, second = (sample_codes(pretrained.load_model(run), labels, SamplingConfig(), index) for run in PAIR)
    assert not torch.equal(first, second)


def test_runs_of_other_homes_are_found(tmp_path):
    """Those with weights beside them or in a checkpoint, after the pair; a run without is named when it is asked for."""
    names = list(pretrained.trained_runs([tmp_path]))
    assert names == [f"{run} (demo)" for run in pretrained.RUNS]
    run = tmp_path / "results/demo/runs/GPT-B_ntp_seed0"
    run.mkdir(parents=True)
    shutil.copyfile(PAIR[0] / "config.json", run / "config.json")
    with pytest.raises(NppkitError, match="GPT-B_ntp_seed0 has no weights yet"):
        pretrained.load_model(run)
    step = tmp_path / "checkpoints/demo/GPT-B_ntp_seed0/digest/step_00000004"
    step.mkdir(parents=True)
    shutil.copyfile(PAIR[0] / "model.safetensors", step / "model.safetensors")
    assert [*pretrained.trained_runs([tmp_path])][2:] == []  # nothing decodes what it would draw
    shutil.copytree(TOKENIZER, tmp_path / "results/demo/tokenizer")
    assert [*pretrained.trained_runs([tmp_path])][2:] == [f"GPT-B_ntp_seed0 (demo, {tmp_path})"]
    assert torch.equal(pretrained.load_model(run).output.weight, pretrained.load_model(PAIR[0]).output.weight)


@pytest.mark.parametrize(
    ("preset", "of"), [("digits", "study"), ("study", "study"), ("digits_restart", "study"), ("mine", "mine")]
)
def test_a_run_is_drawn_with_the_tokenizer_of_its_preset(tmp_path, preset, of):
    """Which may be another's; videos, whose grid has three axes, are not for the playground."""
    run = tmp_path / f"results/{preset}/runs/GPT-B_ntp_seed0"
    run.mkdir(parents=True)
    shutil.copyfile(PAIR[0] / "model.safetensors", run / "model.safetensors")
    config = json.loads((PAIR[0] / "config.json").read_text()) | {"preset": preset}
    (run / "config.json").write_text(json.dumps(config))
    assert len(pretrained.trained_runs([tmp_path])) == 2
    shutil.copytree(TOKENIZER, tmp_path / f"results/{of}/tokenizer")
    assert pretrained.tokenizer_folder(run) == tmp_path / f"results/{of}/tokenizer"
    assert len(pretrained.trained_runs([tmp_path])) == 3
    config["model"]["grid_size"] = [8, 8, 8]
    (run / "config.json").write_text(json.dumps(config))
    assert len(pretrained.trained_runs([tmp_path])) == 2


def test_runs_of_an_own_file_that_borrows_a_tokenizer(tmp_path, monkeypatch):
    """Where its results lie, a preset has noted the file that it is."""
    monkeypatch.setenv("NPPKIT_HOME", str(tmp_path))
    path = tmp_path / "designed.yaml"
    path.write_text("base: study_8x8\ndescription: mine\nruns: {B: [ntp]}\ntokenizer_of: study_8x8\n")
    graph.claim(load_preset(str(path)))
    run = tmp_path / "results/designed/runs/GPT-B_ntp_seed0"
    run.mkdir(parents=True)
    shutil.copyfile(PAIR[0] / "config.json", run / "config.json")
    shutil.copytree(TOKENIZER, tmp_path / "results/study_8x8/tokenizer")
    assert pretrained.tokenizer_folder(run) == tmp_path / "results/study_8x8/tokenizer"


def test_a_preset_without_runs_has_none(home):
    """A page that shows a preset's runs does not end with an error before the first of them."""
    assert pretrained.runs_of(load_preset("cifar10")) == []
    assert monitor.run_table([]).drop(columns=["home", "minutes"]).set_index("run").empty
    assert [run.name for run in pretrained.runs_of(load_preset("demo"))] == [run.name for run in PAIR]


def test_a_folder_without_a_tokenizer_is_named(tmp_path):
    """One line that says what to run."""
    with pytest.raises(NppkitError, match="holds no tokenizer"):
        pretrained.load_tokenizer(tmp_path)
