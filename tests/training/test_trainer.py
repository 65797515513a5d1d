"""Training: pure data order, the step, exact resume."""

import argparse
import contextlib
import dataclasses
import json
import math
import os
import subprocess
import sys
from collections import Counter

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import write_store
from torch import nn

from nppkit import cli, loss, releases
from nppkit.checkpoint import checkpoints, load_checkpoint, load_optimizer, optimizer_tensors, save_checkpoint
from nppkit.data.codes import CodeStore
from nppkit.errors import NppkitError
from nppkit.grouping import group_targets
from nppkit.jobs import workers
from nppkit.machine import devices
from nppkit.machine.options import Options
from nppkit.machine.processes import ALONE
from nppkit.model import GPT, GPTConfig
from nppkit.patches import KINDS
from nppkit.schedule import drawn_segments, is_coarse, learning_rate, multi_scale_segments, ntp_segments
from nppkit.study import graph, models
from nppkit.study.runs import Run
from nppkit.training import batches, trainer
from nppkit.training.config import TrainingConfig

SIZES = dict(dim=16, n_layer=2, n_head=2, multiple_of=8)
CONFIG = TrainingConfig(epochs=8, steps_per_epoch=3, batch_size=4, lr=1e-2, log_every=2)
SEGMENTS = multi_scale_segments(8, 3, "1/2")  # p = 4 for 2 epochs, 2 for 2, 1 for 4: 24 steps


class Stopped(Exception):
    """Stands for a kill."""


def stop_after(step):
    """Progress that ends the loop before the given step."""

    def progress(steps):
        for s in steps:
            if s == step:
                raise Stopped
            yield s

    return progress


def make_trainer(store, folder, config=CONFIG, precision="fp32", processes=ALONE, segments=SEGMENTS, **options):
    model = trainer.make_model(store, SIZES, config, seed=0)
    places = folder / "history.csv", folder / "ckpt", "digest"
    options = Options(**{"device": "cpu", **options})
    return trainer.Trainer(model, store, store, segments, config, 0, *places, options, precision, processes)


def fit(trainer, progress=iter):
    """The loop of the train notebook."""
    with trainer.running() as steps:
        for step in progress(steps):
            trainer.train_step(step, trainer.patch_size(step))
            trainer.after(step)


def run(store, folder, stops=(), **changes):
    """Train to the end, killed and started again before each step of `stops`; every step is saved."""
    folder.mkdir(exist_ok=True)
    for step in stops:
        with pytest.raises(Stopped):
            fit(make_trainer(store, folder, save_minutes=0.0, **changes), stop_after(step))
    trainer = make_trainer(store, folder, **changes)
    fit(trainer)
    return trainer


def same(a, b):
    """Weights, optimiser, and history but for the clock are equal bit for bit."""
    states = [{**t.model.state_dict(), **optimizer_tensors(t.optimizer, t.model)} for t in (a, b)]
    assert states[0].keys() == states[1].keys()
    for key, value in states[0].items():
        assert torch.equal(value, states[1][key]), key
    clock = ["seconds", "cpu_seconds", "images_per_second"]
    pd.testing.assert_frame_equal(
        pd.DataFrame(a.history).drop(columns=clock), pd.DataFrame(b.history).drop(columns=clock), check_exact=True
    )


def test_a_checkpoint_says_what_the_model_was_told(tmp_path):
    """Bytes of names or class tokens: the weights cannot say it, and no names model is exported as one of LlamaGen's."""
    store, (told, plain) = CodeStore(write_store(tmp_path / "store")), (tmp_path / "names", tmp_path / "class")
    for folder, condition in ((told, "names"), (plain, "class")):
        run(store, folder, config=dataclasses.replace(CONFIG, condition=condition))
    with pytest.raises(NppkitError, match="was trained on names of classes"):
        releases.export(checkpoints(told / "ckpt")[-1], tmp_path / "names.pt")
    releases.export(checkpoints(plain / "ckpt")[-1], tmp_path / "class.pt")


@pytest.mark.parametrize("stops", [(12,), (7,), (6,), (1, 13, 23)], ids=["half", "mid-epoch", "boundary", "thrice"])
def test_resume_is_exact(store, tmp_path, stops, monkeypatch):
    """N + restart + N steps equal 2N steps bit for bit, also mid-epoch, on a segment boundary, and after three restarts.

    Weights, optimiser and history are the same, and each step's batch and learning rate.
    """
    steps = []

    def noted(trainer, step):
        steps.append((step, trainer.learning_rate(step), *(tensor.tolist() for tensor in batch(trainer, step))))
        return batch(trainer, step)

    batch = trainer.Trainer.batch
    monkeypatch.setattr(trainer.Trainer, "batch", noted)
    same(run(store, tmp_path / "whole"), run(store, tmp_path / "parts", stops))
    assert len(steps) == 48 and steps[:24] == steps[24:]


@pytest.mark.parametrize(
    ("segments", "last"),
    [
        (SEGMENTS, SEGMENTS[-2].end * CONFIG.steps_per_epoch - 1),
        (drawn_segments(CONFIG.epochs, 2, "1/2"), None),
        (ntp_segments(3), 0),
    ],
)
def test_checkpoints_say_whether_patches_are_left(store, tmp_path, segments, last):
    """Also before the first row of the history, and where each step draws its level; at the end none are."""
    trained = make_trainer(store, tmp_path, segments=segments, save_minutes=0.0, keep_last=1000)
    fit(trained)
    left = [
        json.loads((path / "state.json").read_text())["patches_left"] for path in sorted(trained.checkpoint_folder.glob("step_*"))
    ]
    expected = len(left) - 1 if last is None else last
    assert left == [True] * expected + [False] * (len(left) - expected)


@pytest.mark.slow
@pytest.mark.parametrize("became", ["gone", "altered"])
def test_a_history_comes_from_the_checkpoint(store, tmp_path, became):
    """Of a finished training a history.csv that is gone or altered is written again as it was; results are read from it."""
    run(store, tmp_path / "run")
    path = tmp_path / "run/history.csv"
    before = path.read_bytes()
    path.unlink() if became == "gone" else path.write_bytes(before.replace(b"0", b"1"))
    run(store, tmp_path / "run")
    assert path.read_bytes() == before


def test_a_training_is_the_plain_loop(store, tmp_path):
    """As a reader would write it: labels dropped, the rate of the schedule, gradients clipped, AdamW decaying matrices."""
    config = dataclasses.replace(CONFIG, label_dropout=0.5, grad_clip=0.1, dropout=0.0)
    trained, plain = run(store, tmp_path / "run", config=config).model, trainer.make_model(store, SIZES, config, seed=0).train()
    matrices, vectors = ([p for p in plain.parameters() if (p.dim() > 1) == kind] for kind in (True, False))
    groups = [{"params": matrices, "weight_decay": 0.05}, {"params": vectors, "weight_decay": 0.0}]
    optimizer, clipped = torch.optim.AdamW(groups, betas=(0.9, 0.95)), 0
    for step in range(24):
        codes, labels = batches.batch_at(store, step, batch_size=4, seed=0, label_dropout=0.5)
        p = 4 if step < 6 else 2 if step < 12 else 1
        logits, targets = plain(codes, labels, p).log_softmax(-1), group_targets(codes, p)
        optimizer.zero_grad()
        (-logits.gather(-1, targets).mean()).backward()
        clipped += torch.nn.utils.clip_grad_norm_(plain.parameters(), 0.1).item() > 0.1
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, SEGMENTS, 3, **config.rates)
        optimizer.step()
    assert clipped > 12 and len({learning_rate(step, SEGMENTS, 3, **config.rates) for step in range(24)}) > 5
    for (name, value), other in zip(plain.named_parameters(), trained.parameters(), strict=True):
        torch.testing.assert_close(other, value, rtol=1e-3, atol=2e-5, msg=lambda text, name=name: f"{name}: {text}")


def test_a_held_out_likelihood_is_the_first_crops_without_dropout(store):
    """And every module has the mode afterwards that it had before: one that was frozen is not trained on."""
    model = trainer.make_model(store, SIZES, dataclasses.replace(CONFIG, dropout=0.5), seed=0)
    torch.nn.init.normal_(model.output.weight)
    model.train().tok_dropout.eval()
    modes = [module.training for module in model.modules()]
    found = trainer.heldout_nll(model, store, torch.device("cpu"))
    assert [module.training for module in model.modules()] == modes
    codes, labels = store.batch(np.arange(10), np.zeros(10, int))
    expected = torch.nn.functional.cross_entropy(model.eval()(codes, labels, 1).flatten(0, 1), codes.flatten())
    assert found == pytest.approx(expected.item(), rel=1e-6)


def test_resume_is_exact_when_compiled(store, tmp_path):
    """The same with torch.compile."""
    config = dataclasses.replace(CONFIG, compile=True)
    same(run(store, tmp_path / "whole", config=config), run(store, tmp_path / "parts", (9,), config=config))


@pytest.mark.slow
def test_a_segment_boundary_compiles_nothing(store, tmp_path):
    """One graph for each patch side, made before the first step that is timed; none comes later."""
    torch.compiler.reset()
    graphs = torch._dynamo.utils.counters["stats"]
    graphs.clear()
    trainer = make_trainer(store, tmp_path, config=dataclasses.replace(CONFIG, compile=True))
    trainer.warm_up()
    before = graphs["unique_graphs"]
    fit(trainer)
    assert before == graphs["unique_graphs"] == len({segment.patch_size for segment in SEGMENTS})


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "mean"])
def test_better_patches_are_resumed_and_dropped(store, tmp_path, kind):
    """Each level's window learns and is resumed bit for bit; from its last step on it is neither in memory nor on disk.

    The last checkpoint has the names of a model that has never seen it, and other weights.
    """
    config, folder = dataclasses.replace(CONFIG, patch=kind), tmp_path / "parts"
    folder.mkdir()
    names = {}
    for step in (5, 8, 13):
        with pytest.raises(Stopped):
            fit(make_trainer(store, folder, config, save_minutes=0.0), stop_after(step))
        tensors, _ = load_checkpoint(checkpoints(folder / "ckpt")[-1], "digest")
        names[step] = {key.split(".")[1] for key in tensors["model"] if key.startswith("windows.")}
        windows = {key: value for key, value in tensors["model"].items() if key.startswith("windows.4.")}
        learned = [value.abs().sum() > 0 and f"exp_avg.{key}" in tensors["optimizer"] for key, value in windows.items()]
        assert all(learned) or step == 5
    assert names == {5: {"16", "4"}, 8: {"4"}, 13: set()}
    whole, mean = run(store, tmp_path / "whole", config=config), run(store, tmp_path / "mean")
    parts = make_trainer(store, folder, config)
    fit(parts)
    same(whole, parts)
    (found, _), (plain, _) = (load_checkpoint(checkpoints(tmp_path / f / "ckpt")[-1], "digest") for f in ("parts", "mean"))
    assert {group: tensors.keys() for group, tensors in found.items()} == {group: t.keys() for group, t in plain.items()}
    assert not torch.equal(found["model"]["output.weight"], plain["model"]["output.weight"])
    ours, theirs = whole.measured_cost()["flops_per_step"], mean.measured_cost()["flops_per_step"]
    assert ours[1] == theirs[1] and (kind == "offset" or min(ours[2] - theirs[2], ours[4] - theirs[4]) > 0)
    assert not whole.model.windows


@pytest.mark.parametrize("patch", ["mean", "attention"])
def test_drawn_levels(store, tmp_path, patch):
    """Each step is made at the size that it draws, by whoever resumes; history and cost say how many were coarse."""
    config, segments = dataclasses.replace(CONFIG, patch=patch), drawn_segments(8, 4, "1/2")
    sizes, step = [], trainer.Trainer.train_step
    with pytest.MonkeyPatch.context() as patches:
        patches.setattr(trainer.Trainer, "train_step", lambda t, s, p: sizes.append(p) or step(t, s, p))
        whole = run(store, tmp_path / "whole", config=config, segments=segments)
        same(whole, run(store, tmp_path / "parts", (7, 13), config=config, segments=segments))
    coarse = is_coarse(np.arange(24), segments[0], 3, 0)
    assert sizes[:24] == sizes[24:] == [4 if c else 1 for c in coarse] and 6 < coarse.sum() < 18
    history, cost = pd.DataFrame(whole.history), whole.measured_cost()
    assert (history["coarse"] == coarse.reshape(12, 2).mean(1)).all() and (history["patch_size"] == 4).all()
    assert cost["flops"] == sum(cost["flops_per_step"][p] for p in sizes[:24]) and not whole.model.windows


@pytest.mark.slow
def test_better_patches_compile_once(store, tmp_path):
    """Windows that are dropped, and sizes that alternate, compile nothing after the start, and end near the eager weights."""
    for name, segments in (("levels", SEGMENTS), ("drawn", drawn_segments(8, 4, "1/2"))):
        torch.compiler.reset()
        graphs = torch._dynamo.utils.counters["stats"]
        graphs.clear()
        config = dataclasses.replace(CONFIG, patch="attention", dropout=0.0)
        made = make_trainer(store, tmp_path / name, dataclasses.replace(config, compile=True), segments=segments)
        made.warm_up()
        before = graphs["unique_graphs"]
        fit(made)
        assert before == graphs["unique_graphs"] == len(made.sizes())
        eager = run(store, tmp_path / f"{name}_eager", config=config, segments=segments)
        for key, value in eager.model.state_dict().items():
            torch.testing.assert_close(made.model.state_dict()[key], value, rtol=1e-3, atol=1e-4)


def test_command_line_reaches_the_trainer(store, home, smoke, monkeypatch):
    """--options reach the trainer; without them it saves every ten minutes."""
    monkeypatch.setattr(workers, "CodeStore", lambda folder: store)
    made, trainer = [], argparse.Namespace(running=lambda: contextlib.nullcontext([]))
    monkeypatch.setattr(workers, "run_trainer", lambda *args: made.append(args[5]) or trainer)
    for extra in ([], ["--options", "save_minutes=2 keep_last=5 keep_best=1 graphs=true"]):
        assert cli.call(["train", "smoke", "GPT-B_ntp_seed0", *extra]) == 0
    assert made == [Options(), Options(save_minutes=2.0, keep_last=5, keep_best=1, graphs=True)]


@pytest.mark.parametrize(
    "text",
    ["devices=0", "nodes=0", "threads=0", "micro_batch=-1", "save_minutes=-1", "keep_last=0", "keep_best=-1", "devices=two"],
)
def test_options_have_ranges(text):
    """What would divide by zero, train nothing or count FLOPs wrongly is refused by name."""
    with pytest.raises(NppkitError, match=f"options: {text.split('=')[0]}"):
        Options.parse(text)


def test_options_are_one_text():
    """Options and their text determine each other; a word without a value and an unknown name are refused."""
    options = Options(devices=8, shard=True, save_minutes=0.5)
    assert Options.parse(str(options)) == options and str(Options()) == ""
    for text, message in (("devices 8", "'devices' is not name=value"), ("gpus=8", "unknown setting 'gpus'")):
        with pytest.raises(NppkitError, match=message):
            Options.parse(text)


def test_what_several_have_trained_is_looked_at_on_the_cpu():
    """A GPU that could hold its shard may not hold the whole; who trained alone goes on where it is."""
    several = Options(device="cuda", devices=8, nodes=2, shard=True, micro_batch=4, graphs=True)
    alone = Options(device="cuda", micro_batch=4, graphs=True)
    assert several.one_process() == Options(device="cpu", shard=True, micro_batch=4) and alone.one_process() == alone


def test_pieces_of_a_batch_cost_what_the_batch_does(store, tmp_path):
    """Measured FLOPs are those of the whole batch, whatever its pieces; more than the batch is refused."""
    whole, pieces = (make_trainer(store, tmp_path, micro_batch=n).measured_cost() for n in (0, 3))
    assert whole["flops"] == pieces["flops"]
    with pytest.raises(NppkitError, match="micro_batch 128 is above batch_size 4"):
        make_trainer(store, tmp_path, micro_batch=128)


def test_graphs_need_a_gpu(store, tmp_path):
    """CUDA graphs are a GPU's: elsewhere the option changes nothing."""
    trainer = make_trainer(store, tmp_path, graphs=True)
    assert not trainer.replays and trainer.optimizer.param_groups[0]["capturable"] is False


def test_graphs_that_cannot_be_recorded(store, tmp_path, monkeypatch, hopeful):
    """Where the compiler fails they are left out, in one line; recomputed activations without a compiler are refused."""
    from torch._inductor.exc import InductorError

    def record(trainer, patch_size):
        raise InductorError(RuntimeError("Failed to find C compiler"), None)

    monkeypatch.setattr(trainer.Trainer, "record_graph", record)
    there = make_trainer(store, tmp_path / "graphs", dataclasses.replace(CONFIG, compile=True), graphs=True)
    there.replays = True  # as on a GPU
    with pytest.warns(UserWarning, match=r"torch.compile failed \(.*C compiler\): this runs eagerly"):
        fit(there)
    same(run(store, tmp_path / "eager"), there)
    with pytest.raises(NppkitError, match=r"graphs: training\.recompute is no part of them without training\.compile"):
        make_trainer(store, tmp_path, dataclasses.replace(CONFIG, recompute=True), graphs=True)


def test_precision_is_in_the_digest(store, home, smoke):
    """A preset's trainer computes in the preset's precision, and its checkpoints are not those of another."""
    trainers = [
        models.run_trainer(
            dataclasses.replace(smoke, precision=p), Run("B"), make_trainer(store, home).model, store, store, Options()
        )
        for p in ("fp32", "bf16")
    ]
    assert [t.precision for t in trainers] == ["fp32", "bf16"] and trainers[0].config_digest != trainers[1].config_digest


def test_a_run_trains_as_its_id_says(store, home, smoke):
    """Its variant's settings, not the preset's, decide the learning rate, and its seed the data."""
    run = Run("B", seed=3, lr="6e-3", epochs=8)
    made = models.run_trainer(smoke, run, make_trainer(store, home).model, store, store, Options())
    assert (made.config, made.seed, made.total_steps) == (run.training(smoke), 3, 8)
    assert made.config.lr == 6e-3 != smoke.training.lr


@pytest.mark.parametrize(("step", "finished"), [(7, False), (8, True)])
def test_half_trained_weights_are_none(store, home, smoke, step, finished):
    """A training that was killed leaves a checkpoint, which is for it to go on from, and not for an evaluation."""
    run = Run("B", epochs=8)
    folder, digest = graph.checkpoint_dir(smoke, run), graph.train_job(smoke, run).digest
    model = trainer.make_model(store, smoke.models["B"], smoke.training, 0)
    save_checkpoint(folder, step, {"model": model.state_dict()}, {"config_digest": digest})
    refused = pytest.raises(NppkitError, match=r"no finished checkpoint of GPT-B_ntp_epochs8_seed0 in .*: run the train notebook")
    with contextlib.nullcontext() if finished else refused:
        assert not models.load_trained(smoke, run, store).training


@pytest.mark.parametrize("left", [None, 4])
def test_a_finished_training_whose_last_checkpoint_is_damaged_goes_on(store, home, smoke, left):
    """An evaluation refuses it in one line, and from then on the training counts as to be run again, from the one before."""
    run = Run("B", epochs=8)
    folder, digest = graph.checkpoint_dir(smoke, run), graph.train_job(smoke, run).digest
    weights = {"model": trainer.make_model(store, smoke.models["B"], smoke.training, 0).state_dict()}
    for step in (left, 8) if left else (8,):
        save_checkpoint(folder, step, weights, {"config_digest": digest}, keep_last=2)
    assert not graph._checkpoint_gone(smoke, run)
    file = folder / "step_00000008/model.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    with (
        pytest.warns(UserWarning, match="missing or damaged"),
        pytest.raises(NppkitError, match="run the train notebook, or make"),
    ):
        models.load_trained(smoke, run, store)
    assert graph._checkpoint_gone(smoke, run).endswith(" is gone")
    assert [path.name for path in checkpoints(folder)] == ([f"step_{left:08d}"] if left else [])
    save_checkpoint(folder, 8, weights, {"config_digest": digest}, keep_last=2)
    assert not graph._checkpoint_gone(smoke, run) and not models.load_trained(smoke, run, store).training


def test_seeds_differ(store, tmp_path):
    """Another seed gives other batches and other weights: the equality above is not empty."""
    a, b = (trainer.make_model(store, SIZES, CONFIG, seed) for seed in (0, 1))
    assert not torch.equal(a.tok_embeddings.weight, b.tok_embeddings.weight)
    assert not torch.equal(batches.batch_at(store, 0, 8, 0)[0], batches.batch_at(store, 0, 8, 1)[0])


def test_every_image_once_a_visit(store):
    """Ten images in batches of four: each comes once in a visit, also where a batch spans two visits."""
    seen = []
    by_codes = {store.codes[i, c].tobytes(): i for i in range(10) for c in range(2)}
    for step in range(5):
        codes, _ = batches.batch_at(store, step, 4, 0)
        seen += [by_codes[row.numpy().astype(np.uint16).tobytes()] for row in codes]
    assert Counter(seen[:10]) == Counter(seen[10:]) == Counter(range(10))
    assert seen[:10] != seen[10:]
    large, _ = batches.batch_at(store, 0, 20, 0)
    assert [by_codes[row.numpy().astype(np.uint16).tobytes()] for row in large] == seen, "two visits in one batch"


def test_both_crops_are_used(store):
    """An image's crop varies from visit to visit."""
    crops = {store.codes[0, c].tobytes(): c for c in range(2)}
    found = {
        crops.get(row.numpy().astype(np.uint16).tobytes()) for step in range(50) for row in batches.batch_at(store, step, 4, 0)[0]
    }
    assert {0, 1} <= found


def test_label_dropout_rate(tmp_path):
    """A tenth of the labels is replaced by "unconditional", and with rate 0 none."""
    store = CodeStore(write_store(tmp_path / "large", n=1000))
    dropped = [(batches.batch_at(store, step, 500, 0, 0.1)[1] == 3).float().mean().item() for step in range(40)]
    assert abs(np.mean(dropped) - 0.1) < 0.01
    assert not (batches.batch_at(store, 0, 500, 0, 0.0)[1] == 3).any()


def test_weight_decay_on_matrices_alone(store):
    """Parameters of two or more dimensions decay, norms do not."""
    model = trainer.make_model(store, SIZES, CONFIG, 0)
    decays = {p.dim() >= 2: g["weight_decay"] for g in trainer.make_optimizer(model, CONFIG).param_groups for p in g["params"]}
    assert decays == {True: 0.05, False: 0.0}


def test_history_follows_the_schedule(store, tmp_path):
    """Rows carry the segment's patch side and the learning rate; segments end with a held-out likelihood."""
    history = pd.DataFrame(run(store, tmp_path / "run").history)
    assert history["step"].tolist() == sorted({*range(2, 25, 2), 6, 12, 24})
    assert history.loc[history["step"].isin([6, 12, 24]), "patch_size"].tolist() == [4, 2, 1]
    expected = [learning_rate(s - 1, SEGMENTS, 3, 1e-2) for s in history["step"]]
    assert history["lr"].tolist() == expected
    assert history["heldout_nll"].notna().tolist() == history["step"].isin([6, 12, 24]).tolist()
    written = pd.read_csv(tmp_path / "run/history.csv")
    pd.testing.assert_frame_equal(written, history, check_dtype=False, rtol=5e-9, atol=0)


def test_constant_learning_rate(store, tmp_path):
    """LlamaGen's own training has neither warm-up nor decay."""
    config = dataclasses.replace(CONFIG, lr_schedule="constant")
    assert {row["lr"] for row in run(store, tmp_path / "run", config=config).history} == {CONFIG.lr}


def test_optimizer_comes_back_on_the_device(store, tmp_path):
    """All of AdamW's state is where the weights are, its step count too: the fused kernel of a GPU reads it there."""
    done = run(store, tmp_path / "run")
    saved, model = optimizer_tensors(done.optimizer, done.model), done.model.to("meta")
    done.optimizer.state.clear()
    load_optimizer(done.optimizer, model, saved)
    assert {value.device.type for state in done.optimizer.state.values() for value in state.values()} == {"meta"}


def test_optimizer_reset(store, tmp_path, monkeypatch):
    """AdamW counts its steps through all segments, or from each segment's start; also when stopped on the boundary."""
    reset = dataclasses.replace(CONFIG, reset_optimizer=True)
    counts = {}
    for name, config, stops in (("carried", CONFIG, ()), ("reset", reset, ()), ("resumed", reset, (12,))):
        trainer = run(store, tmp_path / name, stops, config=config)
        counts[name] = {int(state["step"]) for state in trainer.optimizer.state.values()}
    assert counts == {"carried": {24}, "reset": {12}, "resumed": {12}}


def test_heldout_likelihood_in_between(store, tmp_path):
    """With heldout_every the likelihood is taken at those epochs, besides the segments' ends."""
    config = dataclasses.replace(CONFIG, heldout_every=3, log_every=3)
    history = pd.DataFrame(run(store, tmp_path / "run", config=config).history)
    assert history.loc[history["heldout_nll"].notna(), "epoch"].tolist() == [2, 3, 4, 6, 8]


def test_heldout_likelihood_between_two_rows(store, tmp_path):
    """Its epochs count also where no row of the history is due, as in a preset of 5,004 steps an epoch and a row every 100."""
    config = dataclasses.replace(CONFIG, heldout_every=3, log_every=4)
    history = pd.DataFrame(run(store, tmp_path / "run", config=config).history)
    assert history["step"].tolist() == [4, 6, 8, 9, 12, 16, 18, 20, 24]
    assert history.loc[history["heldout_nll"].notna(), "step"].tolist() == [6, 9, 12, 18, 24]


def test_training_learns(tmp_path):
    """On one image the loss falls well below that of guessing."""
    store = CodeStore(write_store(tmp_path / "one", n=1, crops=1))
    trainer = run(store, tmp_path / "run")
    assert trainer.history[-1]["loss"] < 0.8 * math.log(16)


def test_nan_stops_and_is_not_saved(store, tmp_path):
    """A loss that is not finite stops the run with the step and the last good checkpoint; NaN never reaches disk."""
    trainer = make_trainer(store, tmp_path)
    ordinary = trainer.loss_fn
    trainer.loss_fn = lambda *args: ordinary(*args) * (math.nan if trainer.step == 7 else 1)
    with pytest.raises(NppkitError, match=r"step 7: loss nan.*step_00000006"):
        fit(trainer)
    assert [path.name for path in checkpoints(tmp_path / "ckpt")] == ["step_00000006"]


def test_other_configuration_is_refused(store, tmp_path):
    """A checkpoint of another configuration is never loaded."""
    run(store, tmp_path / "run")
    model = trainer.make_model(store, SIZES, CONFIG, 0)
    with pytest.raises(NppkitError, match="another configuration"):
        fit(trainer.Trainer(model, store, store, SEGMENTS, CONFIG, 0, tmp_path / "h.csv", tmp_path / "run" / "ckpt", "other"))


def test_other_codes_are_refused(store, tmp_path):
    """A checkpoint trained on other codes is never continued."""
    run(store, tmp_path / "run")
    other = CodeStore(write_store(tmp_path / "other", tokenizer_sha256="retrained"))
    with pytest.raises(NppkitError, match="other codes"):
        fit(make_trainer(other, tmp_path / "run"))


def test_patch_larger_than_the_grid_is_refused(store, tmp_path):
    """Levels whose coarsest patch exceeds the grid are an error before any work."""
    model = trainer.make_model(store, SIZES, CONFIG, 0)
    with pytest.raises(NppkitError, match="patch_size 8 does not divide the 4 x 4 grid"):
        trainer.Trainer(model, store, store, multi_scale_segments(300, 4, "1/2"), CONFIG, 0, tmp_path / "h", tmp_path / "c", "d")


@pytest.mark.parametrize(
    ("name", "function"),
    [("int8", lambda n: devices.autocast(torch.device("cpu"), n)), ("tpu9", devices.pick_device), ("meta", devices.pick_device)],
)
def test_unknown_device_or_precision(name, function):
    """An unknown device or precision is named."""
    with pytest.raises(NppkitError, match=name):
        function(name)


@pytest.mark.parametrize("place", ["/proc/none", "/dev/null/none"])
def test_a_cache_that_cannot_be_written(place):
    """Where the compiler has no place for its files, a line says so, and training is eager."""
    code = "import torch; from nppkit.machine import devices; f = lambda: 1; print(devices.compiled(f, torch.device('cpu')) is f)"
    env = {**os.environ, "TORCHINDUCTOR_CACHE_DIR": place}
    result = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
    assert result.stdout == "True\n" and "torch.compile failed" in result.stderr and "Traceback" not in result.stderr


@pytest.fixture
def hopeful():
    """A process in which no compilation has failed, before and after."""
    devices._run_eagerly.cache_clear()
    yield
    devices._run_eagerly.cache_clear()


def test_compile_falls_back_without_a_compiler(monkeypatch, hopeful):
    """Without a C++ compiler the loss runs eagerly, and one line says so."""
    monkeypatch.setattr(devices.shutil, "which", lambda name: None)
    with pytest.warns(UserWarning, match="no C\\+\\+ compiler"):
        assert devices.compiled(loss.npp_loss, torch.device("cpu")) is loss.npp_loss


def test_compile_falls_back_where_the_compiler_fails(store, tmp_path, monkeypatch, hopeful):
    """A compiler that is there and cannot compile, for want of Python.h say: one line, and eager from then on."""
    from torch._inductor import config as inductor

    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "cache"))
    config = dataclasses.replace(CONFIG, compile=True)
    torch.compiler.reset()
    broken = inductor.patch({"cpp.cxx": (None, "/bin/false"), "fx_graph_cache": False})
    with broken, pytest.warns(UserWarning, match=r"torch.compile failed \(.*C\+\+.*\): this runs eagerly") as said:
        first = run(store, tmp_path / "first", config=config)
        second = run(store, tmp_path / "second", config=config)
    assert first.step == first.total_steps and second.loss_fn is loss.npp_loss
    assert len([line for line in said if "torch.compile failed" in str(line.message)]) == 1
    same(run(store, tmp_path / "eager"), second)


def test_measured_flops_are_counted_not_derived(store, tmp_path):
    """FLOPs come from the operations of the real step: a model with another layer count costs what it runs."""
    trainer = run(store, tmp_path / "run")
    whole = trainer.measured_cost()
    trainer.model.layers = trainer.model.layers[:1]
    half = trainer.measured_cost()
    assert half["flops"] < 0.75 * whole["flops"]
    per_step = whole["flops_per_step"]
    assert whole["flops"] == 6 * per_step[4] + 6 * per_step[2] + 12 * per_step[1]
    assert whole["seconds"] == pytest.approx(sum(row["seconds"] for row in trainer.history))


def test_seconds_are_those_of_the_steps(store, tmp_path, monkeypatch):
    """The history's clocks run while steps train, and stand still for compilation, likelihoods and checkpoints."""
    now = [0.0]

    def takes(owner, name, seconds):
        function = getattr(owner, name)

        def slow(*args, **kwargs):
            now[0] += seconds
            return function(*args, **kwargs)

        monkeypatch.setattr(owner, name, slow)

    monkeypatch.setattr(trainer, "clock", lambda: (now[0], now[0] / 2))
    takes(trainer.Trainer, "train_step", 1)
    for owner, name in ((trainer.Trainer, "warm_up"), (trainer, "heldout_nll"), (trainer, "save_checkpoint")):
        takes(owner, name, 1000)
    cost = run(store, tmp_path / "run").measured_cost()
    assert now[0] > 6000 and (cost["seconds"], cost["cpu_seconds"]) == (24, 12)


def test_released_weights(store, tmp_path, home, smoke):
    """A run whose weights the preset names is that file's model, in eval mode; another size is refused by name."""
    torch.manual_seed(1)
    model = GPT(GPTConfig(**SIZES, vocab_size=16, num_classes=3, grid_size=4))
    nn.init.normal_(model.output.weight)
    torch.save({"model": model.state_dict()}, home / "c2i.pt")
    preset = dataclasses.replace(smoke, models={"B": SIZES}, runs={"B": ["ntp"]}, weights={"GPT-B_ntp_seed0": "c2i.pt"})
    with pytest.warns(UserWarning, match=r"c2i\.pt does not say for which grid it was trained: taken as 4 x 4"):
        loaded = models.load_trained(preset, Run("B"), store)
    assert not loaded.training and loaded.config.num_classes == 3
    codes, labels = store.batch(np.arange(3), np.zeros(3, int))
    torch.testing.assert_close(loaded(codes, labels), model.eval()(codes, labels))
    with pytest.raises(NppkitError, match=r"c2i\.pt does not fit this GPT"):
        models.load_trained(dataclasses.replace(preset, models={"B": {**SIZES, "n_layer": 3}}), Run("B"), store)
    sizes = dict(dim=48, n_layer=1)  # of 12 heads, the default
    torch.save({"model": GPT(GPTConfig(**sizes, vocab_size=16, num_classes=3, grid_size=4)).state_dict()}, home / "c2i.pt")
    with pytest.warns(UserWarning, match="taken as 4 x 4"):
        assert models.load_trained(dataclasses.replace(preset, models={"B": sizes}), Run("B"), store).config.n_head == 12


def test_likelihood_of_nothing(tmp_path):
    """Without held-out images there is no likelihood: NaN, and no error."""
    empty = CodeStore(write_store(tmp_path / "empty", n=0))
    model = trainer.make_model(empty, SIZES, CONFIG, 0)
    assert math.isnan(trainer.heldout_nll(model, empty, devices.CPU))
