"""What every benchmark shares: interleaved timing, the yardstick, and where the figures go.

A row is a script here. Cases of one row take turns in one process, so that ratios hold on a machine that is busy or
changes its clock; the yardstick, a 2048-cubed fp32 matrix product, is measured in the same process. On a CPU, seconds
are the process's processor time divided by its threads: wall time where nothing else runs, and little disturbed by what
does. THREADS=1 leaves no waiting for each other in them.
"""

import json
import os
import platform
import re
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import torch

from nppkit.files import write_atomic
from nppkit.machine.devices import autocast, pick_device
from nppkit.model import GPT, MODELS, GPTConfig
from nppkit.study import provenance

RESULTS = Path(__file__).parents[1] / "results" / "bench"
DEVICE = pick_device("auto")
SIDE = 2048
PRECISION = "bf16" if DEVICE.type == "cuda" else "fp32"


def now() -> float:
    """Seconds on a clock that suits the device, which has finished all it was given."""
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()
        return time.perf_counter()
    return time.process_time() / torch.get_num_threads()


def clock(case: Callable) -> float:
    """Seconds of one call."""
    started = now()
    case()
    return now() - started


def interleaved(cases: dict[str, Callable], repeats: int, warmup: int = 1) -> dict[str, list[float]]:
    """Seconds of every repeat of every case, the cases taking turns."""
    for _ in range(warmup):
        for case in cases.values():
            case()
    rounds = [{name: clock(case) for name, case in cases.items()} for _ in range(repeats)]
    return {name: [seconds[name] for seconds in rounds] for name in cases}


def ratio(times: dict[str, list[float]], case: str, base: str) -> float:
    """Median over the rounds of a case's time against the base's in the same round."""
    return median(a / b for a, b in zip(times[case], times[base], strict=True))


def summary(seconds: list[float]) -> dict[str, float]:
    """Median and spread."""
    return {"median": median(seconds), "min": min(seconds), "max": max(seconds), "repeats": len(seconds)}


def yardstick() -> Callable:
    """The 2048-cubed product in fp32; its FLOPs are 2 * SIDE**3."""
    a, b = (torch.randn(SIDE, SIDE, device=DEVICE) for _ in range(2))
    return lambda: a @ b


def gflops(flops: float, seconds: list[float]) -> float:
    """Rate at the median time, in 1e9 floating-point operations a second."""
    return flops / median(seconds) / 1e9


def gpt_b() -> GPT:
    """GPT-B with dropout on; the output head, 0 at first, is filled so that gradients reach every layer."""
    torch.manual_seed(0)
    model = GPT(GPTConfig(**MODELS["B"])).to(DEVICE)
    torch.nn.init.normal_(model.output.weight, std=0.02)
    return model


def random_batch(config: GPTConfig, batch_size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Codes (B, N) and labels (B,)."""
    codes = torch.randint(config.vocab_size, (batch_size, config.block_size), device=DEVICE)
    return codes, torch.randint(config.num_classes, (batch_size,), device=DEVICE)


def step(loss_fn: Callable, model: GPT, codes: torch.Tensor, labels: torch.Tensor, patch_size: int = 1) -> None:
    """Forward and backward pass of a training step: gradients are new ones."""
    model.zero_grad(set_to_none=True)
    with autocast(DEVICE, PRECISION):
        loss = loss_fn(model, codes, labels, patch_size)
    loss.backward()


def machine() -> dict:
    """What the figures depend on."""
    name = torch.cuda.get_device_name() if DEVICE.type == "cuda" else provenance.machine()["processor"][0]
    versions = {"torch": torch.__version__, "python": platform.python_version()}
    return {"name": name, "cores": os.cpu_count(), **versions, "glibc": os.environ.get("GLIBC_TUNABLES", "defaults")}


def report_path(folder: Path, here: dict) -> Path:
    """The report of the machine `here`."""
    return folder / (re.sub(r"\W+", "-", f"{here['name']} {here['cores']} cores").lower() + ".json")


def record(row: str, measure: Callable[[], dict], threads: int | None = None, folder: Path = RESULTS) -> None:
    """Measure one row and put it into <folder>/<machine>.json, with the load of the machine before and after."""
    torch.set_num_threads(threads or int(os.environ.get("THREADS", os.cpu_count())))
    load = os.getloadavg()[0]
    values = {"threads": torch.get_num_threads(), **measure(), "load_average": [load, os.getloadavg()[0]]}
    here = machine()
    path = report_path(folder, here)
    path.parent.mkdir(parents=True, exist_ok=True)
    report = json.loads(path.read_text()) if path.exists() else {"rows": {}}
    report["machine"] = here
    report["rows"][row] = {"date": time.strftime("%Y-%m-%d"), **values}
    write_atomic(path, json.dumps(report, indent=1) + "\n")
    print(f"{row}: {json.dumps(values, indent=1)}", flush=True)
