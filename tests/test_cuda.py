"""What only a GPU shows; skipped where none is."""

import dataclasses
import subprocess
import sys

import golden
import numpy as np
import pandas as pd
import pytest
import test_golden
import test_sample
import test_trainer
import torch

from nppkit.grouping import group_targets
from nppkit.jobs import leases
from nppkit.loss import patch_loss
from nppkit.machine.devices import autocast
from nppkit.model import GPT, GPTConfig
from nppkit.sample import compiled_decoder, decoder
from nppkit.schedule import drawn_segments

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
DEVICE = torch.device("cuda", 0)
HERE = "cuda:0"


@pytest.fixture(autouse=True)
def full_precision():
    """fp32 products in fp32: a trainer asks for TF32, and leaves it so."""
    torch.set_float32_matmul_precision("highest")
    yield
    torch.set_float32_matmul_precision("highest")


@pytest.mark.parametrize("patch_size", [1, 2, 4, 8])
def test_gpt_b(patch_size):
    """GPT-B's golden logits, loss and gradient norms in fp32, within the CPU's tolerance."""
    test_golden.check_gpt_b(patch_size, "cuda")


@pytest.mark.parametrize("patch_size", [1, 2, 4, 8])
def test_gpt_b_in_bf16(patch_size):
    """The same logits and loss under bf16 autocast, to bf16's 8 bits."""
    model, vectors = golden.fill(GPT(GPTConfig(dropout=0.0))).to(DEVICE), golden.load("gpt_b")
    codes, labels = (torch.from_numpy(vectors[key]).to(DEVICE) for key in ("codes", "labels"))
    with torch.no_grad(), autocast(DEVICE, "bf16"):
        logits = model(codes, labels, patch_size)
        loss = patch_loss(logits, group_targets(codes, patch_size))
    logits = logits[:, [0, logits.shape[1] // 2, logits.shape[1] - 1], :32].float().cpu()
    assert golden.relative_error(logits, vectors[f"ps{patch_size}/logits"]) < 2e-2
    assert golden.relative_error(loss.item(), vectors[f"ps{patch_size}/loss"]) < 2e-3


def test_vq16(monkeypatch):
    """VQ-16's golden latents, codes and pixels, with convolutions in fp32."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    test_golden.check_vq16("cuda")


def test_compiled_decoding():
    """The decoding step as a CUDA graph draws the codes of plain decoding."""
    test_sample.check_compiled_decoding("cuda")


def test_compiled_decoding_in_bf16():
    """GPT-B's logits of given codes, cell by cell, are those of the whole image at once, plain and as a CUDA graph."""
    model, vectors = golden.fill(GPT(GPTConfig(dropout=0.0))).to(DEVICE).eval().requires_grad_(False), golden.load("gpt_b")
    codes, labels = (torch.from_numpy(vectors[key]).to(DEVICE) for key in ("codes", "labels"))
    with torch.inference_mode(), autocast(DEVICE, "bf16"):
        expected = model(codes, labels)[:, :20].float()
        inputs = torch.cat([model.cls_embedding(labels)[:, None], model.tok_embeddings(codes)], 1)
        for make in (decoder, compiled_decoder):
            step = make(model, len(codes), DEVICE, torch.bfloat16)
            found = torch.stack([step(inputs[:, position], position).float() for position in range(20)], 1)
            assert golden.relative_error(found.cpu(), expected.cpu().numpy()) < 2e-2, make.__name__


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_resume(store, tmp_path, precision):
    """Two halves equal the whole, bit for bit: at this size no kernel adds in changing order."""
    changes = dict(device=HERE, precision=precision)
    test_trainer.same(
        test_trainer.run(store, tmp_path / "a", **changes), test_trainer.run(store, tmp_path / "b", (9,), **changes)
    )


def close(found, expected, rtol, atol):
    """Losses, norms and likelihoods within rtol, weights within both."""
    columns = ["loss", "grad_norm", "heldout_nll"]
    histories = [pd.DataFrame(t.history)[columns].to_numpy() for t in (found, expected)]
    np.testing.assert_allclose(*histories, rtol=rtol)
    state = found.model.state_dict()
    for key, value in expected.model.state_dict().items():
        torch.testing.assert_close(
            state[key].cpu(), value.cpu(), rtol=rtol, atol=atol, msg=lambda text, key=key: f"{key}: {text}"
        )


@pytest.mark.parametrize("options", [{}, dict(graphs=True), dict(graphs=True, micro_batch=3)])
def test_resume_when_compiled(store, tmp_path, options):
    """Dropout on: up to the order of atomic sums, so that the noise of every step is the same."""
    changes = dict(device=HERE, config=dataclasses.replace(test_trainer.CONFIG, lr=1e-3, compile=True), **options)
    whole = test_trainer.run(store, tmp_path / "whole", **changes)
    close(test_trainer.run(store, tmp_path / "parts", (9,), **changes), whole, 1e-3, 1e-4)


@pytest.mark.parametrize(
    ("compile", "options"),
    [
        *((False, {}), (True, dict(micro_batch=3)), (False, dict(graphs=True)), (True, dict(graphs=True))),
        (True, dict(graphs=True, micro_batch=3)),
    ],
)
def test_trains_as_a_cpu_does(store, tmp_path, compile, options):
    """Without dropout, whose noise is the device's, the same losses and weights up to TF32's rounding, as a graph, too."""
    config = dataclasses.replace(test_trainer.CONFIG, dropout=0.0, lr=1e-3)
    cpu = test_trainer.run(store, tmp_path / "cpu", config=config)
    config = dataclasses.replace(config, compile=compile)
    close(test_trainer.run(store, tmp_path / "gpu", config=config, device=HERE, **options), cpu, 1e-2, 1e-3)


def test_a_lease_shows_one_gpu(tmp_path, monkeypatch):
    """nvidia-smi's list is torch's; a process within a lease sees the GPU that was leased, and no other."""
    monkeypatch.setattr(leases, "FOLDER", tmp_path)
    assert len(leases.visible_gpus()) == torch.cuda.device_count()
    count = [sys.executable, "-c", "import torch; print(torch.cuda.device_count())"]
    with leases.leased(1) as gpus:
        assert len(gpus) == 1 and int(subprocess.check_output(count)) == 1


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_graphs_train_as_single_kernels_do(store, tmp_path, precision):
    """Dropout and resets on: a step replayed as a graph is the compiled step, noise included, and a boundary records nothing."""
    config = dataclasses.replace(test_trainer.CONFIG, lr=1e-3, compile=True, reset_optimizer=True)
    changes = dict(device=HERE, precision=precision, config=config)
    plain, graphs = (test_trainer.run(store, tmp_path / str(on), graphs=on, **changes) for on in (False, True))
    close(graphs, plain, *((1e-3, 1e-4) if precision == "fp32" else (2e-2, 5e-3)))
    assert set(graphs.graphs) == {1, 2, 4}


@pytest.mark.parametrize("levels", ["hard", "drawn"])
def test_graphs_of_better_patches(store, tmp_path, levels):
    """A window that learns, rests and is dropped, and levels that alternate, train as graphs as they do without."""
    config = dataclasses.replace(test_trainer.CONFIG, lr=1e-3, compile=True, patch="attention")
    segments = {"hard": test_trainer.SEGMENTS, "drawn": drawn_segments(8, 2, "1/2")}[levels]
    changes = dict(device=HERE, config=config, segments=segments)
    plain, graphs = (test_trainer.run(store, tmp_path / str(on), graphs=on, **changes) for on in (False, True))
    close(graphs, plain, 1e-3, 1e-4)
    assert not graphs.model.windows and set(graphs.graphs) == set(graphs.sizes())


def test_a_checkpoint_of_graphs_goes_on_without(store, tmp_path):
    """A run that was begun with graphs is ended without them, and the other way round."""
    config = dataclasses.replace(test_trainer.CONFIG, lr=1e-3, compile=True)
    whole = test_trainer.run(store, tmp_path / "whole", device=HERE, config=config)
    for first in (True, False):
        folder = tmp_path / str(first)
        folder.mkdir()
        begun = test_trainer.make_trainer(store, folder, config, device=HERE, graphs=first, save_minutes=0.0)
        with pytest.raises(test_trainer.Stopped):
            test_trainer.fit(begun, test_trainer.stop_after(9))
        ended = test_trainer.make_trainer(store, folder, config, device=HERE, graphs=not first)
        test_trainer.fit(ended)
        close(ended, whole, 1e-3, 1e-4)


def test_graphs_noise_follows_the_seed():
    """Two replays with one seed drop the same, with another seed something else."""
    from nppkit.training.graphs import StepGraph

    x = torch.ones(4096, device=DEVICE)
    step = StepGraph(lambda a, b: (torch.nn.functional.dropout(a, 0.5),), x, x, None)
    drawn = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        drawn.append(step(x, x)[0])
    assert torch.equal(drawn[0], drawn[1]) and not torch.equal(drawn[0], drawn[2])
