"""Fixtures: a results home of its own for every test session, and tiny stores and presets."""

import dataclasses
import os
import subprocess
import sys

import numpy as np
import pytest
import torch

from nppkit.data import extract
from nppkit.data.codes import CodeStore, Manifest
from nppkit.jobs import environment, kernels, warm
from nppkit.study.presets import load_preset

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def seeded():
    """What a test draws without a seed of its own does not depend on the tests before it, which differ from run to run."""
    torch.manual_seed(0)


@pytest.fixture
def home(tmp_path, monkeypatch):
    """results/, figures/ and checkpoints/ in a temporary folder."""
    monkeypatch.setenv("NPPKIT_HOME", str(tmp_path))
    return tmp_path


def write_store(folder, n=10, crops=2, grid=4, vocab=16, classes=3, **changes):
    """A code store of random codes; `changes` replace manifest values."""
    rng = np.random.default_rng(0)
    about = Manifest(n, crops, grid, vocab, [str(c) for c in range(classes)], "tokenizer", "source", 16)
    drawn = rng.integers(0, vocab, (n, crops, grid * grid))
    extract.write_store(folder, dataclasses.replace(about, **changes), drawn, np.arange(n) % classes)
    return folder


@pytest.fixture
def store(tmp_path):
    """Ten images of two crops as 4 x 4 codes of 16, three classes."""
    return CodeStore(write_store(tmp_path / "store"))


@pytest.fixture
def smoke():
    return load_preset("smoke")


@pytest.fixture
def changed():
    """A preset with one value of a section changed: changed(preset, "training.lr", 1.0)."""

    def change(preset, path, value):
        section, key = path.split(".")
        old = getattr(preset, section)
        new = {**old, key: value} if isinstance(old, dict) else dataclasses.replace(old, **{key: value})
        return dataclasses.replace(preset, **{section: new})

    return change


@pytest.fixture(scope="session")
def warm_socket():
    """The socket of a warm server that serves the whole session; it imports nothing until it is first asked."""
    said = "import os, sys; print(os.environ['NPPKIT_WARM'], flush=True); sys.stdin.read()"
    words = [sys.executable, "-m", "nppkit", "warm", sys.executable, "-c", said]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as server:
        yield server.stdout.readline().strip()
        server.stdin.close()


@pytest.fixture(scope="module")
def warm_kernels(warm_socket):
    """Jobs and kernels of a module's tests start as under `make reproduce`, their imports done."""
    paths = [str(environment.PACKAGE.parent), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]  # as a launcher sets it
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join(dict.fromkeys(filter(None, paths))))
        patch.setenv(warm.WARM, warm_socket)
        kernels.use_forked_kernels()
        yield
