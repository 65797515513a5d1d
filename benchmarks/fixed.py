"""What a training and an evaluation of the preset demo cost beside steps and samples, in processor seconds of one thread."""

import os
import tempfile

import bench

from nppkit.jobs import timing
from nppkit.study.presets import load_preset
from nppkit.study.runs import find_run

SIDES = [2, 1]


def measure() -> dict:
    preset = load_preset("demo")
    run, found = find_run(preset, "GPT-L_npp_p2_lambda1-2_seed0"), {"start": timing.start_seconds()}
    with tempfile.TemporaryDirectory() as folder:
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = folder
        for cache in ("cold", "warm"):
            steps, compiling = timing.step_seconds(preset, run, SIDES)
            found |= {f"compile_{cache}": compiling, f"step_{cache}": steps}
    return {**found, "metrics": timing.metrics_seconds(preset)}


if __name__ == "__main__":
    bench.record("fixed", measure, threads=1)
