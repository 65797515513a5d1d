"""The whole graph at smoke size, through Snakemake: complete, idempotent, resumable, and no larger than needed."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from nppkit.study import presets, published

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.slow


def command(preset, *targets):
    warm = [sys.executable, "-m", "nppkit", "warm", sys.executable]  # as make does
    return [*warm, "-m", "snakemake", *targets, "--cores", "2", "--config", f"preset={preset}"]


def snakemake(home, preset="smoke", *targets):
    """Run the graph; returns what it printed and how long it took."""
    started = time.monotonic()
    env = {**os.environ, "NPPKIT_HOME": str(home), "OMP_NUM_THREADS": "1"}
    result = subprocess.run(command(preset, *targets), cwd=ROOT, env=env, capture_output=True, text=True)
    return result.returncode, result.stdout + result.stderr, time.monotonic() - started


def done_jobs(output):
    """The jobs that the launcher reports as done."""
    return [line.split("  ")[1].split(":")[0] for line in output.splitlines() if ": done in" in line]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The smoke graph: killed once on the way, then finished by the same command."""
    home = tmp_path_factory.mktemp("graph")
    env = {**os.environ, "NPPKIT_HOME": str(home), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        command("smoke"), cwd=ROOT, env=env, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    while process.poll() is None and not list(home.glob("results/smoke/runs/*/train.record.json")):
        time.sleep(0.5)
    assert process.poll() is None, "it ended by itself before it could be killed"
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert not (home / "results/smoke/table1_main.record.json").exists()
    code, output, _ = snakemake(home)
    assert code == 0, output
    return home, output


def test_goes_on_after_a_kill(finished):
    """After a kill the same command runs only what was not finished, to the end."""
    home, output = finished
    assert "tokenize" not in done_jobs(output) and "table1_main" in done_jobs(output)
    for report in published.REPORTS:
        assert (home / "results/smoke" / f"{report}.record.json").exists()
    assert (home / "figures/smoke/figure1_cost_vs_fid.pdf").stat().st_size > 0
    assert len(list(home.glob("results/smoke/runs/*/metrics.json"))) == 5


def test_a_second_time_nothing_runs(finished):
    """With everything done, nothing runs."""
    code, output, _ = snakemake(finished[0])
    assert code == 0 and not done_jobs(output)


def test_a_changed_value_reruns_what_depends_on_it(finished, tmp_path):
    """Another guidance grid evaluates and tabulates again, and trains nothing."""
    home = tmp_path / "copy"
    shutil.copytree(finished[0], home)
    (home / "results/smoke/.preset").unlink()
    for folder in ("results", "figures", "checkpoints"):
        (home / folder / "smoke").rename(home / folder / "mine")
    content = yaml.safe_load((presets.FOLDER / "smoke.yaml").read_text())
    content["evaluation"]["guidance"] = [1.5]
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(content))
    code, output, _ = snakemake(home, str(path), "table3")
    assert code == 0, output
    kinds = {job.split(" ")[0].split("_")[0] for job in done_jobs(output)}
    assert kinds == {"evaluate", "table3"}


def test_a_failed_job_does_not_stop_others(finished, tmp_path):
    """One damaged run leaves its error, and the other runs finish."""
    home = tmp_path / "copy"
    shutil.copytree(finished[0], home)
    bad, good = (home / "results/smoke/runs" / name for name in ("GPT-B_ntp_seed0", "GPT-B_npp_p4_lambda1-2_seed0"))
    for run in (bad, good):
        (run / "evaluate.record.json").unlink()
    weights = next((home / "checkpoints/smoke/GPT-B_ntp_seed0").rglob("model.safetensors"))
    weights.write_bytes(b"damaged")
    code, output, _ = snakemake(home)
    assert code != 0 and "error: evaluate GPT-B_ntp_seed0 failed" in output
    assert "evaluate GPT-B_npp_p4_lambda1-2_seed0: started" in output
    assert not any(word in output for word in ("RuleException", "WorkflowError", "Select jobs", "Execute "))
    assert (good / "evaluate.record.json").exists() and not (bad / "evaluate.record.json").exists()
