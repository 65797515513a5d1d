"""What files hold, as digests: a file is read and looked at again only where its size or one of its times has changed.

Notes lie in checkpoints/contents, for this machine alone: one of sizes, times and digests for each folder that was looked at, and
one for each state of it that results were made from, so that a later difference can be named.
"""

import contextlib
import hashlib
import json
import os
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from nppkit.errors import NppkitError
from nppkit.files import home, json_digest, noted, sha256, write_atomic

READERS = 8  # files read at a time: a network's disk answers slowly, but many at once
AHEAD = 64  # files whose digests are taken before they are looked at
SETTLED = 2.0  # seconds after which a file's time tells one write from the next


def notes(key: str) -> Path:
    """Where the note of that key lies."""
    return home() / "checkpoints" / "contents" / f"{hashlib.sha256(key.encode()).hexdigest()[:16]}.json"


def digests(
    root: Path, files: Iterable[tuple[str, os.stat_result]], look: Callable = lambda path: "", note: Path | None = None
) -> tuple[dict, dict]:
    """The first half of sha256 of each file (name below root, and what the system says of it), and why some are no good.

    look(path) is empty if the file is good; it comes soon after the digest, while what was read is still in memory. note: of
    what, where these are not all files below root.
    """
    note, now, found, bad = notes(str((note or root).resolve())), time.time() - SETTLED, {}, {}
    known = noted(note)
    states = {name: [s.st_size, s.st_mtime_ns, s.st_ctime_ns] for name, s in files}
    unread = [name for name, state in states.items() if known.get(name, [])[:3] != state]
    with ThreadPoolExecutor(READERS) as pool:
        for some in (unread[start : start + AHEAD] for start in range(0, len(unread), AHEAD)):
            for name, (digest, why) in zip(some, pool.map(lambda name: _digest(root / name), some), strict=True):
                found[name] = digest
                if why := why or look(root / name):
                    bad[name] = why
    entries = {name: [*state, found[name] if name in found else known[name][3]] for name, state in states.items()}
    settled = {name: entry for name, entry in entries.items() if max(entry[1:3]) < now * 1e9 and name not in bad}
    if settled != known:
        _write(note, settled)
    return {name: entry[3] for name, entry in entries.items()}, bad


def _digest(path: Path) -> tuple[str, str]:
    """A file's digest, or why it cannot be read."""
    try:
        return sha256(path)[:32], ""
    except OSError as error:
        return "", str(error.strerror)


def digest_of(contents: dict[str, str]) -> str:
    """One digest of all names and contents, whose note is kept to name differences later."""
    digest = json_digest(contents)
    if not notes(digest).exists():
        _write(notes(digest), contents)
    return digest


def difference(digest: str, contents: dict[str, str]) -> str:
    """What has changed since the state of that digest, e.g. `1 added (cat/7.png)`."""
    if not (before := noted(notes(digest))):
        return "it held other files"
    changes = {
        "added": contents.keys() - before.keys(),
        "removed": before.keys() - contents.keys(),
        "replaced": {name for name in before.keys() & contents.keys() if before[name] != contents[name]},
    }
    return ", ".join(f"{len(names)} {what} ({_some(names)})" for what, names in changes.items() if names)


def _some(names: Iterable[str]) -> str:
    names = sorted(names)
    return ", ".join(names[:3]) + ", ..." * (len(names) > 3)


def _write(note: Path, content: dict) -> None:
    with contextlib.suppress(OSError, NppkitError):  # without a note the files are read once more
        write_atomic(note, json.dumps(content))
