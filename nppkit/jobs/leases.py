"""Which GPUs a job uses: each is leased to one job at a time, and is free again when that job's process ends."""

import contextlib
import itertools
import os
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import filelock

from nppkit.errors import NppkitError

VISIBLE, LEASED = "CUDA_VISIBLE_DEVICES", "NPPKIT_LEASED"


FOLDER = Path(tempfile.gettempdir()) / f"nppkit-gpus-{os.getuid()}"  # of this machine and user
LOOK_SECONDS = 2.0  # between two looks for a free GPU


def visible_gpus() -> list[str]:
    """The GPUs that this process may use: those of CUDA_VISIBLE_DEVICES where it is set, else the machine's.

    Of GPUs that are divided (MIG) their instances, since a process has one of these and calls it by its UUID.
    """
    if VISIBLE in os.environ:
        names = (name.strip() for name in os.environ[VISIBLE].split(","))
        return list(itertools.takewhile(lambda name: name not in ("", "-1", "NoDevFiles"), names))  # CUDA hides what follows
    if not shutil.which("nvidia-smi"):
        return []
    found = subprocess.run(["nvidia-smi", "--list-gpus"], capture_output=True, text=True)
    listed = "" if found.returncode else found.stdout
    return re.findall(r"UUID: (MIG-[^)]+)", listed) or re.findall(r"^GPU (\d+):", listed, re.MULTILINE)


@contextlib.contextmanager
def leased(count: int) -> Iterator[list[str]]:
    """Have `count` GPUs to oneself, and let CUDA_VISIBLE_DEVICES name them; wait until they are free.

    Without GPUs, and within a process that has its lease, nothing changes. NppkitError if there are fewer.
    """
    gpus = visible_gpus()
    if not gpus or os.environ.get(LEASED) == os.environ.get(VISIBLE, "none"):
        yield gpus
        return
    if count > len(gpus):
        raise NppkitError(f"devices {count}: this machine shows {len(gpus)} GPUs: ask for fewer")
    before, locks = os.environ.get(VISIBLE), _acquire(gpus, count)
    os.environ[VISIBLE] = os.environ[LEASED] = ",".join(locks)
    try:
        yield list(locks)
    finally:
        for lock in locks.values():
            lock.release()
        del os.environ[LEASED], os.environ[VISIBLE]
        if before is not None:
            os.environ[VISIBLE] = before


def _acquire(gpus: list[str], count: int) -> dict[str, filelock.FileLock]:
    """GPU -> its lock, for the first `count` that are free at once. In a Slurm job "0" may be another GPU than in the next."""
    FOLDER.mkdir(exist_ok=True)
    job = os.environ.get("SLURM_JOB_ID", "") if VISIBLE in os.environ else ""
    while True:
        locks = {}
        for gpu in gpus:
            lock = filelock.FileLock(FOLDER / f"{job}-{gpu}.lock")
            with contextlib.suppress(filelock.Timeout):
                lock.acquire(timeout=0)
                locks[gpu] = lock
            if len(locks) == count:
                return locks
        for lock in locks.values():
            lock.release()
        time.sleep(LOOK_SECONDS)
