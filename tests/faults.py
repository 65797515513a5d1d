"""Faults on purpose: training processes that die at a given event, and a results home whose codes are there.

The processes are forked from a server that has imported torch once and computed nothing, so each starts at once.
"""

import contextlib
import dataclasses
import itertools
import json
import multiprocessing
import os
import resource
import shutil
import signal
import socket
from pathlib import Path

import psutil
import yaml
from conftest import write_store

from nppkit import checkpoint
from nppkit.data.codes import CodeStore
from nppkit.machine.guard import Interrupted
from nppkit.machine.processes import joined
from nppkit.schedule import drawn_segments
from nppkit.study import graph, presets, records
from nppkit.training import trainer

processes = multiprocessing.get_context("forkserver")
processes.set_forkserver_preload(["nppkit.training.trainer", "pytest", "psutil"])

EVENTS = [
    (trainer.Trainer, "train_step"),
    (checkpoint, "save_file"),
    (os, "fsync"),
    (Path, "replace"),
    (os, "replace"),
    (shutil, "rmtree"),
]


def die_at(event):
    """From now on this process kills itself at that event: before or after a step, a write, an fsync, a rename, a removal."""
    count = itertools.count(1)

    def tick():
        if next(count) == event:
            os.kill(os.getpid(), signal.SIGKILL)

    def hooked(function):
        def call(*args, **kwargs):
            tick()
            result = function(*args, **kwargs)
            tick()
            return result

        return call

    for owner, name in EVENTS:
        setattr(owner, name, hooked(getattr(owner, name)))


def train_until(store_folder, run_folder, event=0, file_limit=0):
    """Train in this process with one checkpoint, after every step; it may die, or be unable to write large files."""
    from test_trainer import fit, make_trainer

    if event:
        die_at(event)
    if file_limit:
        resource.setrlimit(resource.RLIMIT_FSIZE, (file_limit, file_limit))
    fit(make_trainer(CodeStore(store_folder), run_folder, save_minutes=0.0, keep_last=1))


def train_rank(rank, size, port, store_folder, run_folder, stop_before=0, patch="mean", drawn=False, **changes):
    """One of several processes that train together, without torchrun; all stop before the given step as after SIGTERM."""
    import test_trainer

    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(size)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    clip = 0.3  # about half of the steps are clipped
    changes |= {"segments": drawn_segments(8, 2, "1/2")} if drawn else {}
    config = dataclasses.replace(test_trainer.CONFIG, dropout=0.0, batch_size=8, grad_clip=clip, patch=patch)

    def progress(steps):
        for step in steps:
            if step + 1 == stop_before and rank == size - 1:  # one process is told, all stop
                os.kill(os.getpid(), signal.SIGTERM)
            yield step

    with joined() as together, contextlib.suppress(Interrupted):
        trainer = test_trainer.make_trainer(CodeStore(store_folder), run_folder, config, processes=together, **changes)
        if changes.get("shard"):
            for parameter in trainer.model.parameters():
                assert parameter.to_local().numel() * size == parameter.numel(), "this process holds more than its part"
        test_trainer.fit(trainer, progress)


def train_together(size, *args, **changes):
    """Train in so many processes, to the end or to the step given; each ends well."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    ranks = [processes.Process(target=train_rank, args=(r, size, port, *args), kwargs=changes) for r in range(size)]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join()
    assert [process.exitcode for process in ranks] == [0] * size


def start(*args, **kwargs):
    """The above in a process of its own."""
    process = processes.Process(target=train_until, args=args, kwargs=kwargs)
    process.start()
    return process


def tokenized_preset(home, **training):
    """A copy of smoke as a file, with other training settings, whose tokenize job is done: random codes stand for images."""
    content = yaml.safe_load((presets.FOLDER / "smoke.yaml").read_text())
    content["training"] |= training
    path = home / "tiny.yaml"
    path.write_text(yaml.safe_dump(content))
    preset = presets.load_preset(str(path))
    job = graph.tokenize_job(preset)
    for split in ("train", "heldout"):
        write_store(job.folder / split, n=20, grid=8, vocab=32, classes=10, image_size=32)
    for name in job.outputs:
        if not (job.folder / name).exists():
            (job.folder / name).write_text("made without images")
    records.write_record(job)
    return path, preset


def of_home(home):
    """Processes that work in a results home, by their environment."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get("NPPKIT_HOME") == str(home) and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except psutil.Error:
            pass
    return found


def last_step(folder):
    """The last step in a history file that grows; 0 if there is none yet."""
    lines = folder.read_text().splitlines() if folder.exists() else []
    return int(lines[-1].split(",")[0]) if len(lines) > 1 else 0


def state_of(path):
    return json.loads((path / "state.json").read_text())
