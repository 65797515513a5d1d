"""The code store: a random epoch over 100,000 images x 10 crops x 256 codes, against one .npy file an image."""

import tempfile
from pathlib import Path

import bench
import numpy as np
import torch

from nppkit.data.codes import CodeStore, Manifest
from nppkit.training.batches import batch_at

IMAGES, CROPS, TOKENS, VOCABULARY, BATCH, FILES = 100_000, 10, 256, 16384, 256, 5_000


def write_store(folder: Path) -> CodeStore:
    """The packed store, 512 MB."""
    rng, shape = np.random.default_rng(0), (IMAGES, CROPS, TOKENS)
    codes = np.lib.format.open_memmap(folder / "codes.npy", "w+", np.uint16, shape)
    for start in range(0, IMAGES, 10_000):
        codes[start : start + 10_000] = rng.integers(0, VOCABULARY, (10_000, CROPS, TOKENS), np.uint16)
    np.save(folder / "labels.npy", np.zeros(IMAGES, np.int64))
    Manifest(IMAGES, CROPS, 16, VOCABULARY, ["0"], "", "", 256).write(folder)
    return CodeStore(folder)


def write_files(folder: Path) -> None:
    """LlamaGen's folder: {i}.npy, int64 (1, crops, N); a part of it is enough for a rate per image."""
    for i in range(FILES):
        np.save(folder / f"{i}.npy", np.zeros((1, CROPS, TOKENS), np.int64))


def one_file(folder: Path, rng: np.random.Generator, image: int) -> torch.Tensor:
    return torch.from_numpy(np.load(folder / f"{image}.npy"))[0, rng.integers(CROPS)]


def measure() -> dict:
    with tempfile.TemporaryDirectory() as name:
        folder, rng = Path(name), np.random.default_rng(0)
        store = write_store(folder)
        write_files(folder)
        steps, order = IMAGES // BATCH, rng.permutation(FILES)

        def files():
            for start in range(0, FILES, BATCH):
                torch.stack([one_file(folder, rng, i) for i in order[start : start + BATCH]])

        cases = {"store": lambda: [batch_at(store, step, BATCH, 0) for step in range(steps)], "files": files}
        times = bench.interleaved(cases, repeats=3)
    rates = {"store": [steps * BATCH / t for t in times["store"]], "files": [FILES / t for t in times["files"]]}
    found = {f"{name}_images_per_second": bench.summary(values) for name, values in rates.items()}
    return {"times_faster": found["store_images_per_second"]["median"] / found["files_images_per_second"]["median"], **found}


if __name__ == "__main__":
    bench.record("store", measure, threads=1)
