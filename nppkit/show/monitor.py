"""Runs on disk: which there are, what they reached, and how far a running one is. Everything is read from result files,
so a run may be another process's, or another machine's on a shared disk.
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from nppkit.errors import NppkitError
from nppkit.files import noted
from nppkit.schedule import Segment, segment_at
from nppkit.study.results import best_guidance
from nppkit.window import Grid, area, as_grid, of_side

NO_ROWS = pd.DataFrame(columns=["step", "epoch", "patch_size", "lr", "loss", "seconds", "images_per_second"], dtype=float)
QUIET_SECONDS = 120  # a history not written for this long, or for ten of its rows, belongs to a run that has stopped
FIRST_SECONDS = 1200  # and so does a configuration without a row: compilation comes before the first one
SEEN: dict[Path, tuple] = {}  # what was read from a file, and the state that the file was in


@dataclass(frozen=True)
class Progress:
    """How far a run is. eta_seconds is an estimate from its own speed; None where nothing is known."""

    state: str  # running, stopped, trained, evaluated, or unreadable
    step: int
    total: int | None
    patch_size: int
    loss: float
    tokens_per_second: float | None
    eta_seconds: float | None


def parse_homes(text: str) -> list[Path]:
    """Results homes, one a line. NppkitError names one without a results folder."""
    homes = [Path(line.strip()).expanduser() for line in text.splitlines() if line.strip()]
    for home in homes:
        if not (home / "results").is_dir():
            raise NppkitError(f"{home} has no results/ folder: name a folder that nppkit writes to (NPPKIT_HOME)")
    return homes


def find_runs(homes: list[Path]) -> list[Path]:
    """Folders of all runs that have begun: results/<preset>/runs/<run id>/ with a configuration or a history; each once."""
    folders = [path for home in dict.fromkeys(map(Path.resolve, homes)) for path in sorted(home.glob("results/*/runs/*"))]
    return [path for path in folders if (path / "config.json").is_file() or (path / "history.csv").is_file()]


def read_once(path: Path, read: Callable[[Path], object], otherwise: object) -> object:
    """read(path), again only after the file has changed: a browser of many runs looks at all of them every few seconds.

    `otherwise` where it is missing or being replaced.
    """
    try:
        now = path.stat()
        state = (now.st_mtime_ns, now.st_size, now.st_ino)
        if path not in SEEN or SEEN[path][0] != state:
            SEEN[path] = (state, read(path))
    except (OSError, ValueError):
        return otherwise
    return SEEN[path][1]


def read_history(run: Path) -> pd.DataFrame:
    """The rows that the run has logged, shared by all who ask; empty before the first, or of another program."""
    return read_once(run / "history.csv", _whole_rows, NO_ROWS)


def _whole_rows(path: Path) -> pd.DataFrame:
    """All rows, but for one that is just being copied."""
    rows = pd.read_csv(path)
    return rows.dropna(subset=list(NO_ROWS)) if set(NO_ROWS) <= set(rows) else NO_ROWS


def read_settings(run: Path, name: str = "config.json") -> dict:
    """A JSON file of the run, shared by all who ask; empty where it is missing, being replaced, or none of ours."""
    return read_once(run / name, noted, {})


def progress_of(run: Path, now: float | None = None) -> Progress:
    """How far the run is, from its history and configuration. `now`: seconds since the epoch."""
    try:
        return _progress_of(run, now)
    except (AttributeError, KeyError, TypeError, ValueError):  # files of another version, or program
        return Progress("unreadable", 0, None, 1, float("nan"), None, None)


def _progress_of(run: Path, now: float | None) -> Progress:
    history, config = read_history(run), read_settings(run)
    training = config.get("training", {})
    per_epoch, segments = training.get("steps_per_epoch"), [Segment(**s) for s in config.get("segments", [])]
    total = segments[-1].end * per_epoch if segments and per_epoch else None
    now = now or time.time()
    if history.empty:
        begun = (run / "config.json").stat().st_mtime if config else now
        state, side = "running" if now - begun < FIRST_SECONDS else "stopped", segments[0].patch_size if segments else 1
        return Progress(state, 0, total, side, float("nan"), None, None)
    last = history.iloc[-1]
    grid = as_grid(config["model"]["grid_size"]) if "model" in config else (1, 1)
    state = _state(run, history, total, now)
    running = state == "running" and total is not None
    eta = seconds_left(history, tuple(segments), per_epoch, training["batch_size"], grid) if running else None
    speed = float(last["images_per_second"] * math.prod(grid)) if "model" in config else None
    return Progress(state, int(last["step"]), total, int(last["patch_size"]), float(last["loss"]), speed, eta)


def _state(run: Path, history: pd.DataFrame, total: int | None, now: float) -> str:
    if (total and history["step"].iloc[-1] >= total) or (not total and (run / "train_metrics.json").is_file()):
        return "evaluated" if (run / "metrics.json").is_file() else "trained"
    quiet = max(QUIET_SECONDS, 10 * history["seconds"].iloc[-1])
    return "running" if now - (run / "history.csv").stat().st_mtime < quiet else "stopped"


def seconds_left(
    history: pd.DataFrame, segments: tuple[Segment, ...], steps_per_epoch: int, batch_size: int, grid: Grid
) -> float:
    """Seconds that the remaining steps will take: at a side's own speed, or at the last one's, scaled by the window's tokens."""
    seconds = batch_size / history.groupby("patch_size")["images_per_second"].median()
    step, known = int(history["step"].iloc[-1]), int(history["patch_size"].iloc[-1])
    left = 0.0
    for segment in segments[segment_at(step, segments, steps_per_epoch) :]:
        steps = segment.end * steps_per_epoch - max(step, segment.start * steps_per_epoch)
        p = segment.patch_size
        scaled = seconds[known] * area(of_side(known, grid)) / area(of_side(p, grid))
        left += steps * (seconds[p] if p in seconds.index else scaled)
    return float(left)


def run_table(runs: list[Path]) -> pd.DataFrame:
    """A row a run: where it is, its configuration, how far it is, and its metrics at its best guidance scale."""
    columns = ("run", "preset", "home", "state", "epoch", "p", "loss", "NLL", "FID", "IS", "recall", "at scale", "minutes")
    return pd.DataFrame([_row(run) for run in runs], columns=columns)


def _row(run: Path) -> tuple:
    progress, history, metrics = progress_of(run), read_history(run), read_settings(run, "metrics.json")
    scales = {row["cfg_scale"]: row for row in metrics.get("guidance", [])}
    best = best_guidance(metrics["guidance"]) if scales else None
    scores = [scales.get(best, {}).get(key) for key in ("fid", "inception_score", "recall")]
    place = run.name, run.parents[1].name, str(run.parents[3])
    training = progress.state, history["epoch"].max(), progress.patch_size, progress.loss
    return *place, *training, metrics.get("heldout_nll"), *scores, best, history["seconds"].sum() / 60


def say(progress: Progress) -> str:
    """One line for a reader: state, step, segment, loss, speed and estimated time left."""
    of = f" of {progress.total}" if progress.total else ""
    parts = [progress.state, f"step {progress.step}{of}", f"segment p = {progress.patch_size}", f"loss {progress.loss:.3f} nats"]
    if progress.tokens_per_second is not None:
        parts.append(f"{progress.tokens_per_second:,.0f} tokens/s")
    if progress.eta_seconds is not None:
        parts.append(f"about {progress.eta_seconds / 60:.1f} min left")
    return ", ".join(parts)
