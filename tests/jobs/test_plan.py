"""The plan: what the cost model says of a preset's runs, or what this machine measures, added up."""

import dataclasses
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import torch

from nppkit import cli, cost, gpus
from nppkit.data.config import DataConfig
from nppkit.data.images import CROPS
from nppkit.data.npz import write_npz
from nppkit.errors import NppkitError
from nppkit.jobs import plan, slurm, timing
from nppkit.model import MODELS, GPTConfig
from nppkit.study import graph, protocol
from nppkit.study.presets import FOLDER, load_preset, preset_names
from nppkit.study.runs import Run, preset_runs
from nppkit.training import trainer

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

import speed

A100 = gpus.GPUS["A100-80G"]


def on(preset, gpu="A100-80G", count=1):
    """The preset on so many of that GPU."""
    return dataclasses.replace(preset, gpu=gpu, gpus=count)


def planned(preset, count=1):
    """Its plan on A100s that reach 40 % of their peak."""
    return plan.plan(on(preset, count=count), 0.4)


@pytest.fixture(scope="module")
def imagenet():
    """The plan of imagenet256 on 8 A100, a row a job."""
    return planned(load_preset("imagenet256"), 8).set_index("job")


def test_every_run_is_listed(imagenet):
    """All jobs of the graph that take GPUs, and a sum that is their sum."""
    ids = [run.id for run in preset_runs(load_preset("imagenet256"))]
    assert imagenet.index.tolist() == ["tokenize", "tokenize-384", *ids, "sum"]
    for column in ("tokens", "FLOPs", "disk GB", "train", "evaluate"):
        assert imagenet[column].iloc[-1] == pytest.approx(imagenet[column].iloc[:-1].sum())


def test_hours_follow_the_cost_model(imagenet):
    """B's 1,501,200 steps of 256 images at 40 % of an A100's peak, with a step's fixed cost on each of 8."""
    ntp, npp = imagenet.loc["GPT-B_ntp_seed0"], imagenet.loc["GPT-B_npp_p2_lambda1-2_seed0"]
    assert ntp["steps"] == npp["steps"] == 300 * 5004 and ntp["tokens"] == 300 * 5004 * 256 * 256
    computed, steps = 256 * cost.train_flops(GPTConfig(), 1) / (0.4 * A100.flops), 300 * 5004
    fixed = 8 * cost.fixed_seconds(GPTConfig(), A100)
    assert ntp["train"] == pytest.approx(steps * (computed + fixed))
    assert npp["tokens"] == 0.625 * ntp["tokens"] and npp["FLOPs"] < 0.625 * ntp["FLOPs"]
    assert npp["train"] == pytest.approx(npp["FLOPs"] / (0.4 * A100.flops) + steps * fixed)
    fp32 = dataclasses.replace(load_preset("imagenet256"), precision="fp32")
    assert planned(fp32, 8)["train"].iloc[2] == pytest.approx(steps * (2 * computed + fixed))


def test_the_plan_beside_what_gpus_measured():
    """Steps of the committed GPU reports, each one CUDA graph: the plan is right within a quarter at every patch side, and a
    training with two levels within 0.04 of next-token prediction's time."""
    for name, gpu in (("nvidia-h100-80gb-hbm3-16-cores", "H100-80G"), ("nvidia-h200-16-cores", "H200-141G")):
        report = speed.load_report(name, speed.GPU_REPORTS)
        for (model, images, _), row in speed.gpu_steps(report).query("mode == 'graph'").iterrows():
            c, found = GPTConfig(**MODELS[model]), {p: row[f"p = {p}, ms"] / 1e3 for p in (1, 2)}
            rate = gpus.UTILISATION * gpus.GPUS[gpu].flops
            planned = {p: images * cost.train_flops(c, p) / rate + cost.fixed_seconds(c, gpus.GPUS[gpu]) for p in found}
            assert all(0.8 < planned[p] / found[p] < 1.25 for p in found), (model, images)
            assert abs(speed.two_levels(planned) - row["#L = 2, time"]) < 0.04


def test_the_help_names_every_gpu_and_the_share(capsys):
    """What `nppkit plan --help` lists without importing torch is what the cost model knows."""
    with pytest.raises(SystemExit):
        cli.call(["plan", "--help"])
    said = "".join(capsys.readouterr().out.split())
    assert ",".join(gpus.GPUS) in said and f"(default{gpus.UTILISATION})" in said


def test_extraction_and_disk(imagenet):
    """1.29 million images of 20 crops of 256 uint16 codes; two checkpoints beside the next; larger grids by their area."""
    crops = (5004 * 256 + 10_000) * 20
    assert imagenet.loc["tokenize", "disk GB"] == pytest.approx(crops * 256 * 2 / 1e9)
    assert imagenet.loc["tokenize-384", "disk GB"] == pytest.approx(crops * 576 * 2 / 1e9)
    assert imagenet.loc["tokenize-384", "train"] / imagenet.loc["tokenize", "train"] == pytest.approx(2.25, rel=0.02)
    assert imagenet.loc["GPT-B_ntp_seed0", "disk GB"] == pytest.approx(3 * 12 * 110888448 / 1e9)


def test_a_tokenizer_is_trained_and_then_encodes(smoke):
    """A step costs three times its images' way through encoder and decoder: forward, and twice that backward."""
    encode, decode = plan.coding_flops(smoke, False)
    seconds = plan.on_gpu(on(smoke), 0.4, 1000)[1][False]
    assert seconds == pytest.approx((1000 * encode + 120 * 16 * 3 * (encode + decode)) / (0.2 * A100.flops))


def test_kept_images_take_their_room(smoke, changed):
    """Those of every guidance scale, with save_npz."""
    kept, spared = (planned(changed(smoke, "evaluation.save_npz", keep))["disk GB"] for keep in (True, False))
    assert kept[1] - spared[1] == pytest.approx(200 * 2 * 3 * 32**2 / 1e9)


def test_memory(imagenet):
    """A device holds its share of the batch, or as much of it as fits."""
    assert imagenet.loc["GPT-B_ntp_seed0", "images a device"] == "32 of 32"
    xxl = imagenet.loc["GPT-XXL-384_ntp_seed0"]
    assert xxl["images a device"] == "16 of 32" and 22 < xxl["GB a device"] < 80


def test_released_weights_are_not_trained():
    """Runs from released weights cost their evaluation alone."""
    table = planned(load_preset("imagenet256-eval")).set_index("job")
    assert table["steps"].sum() == 0 and (table["evaluate"].iloc[2:] > 600).all()
    assert table.loc["GPT-B_ntp_seed0", ["FLOPs", "train", "disk GB"]].tolist() == [0, 0, 0]


def test_a_restart_costs_no_step_less():
    """Two segments of one patch size are both counted: next-token prediction with a restart takes the time it takes without."""
    preset = load_preset("digits_restart")
    restarted, npp = (next(run for run in preset_runs(preset) if run.restart == restart) for restart in (True, False))
    assert plan.patch_steps(preset, restarted) == {1: sum(plan.patch_steps(preset, npp).values())}
    assert plan.train_flops(preset, restarted) > 1.5 * plan.train_flops(preset, npp)


def test_models_of_another_preset_are_not_trained(tmp_path):
    """A preset that scores them in another way plans its evaluations; a cluster gives a training that is missing its time."""
    table = planned(load_preset("digits_seen")).set_index("job").iloc[1:-1]
    assert not table[["steps", "train", "disk GB"]].to_numpy().any() and (table["evaluate"] > 0).all()
    (tmp_path / "seen.yaml").write_text(f"{(FOLDER / 'digits_seen.yaml').read_text()}\ngpu: A100-80G\n")
    preset = load_preset(str(tmp_path / "seen.yaml"))
    training = next(job for job in graph.graph(preset) if job.notebook == "train")
    assert slurm.request(preset, training)["runtime"] > slurm.OVERHEAD and slurm.parameters(preset, training) == ""


def test_measured_times_are_added_up(smoke, monkeypatch):
    """Without a GPU a run's time is what was measured for its steps, compilations, images, metrics and starts, added up."""
    monkeypatch.setattr(timing, "start_seconds", lambda: 3.0)
    monkeypatch.setattr(
        timing,
        "step_seconds",
        lambda preset, run, sides: ({p: 10.0 * len(run.size) / p for p in sides}, dict.fromkeys(sides, 7.0)),
    )
    monkeypatch.setattr(timing, "metrics_seconds", lambda preset: 9.0)
    monkeypatch.setattr(timing, "image_seconds", lambda preset, run, guided: 2.0 if guided else 1.0)
    monkeypatch.setattr(timing, "tokenizer_seconds", lambda preset: (0.5, 0.25))
    table = plan.plan(smoke, 0.4).set_index("job")
    assert table.loc["GPT-B_ntp_seed0", "train"] == 300 * 10 + 7 + 3
    assert table.loc["GPT-B_npp_p2_lambda1-2_seed0", "train"] == 150 * 5 + 7 + 150 * 10 + 7 + 3
    assert table.loc["GPT-B_ntp_seed0", "evaluate"] == 300 * (1 + 2) + 9 + 3
    assert table.loc["tokenize", "train"] == 120 * 0.5 + 600 * 5 * 0.25 + 3


def test_untrained_models_are_timed_here_without_steps(monkeypatch):
    """On this machine, too, where a preset's runs are another's: only their sampling is measured."""
    for name, value in (
        ("start_seconds", 3.0),
        ("metrics_seconds", 9.0),
        ("image_seconds", 2.0),
        ("tokenizer_seconds", (0.5, 0.25)),
    ):
        monkeypatch.setattr(timing, name, lambda *_, value=value: value)
    monkeypatch.setattr(timing, "step_seconds", None)
    times = plan.plan(load_preset("digits_seen"), 0.4).set_index("job").loc["GPT-B_ntp_seed100", ["train", "evaluate"]]
    assert times["train"] == 0 and times["evaluate"] > 2 * 2000


def test_the_wall_clock_waits_for_the_longest(smoke):
    """Two at a time share the runs, but the tokenizer comes before all, and an evaluation after its training."""
    lines = [("tokenize", 100.0, None), ("GPT-B_ntp_seed0", 30.0, 10.0), ("GPT-B_npp_p2_lambda1-2_seed0", 20.0, 10.0)]
    table = pd.DataFrame([*lines, ("sum", 150.0, 20.0)], columns=["job", "train", "evaluate"])
    assert [plan.wall_seconds(table, jobs) for jobs in (1, 2, 8)] == [170.0, 140.0, 140.0]


def test_what_takes_minutes_is_said_in_minutes():
    """Small models on a GPU: minutes, and no row of zeros."""
    said = plan.report(on(load_preset("own-images"), "H100-80G"), 0.4)
    assert "train GPU-minutes" in said and "minutes on 1 of them" in said and "e-0" not in said and "< 0.01" in said
    assert "GPU-hours" in plan.report(on(load_preset("imagenet256-eval"), "H100-80G"), 0.4)


def test_times_are_of_real_steps(smoke, monkeypatch):
    """What is timed is Trainer.train_step at the asked patch sides, on codes of the preset's grid.

    Compiled code of earlier models is dropped first: at its limit the compiler would silently run the next ones eagerly.
    """
    seen = []
    step = trainer.Trainer.train_step
    monkeypatch.setattr(timing, "SECONDS", 0.0)
    monkeypatch.setattr(
        trainer.Trainer, "train_step", lambda self, s, p: seen.append((self.store.codes.shape, p)) or step(self, s, p)
    )
    monkeypatch.setattr(torch.compiler, "reset", lambda: seen.append("reset"))
    times, compiling = timing.step_seconds(smoke, Run("B"), [2, 1])
    assert compiling.keys() == times.keys() and all(0 <= t < 60 for t in compiling.values())
    assert 0 < timing.metrics_seconds(smoke) < 60
    assert seen == ["reset"] + [((16, 5, 64), 2)] * 4 + [((16, 5, 64), 1)] * 4
    assert all(0 < t < 60 for t in times.values())
    assert 0 < timing.image_seconds(smoke, Run("B"), True) < 60
    step, encode = timing.tokenizer_seconds(smoke)
    assert 0 <= step < 60 and 0 < encode < 60  # a step is a difference of two times, 0 where the machine was busier at the first


def test_pictures_of_a_folder_are_counted(home):
    """The plan of one's own pictures reckons with how many there are, and says so; before they are there, with an epoch's."""
    preset = load_preset("own-images")
    assert plan.counted(preset) == f"192 images ({home}/data/images is not there: as many as a schedule epoch has)"
    (home / "data").mkdir()
    (home / "data" / "images").touch()
    with pytest.raises(NppkitError, match=r"data/images is a file: set data\.path"):
        plan.counted(preset)
    (home / "data" / "images").unlink()
    (home / "data" / "images" / "cats").mkdir(parents=True)
    for number in range(300):
        (home / "data" / "images" / "cats" / f"{number}.png").touch()
    (home / "data" / "images" / "cats" / "notes.txt").touch()
    assert plan.counted(preset) == "300 images (data/images, 1 class, counted and not opened)"
    with pytest.raises(NppkitError, match=r"data\.heldout 300 leaves no training image of 300"):
        plan.report(on(dataclasses.replace(preset, data=dataclasses.replace(preset.data, heldout=300))), 0.4)
    few = dataclasses.replace(preset, runs={"B": ["ntp"]})
    assert " 0 GPU-minutes" not in plan.report(on(few, "H200-141G"), 0.4)
    assert plan.crops(preset) == 2 * 300 and plan.crops(load_preset("solar")) == CROPS["flips"] * 2624


@pytest.mark.parametrize(("kept", "heldout", "expected"), [(5, 3, 23), (5, 0, 25), (5, 9, 25), (None, 9, 29), (None, 0, 20)])
@pytest.mark.parametrize("source", ["npz", "folder"])
def test_held_out_pictures_of_their_own_are_counted(home, source, kept, heldout, expected):
    """A file's pictures by its header; held-out ones as many as are there, where they are there."""
    for name, count in (("train", 20), ("kept", kept)):
        if count and source == "npz":
            write_npz(home / f"{name}.npz", torch.zeros(count, 3, 8, 8, dtype=torch.uint8))
        for number in range(count or 0):
            (home / name / "cats").mkdir(parents=True, exist_ok=True)
            (home / name / "cats" / f"{number}.png").touch()
    ending = ".npz" if source == "npz" else ""
    data = DataConfig(source=source, path=f"train{ending}", heldout=heldout, heldout_path=f"kept{ending}", crops="center")
    preset = dataclasses.replace(load_preset("own-images"), data=data)
    assert plan.crops(preset) == expected and plan.images_of(preset)[0] == 20


def test_a_file_that_is_not_there_yet_is_taken_for_adms():
    """ImageNet's reference has 10,000 images."""
    preset = dataclasses.replace(load_preset("own-images"), data=DataConfig(source="npz", path="nowhere.npz", heldout=0))
    assert plan.images_of(preset) == (10_000, "npz")


def test_sampling_in_fp32_takes_twice_as_long():
    """As training does: half of bf16's rate, twice its bytes. The tokenizer decodes in fp32 in both."""
    preset, kinds = load_preset("imagenet256"), ("bf16", "fp32")
    seconds = [plan.on_gpu(on(dataclasses.replace(preset, precision=kind)), 0.4, 0)[0](Run("B")) for kind in kinds]
    decoding = sum(plan.sampled_images(preset).values()) * plan.coding_flops(preset, False)[1] / (0.2 * A100.flops)
    bf16, fp32 = (found["evaluate"] - decoding for found in seconds)
    assert fp32 == pytest.approx(2 * bf16)


def test_command_line(capsys):
    """The plan names GPU, utilisation and total; unknown GPUs and impossible shares are one line."""
    assert cli.call(["plan", "imagenet256-eval", "--gpu", "H100-80G", "--gpus", "2", "--utilisation", "0.5"]) == 0
    said = capsys.readouterr().out
    parts = ("on H100-80G at 50% of its peak, bf16", "images (", "on 2 of them", "GPT-XXL-384_ntp_seed0")
    assert all(part in said for part in parts)
    for options, message in (
        (["--gpu", "TPU"], "gpu 'TPU' is unknown: use one of A100"),
        (["--utilisation", "2"], "--utilisation 2: use a share"),
        (["--gpus", "0"], "--gpus 0: use 1 or more"),
    ):
        assert cli.call(["plan", "imagenet256", *options]) == 1 and message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ("reports: [nope]", "reports: there is no notebooks/nope.ipynb"),
        ("questions: {equal_flops: B}\nequal_flops: {B: [181, 498]}", "question equal_flops needs run npp_p2_lambda1-2 of B"),
        ("questions: {equal_flops: B}", "needs equal_flops: {B: [epochs, epochs]}"),
        ("data: {crops: mirrored}", "data.crops 'mirrored' is unknown"),
        ("gpu: RTX4090", "gpu 'RTX4090' is unknown: use one of A100"),
        ("gpu: A100-80G\ndata: {source: folder, path: Snakefile}", "Snakefile is a file: set data.path"),
    ],
)
def test_what_a_preset_lacks_is_said_before_anything_starts(tmp_path, capsys, lines, message):
    """A report without its notebook and a question without its run are one line of the plan and of the graph."""
    path = tmp_path / "mine.yaml"
    path.write_text(f"base: smoke\ndescription: mine\nruns: {{B: [ntp]}}\n{lines}\n")
    assert cli.call(["plan", str(path), "--gpu", "H100-80G"]) == 1
    assert message in (said := capsys.readouterr().err) and said.count("\n") == 1
    words = [sys.executable, "-m", "snakemake", "--dry-run", "--cores", "1", "--config", f"preset={path}"]
    found = subprocess.run(words, cwd=Path(__file__).parents[2], capture_output=True, text=True)
    assert found.returncode and message in found.stderr and "Traceback" not in found.stderr


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("device=2 shard=true", "error: RUN: 'device' is unknown: use devices, nodes, shard or tensorboard"),
        ("devices=two", "error: RUN: devices: 'two' is not an int"),
        ("devices=2 shard=maybe", "error: RUN: shard: 'maybe' is not a bool"),
    ],
)
def test_what_a_graph_is_told_is_known(words, message):
    """A slip in make's RUN is one line, not a run on one device."""
    command = [sys.executable, "-m", "snakemake", "--dry-run", "--cores", "1", "--config", "preset=smoke", *words.split()]
    found = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True)
    assert found.returncode == 1 and found.stderr.strip().splitlines()[-1] == message and "Traceback" not in found.stderr


@pytest.mark.parametrize("name", preset_names())
def test_packaged_presets_lack_nothing(name):
    """Each makes its graph, has its notebooks, and runs what its questions ask."""
    preset = load_preset(name)
    assert graph.graph(preset) and len(protocol.questions(preset)) == len(preset.questions)
