"""The Makefile: the commands of the README reach Snakemake as they are meant."""

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from nppkit.runs import REPORTS

ROOT = Path(__file__).parents[1]


def recipe(target):
    """The Snakemake command that `make TARGET PRESET=smoke` would run, with this environment's Snakemake."""
    result = subprocess.run(
        ["make", "-n", target, "PRESET=smoke", "CORES=1"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    words = next(shlex.split(line, comments=True) for line in result.stdout.splitlines() if "/snakemake" in line)
    return [sys.executable, "-m", "snakemake", *words[1:]]


@pytest.mark.parametrize(("target", "reports"), [("reproduce", {r.split("_")[0] for r in REPORTS}), ("table3", {"table3"})])
def test_targets_are_understood(home, target, reports):
    """`make table3` asks for that table and the five runs that it needs, `make reproduce` for all tables and the figure."""
    env = {**os.environ, "NPPKIT_HOME": str(home)}
    result = subprocess.run([*recipe(target), "--dry-run"], cwd=ROOT, env=env, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    jobs = result.stdout.split("have to be generated:\n")[1].splitlines()[0].strip().split(", ")
    assert {job for job in jobs if job.startswith(("table", "figure"))} == reports
    assert sum(job.startswith("evaluate") for job in jobs) == 5


def test_lab_opens_the_start_notebook():
    """`make lab` begins where a newcomer should."""
    result = subprocess.run(["make", "-n", "lab"], cwd=ROOT, capture_output=True, text=True, check=True)
    assert "jupyter lab notebooks/start_here.ipynb" in result.stdout and (ROOT / "notebooks/start_here.ipynb").is_file()
