"""What keeps a run from harm: one writer at a time, room on the disk before it starts, and an orderly end.

A run that is asked to stop (SIGTERM) saves a checkpoint and ends with status 75, EX_TEMPFAIL of sysexits.h: to a
scheduler "run it again". A process whose parent dies ends like that by itself, so that nothing is left behind.
"""

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import filelock

from nppkit.errors import NppkitError

REQUEUE = 75  # exit status after SIGTERM
LOCK_SECONDS = 10.0  # how long a killed process may take to let go of its run
GRACE_SECONDS = 60.0  # from SIGTERM to SIGKILL: time for a checkpoint


class Interrupted(NppkitError):
    """The run was asked to stop and has saved its state: the same command goes on."""

    status = REQUEUE


@contextlib.contextmanager
def exclusive(folder: Path, name: str = "writer", seconds: float = LOCK_SECONDS) -> Iterator[None]:
    """Be the only writer of a folder; the lock ends with the process, however it ends. NppkitError if it is taken."""
    folder.mkdir(parents=True, exist_ok=True)
    lock = filelock.FileLock(folder / f".{name}.lock")
    try:
        lock.acquire(timeout=seconds)
    except filelock.Timeout:
        raise NppkitError(f"{folder} is being written by another process: wait for it, or stop it") from None
    try:
        yield
    finally:
        lock.release()


class StopRequest:
    """In a `with` block SIGTERM is noted in `requested`, and passed on to `forward`, instead of ending the process.

    Python delivers signals to the main thread; in another one nothing is noted and SIGTERM keeps its effect.
    """

    def __init__(self, forward: Callable[[], object] = lambda: None):
        self.requested, self.forward, self.previous = False, forward, None

    def __enter__(self) -> "StopRequest":
        if threading.current_thread() is threading.main_thread():
            self.previous = signal.signal(signal.SIGTERM, self._note)
        return self

    def _note(self, *_: object) -> None:
        self.requested = True
        self.forward()

    def __exit__(self, *_: object) -> None:
        if self.previous is not None:
            signal.signal(signal.SIGTERM, self.previous)


def die_with_parent() -> None:
    """From now on, if the parent process ends, stop as after SIGTERM, and in any case within GRACE_SECONDS."""
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(GRACE_SECONDS)
        os._exit(REQUEUE)

    threading.Thread(target=watch, daemon=True).start()
