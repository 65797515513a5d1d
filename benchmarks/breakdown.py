"""Where the time of the eager step goes (GPT-B, batch 8, p = 1), with every operation's FLOPs and least memory traffic."""

import functools
import math
import time

import bench
import torch
from torch.profiler import ProfilerActivity, profile

from nppkit.loss import npp_loss

BATCH, SHARE = 8, 0.005  # operations below this share of the time are added up as "other"


def shapes_of(event) -> list[list[int]]:
    return [shape for shape in event.input_shapes if shape and all(isinstance(side, int) for side in shape)]


def flops(name: str, shapes: list[list[int]]) -> float:
    """FLOPs of products, and of attention counted in full: two products forward, five backward."""
    if name in ("aten::mm", "aten::bmm"):
        return 2 * math.prod(shapes[0]) * shapes[1][-1]
    if "attention" in name:
        batch, heads, tokens, width = shapes[0]
        return 2 * (5 if "backward" in name else 2) * batch * heads * tokens**2 * width
    return 0.0


def traffic(shapes: list[list[int]]) -> float:
    """Bytes in fp32 of reading every input and writing one output of the largest input's size, or of a product's."""
    sizes = [math.prod(shape) for shape in shapes] or [0]
    product = len(shapes) == 2 and len(shapes[0]) == len(shapes[1]) == 2 and shapes[0][1] == shapes[1][0]
    output = shapes[0][0] * shapes[1][1] if product else max(sizes)
    return 4.0 * (sum(sizes) + output)


def operations(step) -> list[dict]:
    """Every kind of operation and shape: seconds, calls, FLOPs, bytes.

    The profiler's wall time is scaled to the benchmarks' clock.
    """
    with profile(activities=[ProfilerActivity.CPU], record_shapes=True) as found:
        started = time.perf_counter()
        on_our_clock = bench.clock(step)
        scale = on_our_clock / (time.perf_counter() - started)
    rows = []
    for event in found.key_averages(group_by_input_shape=True):
        shapes = shapes_of(event)
        work = {"flops": event.count * flops(event.key, shapes), "bytes": event.count * traffic(shapes)}
        rows.append({"name": event.key, "calls": event.count, "seconds": scale * event.self_cpu_time_total / 1e6, **work})
    total = sum(row["seconds"] for row in rows)
    large = [row for row in rows if row["seconds"] > SHARE * total]
    other = sum(row["seconds"] for row in rows if row not in large)
    return [*large, {"name": "other", "calls": 0, "seconds": other, "flops": 0.0, "bytes": 0.0}]


def bandwidth() -> float:
    """Bytes a second of copying a tensor that no cache holds, reading and writing counted."""
    source, target = (torch.zeros(2**26, device=bench.DEVICE) for _ in range(2))
    times = bench.interleaved({"copy": lambda: target.copy_(source)}, repeats=5)
    return 2 * 4 * 2**26 / min(times["copy"])


def measure() -> dict:
    model = bench.gpt_b()
    step = functools.partial(bench.step, npp_loss, model, *bench.random_batch(model.config, BATCH))
    step()
    times = bench.interleaved({"yardstick": bench.yardstick()}, repeats=5)
    peak = bench.gflops(2 * bench.SIDE**3, times["yardstick"])
    return {"yardstick_gflops": peak, "bytes_per_second": bandwidth(), "operations": operations(step)}


if __name__ == "__main__":
    bench.record("breakdown", measure)
