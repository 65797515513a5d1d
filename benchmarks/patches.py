"""Step time against patch side, GPT-B, batch 16, without optimiser, and the fit t(p) = a + b / p**2."""

import functools

import bench
from speed import fit_patch_cost

from nppkit.loss import npp_loss
from nppkit.machine.devices import compiled

BATCH, SIDES = 16, (1, 2, 4, 8, 16)


def measure() -> dict:
    model = bench.gpt_b()
    step = functools.partial(bench.step, compiled(npp_loss, bench.DEVICE), model, *bench.random_batch(model.config, BATCH))
    cases = {str(p): functools.partial(step, p) for p in SIDES} | {"yardstick": bench.yardstick()}
    times = bench.interleaved(cases, repeats=2)
    seconds = {name: bench.summary(values) for name, values in times.items()}
    a, b = fit_patch_cost(SIDES, [seconds[str(p)]["median"] for p in SIDES])
    ratios = {str(p): bench.ratio(times, str(p), "1") for p in SIDES[1:]}
    product = bench.gflops(2 * bench.SIDE**3, times.pop("yardstick"))
    return {"yardstick_gflops": product, "a": a, "b": b, "ratio_to_p1": ratios, "seconds": seconds}


if __name__ == "__main__":
    bench.record("patches", measure)
