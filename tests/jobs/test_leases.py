"""Leases of GPUs, which a machine without any can pretend to have."""

import os
import time

import faults
import pytest
from test_faults import wait_for

from nppkit.errors import NppkitError
from nppkit.jobs import leases


@pytest.fixture(autouse=True)
def machine(tmp_path, monkeypatch):
    """Three GPUs, by name, and nobody else's leases."""
    monkeypatch.setattr(leases, "FOLDER", tmp_path / "leases")
    monkeypatch.setattr(leases, "LOOK_SECONDS", 0.1)
    monkeypatch.setenv(leases.VISIBLE, "0,1,2")


def hold(folder, variables, count, got):
    leases.FOLDER = folder
    os.environ.update(variables)  # the server that forks this may be older than the test
    with leases.leased(count) as gpus:
        got.put(gpus)
        got.put(os.environ[leases.VISIBLE])
        time.sleep(600)


def start(count):
    """Another process with a lease, and what it has."""
    got = faults.processes.Queue()
    process = faults.processes.Process(target=hold, args=(leases.FOLDER, dict(os.environ), count, got), daemon=True)
    process.start()
    return process, got


def test_jobs_take_distinct_gpus():
    """Two jobs at the same time see different GPUs; a third waits, and gets those of one that was killed."""
    first, got = start(2)
    assert got.get(timeout=120) == ["0", "1"] and got.get() == "0,1"
    with leases.leased(1) as gpus:
        assert gpus == ["2"] and os.environ[leases.VISIBLE] == "2"
    assert os.environ[leases.VISIBLE] == "0,1,2"
    second, later = start(2)
    wait_for(lambda: second.is_alive())
    second.join(1)
    assert later.empty()
    first.kill()
    assert later.get(timeout=120) == ["0", "1"]
    second.kill()


def test_a_lease_leaves_no_trace(monkeypatch):
    """Where nobody chose GPUs the next job sees them all again: an empty choice would be none."""
    monkeypatch.delenv(leases.VISIBLE)
    monkeypatch.setattr(leases, "visible_gpus", lambda: ["0"])
    with leases.leased(1):
        assert os.environ[leases.VISIBLE] == "0"
    assert leases.VISIBLE not in os.environ and leases.LEASED not in os.environ


def test_slurm_jobs_do_not_wait_for_each_other(monkeypatch):
    """Each calls its own GPU 0, where Slurm constrains devices; within one job a GPU is leased once."""
    monkeypatch.setenv(leases.VISIBLE, "0")
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    first, got = start(1)
    assert got.get(timeout=120) == ["0"]
    second, later = start(1)
    monkeypatch.setenv("SLURM_JOB_ID", "8")
    other, own = start(1)
    assert own.get(timeout=120) == ["0"] and later.empty()
    for process in (first, second, other):
        process.kill()


def test_a_job_within_a_job_keeps_its_lease():
    """A notebook that runs another one first does not wait for itself."""
    with leases.leased(1) as outer, leases.leased(1) as inner:
        assert outer == inner == ["0"]


def test_more_than_there_are_is_refused():
    """A job that could never start says so."""
    with pytest.raises(NppkitError, match="devices 4: this machine shows 3 GPUs"), leases.leased(4):
        pass


@pytest.mark.parametrize("value", ["", "-1"])
def test_without_gpus_nothing_changes(monkeypatch, value):
    """On a CPU there is nothing to lease."""
    monkeypatch.setenv(leases.VISIBLE, value)
    with leases.leased(8) as gpus:
        assert gpus == [] and os.environ[leases.VISIBLE] == value


@pytest.mark.parametrize(("value", "gpus"), [("0, 1", ["0", "1"]), (" 2", ["2"]), ("0,-1,1", ["0"]), ("1,NoDevFiles,0", ["1"])])
def test_gpus_are_called_as_cuda_calls_them(monkeypatch, value, gpus):
    """A blank is no part of a name, under which another job would take the same GPU; what follows -1 is hidden."""
    monkeypatch.setenv(leases.VISIBLE, value)
    assert leases.visible_gpus() == gpus


GPU = "GPU {}: NVIDIA A100-SXM4-40GB (UUID: GPU-5d5ba0d6-d33d-2b2c-524d-9e3d8d2b8a7{})\n"
MIG = "  MIG 3g.20gb     Device  {}: (UUID: MIG-c6d4f1ef-42e4-5de3-91c7-45d71c87eb3{})\n"


@pytest.mark.parametrize(
    ("says", "status", "gpus"),
    [
        ("NVIDIA-SMI has failed because it could not communicate with the driver.\n", 9, []),
        ("GPU 0: Unable to determine the device handle\n", 15, []),
        ("No devices were found\n", 0, []),
        (GPU.format(0, 0) + GPU.format(1, 1), 0, ["0", "1"]),
        (
            GPU.format(0, 0) + MIG.format(0, 0) + MIG.format(1, 1),
            0,
            [f"MIG-c6d4f1ef-42e4-5de3-91c7-45d71c87eb3{i}" for i in (0, 1)],
        ),
    ],
)
def test_only_gpus_are_counted(tmp_path, monkeypatch, says, status, gpus):
    """Of what nvidia-smi prints: no complaint is a GPU, and one that is divided is as many as its instances."""
    (tmp_path / "says").write_text(says)
    (tmp_path / "nvidia-smi").write_text(f"#!/bin/sh\ncat {tmp_path}/says\nexit {status}\n")
    (tmp_path / "nvidia-smi").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.delenv(leases.VISIBLE)
    assert leases.visible_gpus() == gpus
