"""Launcher overhead: from the start of a job to its first training steps (smoke), and what imports cost beyond torch."""

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import bench

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


def processor_seconds(code: str) -> float:
    """User and system time of a Python process: unlike wall time, little changed by what else runs."""
    before = os.times()
    subprocess.run([sys.executable, "-c", code], check=True)
    after = os.times()
    return after.children_user + after.children_system - before.children_user - before.children_system


def measure() -> dict:
    rounds = [{name: processor_seconds(code) for name, code in IMPORTS.items()} for _ in range(4)][1:]
    beyond = [seconds["nppkit"] - seconds["torch"] for seconds in rounds]
    return {
        "first_step_seconds": bench.summary([first_steps() for _ in range(2)]),
        "import_seconds_beyond_torch": bench.summary(beyond),
        "import_torch_seconds": bench.summary([seconds["torch"] for seconds in rounds]),
    }


if __name__ == "__main__":
    bench.record("launcher", measure, threads=1)
