"""Progress that suits the place: a bar in JupyterLab, one line every few seconds in a batch log."""

import os
import time
from collections.abc import Iterable, Iterator, Sized
from contextlib import contextmanager

from IPython.display import clear_output, display
from tqdm.auto import tqdm

BATCH = "NPPKIT_BATCH"  # set by the launcher in the kernels it starts
SECONDS = 10.0


def progress(items: Iterable, label: str = "") -> Iterator:
    """Iterate over items and show how far it is and how long it takes."""
    return _lines(items, label) if os.environ.get(BATCH) else iter(tqdm(items, desc=label))


@contextmanager
def waiting(label: str) -> Iterator[None]:
    """A bar that runs while the block does, and is gone after it, in a notebook; elsewhere `label` in words.

    The browser moves it: Python cannot, as long as it imports something large.
    """
    display({"text/html": f"<progress></progress> {label}", "text/plain": label}, raw=True)
    try:
        yield
    finally:
        clear_output()


def _lines(items: Iterable, label: str) -> Iterator:
    total = len(items) if isinstance(items, Sized) else 0
    started = said = time.monotonic()
    for done, item in enumerate(items):
        now = time.monotonic()
        if now - said > SECONDS:
            left = f", {(now - started) / done * (total - done):.0f} s left" if done and total else ""
            print(f"{label} {done}/{total or '?'} after {now - started:.0f} s{left}", flush=True)
            said = now
        yield item
