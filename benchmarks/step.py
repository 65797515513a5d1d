"""Forward and backward pass of GPT-B, batch 8, p = 1, dropout on, against the yardstick; optimiser and clipping apart."""

from functools import partial

import bench
import torch

from nppkit.cost import train_flops
from nppkit.loss import npp_loss
from nppkit.machine.devices import compiled
from nppkit.training.config import TrainingConfig
from nppkit.training.trainer import make_optimizer

BATCH = 8


def measure() -> dict:
    model, config = bench.gpt_b(), TrainingConfig()
    batch, optimizer = bench.random_batch(model.config, BATCH), make_optimizer(model, config)
    eager, fast = (partial(bench.step, loss_fn, model, *batch) for loss_fn in (npp_loss, compiled(npp_loss, bench.DEVICE)))
    cases = {"eager": eager, "yardstick": bench.yardstick(), "compiled": fast}
    cases["clip"] = lambda: torch.nn.utils.clip_grad_norm_(model.parameters(), config.grad_clip)
    cases["optimizer"] = optimizer.step
    times = bench.interleaved(cases, repeats=5)
    flops, product = BATCH * train_flops(model.config, 1), bench.gflops(2 * bench.SIDE**3, times["yardstick"])
    rates = {f"{name}_of_yardstick": bench.gflops(flops, times[name]) / product for name in ("eager", "compiled")}
    return {"yardstick_gflops": product, "flops": flops, **rates, "seconds": {k: bench.summary(v) for k, v in times.items()}}


if __name__ == "__main__":
    bench.record("step", measure)
