"""Peak memory of the compiled step above weights and optimiser state: GPT-B, batch 16.

On a CPU it is the process's peak resident size, so every patch side is measured in a process of its own. With small patches the
peak is at the end of the forward pass, where there are no gradients yet; with large ones it is that of the gradients.
"""

import ctypes
import functools
import json
import re
import subprocess
import sys
from pathlib import Path

import bench
import torch

from nppkit.loss import npp_loss
from nppkit.machine.devices import compiled
from nppkit.training.config import TrainingConfig
from nppkit.training.trainer import make_optimizer

BATCH, SIDES, GIB = 16, (1, 2, 4, 8), 2**30


def resident(field: str) -> int:
    """Bytes of this process: VmRSS now, VmHWM at most."""
    return int(re.search(rf"{field}:\s+(\d+)", Path("/proc/self/status").read_text())[1]) * 1024


def peak(step) -> int:
    """Bytes that one call needs at most above what is there before it."""
    if bench.DEVICE.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step()
        return torch.cuda.max_memory_allocated() - before
    ctypes.CDLL(None).malloc_trim(0)  # what was freed before does not hide what the call needs
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts again from the present size
    before = resident("VmRSS")
    step()
    return resident("VmHWM") - before


def one_side(patch_size: int) -> dict:
    model = bench.gpt_b()
    optimizer, batch = make_optimizer(model, TrainingConfig()), bench.random_batch(model.config, BATCH)
    step = functools.partial(bench.step, compiled(npp_loss, bench.DEVICE), model, *batch, patch_size)
    step()  # compilation
    optimizer.step()  # its state
    optimizer.zero_grad(set_to_none=True)
    return {"gib": peak(step) / GIB}


def measure() -> dict:
    command = [sys.executable, __file__]
    outputs = [subprocess.run([*command, str(p)], check=True, stdout=subprocess.PIPE, text=True).stdout for p in SIDES]
    sides = {str(p): json.loads(output.splitlines()[-1]) for p, output in zip(SIDES, outputs, strict=True)}
    ratios = {p: values["gib"] / sides["1"]["gib"] for p, values in sides.items() if p != "1"}
    return {"sides": sides, "ratio_to_p1": ratios}


if __name__ == "__main__":
    if len(sys.argv) > 1:
        print(json.dumps(one_side(int(sys.argv[1]))))
    else:
        bench.record("memory", measure)
