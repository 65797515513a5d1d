"""What the benchmarks measured: the committed reports, the targets, and how a step's time depends on the patch side."""

import json
import re
from pathlib import Path

import numpy as np
import pandas as pd

from nppkit.cost import GPU, GPUS
from nppkit.errors import NppkitError
from nppkit.schedule import mean_cost, multi_scale_segments

REPORTS = Path(__file__).parents[2] / "results" / "bench"
GPU_REPORTS = REPORTS.parent / "gpu"  # of benchmarks/gpu.py


# row, path of the figure in it, what it is, target
TARGETS = (
    ("step", "compiled_of_yardstick", "step, compiled: FLOP rate against the yardstick", ">=", 0.85),
    ("step", "eager_of_yardstick", "step, eager: FLOP rate against the yardstick", ">=", 0.70),
    ("patches", "ratio_to_p1.2", "step time at p = 2 against p = 1", "<=", 0.27),
    ("patches", "ratio_to_p1.4", "step time at p = 4 against p = 1", "<=", 0.075),
    ("patches", "ratio_to_p1.8", "step time at p = 8 against p = 1", "<=", 0.03),
    ("training", "npp_of_ntp", "a whole #L = 2 training against NTP", "<=", 0.64),
    ("memory", "sides.1.gib", "peak memory at p = 1, GiB", "<=", 3.0),
    ("memory", "ratio_to_p1.2", "peak memory at p = 2 against p = 1", "<=", 0.26),
    ("memory", "ratio_to_p1.4", "peak memory at p = 4 against p = 1", "<=", 0.07),
    ("memory", "ratio_to_p1.8", "peak memory at p = 8 against p = 1", "<=", 0.03),
    ("loss", "4.times_faster", "patch loss at p = 4: times faster than repeated logits", ">=", 3.0),
    ("loss", "4.difference", "patch loss at p = 4: difference from repeated logits", "<=", 1e-6),
    ("sampling", "tokens_per_second_at_200", "sampling, GPT-B, 8 images: tokens/s at a yardstick of 200 GFLOP/s", ">=", 135.0),
    ("store", "times_faster", "code store: times faster than one file an image", ">=", 20.0),
    ("launcher", "first_step_seconds.median", "launcher: seconds to the first training steps", "<=", 8.0),
    ("launcher", "import_seconds_beyond_torch.median", "imports beyond torch's own, processor seconds", "<=", 1.5),
)


def report_names(folder: Path | None = None) -> list[str]:
    """Machines with a committed report in results/bench, or another folder."""
    return sorted(path.stem for path in (folder or REPORTS).glob("*.json"))


def load_report(machine: str, folder: Path | None = None) -> dict:
    """The report of that machine. NppkitError names an unknown one."""
    folder = folder or REPORTS
    if machine not in report_names(folder):
        place, how = ("bench", "make bench") if folder == REPORTS else ("gpu", "benchmarks/gpu.py")
        known = ", ".join(report_names(folder))
        raise NppkitError(f"machine {machine!r} has no report in results/{place}: use {known}, or {how}")
    return json.loads((folder / f"{machine}.json").read_text())


def value(report: dict, row: str, path: str) -> float:
    """A figure of a row by its path; NaN where the row was not measured."""
    found = report["rows"].get(row, {})
    for key in path.split("."):
        found = found.get(key, {})
    return found if found != {} else float("nan")


def targets_table(report: dict) -> pd.DataFrame:
    """Every target with what was measured, and the load of the machine meanwhile."""
    rows = []
    for row, path, what, sign, bound in TARGETS:
        measured = value(report, row, path)
        met = measured >= bound if sign == ">=" else measured <= bound
        verdict = "not measured" if np.isnan(measured) else "met" if met else "missed"
        load = max(report["rows"].get(row, {}).get("load_average", [float("nan")]))
        shown = {"target": f"{sign} {bound:g}", "measured": float(f"{measured:.3g}"), "verdict": verdict, "load": round(load, 1)}
        rows.append({"what": what, **shown})
    return pd.DataFrame(rows).set_index("what")


def machines_table() -> pd.DataFrame:
    """Every target with what each machine of a committed report measured."""
    tables = {machine: targets_table(load_report(machine)) for machine in report_names()}
    targets = next(iter(tables.values()))["target"]
    return pd.DataFrame({"target": targets} | {machine: found["measured"] for machine, found in tables.items()})


def fit_patch_cost(sides: list[int], seconds: list[float]) -> tuple[float, float]:
    """a and b of t(p) = a + b / p**2, by least squares of the relative errors."""
    sides, seconds = np.asarray(sides, float), np.asarray(seconds)
    design = np.stack([np.ones_like(sides), sides**-2.0], 1) / seconds[:, None]
    a, b = np.linalg.lstsq(design, np.ones_like(seconds), rcond=None)[0]
    return float(a), float(b)


def gpu_of(report: dict) -> GPU:
    """The data sheet of the GPU that a report was measured on."""
    kind = re.search(r"[A-Z]+\d+", report["machine"]["name"].removeprefix("NVIDIA "))
    return next(gpu for name, gpu in GPUS.items() if kind and name.startswith(kind[0]))


def gpu_steps(report: dict) -> pd.DataFrame:
    """What a training step takes on a GPU (ms, at each patch side), and what follows for a whole training with two levels.

    A row is a model, the images of a step, and how it was run; `of peak` is at p = 1, of the measured rate of a large bf16
    product where the report has it, else of the data sheet's. The training's time is a share of
    next-token prediction's, half of the epochs at p = 2 and half at p = 1 (Section 3.6), beside the same share of FLOPs.
    """
    rows = []
    for name, found in report["rows"].items():
        if not name.endswith(" step"):
            continue
        model, images, _ = name.split()
        peak = found.get("product_flops_per_second") or gpu_of(report).flops
        for mode in dict.fromkeys(case.split()[0] for case in found["seconds"]):
            seconds = {int(p): found["seconds"].get(f"{mode} {p}", {}).get("median", np.nan) for p in found["flops"]}
            flops = {int(p): value for p, value in found["flops"].items()}
            row = {"model": model, "images": int(images), "mode": mode} | {f"p = {p}, ms": 1e3 * t for p, t in seconds.items()}
            row |= {"of peak": flops[1] / seconds[1] / peak, "#L = 2, time": two_levels(seconds)}
            rows.append(row | {"#L = 2, FLOPs": two_levels(flops)})
    return pd.DataFrame(rows).set_index(["model", "images", "mode"])


def two_levels(cost: dict[int, float]) -> float:
    """What a whole training at p = 2 and then p = 1 costs, against p = 1 alone, from the cost of a step at each."""
    return mean_cost(multi_scale_segments(300, 2, "1/2"), lambda p: cost[p] / cost[1])


def gpu_sampling(report: dict) -> pd.DataFrame:
    """Seconds of a guided batch on a GPU: plain, and with the decoding step as a CUDA graph."""
    rows = {name.split()[0]: found for name, found in report["rows"].items() if name.endswith(" sampling")}
    columns = {name: {mode: t["median"] for mode, t in found["seconds"].items()} for name, found in rows.items()}
    table = pd.DataFrame(columns).T
    table["times faster"] = table["plain"] / table["graph"]
    return table.rename_axis("model")


def operations(report: dict) -> pd.DataFrame:
    """The eager step's operations, each with its kind: products, attention, or what only moves memory."""
    frame = pd.DataFrame(report["rows"]["breakdown"]["operations"])
    kinds = {"aten::mm": "matrix products", "other": "other"}
    attention = frame["name"].str.contains("attention")
    frame["kind"] = frame["name"].map(kinds).fillna("element-wise, reductions").mask(attention, "attention")
    return frame
