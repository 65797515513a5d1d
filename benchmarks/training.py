"""A whole #L = 2 training against NTP through the Trainer, with data and optimiser: a quarter-width GPT, 16 x 16 codes."""

import tempfile
from pathlib import Path

import bench
import numpy as np

from nppkit.data.codes import CodeStore, Manifest
from nppkit.data.extract import write_store as write
from nppkit.schedule import multi_scale_segments
from nppkit.training.config import TrainingConfig
from nppkit.training.trainer import Trainer, make_model

SIZES = dict(dim=256, n_layer=6, n_head=4, multiple_of=64)
EPOCHS, VOCABULARY = 16, 1024


def write_store(folder: Path, images: int) -> CodeStore:
    rng = np.random.default_rng(0)
    about = Manifest(images, 1, 16, VOCABULARY, [str(c) for c in range(10)], "", "", 256)
    write(folder, about, rng.integers(0, VOCABULARY, (images, 1, 256)), rng.integers(0, 10, images))
    return CodeStore(folder)


def measure() -> dict:
    config = TrainingConfig(epochs=EPOCHS, steps_per_epoch=1, batch_size=16, compile=True)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        store, heldout = write_store(folder / "train", 1000), write_store(folder / "heldout", 10)

        def train(levels: int, attempt: int) -> float:
            segments, where = multi_scale_segments(EPOCHS, levels, "1/2"), folder / f"L{levels}_{attempt}"
            model = make_model(store, SIZES, config, 0)
            places = folder / "history.csv", where, ""
            trainer = Trainer(model, store, heldout, segments, config, 0, *places, precision=bench.PRECISION)
            with trainer.running() as steps:
                for step in steps:
                    trainer.train_step(step, trainer.patch_size(step))
                    trainer.after(step)
            clock = "seconds" if bench.DEVICE.type == "cuda" else "cpu_seconds"
            return sum(row[clock] for row in trainer.history)

        rounds = [{levels: train(levels, attempt) for levels in (1, 2)} for attempt in range(2)]
    times = {name: [seconds[levels] for seconds in rounds] for name, levels in (("ntp", 1), ("npp_L2", 2))}
    seconds = {name: bench.summary(values) for name, values in times.items()}
    return {"npp_of_ntp": bench.ratio(times, "npp_L2", "ntp"), "ideal": 0.625, "seconds": seconds}


if __name__ == "__main__":
    bench.record("training", measure)
