"""Class names as prefixes: bytes in place of the class token, which stay single tokens while the image is grouped."""

import dataclasses

import golden
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import write_store

from nppkit import cost
from nppkit.data.codes import CodeStore, prompts
from nppkit.data.images import mnist_images
from nppkit.errors import NppkitError
from nppkit.loss import npp_loss
from nppkit.model import GPT, PADDING, GPTConfig, KVCache, StaticKVCache, count_parameters, name_bytes, rotary_table
from nppkit.sample import SamplingConfig, sample_codes
from nppkit.schedule import cost_ratio, mean_cost, single_scale_segments
from nppkit.study import graph, models
from nppkit.study.presets import load_preset
from nppkit.study.runs import find_run
from nppkit.training.batches import batch_at
from nppkit.training.config import TrainingConfig
from nppkit.training.trainer import make_model

SIZES = dict(dim=32, n_layer=2, n_head=4, vocab_size=24, grid_size=4, multiple_of=8)
TOKEN = GPTConfig(**SIZES, num_classes=3)
LETTERS = GPTConfig(**SIZES, num_classes=3, names=("a", "z", "!"))
NAMES = GPTConfig(**SIZES, num_classes=3, names=("two", "neun", "\u00e9"))  # 3, 4 and 2 bytes
LABELS = torch.tensor([0, 1, 2, 3, 3])  # 3 is "unconditional"
CODES = golden.integers("names/codes", (5, 16), 24)


def gpt(config):
    return golden.fill(GPT(config)).eval().requires_grad_(False)


def test_a_prefix_of_one_is_the_class_token():
    """Names of one byte, with the class token's rows, give its logits, samples and parameters' names, bit for bit."""
    token, letters = gpt(TOKEN), gpt(LETTERS)
    assert [name for name, _ in token.named_parameters()] == [name for name, _ in letters.named_parameters()]
    rows = torch.tensor([ord("a"), ord("z"), ord("!"), PADDING])
    letters.cls_embedding.embedding_table.weight[rows] = token.cls_embedding.embedding_table.weight
    for p in (1, 2, 4):
        assert torch.equal(letters(CODES, LABELS, p), token(CODES, LABELS, p))
        assert cost.train_flops(LETTERS, p) == cost.train_flops(TOKEN, p)
    config = SamplingConfig(cfg_scale=2.0)
    drawn = [sample_codes(model, LABELS[:3], config, np.arange(3)) for model in (token, letters)]
    assert torch.equal(*drawn)


def test_names_are_bytes_padded_in_front():
    """UTF-8, the last byte next to the image; the row of "unconditional" is padding alone."""
    assert name_bytes(NAMES.names).tolist() == [
        [PADDING, *b"two"],
        [*b"neun"],
        [PADDING, PADDING, 0xC3, 0xA9],
        [PADDING] * 4,
    ]


def test_dropped_labels_leave_padding_alone(tmp_path):
    """Label dropout in training takes the whole name away: of a dropped label the model reads no byte, of others their name."""
    store = CodeStore(write_store(tmp_path / "store", n=40, class_names=list(NAMES.names)))
    sizes = {key: SIZES[key] for key in ("dim", "n_layer", "n_head", "multiple_of")}
    model, seen = make_model(store, sizes, TrainingConfig(condition="names"), seed=0), []
    model.cls_embedding.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    codes, labels = batch_at(store, 0, 40, 0, label_dropout=0.5)
    model(codes, labels, 2)
    dropped = labels == 3
    assert 0 < dropped.sum() < 40 and (seen[0][dropped] == PADDING).all()
    read = [bytes(row[row != PADDING].tolist()).decode() for row in seen[0][~dropped]]
    assert read == [NAMES.names[i] for i in labels[~dropped]]


@pytest.mark.parametrize("patch_size", [1, 2])
def test_patches_of_the_image_alone(patch_size):
    """Against a loop over windows: the prefix goes in byte by byte, its last position predicts the first patch."""
    model, seen, L, p = gpt(NAMES), [], 4, patch_size
    model.layers[0].register_forward_pre_hook(lambda module, inputs: seen.append(inputs))
    loss = npp_loss(model, CODES, LABELS, p)
    grid = CODES.view(5, 4, 4)
    windows = [grid[:, r : r + p, c : c + p].flatten(1) for r in range(0, 4, p) for c in range(0, 4, p)]
    table = model.cls_embedding.embedding_table.weight
    prefix = [table[name_bytes(NAMES.names)[LABELS, i]] for i in range(L)]
    inputs = prefix + [model.tok_embeddings(window).mean(1) for window in windows[:-1]]
    torch.testing.assert_close(seen[0][0], torch.stack(inputs, 1))
    rotary = torch.cat([torch.zeros(L, 4, 2), rotary_table(4 // p, 8)[1:]])[: len(inputs)]
    assert torch.equal(seen[0][1], rotary)
    x = torch.stack(inputs, 1)
    for layer in model.layers:
        x = layer(x, rotary)
    logits = model.output(model.norm(x))
    terms = [F.cross_entropy(logits[:, L - 1 + j], w[:, k]) for j, w in enumerate(windows) for k in range(p * p)]
    torch.testing.assert_close(loss, torch.stack(terms).mean())


def test_order_of_letters_counts():
    """A name's letters in another order are another condition, although they have no rotary positions."""
    one, other = (gpt(dataclasses.replace(NAMES, names=(name, "cat", "cow"))) for name in ("god", "dog"))
    differences = (one(CODES, LABELS) - other(CODES, LABELS)).abs().amax((1, 2))
    assert differences[0] > 1e-3 and not differences[1:].any()


@pytest.mark.parametrize("cache", [KVCache, StaticKVCache])
@torch.inference_mode()
def test_cached_decoding_equals_the_forward_pass(cache):
    """The prefix, then token by token, with either cache: the logits of the whole sequence."""
    model = gpt(NAMES)
    caches = [cache(NAMES, 5, CODES.device, torch.float32) for _ in model.layers]
    inputs = torch.cat([model.condition(LABELS), model.tok_embeddings(CODES)], 1)
    positions = range(NAMES.positions) if cache is KVCache else torch.arange(NAMES.positions)[:, None]
    steps = [model.decode(inputs[:, i], position, caches) for i, position in enumerate(positions)]
    torch.testing.assert_close(torch.stack(steps[3:], 1), model(CODES, LABELS))


@pytest.mark.parametrize("compiled", [False, True])
@torch.inference_mode()
def test_guided_samples(monkeypatch, compiled):
    """The most likely codes follow guidance between a name and padding alone, with the plain and the compiled decoder."""
    monkeypatch.setattr(torch, "compile", lambda step, **options: step)
    model, labels = gpt(NAMES), LABELS[:3]
    for _ in range(2):  # the compiled decoder's caches are used again
        codes = sample_codes(model, labels, SamplingConfig(cfg_scale=3.0, top_k=1, compile=compiled))
        cond, uncond = model(codes, labels), model(codes, torch.full_like(labels, 3))
        assert torch.equal(codes, (uncond + 3 * (cond - uncond)).argmax(-1)) and len(codes.unique()) > 3
    assert not torch.equal(codes, cond.argmax(-1))


@pytest.mark.parametrize("patch_size", [1, 2, 4])
def test_cost(patch_size):
    """The closed forms are what torch counts, and the model's parameters; NTP's prefix costs as much as NPP's."""
    model = GPT(NAMES)
    assert 5 * cost.train_flops(NAMES, patch_size) == cost.step_flops(model, CODES, LABELS, patch_size)
    assert cost.parameters(NAMES) == count_parameters(model)


def test_cost_ratio_counts_the_prefix():
    """Of 4 + 15 positions at p = 1 and 4 + 3 at p = 2, half of training each: as FLOPs say, but for attention and head."""
    segments = single_scale_segments(300, 2, "1/2")
    assert cost_ratio(segments, before=3 / 16) == pytest.approx((19 + 7) / 2 / 19)
    wide = dataclasses.replace(NAMES, dim=1024, vocab_size=2)
    flops = mean_cost(segments, lambda p: cost.train_flops(wide, p)) / cost.train_flops(wide, 1)
    assert flops == pytest.approx((19 + 7) / 2 / 19, rel=0.01)


def test_digits_are_words():
    """The digits' names are words; other classes keep their names."""
    assert prompts(mnist_images().class_names)[:3] == ("zero", "one", "two")
    assert prompts(["0", "1"]) == ("0", "1") and prompts(["cat", "dog"]) == ("cat", "dog")


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (("x" * 65, "a", "b"), "class name 'xxx.*': a prefix needs names of 1 to 64 bytes"),
        (("a", "", "b"), "class name ''"),
        (("cat", "dog", "cat"), "class name 'cat': .* no two alike: rename it"),
        (("a", "b", "caf\udce9"), "class name 'caf.udce9' is not in UTF-8: rename it"),
        (("cat", "dog"), "2 names are not those of 3 classes: give one a class"),
    ],
)
def test_names_that_make_no_prefix(names, message):
    """Too long, empty, twice, or not one a class: one line that names it."""
    with pytest.raises(NppkitError, match=message) as error:
        GPTConfig(**SIZES, num_classes=3, names=names)
    assert "\n" not in str(error.value)


def test_long_names_stop_before_any_training(smoke, changed):
    """A folder whose name is too long is found when images become codes, if a preset tells names."""
    images = dataclasses.replace(mnist_images(), class_names=("x" * 65, *"123456789"))
    models.check_inputs(smoke, 32, images)
    with pytest.raises(NppkitError, match="class name 'xxx"):
        models.check_inputs(changed(smoke, "training.condition", "names"), 32, images)


def test_settings(smoke, changed):
    """An unknown condition is refused by name; released weights, which know class tokens, too; the default is in no digest."""
    with pytest.raises(NppkitError, match="condition 'name' is unknown: use class or names"):
        changed(smoke, "training.condition", "name")
    told = changed(smoke, "training.condition", "names")
    with pytest.raises(NppkitError, match="weights are of models that are told class tokens"):
        dataclasses.replace(told, weights={"GPT-B_ntp_seed0": "c2i.pt"})
    run = find_run(smoke, "GPT-B_ntp_seed0")
    assert "condition" not in graph.train_job(smoke, run).config["training"]
    assert graph.train_job(told, run).config["training"]["condition"] == "names"


def test_preset():
    """The preset differs from study_8x8 in what its models are told; NTP's shorter training has NPP's FLOPs within 1 %."""
    preset, other = load_preset("names"), load_preset("study_8x8")
    assert dataclasses.replace(preset.training, condition="class") == other.training
    c = GPTConfig(**preset.models["B"], vocab_size=128, grid_size=8, num_classes=10, names=prompts("0123456789"))
    ntp, npp = (find_run(preset, f"GPT-B_{name}_seed0") for name in ("ntp", "npp_p2_lambda1-2"))
    short, long = preset.equal_flops["B"]
    total = {r: mean_cost(r.segments(300), lambda p: cost.train_flops(c, p)) for r in (ntp, npp)}
    assert short * total[ntp] == pytest.approx(300 * total[npp], rel=0.01)
    assert long * total[npp] == pytest.approx(300 * total[ntp], rel=0.01)
