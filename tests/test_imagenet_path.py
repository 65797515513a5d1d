"""Whole paths that no other test runs: ImageNet's, with VQ-16, GPT-B and Inception at full size, natural images', solar256's.

Weights are random, in files of the released formats, or trained for twenty steps; everything runs through the commands and
notebooks that a user runs. Only the numbers of images and steps are small.
"""

import importlib.util
import json
import os
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from PIL import Image
from test_features import random_inception

from nppkit import cli, files
from nppkit.data.codes import CodeStore
from nppkit.data.config import TokenizerConfig
from nppkit.data.train_tokenizer import TokenizerTraining
from nppkit.jobs import launch
from nppkit.model import GPT, GPTConfig
from nppkit.scoring import features
from nppkit.study import graph, presets
from nppkit.tokenizer import VQModel
from nppkit.tokenizer_config import VQConfig

pytestmark = pytest.mark.slow
RUN = "GPT-B_npp_p2_lambda1-2_seed0"


def write_images(root, per_class, seed):
    """Three class folders of smooth random images, larger than 256 pixels on one side."""
    rng = np.random.default_rng(seed)
    for name in ("n01440764", "n01443537", "n01484850"):
        (root / name).mkdir(parents=True)
        for i in range(per_class):
            small = Image.fromarray(rng.integers(0, 256, (6, 8, 3), dtype=np.uint8))
            small.resize((340, 256), Image.Resampling.BICUBIC).save(root / name / f"{i}.jpg")


def write_files(home):
    """What a user has to obtain: images, the tokenizer's release, Inception, ADM's reference file."""
    write_images(home / "data/imagenet/train", 3, 0)
    write_images(home / "data/imagenet/val", 1, 1)
    torch.manual_seed(0)
    (home / "weights/LlamaGen").mkdir(parents=True)
    torch.save({"model": VQModel(VQConfig()).state_dict()}, home / "weights/LlamaGen/vq_ds16_c2i.pt")
    random_inception(home / "inception.pth")
    rng = np.random.default_rng(2)
    images, seen = rng.integers(0, 256, (4, 256, 256, 3), dtype=np.uint8), rng.normal(size=(50, 2048))
    np.savez(home / "data/VIRTUAL_imagenet256_labeled.npz", arr_0=images, mu=seen.mean(0), sigma=np.cov(seen, rowvar=False))


def write_preset(home):
    """imagenet256 with fewer images, crops, steps and samples, on the CPU."""
    content = yaml.safe_load((presets.FOLDER / "imagenet256.yaml").read_text())
    content["data"] |= {"crops": "center", "heldout": 2}
    content["extractor"] |= {"weights": "inception.pth", "sha256": files.sha256(home / "inception.pth")}
    content["training"] |= {"epochs": 2, "steps_per_epoch": 2, "batch_size": 2, "compile": False}
    content["evaluation"] |= {"samples": 4, "select_samples": 2, "guidance": [1.75], "batch_size": 4, "kid_subsets": 2}
    content["evaluation"]["compile"] = False
    content |= {"runs": {"B": ["npp_p2_lambda1-2"]}, "precision": "fp32", "threads": 2, "tokenizer_threads": 2}
    (home / "tiny.yaml").write_text(yaml.safe_dump(content))
    return presets.load_preset(str(home / "tiny.yaml"))


def extract_in_two_shares(home):
    """Extraction's command, twice side by side, a thread each."""
    share = [sys.executable, "-m", "nppkit", "codes", "extract", str(home / "tiny.yaml"), "--batch-size", "4"]
    share += ["--world-size", "2", "--rank"]
    started = [subprocess.Popen([*share, rank], env={**os.environ, "OMP_NUM_THREADS": "1"}) for rank in ("0", "1")]
    assert [process.wait() for process in started] == [0, 0]


def import_again(store, home, monkeypatch):
    """Write a store's codes as LlamaGen's files, remove it, and import the files in its place."""
    for name in ("imagenet256_codes", "imagenet256_labels"):
        (home / name).mkdir()
    for i, (codes, label) in enumerate(zip(store.codes, store.labels, strict=True)):
        np.save(home / "imagenet256_codes" / f"{i}.npy", codes[None].astype(np.int64))
        np.save(home / "imagenet256_labels" / f"{i}.npy", np.array([label]))
    (store.folder / "manifest.json").unlink()
    words = ["codes", "import", home / "imagenet256_codes", home / "imagenet256_labels", store.folder]
    assert cli.call([*map(str, words)]) == 0


def test_from_a_folder_of_images_to_a_table(home, monkeypatch):
    """Extract in two shares, import LlamaGen's files, train GPT-B by patches and tokens, sample, evaluate, tabulate."""
    monkeypatch.setenv("GOMP_SPINCOUNT", "10000")  # two threads that spin would starve each other on a busy machine
    monkeypatch.setenv("OPENBLAS_NUM_THREADS", "1")  # two take four times the processor time for a Frechet distance
    write_files(home)
    preset = write_preset(home)
    extract_in_two_shares(home)
    extracted = CodeStore(graph.tokenizer_dir(preset) / "train")
    assert extracted.codes.shape == (9, 1, 256) and extracted.vocab_size == 16384 and extracted.num_classes == 3
    codes = np.array(extracted.codes)
    import_again(extracted, home, monkeypatch)
    launch.ensure(graph.report_job(preset, "table1_main"))
    imported = CodeStore(graph.tokenizer_dir(preset) / "train")
    assert imported.manifest.imported and np.array_equal(imported.codes, codes)
    folder = graph.results_dir(preset)
    metrics = json.loads((folder / "runs" / RUN / "metrics.json").read_text())
    assert json.loads((folder / "runs" / RUN / "config.json").read_text())["model"]["dim"] == 768
    assert metrics["contract"]["extractor"] == "inception-v3-compat" and metrics["contract"]["samples"] == 4
    assert metrics["contract"]["reference"] == "VIRTUAL_imagenet256_labeled.npz"
    assert metrics["heldout_nll"] == pytest.approx(np.log(16384), rel=0.05) and metrics["guidance"][0]["fid"] > 0
    drawn = graph.samples_dir(preset, graph.preset_runs(preset)[0]).glob("drawn_*/codes.npy")  # a GPU's hours outlive a kill
    assert sorted(len(np.load(path)) for path in drawn) == [2, 4]
    row = next(line for line in (folder / "table1_main.md").read_text().splitlines() if "LlamaGen-B + NPP" in line)
    assert "1 seed" in row and f"{metrics['guidance'][0]['fid']:.4g}" in row


def write_own_preset(home):
    """own-images with fewer images, steps and samples, and smaller networks."""
    write_images(home / "data/images", 8, 0)
    content = yaml.safe_load((presets.FOLDER / "own-images.yaml").read_text())
    content["data"] |= {"heldout": 4}
    content["tokenizer"] |= {"steps": 20, "batch_size": 4}
    content["tokenizer"]["vq"] |= {"ch": 8, "z_channels": 8, "norm_groups": 4}
    content["models"] = {"B": {"dim": 16, "n_layer": 1, "n_head": 2, "multiple_of": 16}}
    content["training"] |= {"steps_per_epoch": 1, "batch_size": 4, "compile": False}
    content["evaluation"] |= {"samples": 12, "select_samples": 8, "guidance": [1.5], "batch_size": 12, "kid_subsets": 2}
    content["evaluation"]["compile"] = False
    content |= {"runs": {"B": ["npp_L4_lambda1-2"]}, "precision": "bf16", "threads": 1, "tokenizer_threads": 1}
    (home / "mine.yaml").write_text(yaml.safe_dump(content))
    return presets.load_preset(str(home / "mine.yaml"))


def test_natural_images_without_a_download(home):
    """A folder of images, a tokenizer trained here, all four levels in bf16, and features of the wheel's EfficientNet."""
    preset = write_own_preset(home)
    launch.ensure(graph.report_job(preset, "table4_levels"))
    table = (graph.results_dir(preset) / "table4_levels.csv").read_text().splitlines()
    assert "our FID (EfficientNet-Lite0 features)" in table[0] and any("1 seed" in line for line in table)
    metrics = json.loads((graph.results_dir(preset) / "runs/GPT-B_npp_L4_lambda1-2_seed0/metrics.json").read_text())
    assert metrics["contract"]["precision"] == "bf16" and 0 <= metrics["guidance"][0]["agreement"] <= 1  # the probe's
    assert metrics["contract"]["extractor_sha256"] == features.SHA256["efficientnet-lite0"]


def write_solar256(home):
    """solar256 with its own networks and side, but 16 training images, twenty steps of two each, and few samples."""
    content = yaml.safe_load((presets.FOLDER / "solar256.yaml").read_text())
    content["data"] |= {"limit": 24, "heldout": 8}
    content["tokenizer"] |= {"steps": 20, "batch_size": 2}
    content["training"] |= {"epochs": 20, "steps_per_epoch": 1, "batch_size": 2, "log_every": 1, "compile": False}
    content["evaluation"] |= {"samples": 8, "select_samples": 4, "guidance": [1.5], "batch_size": 8, "kid_subsets": 2}
    content["evaluation"]["compile"] = False
    content |= {"runs": {"B": ["npp_p2_lambda1-2"]}, "threads": 1, "tokenizer_threads": 1}
    (home / "first.yaml").write_text(yaml.safe_dump(content))
    return presets.load_preset(str(home / "first.yaml"))


@pytest.mark.skipif(importlib.util.find_spec("elpv_dataset") is None, reason="the wheel of the photographs is not installed")
def test_first_steps_of_solar256(home):
    """At 256 pixels: twenty steps of the tokenizer, codes, twenty of GPT-B in bf16 at patch sides 2 and 1, samples, scores."""
    preset = write_solar256(home)
    job = graph.evaluate_job(preset, graph.preset_runs(preset)[0])
    launch.ensure(job)
    codes = CodeStore(graph.tokenizer_dir(preset) / "train")
    assert codes.codes.shape == (16, 4, 256) and codes.vocab_size == 16384 and codes.num_classes == 8
    config = json.loads((job.folder / "config.json").read_text())
    assert (config["model"]["dim"], config["model"]["n_layer"], config["model"]["vocab_size"]) == (768, 12, 16384)
    history = pd.read_csv(job.folder / "history.csv")
    assert len(history) == 20 and history["patch_size"].tolist() == [2] * 10 + [1] * 10
    assert history["loss"].iloc[0] == pytest.approx(np.log(16384), rel=0.05) and history["loss"].iloc[-1] < 9
    metrics = json.loads((job.folder / "metrics.json").read_text())
    assert metrics["contract"]["precision"] == "bf16" and metrics["guidance"][0]["fid"] > 0 and metrics["probe"]


def test_the_published_tokenizer_is_tuned(home):
    """VQ-16 at its own size, from its release's file: fine-tuning begins with the file's bits, and two steps move them."""
    folder = home / "weights/LlamaGen"
    folder.mkdir(parents=True)
    torch.manual_seed(0)
    released = VQModel(VQConfig())
    torch.save({"model": released.state_dict()}, folder / "vq_ds16_c2i.pt")
    settings = TokenizerConfig(name="VQ-16", start="VQ-16", steps=2, batch_size=1, lr=1e-4, perceptual=1.0, discriminator=0.1)
    training = TokenizerTraining(settings.network, settings)
    first = training.model.encoder.conv_in.weight
    assert torch.equal(first, released.encoder.conv_in.weight)
    for _ in range(2):
        training.train_step(torch.rand(1, 3, 64, 64) * 2 - 1)
    assert not torch.equal(first, released.encoder.conv_in.weight) and "discriminator" in training.history[-1]


def write_releases(home):
    """imagenet256-eval with two small models, one on the larger grid, and an ADM file of small images."""
    rng, sizes = np.random.default_rng(0), {"dim": 16, "n_layer": 1, "n_head": 2, "multiple_of": 16}
    (home / "data").mkdir()
    arrays = {"arr_0": rng.integers(0, 256, (24, 32, 32, 3), dtype=np.uint8), "mu": rng.normal(size=1280), "sigma": np.eye(1280)}
    np.savez(home / "data/VIRTUAL_imagenet256_labeled.npz", **arrays)
    content = yaml.safe_load((presets.FOLDER / "imagenet256-eval.yaml").read_text())
    content["data"] |= {"image_size": 32}
    vq = {"ch": 8, "ch_mult": [1, 1, 2], "num_res_blocks": 1, "z_channels": 8, "codebook_size": 32, "norm_groups": 4}
    content |= {"tokenizer": {"vq": vq, "steps": 20, "batch_size": 4}, "extractor": {"name": "efficientnet-lite0"}}
    content["evaluation"] |= {"samples": 20, "select_samples": 8, "kid_subsets": 2, "batch_size": 20}
    content |= {
        "models": {"B": sizes, "L": sizes},
        "runs": {"B": ["ntp"], "L-384": ["ntp"]},
        "threads": 1,
        "tokenizer_threads": 1,
    }
    content["weights"] = {"GPT-B_ntp_seed0": "c2i_8.pt", "GPT-L-384_ntp_seed0": "c2i_12.pt"}
    for grid in (8, 12):
        model = GPT(GPTConfig(**sizes, vocab_size=32, num_classes=1000, grid_size=grid))
        torch.nn.init.normal_(model.output.weight)
        torch.save({"model": model.state_dict()}, home / f"c2i_{grid}.pt")
    (home / "released.yaml").write_text(yaml.safe_dump(content))
    return presets.load_preset(str(home / "released.yaml"))


def test_releases_without_training_and_without_images_of_ones_own(home):
    """ADM's file and weights are enough, on both grids; the table says which rows are releases and which have none."""
    preset = write_releases(home)
    launch.ensure(graph.report_job(preset, "table1_main"))
    text = (graph.results_dir(preset) / "table1_main.md").read_text()
    assert text.count("| released weights |") == 2 and "| LlamaGen-XXL | 1.4B |  | weights not released |" in text
    assert "our FID at the paper's scale (EfficientNet-Lite0 features)" in text and not list(home.rglob("train.ipynb"))
    metrics = json.loads((graph.results_dir(preset) / "runs/GPT-L-384_ntp_seed0/metrics.json").read_text())
    assert metrics["heldout_nll"] is None and metrics["weights"]["name"] == "c2i_12.pt"
