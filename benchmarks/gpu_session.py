"""What a GPU at hand for ten minutes is used for, in order of worth; what is done is kept, and not done again.

    python benchmarks/gpu_session.py --seconds 540

Each part writes its result into the report of this GPU in results/gpu before the next one begins, and none begins that may not
end in time. Parts: the tests that need a GPU; steps of GPT-B with 32 and with 128 images; next-token prediction and NPP
by the trainer itself, in bf16, with graphs, GPT-B on the study's digits; sampling. `--pair PRESET` names another
preset to train.
"""

import argparse
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import bench
import gpu
import pandas as pd

from nppkit.files import noted
from nppkit.model import MODELS
from nppkit.study.graph import run_dir, tokenizer_dir
from nppkit.study.presets import load_preset
from nppkit.study.runs import Run

ROOT = Path(__file__).parents[1]


class Part(NamedTuple):
    """A row of the report, the seconds that it takes at most, and what measures it."""

    row: str
    seconds: float
    measure: Callable[[], dict]


def tests() -> dict:
    """tests/test_cuda.py: how many passed and failed, and the names of those that failed."""
    command = [sys.executable, "-m", "pytest", "-q", "--no-header", "-p", "no:cacheprovider", "tests/test_cuda.py"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    lines = done.stdout.splitlines()
    failed = [line.removeprefix("FAILED ") for line in lines if line.startswith(("FAILED", "ERROR"))]
    print("\n".join(lines[-60:]), flush=True)
    return {"outcome": lines[-1] if lines else done.stderr[-300:], "failed": failed}


def pair(preset_name: str, size: str = "B") -> dict:
    """NTP and NPP of a preset by the command that torchrun starts: seconds, FLOPs and likelihood of each."""
    preset, found = load_preset(preset_name), {}
    for run in (Run(size), Run(size, patch_size=2, lam="1/2")):
        started = time.perf_counter()
        words = ["train", preset_name, run.id, "--options", f"graphs=true device={bench.DEVICE}"]
        subprocess.run([sys.executable, "-m", "nppkit", *words], cwd=ROOT, check=True)
        history = pd.read_csv(run_dir(preset, run) / "history.csv")
        last = history.iloc[-1]
        seconds = {"wall": time.perf_counter() - started, "steps": float(history["seconds"].sum())}
        found[run.recipe] = {**seconds, "step": int(last["step"]), "loss": last["loss"], "heldout_nll": last["heldout_nll"]}
    return found


def parts(pairs: list[str], small: bool = False) -> list[Part]:
    """What there is to do; `small` sizes are for a test of this script."""
    sizes, modes = (dict(dim=16, n_layer=1, n_head=2), ["eager"]) if small else (MODELS["B"], list(gpu.MODES))
    sides, images, repeats = [1, 2, 4], 4 if small else gpu.IMAGES, 1 if small else 5
    steps = {f"B {n} step": (90, lambda n=n: gpu.train(sizes, 1 if small else n, sides, modes, repeats)) for n in (32, 128)}
    listed = [Part("tests", 200, tests), *(Part(row, *part) for row, part in steps.items())]
    trained = [name for name in pairs if (tokenizer_dir(load_preset(name)) / "train/manifest.json").exists()]
    listed += [Part(f"{load_preset(name).name} pair", 200, lambda name=name: pair(name)) for name in trained]
    return [*listed, Part("B sampling", 60, lambda: gpu.sample(sizes, images))]


def session(listed: list[Part], seconds: float, folder: Path, clock: Callable[[], float] = time.monotonic) -> list[str]:
    """Measure one part after another until the time is up; returns what was left out, and why. What is there is not repeated."""
    end, left, report = clock() + seconds, [], bench.report_path(folder, bench.machine())
    for part in listed:
        if part.row in noted(report).get("rows", {}):
            print(f"{part.row}: is there already, in {report}")
            continue
        if clock() + part.seconds > end:
            left.append(f"{part.row}: takes up to {part.seconds:.0f} s, {max(0, end - clock()):.0f} are left")
            continue
        try:
            gpu.save(part.row, part.measure(), folder)
        except Exception as error:  # the next part may be worth the time all the same
            left.append(f"{part.row}: {type(error).__name__}: {str(error)[:300]}")
    return left


def main() -> None:
    parser = argparse.ArgumentParser(prog="python benchmarks/gpu_session.py", description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=540.0)
    parser.add_argument("--pair", action="append", default=[], metavar="PRESET", help="whose codes are extracted already")
    parser.add_argument("--out", type=Path, default=gpu.RESULTS)
    parser.add_argument("--small", action="store_true", help="sizes for a try on a CPU")
    a = parser.parse_args()
    for line in session(parts(a.pair or [str(ROOT / "benchmarks/gpu_digits.yaml")], a.small), a.seconds, a.out):
        print(f"left out: {line}")


if __name__ == "__main__":
    main()
