"""A job, and the record that says whether its results are complete and current."""

import functools
import json
import os
import platform
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from nppkit.data.contents import difference, digest_of
from nppkit.data.images import source_contents
from nppkit.errors import NppkitError
from nppkit.files import json_digest, located, noted, sha256, write_atomic
from nppkit.study.provenance import made


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
    spared: tuple[str, ...] = ()  # outputs without which it counts as done, until a job needs them and they are made again
    inputs: tuple[str, ...] = ()  # files and folders of images from outside, as the preset names them

    @property
    def record(self) -> Path:
        """The completion record, written last."""
        return self.folder / f"{self.notebook}.record.json"

    def path(self, output: str) -> Path:
        """Where that output lies; `..` in its name leads out of results/ also where that is a link to another disk."""
        return Path(os.path.normpath(self.folder / output))

    @property
    def stale(self) -> Path:
        """Where a record lies that was not valid when its job was last to run."""
        return self.record.with_suffix(".stale")

    @functools.cached_property
    def digest(self) -> str:
        """sha256 of the configuration, which includes the upstream configurations' digests."""
        content = {"config": self.config, "upstream": [job.digest for job in self.upstream]}
        return json_digest(content, default=str)


def read_inputs(job: Job) -> dict[str, str]:
    """A digest of the contents of each of the job's inputs that is there."""
    found = {name: source_contents(located(name)) for name in job.inputs if name}
    return {name: digest_of(contents) for name, contents in found.items() if contents}


def write_record(job: Job, inputs: dict[str, str] | None = None) -> None:
    """Record that the job is complete: digests of what it wrote and of its inputs as read at its start, and how it was made.

    NppkitError names a missing output, and an input that has changed meanwhile.
    """
    now = read_inputs(job)
    if changed := [name for name, digest in (now if inputs is None else inputs).items() if now.get(name) != digest]:
        raise NppkitError(f"{job.name}: {located(changed[0])} has changed while it was read: run it again")
    if missing := [name for name in job.outputs if not job.path(name).is_file()]:
        raise NppkitError(f"{job.name}: {job.path(missing[0])} was not written: read {job.folder}/{job.notebook}.ipynb")
    outputs = {name: sha256(job.path(name)) for name in job.outputs}
    upstream = {up.name: outputs_digest(up) for up in job.upstream}
    record = {"job": job.name, "config_digest": job.digest, "config": job.config, "upstream": upstream, "outputs": outputs}
    record |= {**({"inputs": now} if now else {}), "made": made(versions())}
    write_atomic(job.record, json.dumps(record, indent=1, default=str) + "\n")
    job.stale.unlink(missing_ok=True)


def write_diverged(job: Job, reason: str) -> None:
    """Note that this training has diverged, which is an outcome and not a run that is still to come."""
    note = {"config_digest": job.digest, "reason": reason, "made": made(versions())}
    write_atomic(_diverged(job), json.dumps(note, indent=1) + "\n")


def divergence(job: Job) -> str:
    """How this training, in today's configuration, was tried and diverged; empty if it was not, or came through since."""
    note = noted(_diverged(job))
    return note.get("reason", "") if note.get("config_digest") == job.digest and why_incomplete(job, needed=False) else ""


def last_divergence(job: Job) -> str:
    """The same of its last attempt alone: the note is younger than the notebook that this attempt left."""
    note, executed = _diverged(job), job.folder / f"{job.notebook}.ipynb"
    last = note.is_file() and executed.is_file() and note.stat().st_mtime_ns >= executed.stat().st_mtime_ns
    return divergence(job) if last else ""


def _diverged(job: Job) -> Path:
    return job.folder / f"{job.notebook}.diverged.json"


def origin(job: Job) -> dict:
    """Time, commit, versions and machine of a complete job, as its record names them; empty where it is older than that."""
    return (_read_record(job) or {}).get("made", {})


def processor(job: Job) -> str:
    """The processor, and GPUs if any, of the machine that a complete job ran on, as its record names them; else empty."""
    machine = origin(job).get("machine", {})
    return ", ".join([*machine.get("processor", []), *machine.get("gpus", [])])


def outputs_digest(job: Job) -> str:
    """One digest for all that a complete job wrote, as its record has it; empty without a record."""
    record = _read_record(job)
    return json_digest(record["outputs"]) if record else ""


def _read_record(job: Job) -> dict | None:
    record = noted(job.record if job.record.is_file() else job.stale)
    kinds = {"config_digest": str, "outputs": dict, "upstream": dict}
    whole = all(isinstance(record.get(name), kind) for name, kind in kinds.items()) and isinstance(record.get("inputs", {}), dict)
    return record if whole else None


def is_of_other_settings(job: Job) -> bool:
    """Whether the job has results, and they were made with other settings than today's."""
    return (_read_record(job) or {}).get("config_digest", job.digest) != job.digest


def why_incomplete(job: Job, needed: bool = True) -> str:
    """Empty if the job's record is valid for today's configuration and files; otherwise one line that says why not.

    needed: by a job that is to run, which wants the spared files, too.
    """
    if not (job.record.is_file() or job.stale.is_file()):
        return "not run yet"
    if (record := _read_record(job)) is None:
        return f"{job.record} is damaged"
    if record["config_digest"] != job.digest:
        return "its configuration has changed"
    for upstream in job.upstream:
        if record["upstream"].get(upstream.name) != outputs_digest(upstream):
            return f"the results of {upstream.name} have changed"
    for name in job.outputs:
        path = job.path(name)
        if name in job.spared and not needed and not path.exists():
            continue
        if not path.is_file() or sha256(path) != record["outputs"].get(name):
            return f"{path} is missing or has changed"
    return ""


def recorded_inputs(job: Job) -> dict[str, str]:
    """The digests of the inputs that the job's results were made from."""
    return (_read_record(job) or {}).get("inputs", {})


def changed_input(job: Job) -> str:
    """Empty unless an input that is there is not what the job's results were made from: then which, and how it differs."""
    for name, digest in recorded_inputs(job).items():
        contents = source_contents(located(name))
        if contents and digest_of(contents) != digest:
            return f"{located(name)} has changed: {difference(digest, contents)}"
    return ""


def versions() -> dict[str, str]:
    """Versions of what decides a number."""
    packages = ("nppkit", "torch", "torch-fidelity")
    return {"python": platform.python_version(), **{name: metadata.version(name) for name in packages}}
