"""What the benchmarks measured: committed reports, targets (targets.csv), a step's time by patch side, and figures of it."""

import json
import re
import subprocess
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import training
from matplotlib.figure import Figure

from nppkit.cost import train_flops
from nppkit.errors import NppkitError
from nppkit.gpus import GPU, GPUS
from nppkit.model_config import GPTConfig
from nppkit.schedule import mean_cost, multi_scale_segments

REPORTS = Path(__file__).parents[1] / "results" / "bench"
GPU_REPORTS = REPORTS.parent / "gpu"  # of gpu.py
TARGETS = pd.read_csv(Path(__file__).with_name("targets.csv"))  # figure: its path in the row


def report_names(folder: Path | None = None) -> list[str]:
    """Machines with a report in results/bench, or another folder."""
    return sorted(path.stem for path in (folder or REPORTS).glob("*.json"))


def committed(folder: Path) -> list[str]:
    """The machines whose reports git keeps; all where there is no git. What `make bench` adds here is for `load_report`."""
    listed = subprocess.run(["git", "ls-files", "*.json"], cwd=folder, capture_output=True, text=True).stdout.splitlines()
    return [name for name in report_names(folder) if f"{name}.json" in listed] or report_names(folder)


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
    for row, path, what, sign, bound in TARGETS.itertuples(index=False):
        measured = value(report, row, path)
        met = measured >= bound if sign == ">=" else measured <= bound
        verdict = "not measured" if np.isnan(measured) else "met" if met else "missed"
        load = max(report["rows"].get(row, {}).get("load_average", [float("nan")]))
        shown = {"target": f"{sign} {bound:g}", "measured": float(f"{measured:.3g}"), "verdict": verdict, "load": round(load, 1)}
        rows.append({"what": what, **shown})
    return pd.DataFrame(rows).set_index("what")


def machines_table() -> pd.DataFrame:
    """Every target with what each machine of a committed report measured."""
    tables = {machine: targets_table(load_report(machine)) for machine in committed(REPORTS)}
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


def training_flops() -> float:
    """What the training of training.py costs at two levels, against next-token prediction: its FLOPs, with attention."""
    config = GPTConfig(**training.SIZES, vocab_size=training.VOCABULARY)
    return two_levels({p: train_flops(config, p) for p in (1, 2)})


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


def step_times(row: dict) -> Figure:
    """Step time against patch side, with the ideal 1 / p**2 and the fit a + b / p**2, of the benchmarks' `patches` row."""
    sides = np.array([int(p) for p in row["seconds"] if p.isdigit()])
    times = [row["seconds"][str(p)] for p in sides]
    median, low, high = (np.array([t[key] for t in times]) for key in ("median", "min", "max"))
    smooth = np.geomspace(sides[0], sides[-1], 100)
    figure, axes = plt.subplots(figsize=(5, 3.2))
    axes.plot(smooth, median[0] / smooth**2, "--", color="0.4", label="ideal, t(1) / p²")
    axes.plot(smooth, row["a"] + row["b"] / smooth**2, color="C1", label=f"{row['a']:.2g} s + {row['b']:.3g} s / p²")
    axes.errorbar(sides, median, (median - low, high - median), fmt="o", color="C0", capsize=3, label="measured, with spread")
    axes.set(xscale="log", yscale="log", xlabel="patch side p", ylabel="forward + backward (s)")
    axes.set_xticks(sides, [str(p) for p in sides])
    axes.minorticks_off()
    axes.legend()
    return figure


def time_shares(operations: pd.DataFrame) -> Figure:
    """Where a step's time goes: the share of each kind of operation."""
    share = operations.groupby("kind")["seconds"].sum().sort_values() / operations["seconds"].sum()
    figure, axes = plt.subplots(figsize=(5, 0.6 + 0.3 * len(share)))
    axes.barh(share.index, 100 * share)
    axes.set_xlabel("share of the step's time (%)")
    return figure


def roofline(operations: pd.DataFrame, peak: float, bandwidth: float) -> Figure:
    """Rate of every product against its FLOPs per byte, under the machine's two limits; marker area by time.

    peak: FLOP/s, bandwidth: bytes/s.
    """
    products = operations[operations["flops"] > 0]
    intensity, rate = products["flops"] / products["bytes"], products["flops"] / products["seconds"]
    x = np.geomspace(min(1, intensity.min()), 2 * intensity.max(), 200)
    figure, axes = plt.subplots(figsize=(5, 3.2))
    axes.plot(x, np.minimum(peak, x * bandwidth) / 1e9, color="0.4", label="copy bandwidth, yardstick")
    for i, (kind, part) in enumerate(products.groupby("kind")):
        area = 15 + 400 * part["seconds"] / operations["seconds"].sum()
        axes.scatter(intensity[part.index], rate[part.index] / 1e9, s=area, color=f"C{i}", marker="os^D"[i % 4], label=kind)
    axes.set(xscale="log", yscale="log", xlabel="FLOPs per byte, least traffic", ylabel="GFLOP/s")
    axes.legend()
    return figure
