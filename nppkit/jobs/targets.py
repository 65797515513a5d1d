"""A job as a target of Snakemake: its name, its command line, its place in the order of work, and the file that is waited for."""

import re
from pathlib import Path

from nppkit.schedule import cost_ratio
from nppkit.study.presets import Preset
from nppkit.study.published import REPORTS
from nppkit.study.records import Job
from nppkit.study.runs import Run


def rule_name(job: Job) -> str:
    """The job's name as Snakemake shows it and takes it as a target; table1_main is table1."""
    return job.name.partition("_")[0] if job.name in REPORTS else re.sub(r"[^A-Za-z0-9]", "_", job.name)


def launch_arguments(job: Job) -> str:
    """The launcher's command line for the job, without the preset."""
    run = f" {job.parameters['run']}" if "run" in job.parameters else ""
    return f"{job.notebook}{run}{' --large' if job.parameters.get('large') else ''}"


def priority(preset: Preset, job: Job) -> int:
    """Evaluations first, because they are short; then trainings: the "384" rows last, seed by seed, the longest first."""
    if job.notebook == "evaluate":
        return 100_000
    if job.notebook != "train":
        return 0
    run = Run.parse(job.parameters["run"])
    segments = run.segments(preset.training.epochs)
    length = cost_ratio(segments) * segments[-1].end
    cost = 100 * list(preset.models).index(run.size) + min(99, int(40 * length / preset.training.epochs))
    return 10_000 * (not run.large) + 1000 * max(0, 9 - (run.seed - preset.first_seed)) + min(cost, 999)


def expected_record(job: Job, again: bool) -> Path:
    """The file whose absence tells Snakemake that a job is to run, where nothing may be renamed because somebody only looks."""
    if again:
        return job.record.with_suffix(".awaited")
    return job.record if job.record.is_file() or not job.stale.is_file() else job.stale
