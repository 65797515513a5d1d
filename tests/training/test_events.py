"""TensorBoard's event files: what the history says, and nothing unless asked for."""

import builtins
from itertools import pairwise

import pandas as pd
import pytest
from test_trainer import run, same

from nppkit.errors import NppkitError
from nppkit.machine.options import Options


def scalars(folder):
    """The events of a folder, by name: steps and values, as TensorBoard reads them."""
    reader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator").EventAccumulator(str(folder))
    reader.Reload()
    return {name: [(event.step, event.value) for event in reader.Scalars(name)] for name in reader.Tags()["scalars"]}


def test_events_are_the_history(store, tmp_path):
    """A run that is stopped twice has its history in TensorBoard once, row for row, and ends as one that writes none."""
    followed = run(store, tmp_path / "followed", stops=(7, 13), tensorboard=True)
    plain = run(store, tmp_path / "plain", stops=(7, 13))
    same(followed, plain)
    found, history = scalars(tmp_path / "followed"), pd.read_csv(tmp_path / "followed/history.csv").set_index("step")
    assert found.keys() == set(history.columns)
    for name, events in found.items():
        expected = history[name].dropna()
        assert [step for step, _ in events] == list(expected.index) and all(a[0] < b[0] for a, b in pairwise(events))
        assert [value for _, value in events] == pytest.approx(list(expected), rel=1e-6)
    assert not list((tmp_path / "plain").glob("events.*")) and not Options().tensorboard


def test_without_the_package(store, tmp_path, monkeypatch):
    """Where it is not installed, one line says how to get it, before any step."""
    importing = builtins.__import__

    def refuse(name, *rest):
        if name == "torch.utils.tensorboard":
            raise ImportError(name)
        return importing(name, *rest)

    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(NppkitError, match="pip install tensorboard"):
        run(store, tmp_path / "run", tensorboard=True)
