"""Several processes, here on CPU over gloo: the same batches, weights and files as one, and nothing left behind."""

import json
import os
import re
import signal
import subprocess
import sys

import faults
import numpy as np
import pandas as pd
import pytest
import test_trainer
import torch
from conftest import write_store
from test_faults import wait_for
from torch.distributed import run as torch_run

from nppkit import cli
from nppkit.checkpoint import checkpoints, load_checkpoint
from nppkit.errors import Diverged, NppkitError
from nppkit.jobs import slurm, torchrun, workers
from nppkit.machine import guard
from nppkit.machine.options import Options
from nppkit.machine.processes import Processes
from nppkit.study import graph, models, runs
from nppkit.training import batches, trainer

RUN = runs.Run("B", patch_size=2, lam="1/2")  # two segments, so that there is a checkpoint half-way
TOLERANCE = dict(rtol=1e-3, atol=1e-4)  # of weights of order 0.1 after 24 steps: sums over a batch in another order


@pytest.mark.parametrize("size", [1, 2, 3, 4])
def test_shares_are_the_global_batch(store, size):
    """The processes' shares of a step's batch follow each other to the batch of one process."""
    whole = batches.batch_at(store, 5, 10, 0, 0.1)
    shares = [tuple(part[Processes(rank, size).share(10)] for part in whole) for rank in range(size)]
    for i in range(2):
        assert torch.equal(torch.cat([share[i] for share in shares]), whole[i])
    assert {len(share[0]) for share in shares} <= {10 // size, 10 // size + 1}


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    """The store, and the last checkpoint of one process."""
    folder = tmp_path_factory.mktemp("one")
    write_store(folder / "store", n=3)  # fewer held-out images than processes
    faults.train_together(1, folder / "store", folder)
    return folder / "store", *last(folder)


def last(folder):
    """Tensors and state of a run's newest checkpoint."""
    return load_checkpoint(checkpoints(folder / "ckpt")[-1], "digest")


def assert_same_run(found, expected):
    """The same files, names, shapes and types, the same history, and weights within the tolerance."""
    (tensors, state), (other, right) = found, expected
    for group in ("model", "optimizer"):
        assert tensors[group].keys() == other[group].keys()
        for key, value in tensors[group].items():
            torch.testing.assert_close(value, other[group][key], **TOLERANCE, msg=lambda text, key=key: f"{key}: {text}")
    assert state.keys() == right.keys() and state["files"].keys() == right["files"].keys() and state["step"] == right["step"]
    for mine, theirs in zip(state["history"], right["history"], strict=True):
        assert [mine[key] for key in ("step", "lr", "patch_size")] == [theirs[key] for key in ("step", "lr", "patch_size")]
        for key in ("loss", "grad_norm", "heldout_nll"):
            np.testing.assert_allclose(mine[key], theirs[key], rtol=1e-3, err_msg=key)


@pytest.mark.slow
@pytest.mark.parametrize(("size", "micro_batch", "shard"), [(1, 3, 0), (2, 0, 0), (4, 1, 0), (2, 3, 1), (4, 0, 1)])
def test_weights_do_not_depend_on_the_number_of_processes(one, tmp_path, size, micro_batch, shard):
    """1, 2 and 4 processes, accumulating gradients or not, sharded (FSDP) or not, end at the same weights and files."""
    store, *expected = one
    faults.train_together(size, store, tmp_path, micro_batch=micro_batch, shard=bool(shard))
    assert_same_run(last(tmp_path), expected)


@pytest.mark.slow
@pytest.mark.parametrize("options", [{}, dict(micro_batch=1), dict(shard=True)], ids=["ddp", "pieces", "fsdp"])
@pytest.mark.parametrize(("patch", "drawn"), [("attention", True), ("heads", False)])
def test_better_patches_do_not_depend_on_processes(tmp_path, patch, drawn, options):
    """What one window learns while another's rests, or while single tokens are drawn, is the same in one process and in two.

    Both draw the same levels, are resumed, and end without it.
    """
    store, alike = write_store(tmp_path / "store", n=3), dict(patch=patch, drawn=drawn)
    for size, changes in ((1, {}), (2, options)):
        faults.train_together(size, store, tmp_path / str(size), 8, **alike, **changes)
    (tensors, _), (expected, _) = (last(tmp_path / str(size)) for size in (2, 1))
    assert any(key.startswith("windows.4.") for key in expected["model"])
    for key, value in expected["model"].items():
        torch.testing.assert_close(tensors["model"][key], value, **TOLERANCE)
    for size, changes in ((1, {}), (2, options)):
        faults.train_together(size, store, tmp_path / str(size), **alike, **changes)
        assert not any(key.startswith("windows") for key in last(tmp_path / str(size))[0]["model"])
    assert_same_run(last(tmp_path / "2"), last(tmp_path / "1"))


@pytest.mark.slow
@pytest.mark.parametrize("shard", [False, True], ids=["ddp", "fsdp"])
def test_resume_on_another_number_of_processes(one, tmp_path, shard):
    """Two processes, then one, then two, stopped by SIGTERM to one of them, end where one process ends."""
    store, *expected = one
    for size, stop_before in ((2, 7), (1, 15), (2, 0)):
        faults.train_together(size, store, tmp_path, stop_before, shard=shard and size > 1)
        assert last(tmp_path)[1]["step"] == (stop_before or 24)
    assert_same_run(last(tmp_path), expected)


def test_more_processes_than_images_are_refused(store, tmp_path):
    """A process without an image of the batch could not take part, and sharded weights need equal shares."""
    with pytest.raises(NppkitError, match="batch_size 4 is below 5 processes"):
        test_trainer.make_trainer(store, tmp_path, processes=Processes(0, 5))
    with pytest.raises(NppkitError, match="shard: 3 processes do not divide batch_size 4"):
        test_trainer.make_trainer(store, tmp_path, processes=Processes(0, 3), shard=True)


def test_nodes_need_slurm(monkeypatch):
    """More than one machine without a Slurm job of as many is an error that says what to do; within one srun starts torchrun."""
    for name in ("SLURM_JOB_NUM_NODES", "SLURM_JOB_ID"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(NppkitError, match="no Slurm job of as many nodes"):
        torchrun.command(["train"], 8, 2)
    monkeypatch.setattr(torchrun, "_first_node", lambda nodes: "node1")
    words = torchrun.command(["train", "P", "R"], 8, 2)
    assert words[0] == "srun" and "--nnodes=2" in words and f"--rdzv-endpoint=node1:{torchrun.PORTS[0]}" in words


def test_workers_have_time_for_a_checkpoint():
    """More than torchrun's half minute, and less than the launcher and Slurm give all of them."""
    words = torchrun.command(["train", "P", "R"], 2)
    slurms = int(slurm.GRACE.rpartition("@")[2])
    assert 30 < torch_run.parse_args(words[words.index("torchrun") + 1 :]).shutdown_timeout < guard.GRACE_SECONDS < slurms


def test_jobs_of_one_first_node_do_not_meet(monkeypatch):
    """Two Slurm jobs that begin at the same node have places and names of their own, the nodes of one job the same."""
    monkeypatch.setattr(torchrun, "_first_node", lambda nodes: "node1")
    meetings = []
    for job in ("41999", "42000", "42000"):
        monkeypatch.setenv("SLURM_JOB_ID", job)
        meetings.append({word for word in torchrun.command(["train", "P", "R"], 8, 2) if word.startswith("--rdzv")})
    assert len(meetings[0] - meetings[1]) == 2 and meetings[1] == meetings[2] and "--rdzv-id=42000" in meetings[1]


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A results home with codes, for trainings through the command line."""
    home = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NPPKIT_HOME", str(home))
        yield home
    for process in faults.of_home(home):
        process.kill()


def launcher(path, *parameters):
    """The command of a training on two devices."""
    words = [sys.executable, "-m", "nppkit", "run", str(path), "train", RUN.id]
    return [*words, "-p", "devices", "2", "-p", "device", "cpu", *parameters]


REUNION = """
import os
from torch.distributed.rendezvous import rendezvous
from nppkit.machine.processes import joined

store, rank, size = next(rendezvous("env://"))
assert store.add("workers", 1) <= size, "the addresses of the last time are still there"
with joined() as processes:
    assert processes.total([1.0]) == [2.0]
    if os.environ["TORCHELASTIC_RESTART_COUNT"] == "0":
        os._exit(1)
"""


@pytest.mark.slow
def test_restarted_workers_meet_anew(tmp_path):
    """After a restart no worker finds what the lost ones left: it would wait for them, or for ever."""
    (tmp_path / "reunion.py").write_text(REUNION)
    words = ["--standalone", "--nproc-per-node=2", "--max-restarts=1", str(tmp_path / "reunion.py")]
    done = subprocess.run([sys.executable, "-m", "nppkit", "torchrun", *words], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("said", ["error: make room", "[rank1]: RuntimeError: Connection refused"])
def test_a_failed_worker_is_named(tmp_path, said):
    """A command that fails is an error with its own last error, however much torchrun says after it."""
    script = f"print({said!r}); print('torch.ChildFailedError: '); [print('=' * 60) for _ in range(50)]; raise SystemExit(3)"
    with pytest.raises(NppkitError, match=rf"status 3: {re.escape(said)} \(read "):
        torchrun.run([sys.executable, "-c", script], tmp_path / "log")


def test_the_ranks_own_reason_is_told(tmp_path):
    """Where one rank ends with its reason the others lose their connection a moment later: the reason is what is told. What a
    library writes besides, in whatever bytes, ends nothing."""
    said = ["error: the disk is full", "[rank1]: RuntimeError: Connection closed by peer"]
    script = f"import sys; sys.stdout.buffer.write(b'Verbindung \\xfcber ib0\\n'); print(*{said}, sep='\\n'); raise SystemExit(1)"
    with pytest.raises(NppkitError, match=r"status 1: error: the disk is full \(read "):
        torchrun.run([sys.executable, "-c", script], tmp_path / "log")
    assert (tmp_path / "log").read_text().splitlines() == ["Verbindung \\xfcber ib0", *said]


LOST = """
import os, pathlib, sys
print("error: step 7: loss nan: lower training.lr")
pathlib.Path(__file__).with_name("starts").open("a").write(os.environ["TORCHELASTIC_RESTART_COUNT"])
sys.exit({})
"""


@pytest.mark.parametrize(("status", "starts", "error"), [(Diverged.status, "0", Diverged), (1, "01", NppkitError)])
def test_a_training_that_diverged_is_not_started_again(tmp_path, status, starts, error):
    """As other failures are; whoever waits for torchrun is told of that outcome, in its words."""
    (tmp_path / "lost.py").write_text(LOST.format(status))
    words = ["--standalone", "--nproc-per-node=2", "--max-restarts=1", str(tmp_path / "lost.py")]
    with pytest.raises(NppkitError, match=r"step 7: loss nan: lower training\.lr") as found:
        torchrun.run([sys.executable, "-m", "nppkit", "torchrun", *words], tmp_path / "log")
    assert type(found.value) is error and set((tmp_path / "starts").read_text()) == set(starts)


@pytest.mark.slow
def test_notebook_trains_on_two_devices(home):
    """The train notebook on two devices: torchrun's log is followed, a killed worker comes back, and all results are there.

    It goes on from the newest checkpoint, to the weights of one process that was never disturbed.
    """
    path, preset = faults.tokenized_preset(home, steps_per_epoch=2, log_every=2, dropout=0.0)
    folder = graph.run_dir(preset, RUN)
    process = subprocess.Popen(launcher(path), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    wait_for(lambda: faults.last_step(folder / "history.csv") > 0 or process.poll() is not None)
    (worker,) = (p for p in faults.of_home(home) if "train" in p.cmdline() and p.environ().get("LOCAL_RANK") == "1")
    wait_for(lambda: faults.last_step(folder / "history.csv") > 300 or process.poll() is not None)
    worker.kill()
    before = pd.read_csv(folder / "history.csv").query("step <= 300")
    assert process.wait(600) == 0, process.stdout.read()
    pd.testing.assert_frame_equal(pd.read_csv(folder / "history.csv").query("step <= 300"), before)  # the clock's columns too
    assert "exitcode: -9" in (folder / "train.log").read_text()
    assert json.loads((folder / "config.json").read_text())["options"]["devices"] == 2 and (folder / "train.record.json").exists()
    store = trainer.CodeStore(graph.tokenizer_dir(preset) / "train")
    model = trainer.make_model(store, preset.models["B"], preset.training, 0)
    alone = models.run_trainer(preset, RUN, model, store, store, Options(device="cpu"))
    alone.history_path, alone.checkpoint_folder = home / "alone.csv", home / "alone"
    test_trainer.fit(alone)
    trained = models.load_trained(preset, RUN, store).state_dict()
    for key, value in model.state_dict().items():
        torch.testing.assert_close(trained[key], value, rtol=1e-2, atol=2e-3)


@pytest.mark.parametrize("words", [f"train smoke {RUN.id}", f"sample smoke {RUN.id}", "codes extract smoke"])
def test_no_worker_outlives_torchrun(capsys, monkeypatch, words):
    """Whatever torchrun's processes do, they begin by binding themselves to it."""

    def bound():
        raise NppkitError("bound")

    monkeypatch.setenv("WORLD_SIZE", "1")
    monkeypatch.setattr(workers, "die_with_parent", bound)
    assert cli.call(words.split()) == 1 and capsys.readouterr().err == "error: bound\n"


@pytest.mark.slow
def test_torchrun_ends_with_its_notebook(home):
    """SIGTERM to the launcher reaches all trainers, here sharded ones, which save; SIGKILL leaves no process untold."""
    path, preset = faults.tokenized_preset(home, steps_per_epoch=5000, log_every=1)
    folder, history = graph.checkpoint_dir(preset, RUN), graph.run_dir(preset, RUN) / "history.csv"
    history.unlink(missing_ok=True)
    for kill in (signal.SIGTERM, signal.SIGKILL):
        before = faults.last_step(history)
        process = subprocess.Popen(launcher(path, "-p", "shard", "true"), stderr=subprocess.PIPE, text=True)
        wait_for(lambda before=before: faults.last_step(history) not in (0, before))
        assert any("shard=True" in " ".join(p.cmdline()) and "LOCAL_RANK" in p.environ() for p in faults.of_home(home))
        os.kill(process.pid, kill)
        status = process.wait(600)
        wait_for(lambda: not faults.of_home(home))
        assert status == (guard.REQUEUE if kill == signal.SIGTERM else -signal.SIGKILL), process.stderr.read()
        assert checkpoints(folder)
