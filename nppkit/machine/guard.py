"""What keeps a run from harm: one writer at a time, room on the disk before it starts, and an orderly end.

A run that is asked to stop saves a checkpoint and ends. After SIGTERM the status is 75, EX_TEMPFAIL of sysexits.h: to a
scheduler "run it again"; after Ctrl-C it is 130 and after SIGHUP, of a terminal that was closed, 129, as shells say it.
A process whose parent dies ends as after SIGTERM by itself, so that nothing is left behind.
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
    """The run was asked to stop by a signal and has saved its state: the same command goes on."""

    def __init__(self, message: str, signum: int = 0):
        super().__init__(message)
        self.status = 128 + signum if signum in (signal.SIGINT, signal.SIGHUP) else REQUEUE


@contextlib.contextmanager
def exclusive(folder: Path, name: str = "writer") -> Iterator[None]:
    """Be the only writer of a folder; the lock ends with the process, however it ends. NppkitError if it is taken."""
    folder.mkdir(parents=True, exist_ok=True)
    try:
        held = filelock.FileLock(folder / f".{name}.lock").acquire(timeout=LOCK_SECONDS)
    except filelock.Timeout:
        raise NppkitError(f"{folder} is being written by another process: wait for it, or stop it") from None
    with held:
        yield


class StopRequest:
    """In a `with` block a signal to stop is noted in `requested`, and passed on to `forward`, instead of ending the process.

    What is ignored stays ignored (nohup). Python delivers signals to the main thread; in another one nothing is noted.
    """

    SIGNALS = signal.SIGTERM, signal.SIGINT, signal.SIGHUP

    def __init__(self, forward: Callable[[], object] = lambda: None):
        self.requested, self.forward, self.previous = 0, forward, {}

    def __enter__(self) -> "StopRequest":
        if threading.current_thread() is threading.main_thread():
            heard = [signum for signum in self.SIGNALS if signal.getsignal(signum) != signal.SIG_IGN]
            self.previous = {signum: signal.signal(signum, self._note) for signum in heard}
        return self

    def _note(self, signum: int, _: object) -> None:
        self.requested = self.requested or signum  # the first one says what was meant; others come of passing it on
        self.forward()

    def __exit__(self, *_: object) -> None:
        for signum, previous in self.previous.items():
            signal.signal(signum, previous)


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
