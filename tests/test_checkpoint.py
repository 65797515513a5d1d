"""Checkpoints: complete or absent, refused by name when damaged."""

import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from nppkit import checkpoint, files
from nppkit.checkpoint import checkpoints, load_checkpoint, load_newest, save_checkpoint, set_aside
from nppkit.errors import NppkitError

TENSORS = {"model": {"a": torch.arange(6.0).reshape(2, 3)}, "optimizer": {"b": torch.ones(1)}}


def save(folder, step, **options):
    return save_checkpoint(folder, step, TENSORS, {"config_digest": "d", "losses": [0.1]}, **options)


def test_round_trip(tmp_path):
    """Tensors and state come back as they were."""
    tensors, state = load_checkpoint(save(tmp_path, 3), "d")
    assert torch.equal(tensors["model"]["a"], TENSORS["model"]["a"]) and state["losses"] == [0.1] and state["step"] == 3


def test_others_may_read_what_umask_lets_them(tmp_path):
    """Weights too, which safetensors leaves to the owner alone: folders are shared on clusters."""
    before = os.umask(0o022)
    try:
        modes = {path.name: path.stat().st_mode & 0o777 for path in save(tmp_path, 3).iterdir()}
        with files.replacing(tmp_path / "weights") as path:
            save_file({"a": torch.ones(1)}, path)
    finally:
        os.umask(before)
    assert set(modes.values()) == {0o644} and (tmp_path / "weights").stat().st_mode & 0o777 == 0o644


def test_older_ones_go_after_the_new_one(tmp_path):
    """Only the newest `keep_last` remain."""
    for step in (1, 2, 3):
        save(tmp_path, step, keep_last=2)
    assert [p.name for p in checkpoints(tmp_path)] == ["step_00000002", "step_00000003"]


def test_the_one_just_written_stays(tmp_path):
    """However many of higher steps lie beside it."""
    assert [save(tmp_path, step).exists() for step in (2, 3, 1)] == [True] * 3


@pytest.mark.parametrize("file", ["model.safetensors", "state.json"])
@pytest.mark.parametrize("damage", ["flip", "truncate", "empty", "missing"])
def test_damaged_is_named_and_the_one_before_used(tmp_path, file, damage):
    """A damaged checkpoint is never loaded: a warning names it and the previous one is used."""
    save(tmp_path, 1)
    path = save(tmp_path, 2, keep_last=2) / file
    data = bytearray(path.read_bytes())
    data[-1 if file.startswith("model") else len(data) // 2] ^= 0x80  # the last byte is a weight's: safetensors takes any
    content = {"flip": bytes(data), "truncate": bytes(data[: len(data) // 2]), "empty": b"", "missing": None}[damage]
    path.unlink() if content is None else path.write_bytes(content)
    with pytest.raises(NppkitError, match=file):
        load_checkpoint(path.parent, "d")
    with pytest.warns(UserWarning, match="step_00000002"):
        assert load_newest(tmp_path, "d")[1]["step"] == 1


def test_durable_before_it_is_seen(tmp_path, monkeypatch):
    """Every file and the folder are synced before the rename shows them, and the rename before the older checkpoint goes."""
    old, events, replace = save(tmp_path, 1), [], Path.replace
    monkeypatch.setattr(checkpoint.os, "fsync", lambda descriptor: events.append(os.fstat(descriptor).st_ino))
    monkeypatch.setattr(Path, "replace", lambda path, target: events.append(path.name[:6]) or replace(path, target))
    new = save(tmp_path, 2)
    seen, gone = events.index(".step_"), events.index(old.name[:6])
    assert {path.stat().st_ino for path in (*new.iterdir(), new)} <= set(events[:seen])
    assert tmp_path.stat().st_ino in events[seen:gone] and checkpoints(tmp_path) == [new]


def test_other_configuration_is_refused(tmp_path):
    """A checkpoint of another configuration is an error, not an older checkpoint."""
    save(tmp_path, 1)
    with pytest.raises(NppkitError, match="another configuration"):
        load_newest(tmp_path, "other")


def test_failed_write_leaves_the_old_one(tmp_path, monkeypatch):
    """When the disk is full the old checkpoint is intact and no half file is left."""
    save(tmp_path, 1)

    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint, "save_file", full)
    with pytest.raises(NppkitError, match="No space left"):
        save(tmp_path, 2)
    assert [p.name for p in tmp_path.iterdir()] == ["step_00000001"]
    assert load_newest(tmp_path, "d")[1]["step"] == 1


def test_leftovers_make_room_before_a_write(tmp_path, monkeypatch):
    """What a killed process left half written goes before anything new is written, not only after it succeeded."""
    (tmp_path / ".step_00000001.99").mkdir()

    def look(*args):
        assert not list(tmp_path.glob(".step_*.99"))
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint, "save_file", look)
    with pytest.raises(NppkitError, match="No space left"):
        save(tmp_path, 2)


def test_the_best_are_kept(tmp_path):
    """With `keep_best` the checkpoints of the lowest score stay beside the newest."""
    for step, score in enumerate([3.0, 1.0, 2.0, float("nan"), 5.0], 1):
        save_checkpoint(tmp_path, step, TENSORS, {"config_digest": "d", "score": score}, keep_last=1, keep_best=2)
    assert [int(path.name[5:]) for path in checkpoints(tmp_path)] == [2, 3, 5]


def test_nothing_yet(tmp_path):
    """No checkpoint is no error."""
    assert load_newest(tmp_path / "none", "d") is None


def test_the_one_that_a_run_goes_on_from_is_not_set_aside(tmp_path):
    """Only those beyond its step are hidden: a run that is killed before its next checkpoint still has one to go on from."""
    first, _ = save(tmp_path, 1), save(tmp_path, 2, keep_last=2)
    set_aside(tmp_path, 1)
    assert checkpoints(tmp_path) == [first]
