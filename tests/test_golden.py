"""The core agrees with the public reference implementations (golden vectors, fp32 on CPU)."""

from fractions import Fraction

import golden
import numpy as np
import pytest
import torch

from nppkit.grouping import group_embeddings, group_targets
from nppkit.loss import patch_loss
from nppkit.model import GPT, GPTConfig
from nppkit.sample import SamplingConfig, filter_logits, sample_codes
from nppkit.schedule import learning_rate, multi_scale_segments
from nppkit.tokenizer import VQModel
from nppkit.tokenizer_config import TOKENIZERS

TINY = dict(dim=64, n_layer=2, n_head=4, vocab_size=64, num_classes=10, grid_size=8, dropout=0.0)


def check_gpt(model: GPT, name: str, vectors: dict, patch_size: int, logits_of=lambda logits: logits):
    """Logits, loss and gradient norms are the golden ones, on the model's device."""
    codes, labels = (torch.from_numpy(vectors[key]).to(model.output.weight.device) for key in ("codes", "labels"))
    model.zero_grad()
    logits = model(codes, labels, patch_size)
    loss = patch_loss(logits, group_targets(codes, patch_size))
    loss.backward()
    norms = {key: p.grad.cpu().norm().item() for key, p in model.named_parameters()}  # a CPU's fp32 sum, as the references'
    ours = {"logits": logits_of(logits).detach().cpu(), "loss": loss.item(), "grad_norm": np.linalg.norm(list(norms.values()))}
    prefix = f"ps{patch_size}/"
    for key in (key.removeprefix(prefix) for key in vectors if key.startswith(prefix)):
        value = ours[key] if key in ours else norms[key.removeprefix("grad_norm/")]
        assert golden.relative_error(value, vectors[prefix + key]) < 1e-4, f"{name} {prefix}{key}"


@pytest.mark.parametrize("patch_size", [1, 2, 4, 8])
def test_gpt_tiny(patch_size):
    """Logits, loss and gradient norms of a small transformer at every patch side."""
    vectors = golden.load("gpt_tiny")
    assert torch.equal(golden.integers("tiny/codes", (3, 64), 64), torch.from_numpy(vectors["codes"]))
    check_gpt(golden.fill(GPT(GPTConfig(**TINY))), "tiny", vectors, patch_size)


@pytest.mark.parametrize("patch_size", [1, 2])
def test_gpt_gqa(patch_size):
    """Grouped-query attention: consecutive query heads share a kv head."""
    check_gpt(golden.fill(GPT(GPTConfig(**TINY, n_kv_head=2))), "gqa", golden.load("gpt_gqa"), patch_size)


@pytest.mark.parametrize("scale", [1.0, 2.0, 4.0])
@pytest.mark.parametrize("interval", [-1, 20])
def test_greedy_decoding(scale, interval):
    """Arg-max decoding with guidance, always on and switched off after step 20."""
    vectors = golden.load("gpt_tiny")
    model = golden.fill(GPT(GPTConfig(**TINY))).eval()
    codes = sample_codes(
        model, torch.from_numpy(vectors["labels"]), SamplingConfig(cfg_scale=scale, cfg_interval=interval, top_k=1)
    )
    assert np.array_equal(codes.numpy(), vectors[f"greedy/cfg{scale}/interval{interval}"])


@pytest.mark.parametrize("patch_size", [2, 4, 8])
def test_grouping(patch_size):
    """Which tokens form a patch, and the patch means."""
    vectors = golden.load("grouping")
    targets = group_targets(torch.arange(256)[None], patch_size).numpy()
    assert np.array_equal(np.sort(targets, -1), np.sort(vectors[f"targets/ps{patch_size}"], -1))
    embeddings = torch.from_numpy(golden.uniform("grouping/embeddings", (2, 256, 5)).astype(np.float32))
    means = group_embeddings(embeddings, patch_size)
    torch.testing.assert_close(means, torch.from_numpy(vectors[f"mean/ps{patch_size}"]))


CASES = sorted({key.split("/")[0] for key in golden.load("lr_schedule")})


@pytest.mark.parametrize("case", CASES)
def test_learning_rate(case):
    """The learning rate of every step, and the epochs at which segments end."""
    vectors = golden.load("lr_schedule")
    epochs, steps, lam, levels = (float(part.lstrip("abcdehlmopstv")) for part in case.split("_"))
    segments = multi_scale_segments(int(epochs), int(levels), Fraction(lam).limit_denominator(10))
    assert [s.end for s in segments] == vectors[f"{case}/boundaries"].tolist()
    rates = [learning_rate(i, segments, int(steps), 1e-4) for i in range(int(epochs * steps))]
    np.testing.assert_allclose(rates, vectors[f"{case}/lr"], rtol=1e-12)


@pytest.mark.parametrize(("top_k", "top_p"), [(0, 1.0), (5, 1.0), (0, 0.8), (10, 0.5)])
def test_filtering(top_k, top_p):
    """Top-k, then nucleus filtering of logits."""
    vectors = golden.load("filtering")
    logits = torch.from_numpy((golden.uniform("filter/logits", (4, 50)) * 6).astype(np.float32))
    filtered = filter_logits(logits, top_k, top_p).numpy()
    np.testing.assert_allclose(filtered, vectors[f"topk{top_k}_topp{top_p}"], rtol=1e-5)


def check_gpt_b(patch_size: int, device: str):
    model, vectors = golden.fill(GPT(GPTConfig(dropout=0.0))).to(device), golden.load("gpt_b")
    check_gpt(model, "GPT-B", vectors, patch_size, lambda x: x[:, [0, x.shape[1] // 2, x.shape[1] - 1], :32])


def check_vq16(device: str):
    vectors, model = golden.load("vq16"), golden.fill(VQModel(TOKENIZERS["VQ-16"])).to(device).eval()
    images = torch.from_numpy(vectors["image_16x16"]).repeat_interleave(16, 2).repeat_interleave(16, 3).to(device)
    with torch.inference_mode():
        latent = model.quant_conv(model.encoder(images)).cpu()
        codes = model.encode(images).reshape(1, 16, 16).cpu().numpy()
        decoded = model.decode(torch.from_numpy(vectors["codes"]).to(device)).cpu()
    assert golden.relative_error(latent, vectors["latent"]) < 2e-5
    clear = vectors["margin"] > 1e-4
    assert clear.mean() > 0.9 and np.array_equal(codes[clear], vectors["encoded"][clear])
    assert golden.relative_error(decoded[..., ::8, ::8], vectors["decoded_every8"]) < 2e-5
    assert golden.relative_error(decoded.mean(), vectors["decoded_mean"]) < 1e-4
    assert golden.relative_error(decoded.std(), vectors["decoded_std"]) < 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("patch_size", [1, 2, 4, 8])
def test_gpt_b(patch_size):
    """The full GPT-B on a 16 x 16 grid."""
    check_gpt_b(patch_size, "cpu")


@pytest.mark.slow
def test_vq16():
    """VQ-16: latents, codes wherever the nearest row is clear, and decoded pixels."""
    check_vq16("cpu")


@pytest.mark.parametrize(
    ("family", "build"), [("gpt_b", lambda: GPT(GPTConfig())), ("vq16", lambda: VQModel(TOKENIZERS["VQ-16"]))]
)
def test_state_dict_is_the_released_one(family, build):
    """Keys and shapes are those of the released checkpoints."""
    with torch.device("meta"):
        state = {key: list(value.shape) for key, value in build().state_dict().items()}
    assert state == golden.shapes(family)
