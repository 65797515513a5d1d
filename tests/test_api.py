"""The public API: what `from nppkit import ...` offers, each with an example that runs."""

import doctest
import math
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import nppkit
from nppkit import GPT, GPTConfig, NppkitError, SamplingConfig, VQConfig, VQModel, patch_loss, sample_codes
from nppkit.sample import decode_tokens
from nppkit.study import tables

ROOT = Path(__file__).parents[1]
FUNCTIONS = [name for name in nppkit.__all__ if callable(getattr(nppkit, name))]


@pytest.mark.parametrize("name", FUNCTIONS)
def test_examples_run(name, monkeypatch):
    """Every public name has a docstring with an example, which gives what it says."""
    monkeypatch.setenv("NPPKIT_HOME", str(ROOT))
    value = getattr(nppkit, name)
    tests = doctest.DocTestFinder(recurse=False).find(value, name, globs=vars(sys.modules[value.__module__]).copy())
    assert sum(len(test.examples) for test in tests), f"{name} has no example"
    for test in tests:
        assert doctest.DocTestRunner(optionflags=doctest.IGNORE_EXCEPTION_DETAIL).run(test).failed == 0


def test_import_alone_is_free():
    """`import nppkit` imports no torch; the first use of a name does, and an unknown one is named."""
    code = "import sys, nppkit; print('torch' in sys.modules); nppkit.patch_loss; print('torch' in sys.modules)"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).split() == ["False", "True"]
    with pytest.raises(AttributeError, match="no attribute 'patch_los'"):
        nppkit.patch_los  # noqa: B018


def test_help_is_a_page(capsys):
    """help(nppkit) begins with the method and lists every public name."""
    help(nppkit)
    page = capsys.readouterr().out
    assert "Next Patch Prediction" in page and all(name in page for name in nppkit.__all__)


@pytest.mark.parametrize("bad", [-1, 32, 2**40])
def test_codes_and_labels_out_of_range(bad):
    """Model, loss, sampler and tokenizer say which integers are wrong, and what they may be."""
    model = GPT(GPTConfig(dim=16, n_layer=1, n_head=2, vocab_size=32, num_classes=10, grid_size=4)).eval()
    vq = VQModel(VQConfig(ch=8, ch_mult=(1, 2), num_res_blocks=1, z_channels=8, codebook_size=32, norm_groups=4))
    codes, labels = torch.full((1, 16), bad), torch.tensor([bad])
    good = torch.zeros(1, 16, dtype=torch.int64)
    calls = {
        "codes": [lambda: model(codes, torch.tensor([3])), lambda: vq.decode(codes)],
        "labels": [lambda: model(good, labels), lambda: sample_codes(model, labels, SamplingConfig())],
        "targets": [lambda: patch_loss(torch.zeros(1, 16, 32), codes[..., None])],
        "prefix codes": [lambda: next(decode_tokens(model, torch.tensor([3]), SamplingConfig(), prefix=codes))],
    }
    for name, functions in calls.items():
        for call in functions:
            with pytest.raises(NppkitError, match=rf"^{name} hold {bad}: they must be from 0 to (31|10)$"):
                call()


def test_integers_are_asked_for_by_name():
    """Whatever reads codes or labels says which of them are no integers."""
    model = GPT(GPTConfig(dim=16, n_layer=1, n_head=2, vocab_size=32, num_classes=10, grid_size=4)).eval()
    vq = VQModel(VQConfig(ch=8, ch_mult=(1, 2), num_res_blocks=1, z_channels=8, codebook_size=32, norm_groups=4))
    codes, labels = torch.zeros(1, 16, dtype=torch.int64), torch.tensor([3])
    calls = {
        "codes": [lambda: model(codes.float(), labels), lambda: vq.decode(codes.float())],
        "labels": [lambda: model(codes, labels.float()), lambda: sample_codes(model, labels.float(), SamplingConfig())],
        "targets": [lambda: patch_loss(torch.zeros(1, 16, 32), codes[..., None].float())],
        "prefix codes": [lambda: next(decode_tokens(model, labels, SamplingConfig(), prefix=codes.float()))],
    }
    for name, functions in calls.items():
        for call in functions:
            with pytest.raises(NppkitError, match=f"^{name} are torch.float32: they must be integers"):
                call()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: nppkit.group_targets(np.zeros((2, 16), int), 2), "codes are a ndarray: give a torch.Tensor"),
        (lambda: nppkit.group_embeddings(np.zeros((2, 16, 4)), 2), "embeddings are a ndarray"),
        (lambda: nppkit.patch_loss(torch.zeros(2, 4, 32), np.zeros((2, 4, 4), int)), "targets are a ndarray"),
        (lambda: nppkit.patch_loss(np.zeros((2, 4, 32)), torch.zeros(2, 4, 4, dtype=torch.int64)), "logits are a ndarray"),
        (lambda: nppkit.ntp_segments(None), "epochs None is not a whole number"),
        (lambda: nppkit.ntp_segments(1.5), "epochs 1.5 is not a whole number"),
        (lambda: nppkit.single_scale_segments("10", 2, "1/2"), "epochs '10' is not a whole number"),
        (lambda: nppkit.multi_scale_segments(10.0, 2, "1/2"), "epochs 10.0 is not a whole number"),
        (lambda: nppkit.Segment(2, 0, 1, 1.5), "coarse is from 0 to 1"),
        (lambda: nppkit.GPTConfig(dropout="0.1"), "dropout '0.1' is no float"),
        (lambda: nppkit.VQConfig(ch_mult=(0, 1)), r"ch_mult \(0, 1\): give a list of whole numbers above 0"),
        (lambda: tokenizer().encode(torch.zeros(1, 3, 8, 8, dtype=torch.uint8)), r"images must be floating-point \(B, 3, S, S\)"),
        (lambda: tokenizer().decode(torch.zeros(16, dtype=torch.int64)), r"codes \[16\]: give \(images, tokens\)"),
        (lambda: tables.make_table(nppkit.load_preset("study"), 9), "table 9: the paper has Tables 1 to 5"),
    ],
)
def test_what_is_no_such_thing_is_said_in_one_line(call, message):
    """NumPy's arrays, texts and fractions in the public functions: never a traceback from within."""
    with pytest.raises(nppkit.NppkitError, match=message):
        call()


def tokenizer():
    return nppkit.VQModel(nppkit.VQConfig(ch=4, ch_mult=(1, 1), num_res_blocks=1, z_channels=8, codebook_size=16, norm_groups=2))


@pytest.mark.parametrize(("step", "length", "rate"), [(0, 4, 0), (5, 4, 1e-3), (10, 16, 0)])
def test_readmes_lines_run(step, length, rate):
    """README's step of a model of one's own: patches at places amid their tokens, then tokens; the rate starts again."""
    seen = {}

    def model(start, patches, places):
        seen.update(patches=patches, places=places)
        return torch.zeros(len(start), 1 + patches.shape[1], 32)

    known = dict(epochs=4, steps_per_epoch=5, step=step, base_lr=1e-3, model=model, class_embedding=torch.zeros(2, 8))
    known |= {"token_embeddings": torch.randn(2, 16, 8), "position_table": torch.arange(16.0).view(1, 16, 1)}
    known["codes"] = torch.randint(32, (2, 16))
    (lines,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    exec(lines, known)
    assert known["p"] ** 2 == 16 // length and known["lr"] == rate
    assert seen["patches"].shape == (2, length - 1, 8) and seen["places"].shape == (1, length, 1)
    assert seen["places"].flatten()[0] == (2.5 if length == 4 else 0)
    assert known["loss"].item() == pytest.approx(math.log(32))
