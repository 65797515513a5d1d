"""NPP in LlamaGen's own training script: three lines, against the reference implementations' golden vectors.

NPPKIT_LLAMAGEN=/path/to/a/checkout tests LlamaGen's own model too; without it a model with its interface stands in.
"""

import importlib.util
import os
import re
import sys
from pathlib import Path
from types import SimpleNamespace

import golden
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from nppkit.errors import NppkitError
from nppkit.llamagen import npp_loss, set_level, set_patch_size
from nppkit.model import GPT, GPTConfig, rotary_table

ROOT = Path(__file__).parents[1]
CHECKOUT = os.environ.get("NPPKIT_LLAMAGEN", "")
SIZES = dict(dim=64, n_layer=2, n_head=4, vocab_size=64, num_classes=10)


class LabelEmbedder(nn.Module):
    """LlamaGen's class embedding has a `train` argument and a place of its own in the sequence."""

    def __init__(self, table: nn.Embedding):
        super().__init__()
        self.embedding_table = table

    def forward(self, labels, train):
        return self.embedding_table(labels)[:, None]


class StandIn(nn.Module):
    """What autoregressive/models/gpt.py shows to its training script, of this package's parts."""

    def __init__(self):
        super().__init__()
        model = GPT(GPTConfig(**SIZES, grid_size=8, dropout=0.0))
        self.config = SimpleNamespace(**SIZES, block_size=64, rope_base=10000, cls_token_num=1)
        self.cls_embedding, self.tok_embeddings = LabelEmbedder(model.cls_embedding.embedding_table), model.tok_embeddings
        self.layers, self.norm, self.output = model.layers, model.norm, model.output
        self.freqs_cis = rotary_table(8, 16)

    def forward(self, idx, cond_idx, targets=None):
        x = torch.cat([self.cls_embedding(cond_idx, train=self.training), self.tok_embeddings(idx)], 1)
        freqs_cis = self.freqs_cis[: x.shape[1]]
        for layer in self.layers:
            x = layer(x, freqs_cis)
        logits = self.output(self.norm(x)).float()
        return logits, None if targets is None else F.cross_entropy(logits.flatten(0, 1), targets.flatten())


def checked_out():
    """LlamaGen's own Transformer at the golden sizes, without dropout."""
    if not CHECKOUT:
        pytest.skip("NPPKIT_LLAMAGEN names no checkout")
    sys.path.insert(0, CHECKOUT)
    try:
        spec = importlib.util.spec_from_file_location("llamagen_gpt", f"{CHECKOUT}/autoregressive/models/gpt.py")
        spec.loader.exec_module(module := importlib.util.module_from_spec(spec))
    finally:
        sys.path.remove(CHECKOUT)
    none = dict.fromkeys(("token_dropout_p", "resid_dropout_p", "ffn_dropout_p"), 0.0)
    model = module.Transformer(module.ModelArgs(**SIZES, block_size=64, **none))
    model.cls_embedding.dropout_prob = 0.0
    return model


@pytest.fixture(params=[StandIn, checked_out], ids=["stand-in", "checkout"])
def model(request):
    return golden.fill(request.param()).train()


def batch():
    vectors = golden.load("gpt_tiny")
    return vectors, torch.from_numpy(vectors["codes"]), torch.from_numpy(vectors["labels"])


def test_golden_vectors(model):
    """Logits, loss and the gradients' norm at every patch side, one after the other and back again."""
    vectors, codes, labels = batch()
    for p in (8, 4, 2, 1, 2):
        set_patch_size(model, p)
        model.zero_grad()
        loss = npp_loss(model, codes, labels)
        loss.backward()
        ours = {"logits": model(cond_idx=labels, idx=codes)[0].detach(), "loss": loss.item()}
        ours["grad_norm"] = np.linalg.norm([weight.grad.norm().item() for weight in model.parameters()])
        for key, value in ours.items():
            assert golden.relative_error(value, vectors[f"ps{p}/{key}"]) < 1e-4, (p, key)


def test_patch_size_one_is_llamagens_own(model):
    """At p = 1 the loss is what the script computed before, and in eval mode the model is untouched at any p."""
    vectors, codes, labels = batch()
    own, own_logits = model(cond_idx=labels, idx=codes[:, :-1], targets=codes)[1], model.eval()(cond_idx=labels, idx=codes)[0]
    for p in (1, 2, 8):
        set_patch_size(model.train(), p)
        if p == 1:
            torch.testing.assert_close(npp_loss(model, codes, labels), own, rtol=0, atol=1e-6)
        npp_loss(model, codes, labels)
        assert torch.equal(model.eval()(cond_idx=labels, idx=codes)[0], own_logits), p
        model.freqs_cis = rotary_table(8, 16)  # as LlamaGen's setup_caches does before it samples
        assert golden.relative_error(npp_loss(model.train(), codes, labels).item(), vectors[f"ps{p}/loss"]) < 1e-4, p


def test_wrapped_and_compiled():
    """Out of DDP and torch.compile, where a change of the patch side must reach the compiled model."""
    vectors, codes, labels = batch()
    wrapped = nn.DataParallel(torch.compile(golden.fill(StandIn()), backend="eager"))
    for epoch, p in ((0, 8), (1, 4), (2, 2), (4, 1), (7, 1), (1, 4)):
        set_level(wrapped, epoch, epochs=8, levels=4)
        loss = npp_loss(wrapped, codes, labels)
        assert golden.relative_error(loss.item(), vectors[f"ps{p}/loss"]) < 1e-4, epoch


def test_bad_patch_size():
    """A side that does not divide the grid is named, and the model stays as it was."""
    model = StandIn()
    with pytest.raises(NppkitError, match="patch_size 3 does not divide the 8 x 8 grid"):
        set_patch_size(model, 3)
    assert not hasattr(model, "patch_size")


def test_lines_of_the_recipe():
    """The recipe's page changes three lines, calls what exists, and replaces a line that the checkout has."""
    diff = re.search(r"```diff\n(.*?)```", (ROOT / "docs/other_models.md").read_text(), re.S)[1].splitlines()
    added, removed = ([line[1:].strip() for line in diff if line[0] == sign] for sign in "+-")
    assert len(added) == 3 and len(removed) == 1 and "npp_loss(model, z_indices, c_indices)" in added[-1]
    exec(added[0], {})
    if CHECKOUT:
        script = (Path(CHECKOUT) / "autoregressive/train/train_c2i.py").read_text()
        context = [line[1:].strip() for line in diff if line[0] in " -"]
        assert all(line in script for line in context)
