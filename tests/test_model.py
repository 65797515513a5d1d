"""The transformer: sizes, initial weights, dropout, attention, positions, decoding, precision."""

import dataclasses
import itertools
import math
import re

import golden
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from nppkit.errors import NppkitError
from nppkit.loss import npp_loss
from nppkit.machine.devices import autocast, rounded
from nppkit.model import GPT, MODELS, GPTConfig, KVCache, RMSNorm, StaticKVCache, count_parameters, rotary_table, rotate
from nppkit.patches import make_windows
from nppkit.training.config import TrainingConfig

TINY = GPTConfig(dim=32, n_layer=2, n_head=4, vocab_size=24, num_classes=5, grid_size=4, multiple_of=8)
GQA = dataclasses.replace(TINY, n_kv_head=2)


def gpt(config=TINY):
    """A model in eval mode whose every weight, the output head's included, is its own."""
    return golden.fill(GPT(config)).eval()


def batch(config=TINY, n=3):
    """Codes (n, N) and labels (n,), the last of them "unconditional"."""
    labels = torch.arange(n) % config.num_classes
    labels[-1] = config.num_classes
    return golden.integers("model/codes", (n, config.block_size), config.vocab_size), labels


@pytest.mark.parametrize(("size", "count"), [("B", 110_888_448), ("L", 342_910_976), ("XL", 774_699_520), ("XXL", 1_410_972_672)])
@pytest.mark.parametrize("grid_size", [16, 24])
def test_parameters(size, count, grid_size):
    """The four sizes have the paper's parameters, on both grids: patches and positions add none."""
    with torch.device("meta"):
        assert count_parameters(GPT(GPTConfig(**MODELS[size], grid_size=grid_size))) == count


def test_initial_weights():
    """Linear layers and both tables start as N(0, 0.02), norms at 1, the output head at 0: so the loss starts at ln V."""
    torch.manual_seed(0)
    config = GPTConfig(dim=128, n_layer=2, n_head=4, vocab_size=256, num_classes=199, grid_size=4)
    model = GPT(config)
    for name, weight in model.named_parameters():
        if name == "output.weight":
            assert not weight.any()
        elif "norm" in name:
            assert (weight == 1).all()
        else:
            assert weight.dim() == 2 and abs(weight.mean()) < 5e-4 and abs(weight.std() / 0.02 - 1) < 0.02, name
            assert abs((weight.abs() > 0.04).float().mean() - 0.0455) < 0.006, f"{name} is not normal"
    assert npp_loss(model, *batch(config), 2).item() == pytest.approx(math.log(256))


def shift(x):
    """Stands for dropout: visible, different at every element, and the same at every call."""
    return x + torch.linspace(0.1, 1, x.numel()).view_as(x)


@pytest.mark.parametrize("patch_size", [1, 2])
def test_dropout_places(monkeypatch, patch_size):
    """Dropout acts on the embedded sequence with its class token, after wo, after w2, and nowhere else."""
    expected = gpt()
    expected.layers[0].register_forward_pre_hook(lambda module, inputs: (shift(inputs[0]), *inputs[1:]))
    for layer in expected.layers:
        layer.attention.wo.register_forward_hook(lambda module, inputs, output: shift(output))
        layer.feed_forward.w2.register_forward_hook(lambda module, inputs, output: shift(output))
    logits = expected(*batch(), patch_size)
    monkeypatch.setattr(nn.Dropout, "forward", lambda module, x: shift(x))
    torch.testing.assert_close(gpt().train()(*batch(), patch_size), logits)


def test_dropout_rates():
    """Each place, 1 + 2 a layer, drops a tenth and scales the rest by 10 / 9; the rate is training's default too."""
    torch.manual_seed(0)
    model, seen = gpt(dataclasses.replace(TINY, dim=64)).train(), []
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.register_forward_hook(lambda module, inputs, output: seen.append((inputs[0], output)))
    for _ in range(4):
        model(*batch(n=8))
    assert len(seen) == 4 * (1 + 2 * TINY.n_layer)
    for x, y in seen:
        assert 0.07 < (y == 0).float().mean() < 0.13
        torch.testing.assert_close(y[y != 0], x[y != 0] / 0.9)
    assert TrainingConfig().dropout == GPTConfig().dropout == 0.1


def test_no_other_noise(monkeypatch):
    """Without nn.Dropout, training mode gives eval mode's logits: attention weights and labels are not dropped inside."""
    codes, labels = batch()
    logits = gpt()(codes, labels)
    assert not torch.equal(gpt().train()(codes, labels), logits)
    monkeypatch.setattr(nn.Dropout, "forward", lambda module, x: x)
    assert torch.equal(gpt().train()(codes, labels), logits)


@pytest.fixture
def attended(monkeypatch):
    """Queries, keys and values of every attention call, each (B, H, T, D)."""
    calls, attention = [], F.scaled_dot_product_attention

    def record(q, k, v, **kwargs):
        calls.append((q, k, v))
        return attention(q, k, v, **kwargs)

    monkeypatch.setattr(F, "scaled_dot_product_attention", record)
    return calls


@pytest.mark.parametrize("patch_size", [1, 2, 4])
def test_class_token_has_no_query_and_key(attended, patch_size):
    """The class token's query and key are zero at every patch side, its value is not: every token attends to it with logit 0."""
    gpt()(*batch(), patch_size)
    assert len(attended) == TINY.n_layer
    for q, k, v in attended:
        assert not q[:, :, 0].any() and not k[:, :, 0].any()
        assert v[:, :, 0].all() and (q[:, :, 1:] != 0).any(-1).all() and (k[:, :, 1:] != 0).any(-1).all()


@pytest.mark.parametrize("config", [TINY, GQA], ids=["mha", "gqa"])
def test_rows_of_the_fused_projection(attended, config):
    """wqkv's rows are all query heads, then all key heads, then all value heads, each head's rows together."""
    model = gpt(config)
    inputs = []
    model.layers[0].attention.wqkv.register_forward_hook(lambda module, args, output: inputs.append(args[0]))
    model(*batch(config))
    heads = inputs[0] @ model.layers[0].attention.wqkv.weight.T.unflatten(1, (-1, config.head_dim)).permute(1, 0, 2)[:, None]
    for found, rows, turned in zip(
        attended[0], heads.split([4, config.kv_heads, config.kv_heads]), (True, True, False), strict=True
    ):
        rows = rows.permute(1, 2, 0, 3)  # (B, T, H, D)
        expected = rotate(rows, model.rotary(1)[: rows.shape[1]]) if turned else rows
        torch.testing.assert_close(found.transpose(1, 2), expected)


@pytest.mark.parametrize("patch_size", [1, 2])
@pytest.mark.parametrize("config", [TINY, GQA], ids=["mha", "gqa"])
def test_causality(config, patch_size):
    """Another code in place i changes no logits up to that of its patch, and changes the next ones."""
    model, (codes, labels) = gpt(config), batch(config)
    logits, side = model(codes, labels, patch_size), config.grid_size // patch_size
    for i in range(config.block_size):
        changed = codes.clone()
        changed[:, i] = (changed[:, i] + 1) % config.vocab_size
        patch = i // config.grid_size // patch_size * side + i % config.grid_size // patch_size
        difference = (model(changed, labels, patch_size) - logits).abs().amax((0, 2))
        assert not difference[: patch + 1].any() and difference[patch + 1 :].gt(1e-6).all()


def test_label_reaches_every_position():
    """The class shows in the logits of every token, "unconditional" is a class of its own."""
    model, (codes, _) = gpt(), batch()
    logits = [model(codes[:1], torch.tensor([label])) for label in range(TINY.num_classes + 1)]
    for a, b in itertools.combinations(logits, 2):
        assert ((a - b).abs().amax(-1) > 1e-6).all()


@pytest.mark.parametrize("config", [TINY, GQA, dataclasses.replace(TINY, grid_size=6)], ids=["mha", "gqa", "6x6"])
@pytest.mark.parametrize("cache", [KVCache, StaticKVCache])
@torch.inference_mode()
def test_cached_decoding_equals_the_forward_pass(config, cache):
    """One position at a time with either key-value cache gives the logits of the whole sequence, to the last position."""
    model, (codes, labels) = gpt(config), batch(config)
    caches = [cache(config, len(codes), codes.device, torch.float32) for _ in model.layers]
    inputs = torch.cat([model.cls_embedding(labels)[:, None], model.tok_embeddings(codes)], 1)
    positions = range(config.block_size) if cache is KVCache else torch.arange(config.block_size)[:, None]
    steps = [model.decode(inputs[:, i], position, caches) for i, position in enumerate(positions)]
    torch.testing.assert_close(torch.stack(steps, 1), model(codes, labels))


def test_recomputed_activations_change_nothing():
    """With `recompute` every block runs again in the backward pass, with the same dropout: same loss, same gradients."""
    results = []
    for recompute in (False, True):
        model, calls = golden.fill(GPT(TINY)).train(), []
        model.recompute = recompute
        model.layers[1].feed_forward.register_forward_pre_hook(lambda *_, calls=calls: calls.append(1))
        torch.manual_seed(0)
        loss = npp_loss(model, *batch(), 2)
        loss.backward()
        results.append([loss.detach(), *(p.grad for p in model.parameters())])
        assert len(calls) == 1 + recompute
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_patch_of_equal_tokens_is_a_token():
    """An 8 x 8 grid of 2 x 2 windows of one code each is, at p = 2, the 4 x 4 grid of those codes at p = 1."""
    coarse, labels = batch()
    fine = coarse.reshape(-1, 4, 4).repeat_interleave(2, 1).repeat_interleave(2, 2).flatten(1)
    large = gpt(dataclasses.replace(TINY, grid_size=8))
    torch.testing.assert_close(large(fine, labels, 2), gpt()(coarse, labels, 1))


def test_patch_size_one_is_next_token_prediction():
    """At p = 1 the tokens themselves are the input, and the loss is the cross-entropy of every next token."""
    model, (codes, labels) = gpt(), batch()
    seen = []
    model.layers[0].register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    loss = npp_loss(model, codes, labels, 1)
    inputs = torch.cat([model.cls_embedding(labels)[:, None], model.tok_embeddings(codes[:, :-1])], 1)
    assert torch.equal(seen[0], inputs)
    torch.testing.assert_close(loss, F.cross_entropy(model(codes, labels).flatten(0, 1), codes.flatten()))


@pytest.mark.parametrize("side", [2, 3, 24])
def test_rotary_closed_form(side):
    """Cell (r, c) turns pair j of the first half by r * base**(-2 j / (D / 2)), of the second half by c times the same."""
    D = 16
    x = golden.weight("rotary/x", (1, 1 + side**2, 1, D))
    turned = torch.view_as_complex(rotate(x, rotary_table(side, D)).unflatten(-1, (-1, 2)))[0, :, 0]
    pairs = torch.view_as_complex(x.unflatten(-1, (-1, 2)))[0, :, 0]
    assert not turned[0].any()
    for r, c in itertools.product(range(side), repeat=2):
        angles = [place * 10000 ** (-2 * j / (D / 2)) for place in (r, c) for j in range(D // 4)]
        expected = pairs[1 + r * side + c] * torch.polar(torch.ones(D // 2), torch.tensor(angles))
        torch.testing.assert_close(turned[1 + r * side + c], expected, rtol=1e-4, atol=1e-5)


def test_rotary_is_relative():
    """A query and a key meet by the difference of their rows and columns alone."""
    side, D = 24, 32
    q, k = (golden.weight(name, (1, 1, 1, D)).expand(1, 1 + side**2, 1, D) for name in ("rotary/q", "rotary/k"))
    table = rotary_table(side, D)
    dots = (rotate(q, table)[0, 1:, 0] @ rotate(k, table)[0, 1:, 0].T).reshape(side, side, side, side)
    torch.testing.assert_close(dots[5, 7, 2, 20], dots[15, 4, 12, 17])
    assert (dots[5, 7, 2, 20] - dots[5, 7, 20, 2]).abs() > 1e-3


def test_grid_of_384_pixels():
    """A 24 x 24 grid: 576 positions at p = 1, and every divisor of 24 as patch side, each with its own grid of positions."""
    config = dataclasses.replace(TINY, grid_size=24)
    model, (codes, labels) = gpt(config), batch(config)
    for p in (1, 2, 3, 4, 6, 8, 12, 24):
        assert model(codes, labels, p).shape == (3, (24 // p) ** 2, config.vocab_size)
        assert torch.equal(model.rotary(p), rotary_table(24 // p, config.head_dim))


@pytest.mark.parametrize(("grid", "window"), [((16,), (4,)), ((4, 6), (2, 2)), ((2, 4, 6), (1, 2, 2))])
def test_any_grid(grid, window):
    """Patches that repeat one code each, on a grid of any shape, give the logits of a model on the grid of patches at p = 1."""
    counts = tuple(n // p for n, p in zip(grid, window, strict=True))
    fine, coarse = (gpt(dataclasses.replace(TINY, dim=48, grid_size=g)) for g in (grid, counts))
    codes, labels = batch(coarse.config)
    repeated = codes.view(-1, *counts)
    for axis, p in enumerate(window, 1):
        repeated = repeated.repeat_interleave(p, axis)
    torch.testing.assert_close(fine(repeated.flatten(1), labels, window), coarse(codes, labels))
    assert torch.equal(fine.rotary(window), rotary_table(counts, 12))


def test_rotary_of_a_text():
    """On one axis every pair turns by the token's place, as in an ordinary language model."""
    table = rotary_table((5,), 8)
    angles = torch.outer(torch.arange(5.0), 10000.0 ** (-torch.arange(4) / 4))
    torch.testing.assert_close(table[1:], torch.stack([angles.cos(), angles.sin()], -1))


def test_heads_of_any_grid():
    """Each axis needs an equal share of a head's pairs."""
    with pytest.raises(NppkitError, match="a head needs a multiple of 6 dimensions"):
        GPTConfig(dim=64, n_head=4, grid_size=(2, 4, 4))


@pytest.mark.parametrize("patch_size", [1, 2])
def test_grouped_query_attention(patch_size):
    """Two kv heads serve four query heads as four kv heads would whose weights are each given twice, in consecutive order."""
    few, many = gpt(GQA), gpt(TINY)
    with torch.no_grad():
        for a, b in zip(few.layers, many.layers, strict=True):
            q, k, v = a.attention.wqkv.weight.split([32, 16, 16])
            k, v = (w.unflatten(0, (2, 8)).repeat_interleave(2, 0).flatten(0, 1) for w in (k, v))
            b.attention.wqkv.weight.copy_(torch.cat([q, k, v]))
            b.attention.wo.weight.copy_(a.attention.wo.weight)
    torch.testing.assert_close(few(*batch(), patch_size), many(*batch(), patch_size))


@pytest.mark.parametrize("patch_size", [1, 2])
def test_bf16_autocast(patch_size):
    """bf16 keeps logits within 2 % of their largest value and the loss within 0.2 %; gradients stay fp32."""
    model, (codes, labels) = gpt(), batch()
    logits, loss = model(codes, labels, patch_size), npp_loss(model, codes, labels, patch_size)
    with autocast(codes.device, "bf16"):
        low, low_loss = model(codes, labels, patch_size), npp_loss(model, codes, labels, patch_size)
    assert low.dtype == torch.bfloat16 and not torch.equal(low.float(), logits)
    assert golden.relative_error(low.float().detach(), logits.detach()) < 0.02
    torch.testing.assert_close(low_loss, loss, rtol=2e-3, atol=0)
    low_loss.backward()
    assert {p.grad.dtype for p in model.parameters()} == {torch.float32}


def test_weights_held_in_bf16_change_no_bit():
    """What autocast rounds at every step may be rounded once: the same logits, half of the bytes. fp32 is left as it is."""
    model, (codes, labels) = gpt(), batch()
    with autocast(codes.device, "bf16"):
        before = model(codes, labels)
        assert rounded(model, "fp32").output.weight.dtype == torch.float32
        assert torch.equal(rounded(model, "bf16")(codes, labels), before)
    kinds = {name.split(".")[-2]: p.dtype for name, p in model.named_parameters()}
    assert kinds["wqkv"] == kinds["output"] == torch.bfloat16 and kinds["norm"] == kinds["tok_embeddings"] == torch.float32


def test_norm_and_rotation_are_fp32():
    """The norm and the rotation of bf16 input are those of its fp32 values, rounded once."""
    x = (100 * golden.weight("norm/x", (2, 10, 1, 64))).bfloat16()
    norm, table = RMSNorm(64, 1e-5), rotary_table(3, 64)
    exact = x.double() / (x.double().square().mean(-1, keepdim=True) + 1e-5).sqrt()
    torch.testing.assert_close(norm(x).float(), exact.bfloat16().float(), rtol=0, atol=0)
    assert torch.equal(rotate(x, table), rotate(x.float(), table).bfloat16())


def test_norm_eps():
    """The norm's eps is 1e-5 inside the root: small activations keep their size."""
    x = torch.full((1, 8), 1e-3)
    torch.testing.assert_close(RMSNorm(8, GPTConfig().norm_eps)(x), x / math.sqrt(1e-6 + 1e-5))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (dict(dim=30, n_head=4), r"dim 30 / n_head 4: a head needs a multiple of 4"),
        (dict(dim=24, n_head=4), r"dim 24 / n_head 4: a head needs a multiple of 4"),
        (dict(n_head=12, n_kv_head=5), r"n_kv_head 5 does not divide n_head 12"),
        (dict(grid_size=0), r"grid_size 0 .* whole numbers above 0"),
        (dict(grid_size=()), r"grid_size \(\) .* whole numbers above 0"),
        (dict(grid_size=16.0), r"grid_size 16.0 .* whole numbers above 0"),
        (dict(n_head=0), "n_head 0 is no int, or too small"),
        (dict(n_kv_head=-1), "n_kv_head -1 is no int, or too small"),
        (dict(n_layer=1.5), "n_layer 1.5 is no int"),
        (dict(vocab_size=True), "vocab_size True is no int"),
        (dict(grid_size=-4), r"grid_size -4 .* whole numbers above 0"),
        (dict(grid_size=(4, 0)), r"grid_size \(4, 0\) .* whole numbers above 0"),
        (dict(dropout=1.0), r"dropout 1.0 is not in \[0, 1\)"),
        (dict(rope_base=0), r"rope_base 0 is not above 0"),
    ],
)
def test_bad_configuration(values, message):
    """Sizes that make no model are refused by name."""
    with pytest.raises(NppkitError, match=message):
        GPTConfig(**values)


def test_bad_patch_size():
    """A patch side that does not divide the grid is refused before anything is computed."""
    with pytest.raises(NppkitError, match="patch_size 3 does not divide the 4 x 4 grid"):
        gpt()(*batch(), 3)


@pytest.mark.parametrize("kind", ["mean", "offset"])
@pytest.mark.parametrize("patch_size", [1, 2])
def test_codes_of_another_grid(patch_size, kind):
    """Codes of a smaller picture are refused at every patch size: the model would place them in rows of its own grid."""
    model, (codes, labels) = gpt(), batch()
    model.windows = make_windows(kind, [patch_size], TINY.dim)
    with pytest.raises(NppkitError, match=r"^4 tokens do not fill the 4 x 4 grid"):
        model(codes[:, :4], labels, patch_size)


def test_no_batch():
    """Codes without labels of their own, or no codes at all, are named with their shapes."""
    model, (codes, labels) = gpt(), batch()
    for few, of in [(codes, labels[:1]), (codes, labels[:, None]), (codes[0], labels), (codes[:0], labels[:0])]:
        words = re.escape(f"codes {[*few.shape]} and labels {[*of.shape]}")
        with pytest.raises(NppkitError, match=words):
            model(few, of)
