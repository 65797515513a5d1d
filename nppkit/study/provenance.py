"""How a result was made: when, from which commit, with which versions, on which machine. It stands in every new record."""

import os
import platform
import re
import subprocess
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]
OLDER = "results/older_runs.csv has the commit that brought each run, docs/study_log.md the machines"


def made(versions: dict[str, str]) -> dict:
    """Everything of it. None of it enters a digest: the same results made elsewhere are the same results."""
    now = datetime.now(UTC).isoformat(timespec="seconds")
    return {"time": now, "commit": commit(REPOSITORY), "versions": versions, "machine": machine()}


def commit(folder: Path) -> str:
    """The checkout's commit, with "-dirty" where files but results differ; empty for an installed package or without git."""
    command = ["git", "-C", str(folder), "--no-optional-locks", "status", "--porcelain=v2", "--branch", "--untracked-files=no"]
    command += ["--", ".", *(f":(exclude){made}" for made in ("results", "figures"))]
    try:
        first, *lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    except (OSError, subprocess.CalledProcessError):
        return ""
    return first.removeprefix("# branch.oid ") + "-dirty" * any(not line.startswith("#") for line in lines)


def said(origins: list[dict]) -> str:
    """What `made` found for trainings and evaluations, in a line, each with their number; empty ones are older than `made`."""
    known = [origin for origin in origins if origin]
    facts = {
        "commits": Counter(o["commit"][:7] + "-dirty" * o["commit"].endswith("-dirty") for o in known),
        "versions": Counter(", ".join(f"{name} {version}" for name, version in o["versions"].items()) for o in known),
        "machines": Counter(_machine_said(o["machine"]) for o in known),
    }
    words = [f"{name}: {', '.join(f'{fact} ({n})' for fact, n in found.items())}" for name, found in facts.items() if found]
    silent = len(origins) - len(known)
    words += [f"{silent} are older than such records: {OLDER}"] * bool(silent)
    return f"made by {len(origins)} trainings and evaluations; {'; '.join(words)}" if origins else "nothing is trained yet"


def _machine_said(machine: dict) -> str:
    return ", ".join([*machine["processor"], f"{machine['cores']} cores", *machine["gpus"]])


def machine() -> dict:
    """Processor, cores, GPUs and system. Nothing that names an owner: no host, no user, no folder."""
    kind = platform.machine()
    named = processor(Path("/proc/cpuinfo")) or [kind]
    gpus = [name for file in sorted(Path("/proc/driver/nvidia/gpus").glob("*/information")) for name in _lines("Model", file)]
    return {"processor": named, "cores": os.cpu_count(), "gpus": gpus, "system": f"{platform.system()} {kind}"}


def processor(file: Path) -> list[str]:
    """The first processor's name, and its generation, which the name need not tell: two called AMD EPYC round otherwise."""
    name, family, model = (_lines(key, file)[:1] for key in ("model name", "cpu family", "model"))
    return name + [f"family {f}, model {m}" for f, m in zip(family, model, strict=False)]


def _lines(key: str, file: Path) -> list[str]:
    """Values of the lines `key: value` of a file of the kernel's; none where there is no such file."""
    return re.findall(rf"^{key}\s*:\s*(.+)$", file.read_text(), re.MULTILINE) if file.is_file() else []
