"""A job, and the record that says whether its results are complete and current."""

import functools
import hashlib
import json
import platform
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from nppkit.errors import NppkitError
from nppkit.files import sha256, write_atomic


@dataclass(frozen=True)
class Job:
    """One papermill execution: notebook, parameters, result folder, what it writes, what it needs, its configuration."""

    name: str
    notebook: str
    parameters: dict
    folder: Path
    outputs: tuple[str, ...]
    upstream: tuple["Job", ...]
    config: dict
    spared: tuple[str, ...] = ()  # outputs without which it counts as done, until a job needs them: made again, they are the same

    @property
    def record(self) -> Path:
        """The completion record, written last."""
        return self.folder / f"{self.notebook}.record.json"

    @functools.cached_property
    def digest(self) -> str:
        """sha256 of the configuration, which includes the upstream configurations' digests."""
        content = {"config": self.config, "upstream": [job.digest for job in self.upstream]}
        return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()


def write_record(job: Job) -> None:
    """Record that the job is complete, with the digests of what it wrote. NppkitError names a missing output."""
    missing = [name for name in job.outputs if not (job.folder / name).is_file()]
    if missing:
        raise NppkitError(
            f"{job.name}: {(job.folder / missing[0]).resolve()} was not written: read {job.folder}/{job.notebook}.ipynb"
        )
    outputs = {name: sha256(job.folder / name) for name in job.outputs}
    upstream = {up.name: outputs_digest(up) for up in job.upstream}
    record = {"job": job.name, "config_digest": job.digest, "config": job.config, "upstream": upstream, "outputs": outputs}
    write_atomic(job.record, json.dumps(record, indent=1, default=str) + "\n")


def outputs_digest(job: Job) -> str:
    """One digest for all that a complete job wrote, as its record has it; empty without a record."""
    record = _read_record(job)
    return hashlib.sha256(json.dumps(record["outputs"], sort_keys=True).encode()).hexdigest() if record else ""


def _read_record(job: Job) -> dict | None:
    try:
        record = json.loads(job.record.read_text())
        return record if {"config_digest", "outputs", "upstream"} <= record.keys() else None
    except (OSError, ValueError, AttributeError):
        return None


def why_incomplete(job: Job, needed: bool = True) -> str:
    """Empty if the job's record is valid for today's configuration and files; otherwise one line that says why not.

    needed: by a job that is to run, which wants the spared files, too.
    """
    if not job.record.is_file():
        return "not run yet"
    record = _read_record(job)
    if record is None:
        return f"{job.record} is damaged"
    if record["config_digest"] != job.digest:
        return "its configuration has changed"
    for upstream in job.upstream:
        if record["upstream"].get(upstream.name) != outputs_digest(upstream):
            return f"the results of {upstream.name} have changed"
    for name in job.outputs:
        path = job.folder / name
        if name in job.spared and not needed and not path.exists():
            continue
        if not path.is_file() or sha256(path) != record["outputs"].get(name):
            return f"{path.resolve()} is missing or has changed"
    return ""


def versions() -> dict[str, str]:
    """Versions of what decides a number."""
    return {
        "python": platform.python_version(),
        **{name: metadata.version(name) for name in ("nppkit", "torch", "torch-fidelity")},
    }
