"""The cluster: what a job asks for follows from the plan, and a real Slurm of one node runs, requeues and finishes it."""

import dataclasses
import os
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import faults
import pytest
from test_faults import RUN, wait_for

from nppkit.checkpoint import checkpoints
from nppkit.jobs import slurm
from nppkit.study import graph, presets, records, runs

ROOT = Path(__file__).parents[2]
SYSTEM_CONF = Path("/etc/slurm/slurm.conf")


def job(preset, name):
    return next(job for job in graph.graph(preset) if job.name == name)


def test_request_follows_the_plan():
    """A training asks for the preset's GPUs on each node and for the planned time; twice the nodes, half the time."""
    preset = presets.load_preset("imagenet256")
    one, two = (slurm.request(preset, job(preset, f"train {RUN}"), 8, nodes) for nodes in (1, 2))
    assert one["gres"] == two["gres"] == "gpu:8" and (one["nodes"], two["nodes"]) == (1, 2)
    assert one["cpus_per_task"] == 8 * preset.threads and 8 * slurm.MEMORY < one["mem_mb"] < 8 * slurm.MEMORY + 2000
    planned, half = one["runtime"] - slurm.OVERHEAD, two["runtime"] - slurm.OVERHEAD
    assert planned > 60 and abs(planned - 2 * half) <= 1
    larger = slurm.request(preset, job(preset, "train GPT-XL_ntp_seed0"), 8)
    assert larger["runtime"] > one["runtime"]
    sampling = slurm.request(preset, job(preset, f"evaluate {RUN}"), 8, 2)
    assert sampling["gres"] == "gpu:8" and sampling["nodes"] == 1
    e = preset.evaluation  # whose images one process holds at once
    assert sampling["mem_mb"] - 8 * slurm.MEMORY >= 3 * 256**2 * (e.samples + e.select_samples) / 1e6
    assert slurm.request(preset, job(preset, "tokenize"), 8, 2)["gres"] == "gpu:1"


def test_a_preset_without_gpus_asks_for_none(smoke):
    """On CPUs a job asks for its threads and a day."""
    asked = slurm.request(smoke, job(smoke, f"train {RUN}"))
    assert "gres" not in asked and asked["runtime"] == slurm.MINUTES and asked["cpus_per_task"] == smoke.threads


def test_what_is_not_planned_asks_for_a_day(home):
    """The plan knows the paper's models on images: a text's would be reckoned on a grid that it does not have. GPUs it has."""
    text = dataclasses.replace(presets.load_preset("text"), gpu="A100-80G")
    asked = slurm.request(text, job(text, f"train {RUN}"))
    assert (asked["runtime"], asked["gres"]) == (slurm.MINUTES, "gpu:1") and "micro_batch" not in slurm.parameters(
        text, job(text, f"train {RUN}")
    )


@pytest.mark.parametrize(("place", "words"), [((0, 1), ""), ((4, 1), " -p devices 4"), ((8, 2), " -p devices 8 -p nodes 2")])
def test_launcher_is_told(smoke, place, words):
    """Trainings are told their devices and nodes, evaluations their devices; other jobs have one device."""
    assert slurm.parameters(smoke, job(smoke, f"train {RUN}"), *place) == words
    assert slurm.parameters(smoke, job(smoke, f"evaluate {RUN}"), *place) == words.replace(" -p nodes 2", "")
    assert slurm.parameters(smoke, job(smoke, "tokenize"), *place) == ""
    sharded = [slurm.parameters(smoke, job(smoke, name), *place, True) for name in (f"train {RUN}", f"evaluate {RUN}")]
    assert sharded == [f"{words} -p shard true", words.replace(" -p nodes 2", "")]


def test_a_batch_that_does_not_fit_is_split():
    """Where the plan says that a device holds fewer images than its share, the training is told so."""
    preset = presets.load_preset("imagenet256")
    assert "micro_batch" not in slurm.parameters(preset, job(preset, f"train {RUN}"), 8)
    alone = slurm.parameters(preset, job(preset, "train GPT-XXL_ntp_seed0"), 1)
    held = slurm._planned("imagenet256")[1]["GPT-XXL_ntp_seed0"]
    assert alone == (f" -p micro_batch {held}" if held < 256 else "") and 0 < held < 256


CONF = """
    ClusterName=loop
    SlurmctldHost={host}(127.0.0.1)
    SlurmctldPort=16817
    SlurmdPort=16818
    SlurmUser=root
    AuthType=auth/munge
    AuthInfo=socket={folder}/munge.socket
    StateSaveLocation={folder}/state
    SlurmdSpoolDir={folder}/spool
    SlurmctldPidFile={folder}/slurmctld.pid
    SlurmdPidFile={folder}/slurmd.pid
    SlurmctldLogFile={folder}/slurmctld.log
    SlurmdLogFile={folder}/slurmd.log
    ProctrackType=proctrack/linuxproc
    TaskPlugin=task/none
    SelectType=select/cons_tres
    SelectTypeParameters=CR_CPU
    SlurmdParameters=config_overrides
    NodeName={host} NodeAddr=127.0.0.1 CPUs=8 RealMemory=100000 State=UNKNOWN
    PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


@pytest.fixture(name="slurm")
def a_slurm(home, tmp_path_factory):
    """A Slurm of this one node on loopback, with its own munge."""
    pytest.importorskip("snakemake_executor_plugin_slurm", reason="needs pip install '.[slurm]'")
    if os.geteuid() != 0 or SYSTEM_CONF.exists() or not all(map(shutil.which, ("slurmctld", "slurmd", "munged"))):
        pytest.skip("needs root, and Debian's slurmctld, slurmd, slurm-client and munge, not configured")
    folder, host = tmp_path_factory.mktemp("slurm"), os.uname().nodename.split(".")[0]
    for path in (folder, *folder.parents[:2]):
        path.chmod(0o755)
    for name in ("state", "spool"):
        (folder / name).mkdir()
    (folder / "slurm.conf").write_text(textwrap.dedent(CONF.format(folder=folder, host=host)))
    (folder / "munge.key").write_bytes(os.urandom(1024))
    (folder / "munge.key").chmod(0o400)
    SYSTEM_CONF.symlink_to(folder / "slurm.conf")  # Snakemake's jobs drop SLURM_CONF
    files = [f"--{kind}-file={folder}/munge.{kind}" for kind in ("key", "pid", "log", "seed")]
    try:
        subprocess.run(["munged", "--force", f"--socket={folder}/munge.socket", *files], check=True)
        subprocess.run(["slurmctld", "-i"], check=True)
        subprocess.run(["slurmd"], check=True)
        wait_for(lambda: "idle" in query("sinfo", "-h", "-o", "%T"))
        yield
    finally:
        for process in faults.of_home(home):
            process.kill()
        SYSTEM_CONF.unlink()
        for name in ("slurmd", "slurmctld", "munge"):
            if (folder / f"{name}.pid").exists():
                os.kill(int((folder / f"{name}.pid").read_text()), 15)


def query(*words):
    return subprocess.run(words, capture_output=True, text=True).stdout.strip()


@pytest.mark.slow
def test_slurm_requeues_a_run_that_goes_on(slurm, home):
    """A training on two devices in a Slurm job is requeued, as by preemption, saves, and goes on to its end."""
    path, preset = faults.tokenized_preset(home, steps_per_epoch=3, log_every=1, dropout=0.0)
    target, history = f"train_{RUN.replace('-', '_')}", graph.run_dir(preset, runs.Run.parse(RUN)) / "history.csv"
    words = [sys.executable, "-m", "snakemake", target, "--workflow-profile", "profiles/slurm", "--retries", "0"]
    words += ["--slurm-init-seconds-before-status-checks", "5", "--config", f"preset={path}", "devices=2"]
    process = subprocess.Popen(words, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    wait_for(lambda: faults.last_step(history) > 100 or process.poll() is not None, 300)
    number = query("squeue", "-h", "-o", "%i")
    subprocess.run(["scontrol", "requeue", number], check=True)
    wait_for(lambda: query("squeue", "-h", "-o", "%T") == "PENDING", 120)
    (saved,) = checkpoints(graph.checkpoint_dir(preset, runs.Run.parse(RUN)))
    assert 100 < int(saved.name[5:]) < 900
    subprocess.run(["scontrol", "update", f"JobId={number}", "StartTime=now"], check=True)  # Slurm waits two minutes
    wait_for(lambda: not records.why_incomplete(graph.train_job(preset, runs.Run.parse(RUN))) or process.poll() is not None, 600)
    assert process.wait(600) == 0, process.stdout.read()  # it asks Slurm less and less often
    assert faults.last_step(history) == 900 and (history.parent / "train.record.json").exists()
    assert "Restarts=1" in query("scontrol", "show", "job", number)
