"""Launcher overhead: from a job's start to its first steps (smoke), imports beyond torch, a job alone and with a warm server."""

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import bench

from nppkit.jobs import timing

RUN = "GPT-B_ntp_seed0"
IMPORTS = {"torch": "import torch", "nppkit": "import torch, nppkit.training.trainer, nppkit.sample, nppkit.jobs.launch"}


def launch(home: str, notebook: str, *arguments: str) -> subprocess.Popen:
    command = [sys.executable, "-m", "nppkit", "run", "smoke", notebook, *arguments]
    return subprocess.Popen(command, env={**os.environ, "NPPKIT_HOME": home}, stdout=subprocess.DEVNULL)


def first_steps() -> float:
    """Seconds until the first rows of the history (5 steps of a few milliseconds) are on disk."""
    with tempfile.TemporaryDirectory() as home:
        launch(home, "tokenize").wait()
        started = time.perf_counter()
        history = Path(home) / f"results/smoke/runs/{RUN}/history.csv"
        job = launch(home, "train", RUN)
        while not history.exists() and job.poll() is None:
            time.sleep(0.02)
        seconds = time.perf_counter() - started
        job.wait()
    return seconds


def processor_seconds(*words: str, **variables: str) -> float:
    """User and system time of a Python process and its children: unlike wall time, little changed by what else runs."""
    before = timing.processor_seconds()
    subprocess.run([sys.executable, *words], check=True, env={**os.environ, **variables}, stdout=subprocess.DEVNULL)
    return timing.processor_seconds() - before


def job_seconds() -> dict[str, float]:
    """Processor seconds of a table's job by itself, and as one more job of a warm server."""
    run, jobs = f"{sys.executable} -m nppkit run smoke table1_main", {}
    with tempfile.TemporaryDirectory() as home:
        alone = processor_seconds("-m", "nppkit", "run", "smoke", "table1_main", NPPKIT_HOME=home)
        for n in (1, 3):
            words = "-m", "nppkit", "warm", "sh", "-c", "; ".join([run] * n)
            jobs[n] = processor_seconds(*words, NPPKIT_HOME=home)
    return {"alone": alone, "warm": (jobs[3] - jobs[1]) / 2}


def measure() -> dict:
    jobs = [job_seconds() for _ in range(2)]
    rounds = [{name: processor_seconds("-c", code) for name, code in IMPORTS.items()} for _ in range(4)][1:]
    beyond = [seconds["nppkit"] - seconds["torch"] for seconds in rounds]
    return {
        "first_step_seconds": bench.summary([first_steps() for _ in range(2)]),
        **{f"job_{name}_seconds": bench.summary([seconds[name] for seconds in jobs]) for name in ("alone", "warm")},
        "import_seconds_beyond_torch": bench.summary(beyond),
        "import_torch_seconds": bench.summary([seconds["torch"] for seconds in rounds]),
    }


if __name__ == "__main__":
    bench.record("launcher", measure, threads=1)
