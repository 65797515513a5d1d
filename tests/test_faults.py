"""Faults: kills at any instant, full disks, signals and dead parents; nothing is lost and nothing is left behind."""

import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import faults
import pytest
import test_trainer
import torch
from conftest import write_store

from nppkit import cli
from nppkit.checkpoint import checkpoints, load_checkpoint, load_newest
from nppkit.data.codes import CodeStore
from nppkit.errors import NppkitError
from nppkit.jobs import launch
from nppkit.machine import guard
from nppkit.schedule import multi_scale_segments
from nppkit.study import graph, presets, runs

KILLS = int(os.environ.get("NPPKIT_KILLS", 20))  # make soak: 50
RUN = "GPT-B_ntp_seed0"


def wait_for(condition, seconds=600):
    """Poll until it holds. The limit only ends a test that hangs: no time is asserted, a machine may be slow."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it never happened"
        time.sleep(0.1)


@pytest.mark.slow
def test_killed_at_random_instants(tmp_path):
    """A run killed again and again, in a step, a write, an fsync, a rename or a removal, ends as if it never was.

    After every kill each checkpoint that can be seen is complete, and none is older than what was there before.
    """
    store, folder, chance = write_store(tmp_path / "store"), tmp_path / "parts", random.Random(0)
    folder.mkdir()
    kills = newest = 0
    while kills < KILLS:
        by_clock = kills % 4 == 3  # from outside, whatever it is doing; otherwise at a numbered event
        process = faults.start(store, folder, 0 if by_clock else chance.randrange(1, 45))
        if by_clock:
            process.join(chance.uniform(0.05, 1.0))
            process.kill()
        process.join()
        if process.exitcode == 0:  # it came to the end before: a fresh run goes on being killed
            parts = test_trainer.make_trainer(CodeStore(store), folder)
            test_trainer.fit(parts)
            test_trainer.same(test_trainer.run(CodeStore(store), tmp_path / f"whole{kills}"), parts)
            folder, newest = tmp_path / f"parts{kills}", 0
            folder.mkdir()
            continue
        assert process.exitcode == -signal.SIGKILL
        kills += 1
        steps = [load_checkpoint(path, "digest")[1]["step"] for path in checkpoints(folder / "ckpt")]
        assert max(steps, default=0) >= newest, "an older checkpoint went before the newer one was there"
        newest = max(steps, default=0)
    parts = test_trainer.make_trainer(CodeStore(store), folder)
    test_trainer.fit(parts)
    test_trainer.same(test_trainer.run(CodeStore(store), tmp_path / "whole"), parts)
    assert checkpoints(folder / "ckpt")[-1].name == "step_00000024" and not list((folder / "ckpt").glob(".step*"))


@pytest.mark.slow
def test_events_reach_every_phase_of_a_checkpoint(tmp_path):
    """Kills at consecutive events meet a checkpoint before it is written, half written, synced, renamed and pruned."""
    store, seen = write_store(tmp_path / "store"), set()
    for event in range(1, 40, 4):
        folder = tmp_path / str(event)
        folder.mkdir()
        process = faults.start(store, folder, event)
        process.join()
        assert process.exitcode == -signal.SIGKILL
        names = {path.name[:6] for path in (folder / "ckpt").glob("*step*")}
        seen.add(frozenset(names))
        newest = load_newest(folder / "ckpt", "digest")
        assert (newest is None) == ("step_0" not in names)
    assert {frozenset(), frozenset({".step_"}), frozenset({"step_0"})} <= seen


def test_full_disk_keeps_the_old_checkpoint(tmp_path):
    """When a file can no longer be written, the run ends with one line, the old checkpoint is whole, no half file is left."""
    store, folder = write_store(tmp_path / "store"), tmp_path / "run"
    folder.mkdir()
    process = faults.start(store, folder, 60)
    process.join()
    before = {p.name: faults.state_of(p) for p in checkpoints(folder / "ckpt")}
    assert before
    code = f"""
import sys; sys.path[:0] = {sys.path!r}
import faults
faults.train_until({str(store)!r}, __import__("pathlib").Path({str(folder)!r}), file_limit=4096)
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 1 and "could not be written" in result.stderr.splitlines()[-1], result.stderr
    assert "NppkitError" in result.stderr.splitlines()[-1]
    assert {p.name: faults.state_of(p) for p in checkpoints(folder / "ckpt")} == before
    assert not list((folder / "ckpt").glob(".step*")) and not list(folder.glob(".history*"))
    load_newest(folder / "ckpt", "digest")


def test_space_is_checked_before_a_run_starts(store, tmp_path, monkeypatch):
    """A run whose checkpoints will not fit is refused before its first step."""
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
    trainer = test_trainer.make_trainer(store, tmp_path / "run")
    with pytest.raises(NppkitError, match="GB free and the run's checkpoints need"):
        test_trainer.fit(trainer)
    assert trainer.step == 0


@pytest.fixture
def hangups():
    """SIGHUP and Ctrl-C have their effect, also where these tests run under nohup or in a script's background."""
    effects = {signal.SIGHUP: signal.SIG_DFL, signal.SIGINT: signal.default_int_handler}
    before = {signum: signal.signal(signum, effect) for signum, effect in effects.items()}
    yield
    for signum, effect in before.items():
        signal.signal(signum, effect)


@pytest.mark.parametrize(("signum", "status"), [(signal.SIGTERM, 75), (signal.SIGINT, 130), (signal.SIGHUP, 129)])
def test_a_signal_saves_and_asks_for_another_start(store, tmp_path, hangups, signum, status):
    """SIGTERM, Ctrl-C and a closed terminal let the step end, write a checkpoint and raise Interrupted; the resumed run ends
    as if it never was."""

    def terminate_at(step):
        def progress(steps):
            for s in steps:
                if s == step:
                    os.kill(os.getpid(), signum)
                yield s

        return progress

    before = signal.getsignal(signum)

    trainer = test_trainer.make_trainer(store, tmp_path / "parts")
    with pytest.raises(guard.Interrupted, match="step 8 and saved") as error:
        test_trainer.fit(trainer, terminate_at(7))
    assert error.value.status == status
    assert checkpoints(tmp_path / "parts" / "ckpt")[-1].name == "step_00000008"
    assert signal.getsignal(signum) == before
    parts = test_trainer.make_trainer(store, tmp_path / "parts")
    test_trainer.fit(parts)
    test_trainer.same(test_trainer.run(store, tmp_path / "whole"), parts)


def test_what_is_ignored_stays_ignored(monkeypatch):
    """Under nohup a terminal that closes stops nothing."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with guard.StopRequest() as stop:
            os.kill(os.getpid(), signal.SIGHUP)
            assert not stop.requested
    finally:
        signal.signal(signal.SIGHUP, before)


def hold(folder, ready):
    with guard.exclusive(folder):
        ready.set()
        time.sleep(600)


def test_second_writer_is_refused_until_the_first_dies(store, tmp_path, monkeypatch):
    """While one process writes a run another is refused; the lock of a killed one is gone with it."""
    monkeypatch.setattr(guard, "LOCK_SECONDS", 0.2)
    trainer, ready = test_trainer.make_trainer(store, tmp_path), faults.processes.Event()
    first = faults.processes.Process(target=hold, args=(tmp_path / "ckpt", ready), daemon=True)
    first.start()
    ready.wait()
    with pytest.raises(NppkitError, match="is being written by another process"):
        test_trainer.fit(trainer)
    first.kill()
    first.join()
    test_trainer.fit(trainer)


CHILD = """
import time
from nppkit.machine import guard
guard.GRACE_SECONDS = 1
guard.die_with_parent()
print("ready", flush=True)
{}
"""


STUBBORN = "import signal; signal.signal(15, lambda *args: print('told', flush=True)); time.sleep(600)"


@pytest.mark.parametrize(("obeys", "says"), [("time.sleep(600)", ""), (STUBBORN, "told\n")])
def test_child_dies_with_its_parent(obeys, says):
    """A process whose parent is killed is told by SIGTERM, and ends by itself even if it does not listen."""
    parent = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {CHILD.format(obeys)!r}])"
    process = subprocess.Popen([sys.executable, "-c", parent], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "ready\n"
    (child,) = faults.psutil.Process(process.pid).children()
    process.kill()
    child.wait(60)
    assert process.stdout.read() == says


def test_snakemakes_jobs_end_with_it(monkeypatch):
    """The graph starts its jobs so that none outlives a Snakemake that is killed."""
    begun = []
    monkeypatch.setattr(guard, "die_with_parent", lambda: begun.append("bound"))
    monkeypatch.setattr(launch, "find_job", lambda *asked: begun.append(asked) or SimpleNamespace(name="job"))
    monkeypatch.setattr(launch, "execute", lambda job, values: begun.append(values))
    source = (Path(__file__).parents[1] / "Snakefile").read_text()
    words = re.search(r"-m nppkit (run --\S+) ", source)[1].split()
    assert cli.call([*words, "smoke", "train", RUN]) == 0
    assert begun == ["bound", ("train", presets.load_preset("smoke"), RUN, False), {}]


@pytest.fixture(scope="module")
def long_run(tmp_path_factory):
    """A results home with codes, and a training of hours that is under way in a launcher's kernel; started anew each time."""
    home = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NPPKIT_HOME", str(home))
        path, preset = faults.tokenized_preset(home, steps_per_epoch=5000, log_every=1)
        command = [sys.executable, "-m", "nppkit", "run", str(path), "train", RUN]
        folder = graph.run_dir(preset, runs.Run.parse(RUN))

        def begin(*parameters):
            before = faults.last_step(folder / "history.csv")
            process = subprocess.Popen([*command, *parameters], stderr=subprocess.PIPE, text=True)
            wait_for(lambda: faults.last_step(folder / "history.csv") not in (0, before) or process.poll() is not None)
            assert process.poll() is None, process.stderr.read()
            return process

        yield begin, home, preset, folder
        for process in faults.of_home(home):
            process.kill()


@pytest.mark.slow
def test_launcher_saves_on_sigterm_and_dies_with_its_kernel(long_run, hangups):
    """SIGTERM to a launcher: a checkpoint, status 75, no process left, no completion record, the executed notebook there;
    after Ctrl-C and a closed terminal the same with their own statuses.

    A second launcher of the same run is refused meanwhile. After SIGKILL the kernel stops by itself, and the same
    command goes on from the checkpoint; how often it saves and how much it keeps may change.
    """
    begin, home, preset, folder = long_run
    for signum, status in ((signal.SIGINT, 130), (signal.SIGHUP, 129)):
        process = begin()
        process.send_signal(signum)
        assert process.wait(120) == status
        error = process.stderr.read()
        assert f"error: train {RUN}: stopped after step" in error and "Traceback" not in error, error
        wait_for(lambda: not faults.of_home(home))
    process = begin()
    second = subprocess.run(process.args, capture_output=True, text=True)
    assert second.returncode == 1 and "is being written by another process" in second.stderr
    process.terminate()
    assert process.wait(120) == guard.REQUEUE, process.stderr.read()
    assert f"error: train {RUN}: stopped after step" in process.stderr.read()
    wait_for(lambda: not faults.of_home(home))
    saved = checkpoints(graph.checkpoint_dir(preset, runs.Run.parse(RUN)))[-1]
    assert int(saved.name[5:]) > 0 and not (folder / "train.record.json").exists() and (folder / "train.ipynb").exists()
    process = begin("-p", "save_minutes", "0", "-p", "keep_last", "4")
    assert faults.last_step(folder / "history.csv") > int(saved.name[5:])
    wait_for(lambda: len(checkpoints(saved.parent)) >= 4)
    process.kill()
    process.wait()
    wait_for(lambda: not faults.of_home(home))


@pytest.mark.slow
def test_a_kernel_that_dies_is_one_line(long_run, monkeypatch):
    """A kernel that the system kills (out of memory) ends its job with one line, not with a traceback."""
    begin, home, _, _ = long_run
    process = begin()
    for child in faults.psutil.Process(process.pid).children():
        child.kill()
    assert process.wait(120) == 1
    error = process.stderr.read()
    assert f"error: train {RUN} failed: {launch.KERNEL_DIED}" in error and len(error.splitlines()) == 1
    wait_for(lambda: not faults.of_home(home))


@pytest.mark.parametrize("which", ["loss", "gradient"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_not_finite_stops_and_is_not_saved(store, tmp_path, which, value):
    """NaN or Inf in the loss or in a gradient: the run stops, names step and last good checkpoint, and writes neither."""
    trainer = test_trainer.make_trainer(store, tmp_path, save_minutes=0.0)
    ordinary, bad = trainer.loss_fn, lambda: value if trainer.step == 7 else 1.0
    if which == "loss":
        trainer.loss_fn = lambda *args: ordinary(*args) * bad()
    else:
        trainer.model.output.weight.register_hook(lambda gradient: gradient * bad())
    with pytest.raises(NppkitError, match=r"step 7: loss .*the last good checkpoint is .*step_00000007"):
        test_trainer.fit(trainer)
    for path in checkpoints(tmp_path / "ckpt"):
        tensors, _ = load_checkpoint(path, "digest")
        assert all(torch.isfinite(t).all() for group in tensors.values() for t in group.values())


def test_weights_that_are_not_finite_are_not_saved(store, tmp_path):
    """NaN that comes into weights or moments after a step whose loss was finite does not reach the disk either."""
    for kind in ("weight", "moment"):
        trainer = test_trainer.make_trainer(store, tmp_path / kind, save_minutes=0.0)
        ordinary = trainer.train_step

        def step_and_break(step, patch_size, ordinary=ordinary, trainer=trainer, kind=kind):
            ordinary(step, patch_size)
            tensor = trainer.model.norm.weight
            if step == 7:
                (tensor if kind == "weight" else trainer.optimizer.state[tensor]["exp_avg"]).data[0] = float("nan")

        trainer.train_step = step_and_break
        with pytest.raises(NppkitError, match=r"step 7: \S*norm.weight holds NaN or Inf: .*checkpoint is .*step_00000007"):
            test_trainer.fit(trainer)
        assert checkpoints(tmp_path / kind / "ckpt")[-1].name == "step_00000007"


def test_a_likelihood_that_is_not_finite_stops(store, tmp_path, monkeypatch):
    """Weights whose held-out likelihood is NaN are those of a diverged run: they are not saved as its last good ones."""
    monkeypatch.setattr(test_trainer.trainer, "heldout_nll", lambda *args, **kwargs: float("nan"))
    with pytest.raises(NppkitError, match=r"step 5: held-out likelihood nan: .*no checkpoint was written yet"):
        test_trainer.fit(test_trainer.make_trainer(store, tmp_path))
    assert not checkpoints(tmp_path / "ckpt")


def test_checkpoints_come_by_the_clock(store, tmp_path, monkeypatch):
    """Between segment boundaries a checkpoint is due every `save_minutes`: ten minutes unless said otherwise."""
    assert test_trainer.make_trainer(store, tmp_path / "a").options.save_minutes == 10
    now = iter(range(0, 100000, 100))
    monkeypatch.setattr(test_trainer.trainer.time, "perf_counter", lambda: float(next(now)))
    saved = []
    trainer = test_trainer.make_trainer(store, tmp_path / "b", save_minutes=1000 / 60)
    monkeypatch.setattr(trainer, "save", lambda: saved.append(trainer.step))
    test_trainer.fit(trainer)
    assert {6, 12, 24} < set(saved) and len(saved) < 20


def test_last_and_best_are_kept(store, tmp_path, monkeypatch):
    """A run keeps its newest checkpoints, two unless said otherwise, and those of the lowest held-out likelihood besides."""
    likelihoods = iter([3.0, 1.0, 2.0, 2.5, 4.0, 5.0, 6.0, 7.0])
    monkeypatch.setattr(test_trainer.trainer, "heldout_nll", lambda *args, **kwargs: next(likelihoods))
    config = test_trainer.dataclasses.replace(test_trainer.CONFIG, heldout_every=1, log_every=3)
    test_trainer.fit(test_trainer.make_trainer(store, tmp_path, config, keep_best=1))
    assert [path.name for path in checkpoints(tmp_path / "ckpt")] == ["step_00000006", "step_00000021", "step_00000024"]
    for wrong in ({"keep_last": 0}, {"keep_best": -1}, {"save_minutes": -1.0}):
        with pytest.raises(NppkitError, match=next(iter(wrong))):
            test_trainer.make_trainer(store, tmp_path, **wrong)


@pytest.mark.parametrize(("damaged", "begins"), [(["step_00000018", "step_00000024"], 0), (["step_00000024"], 18)])
def test_what_is_written_outlives_damaged_ones(store, tmp_path, damaged, begins):
    """A run that goes on from before damaged checkpoints keeps those that it writes then, and its next start finds them."""
    folder = tmp_path / "ckpt"
    segments = multi_scale_segments(8, 2, "3/4")  # their ends, and checkpoints: 18 and 24
    test_trainer.run(store, tmp_path, segments=segments)
    for name in damaged:
        (folder / name / "model.safetensors").write_bytes(b"")
    trainer = test_trainer.make_trainer(store, tmp_path, segments=segments, save_minutes=0.0)
    with pytest.warns(UserWarning, match="step_00000024"), pytest.raises(test_trainer.Stopped):
        test_trainer.fit(trainer, test_trainer.stop_after(begins + 3))
    expected = [f"step_{begins + step:08d}" for step in (2, 3)]
    assert [path.name for path in checkpoints(folder)] == expected
    assert load_newest(folder, "digest")[1]["step"] == begins + 3


DEAF = "import signal, time; signal.signal(15, signal.SIG_IGN); print('up', flush=True); time.sleep(30)"
DEADLINE = f"""
import subprocess, sys
from nppkit.jobs import kernels, launch
launch.GRACE_SECONDS = 0.5
kernel = subprocess.Popen([sys.executable, "-c", {DEAF!r}], stdout=subprocess.PIPE)
other = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(30)"])
kernels.KERNELS.append(kernel)
kernel.stdout.readline()
launch.stop_kernels()
print(kernel.wait(), other.poll())
other.kill()
"""


def test_a_kernel_that_does_not_stop_is_ended():
    """After SIGTERM a kernel has a deadline for its checkpoint; one that ignores it is killed. Other children are left alone."""
    result = subprocess.run([sys.executable, "-c", DEADLINE], capture_output=True, text=True, check=True)
    assert result.stdout.split() == [str(-signal.SIGKILL), "None"]


def test_the_documented_tests_exist():
    """Every line of the tables in docs/reliability.md names a test, and every test that it names exists."""
    folder = Path(__file__).parent
    files = {path.name: path.read_text() for path in folder.rglob("test_*.py")}
    rows = [row for row in (folder.parent / "docs" / "reliability.md").read_text().splitlines() if row.startswith("| ")]
    for row in (row for row in rows if not row.endswith("| test |")):
        named = re.findall(r"(test_\w+\.py)::(test_\w+)", row)
        assert named, row
        for file, name in named:
            assert f"def {name}(" in files[file], (file, name)
