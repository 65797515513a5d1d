"""Sampling: guidance, temperature, filters, draws, and samples that depend on their index alone."""

import dataclasses

import golden
import numpy as np
import pytest
import torch
from conftest import write_store

from nppkit import noise
from nppkit.data.codes import CodeStore
from nppkit.errors import NppkitError
from nppkit.model import GPT, GPTConfig
from nppkit.sample import SamplingConfig, decode_tokens, filter_logits, guide, pick, sample_codes, sample_labels
from nppkit.training.batches import batch_at
from nppkit.training.config import TrainingConfig

TINY = GPTConfig(dim=32, n_layer=2, n_head=4, vocab_size=24, num_classes=5, grid_size=4, multiple_of=8)
INDEX = np.arange(20)
LABELS = torch.from_numpy(sample_labels(INDEX, TINY.num_classes, 0))
CHI2_999 = {4: 18.5, 7: 24.4, 9: 27.9}  # 99.9 % points by degrees of freedom


def gpt():
    """A model whose logits spread enough that a draw shows what was drawn from."""
    model = golden.fill(GPT(TINY)).eval().requires_grad_(False)
    model.output.weight *= 2
    return model


def chi2(drawn, probability):
    """Pearson's statistic of draws (n,) against probabilities (V,)."""
    expected = len(drawn) * np.asarray(probability)
    return float(((np.bincount(drawn, minlength=len(expected)) - expected) ** 2 / expected).sum())


@torch.inference_mode()
def guided_logits(model, codes, labels, scale, interval=-1):
    """Logits (B, N, V) of every token of finished samples, from whole sequences and without the cache."""
    cond, uncond = model(codes, labels), model(codes, torch.full_like(labels, TINY.num_classes))
    guided = uncond + scale * (cond - uncond)
    if interval > -1:
        guided[:, interval + 2 :] = cond[:, interval + 2 :]  # the interval counts the tokens after the first
    return guided


@pytest.mark.parametrize(("scale", "interval"), [(1.0, -1), (2.0, -1), (0.0, -1), (3.0, 0), (3.0, 5)])
def test_greedy_codes_are_the_most_likely(scale, interval):
    """Arg-max codes follow uncond + s (cond - uncond); beyond the interval the conditional logits alone; s = 1 is these."""
    model = gpt()
    codes = sample_codes(model, LABELS, SamplingConfig(cfg_scale=scale, cfg_interval=interval, top_k=1))
    assert torch.equal(codes, guided_logits(model, codes, LABELS, scale, interval).argmax(-1))
    assert codes.dtype == torch.int64 and len(codes.unique()) > 3


@pytest.mark.parametrize(
    "values",
    [
        dict(),
        dict(temperature=0.5),
        dict(temperature=2.0, cfg_scale=2.0),
        dict(top_k=3, cfg_scale=1.5),
        dict(top_p=0.6),
        dict(top_k=6, top_p=0.5, temperature=0.7, seed=3),
    ],
    ids=str,
)
def test_drawn_codes_follow_their_noise(values):
    """Each code inverts its distribution (guided, over the temperature, then filtered) at the noise of (seed, index, cell)."""
    model, config = gpt(), SamplingConfig(**values)
    codes = sample_codes(model, LABELS, config, INDEX)
    logits = guided_logits(model, codes, LABELS, config.cfg_scale) / config.temperature
    logits = filter_logits(logits, config.top_k, config.top_p)
    u = noise.uniform(config.seed, noise.SAMPLE_TOKEN, INDEX[:, None], np.arange(TINY.block_size))
    assert torch.equal(codes.flatten(), pick(logits.flatten(0, 1), torch.from_numpy(u.ravel())))


def test_unconditional_is_the_last_row():
    """Guidance reads the class table's last row and the label's; without guidance it reads the label's alone."""
    for row, scale, changes in [(5, 2.0, True), (0, 2.0, False), (4, 2.0, False), (5, 1.0, False), (2, 1.0, True)]:
        model, labels = gpt(), torch.full((20,), 2)
        before = sample_codes(model, labels, SamplingConfig(cfg_scale=scale), INDEX)
        model.cls_embedding.embedding_table.weight[row] += 3
        after = sample_codes(model, labels, SamplingConfig(cfg_scale=scale), INDEX)
        assert torch.equal(before, after) != changes, (row, scale)


def test_scale_one_is_the_condition_alone():
    """s = 1 gives what the guidance formula gives at 1, at half the cost; s = 0 is the unconditional model."""
    cond, uncond = golden.weight("cond", (3, 7)), golden.weight("uncond", (3, 7))
    torch.testing.assert_close(guide(torch.cat([cond, uncond]), 1.0), cond)
    assert torch.equal(guide(torch.cat([cond, uncond]), 0.0), uncond)
    model, widths = gpt(), []
    model.layers[0].register_forward_hook(lambda module, inputs, output: widths.append(len(output)))
    sample_codes(model, LABELS, SamplingConfig(cfg_scale=1.0), INDEX)
    assert set(widths) == {20}
    free = sample_codes(model, torch.full_like(LABELS, TINY.num_classes), SamplingConfig(), INDEX)
    assert torch.equal(sample_codes(model, LABELS, SamplingConfig(cfg_scale=0.0), INDEX), free)


def test_pick_matches_softmax():
    """Draws follow the softmax: within one of n p on an even grid of u, and by chi-square on the counter-based noise."""
    logits = torch.tensor([[2.0, -1.0, 0.0, 0.5, -3.0, 1.0, 0.0, -2.0]])
    p, n = logits[0].double().softmax(-1).numpy(), 20_000
    even = pick(logits.expand(n, -1), (torch.arange(n, dtype=torch.float64) + 0.5) / n)
    assert (np.abs(np.bincount(even, minlength=8) - n * p) < 1).all()
    for position in range(3):
        u = torch.from_numpy(noise.uniform(0, noise.SAMPLE_TOKEN, np.arange(n), position))
        drawn = pick(logits.expand(n, -1), u).numpy()
        assert chi2(drawn, p) < CHI2_999[7] < chi2(drawn, np.roll(p, 1))


def test_pick_at_the_ends():
    """The smallest and the largest u draw the first and the last token that is left, never a removed one."""
    inf = float("inf")
    logits = torch.tensor([[-inf, -inf, 1.0, 0.0, -inf, 0.3, -inf]])
    u = torch.tensor([0.0, 1 - 2.0**-53], dtype=torch.float64)
    assert pick(logits.expand(2, -1), u).tolist() == [2, 5]


def test_cells_are_drawn_independently():
    """The noise of one cell says nothing of the next cell's, nor of the next sample's."""
    u = noise.uniform(0, noise.SAMPLE_TOKEN, np.arange(2000)[:, None], np.arange(16))
    for a, b in [(u[:, :-1], u[:, 1:]), (u[:-1], u[1:])]:
        assert abs(np.corrcoef(a.ravel(), b.ravel())[0, 1]) < 0.02
    assert len(np.unique(u)) == u.size


def test_temperature():
    """A temperature near 0 is arg-max, a high one draws evenly, 1 leaves the logits as they are."""
    model = gpt()
    cold = sample_codes(model, LABELS, SamplingConfig(temperature=1e-4), INDEX)
    assert torch.equal(cold, sample_codes(model, LABELS, SamplingConfig(top_k=1)))
    index = np.arange(200)
    labels = torch.from_numpy(sample_labels(index, TINY.num_classes, 0))
    hot = sample_codes(model, labels, SamplingConfig(temperature=1e4), index)
    assert np.bincount(hot.flatten(), minlength=24).min() > 0.7 * hot.numel() / 24
    assert not torch.equal(sample_codes(model, LABELS, SamplingConfig(), INDEX), cold)


@pytest.mark.parametrize("k", [1, 5, 23, 24, 100, 0])
def test_top_k(k):
    """The k largest logits survive unchanged; 0, and k from V on, remove nothing."""
    logits = golden.weight("top_k", (6, 24))
    kept = filter_logits(logits, top_k=k)
    assert (kept.isfinite().sum(-1) == (min(k, 24) or 24)).all()
    assert torch.equal(kept[kept.isfinite()], logits[kept.isfinite()])
    assert (logits.masked_fill(kept.isfinite(), -9).amax(-1) < kept.masked_fill(~kept.isfinite(), 9).amin(-1)).all()


@pytest.mark.parametrize("top_p", [1e-6, 0.3, 0.9, 0.999999, 1.0])
def test_top_p(top_p):
    """The nucleus is the shortest run of most likely tokens with more than p of the mass; 1 removes nothing."""
    logits = 3 * golden.weight("top_p", (6, 24))
    kept = filter_logits(logits, top_p=top_p).isfinite()
    for row, keep in zip(logits.double().softmax(-1), kept, strict=True):
        sizes = row.sort(descending=True).values.cumsum(0)
        n = int((sizes <= top_p).sum()) + 1 if top_p < 1 else 24
        assert keep.sum() == n and set(row.topk(n).indices.tolist()) == set(keep.nonzero()[:, 0].tolist())


def test_top_k_comes_before_top_p():
    """The nucleus is taken of the renormalised top k."""
    logits = torch.tensor([[0.4, 0.3, 0.2, 0.1]]).log()
    assert filter_logits(logits, top_p=0.65).isfinite().sum() == 2
    assert filter_logits(logits, top_k=3, top_p=0.75).isfinite().sum() == 2  # 0.78 of the three, 0.7 of the four


@pytest.mark.parametrize("batch_size", [1, 3, 7])
def test_samples_depend_on_their_index_alone(batch_size):
    """Sample i is the same in batches of 1, 3 and 7, and in any order; another seed gives other samples."""
    model, config = gpt(), SamplingConfig(cfg_scale=2.0, temperature=0.9)
    whole = sample_codes(model, LABELS, config, INDEX)
    parts = [INDEX[i : i + batch_size] for i in range(0, 20, batch_size)]
    assert torch.equal(torch.cat([sample_codes(model, LABELS[part], config, part) for part in parts]), whole)
    shuffled = np.random.default_rng(0).permutation(20)
    assert torch.equal(sample_codes(model, LABELS[shuffled], config, shuffled), whole[shuffled])
    assert len(whole.unique(dim=0)) == 20
    other = SamplingConfig(cfg_scale=2.0, temperature=0.9, seed=1)
    assert (sample_codes(model, LABELS, other, INDEX) != whole).any(-1).all()


def check_compiled_decoding(device="cpu"):
    """Two batches through one compiled decoder, the second after the first's keys and values: as without."""
    model, config = gpt().to(device), SamplingConfig(cfg_scale=2.0)
    for part in (INDEX[:8], INDEX[8:16]):
        labels = LABELS[part].to(device)
        expected = sample_codes(model, labels, config, part)
        assert torch.equal(sample_codes(model, labels, dataclasses.replace(config, compile=True), part), expected)


def test_static_caches_are_used_again(monkeypatch):
    """Caches that stay from batch to batch, as a CUDA graph needs them, hold nothing of the batch before."""
    made = []
    monkeypatch.setattr(torch, "compile", lambda step, **options: made.append(options) or step)
    check_compiled_decoding()
    assert made == [dict(mode="reduce-overhead", dynamic=False)]


def test_every_batch_size_is_compiled_once(monkeypatch):
    """Scale after scale, guided and not, with a last batch that is smaller: four shapes, four compilations."""
    made, model = [], gpt()
    monkeypatch.setattr(torch, "compile", lambda step, **options: made.append(step) or step)
    for scale in (1.0, 1.5, 2.0, 1.0):
        for part in (INDEX[:8], INDEX[8:16], INDEX[16:19]):
            sample_codes(model, LABELS[part], SamplingConfig(cfg_scale=scale, compile=True), part)
    assert len(made) == 4


@pytest.mark.slow
def test_compiled_decoding():
    """The same under torch.compile."""
    check_compiled_decoding()


def test_sample_labels():
    """Labels are uniform over the classes, without "unconditional", and a function of seed and index alone."""
    labels = sample_labels(np.arange(20_000), 10, seed=0)
    assert chi2(labels, np.full(10, 0.1)) < CHI2_999[9] and labels.max() == 9
    assert np.array_equal(sample_labels(np.arange(50, 60), 10, 0), labels[50:60])
    assert not np.array_equal(sample_labels(np.arange(100), 10, 1), labels[:100])


def test_prefix():
    """Given codes are kept and not drawn, and what follows is what follows them in a sample of the same index."""
    model, config = gpt(), SamplingConfig(cfg_scale=2.0)
    codes = sample_codes(model, LABELS, config, INDEX)
    again = torch.stack(list(decode_tokens(model, LABELS, config, INDEX, codes[:, :6])), 1)
    assert torch.equal(again, codes)
    prefix = (codes[:, :6] + 1) % TINY.vocab_size
    other = torch.stack(list(decode_tokens(model, LABELS, config, INDEX, prefix)), 1)
    assert torch.equal(other[:, :6], prefix) and not torch.equal(other[:, 6:], codes[:, 6:])
    logits = guided_logits(model, other, LABELS, 2.0)[:, 6:]
    u = noise.uniform(0, noise.SAMPLE_TOKEN, INDEX[:, None], np.arange(6, 16))
    assert torch.equal(other[:, 6:].flatten(), pick(logits.flatten(0, 1), torch.from_numpy(u.ravel())))


def test_labels_that_are_not_dropped_stay(tmp_path):
    """Label dropout, 0.1 by default, puts num_classes in place of a label whatever its class, and changes no other."""
    store, rate = CodeStore(write_store(tmp_path / "large", n=1000, classes=5)), TrainingConfig().label_dropout
    batches = [(batch_at(store, step, 1000, 0)[1], batch_at(store, step, 1000, 0, rate)[1]) for step in range(30)]
    dropped = torch.stack([after == store.num_classes for _, after in batches])
    assert rate == 0.1 and abs(dropped.float().mean() - 0.1) < 0.006
    assert all(torch.equal(before[~drop], after[~drop]) for (before, after), drop in zip(batches, dropped, strict=True))
    victims = torch.cat([before[drop] for (before, _), drop in zip(batches, dropped, strict=True)]).numpy()
    assert chi2(victims, np.full(5, 0.2)) < CHI2_999[4]
    assert abs(dropped.float().mean(0).std() - (0.09 / 30) ** 0.5) < 0.01, "no slot is dropped always or never"


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (dict(temperature=0), r"temperature 0 must be above 0"),
        (dict(temperature=-1.0), r"temperature -1.0 must be above 0"),
        (dict(top_p=0), r"top_p 0 is outside \(0, 1\]"),
        (dict(top_p=1.01), r"top_p 1.01 is outside"),
        (dict(top_k=-1), r"top_k -1 .* must not be negative"),
        (dict(cfg_scale=-0.5), r"cfg_scale -0.5 must not be negative"),
        (dict(seed=1.9), r"seed 1.9 is not an integer"),
        (dict(top_k=2.5), r"top_k 2.5 is not an integer"),
        (dict(cfg_interval="2"), r"cfg_interval '2' is not an integer"),
        (dict(temperature=None), r"temperature None is not a number"),
    ],
)
def test_bad_sampling_configuration(values, message):
    """Settings that make no distribution are refused by name."""
    with pytest.raises(NppkitError, match=message):
        SamplingConfig(**values)


@pytest.mark.parametrize("processes", [1, 2, 4])
def test_shares_make_the_samples_of_one_process(processes):
    """Each process draws its share of the indices; together they are the samples of one."""
    model, config, index = gpt(), SamplingConfig(cfg_scale=2.0, seed=5), np.arange(9)
    labels = torch.from_numpy(sample_labels(index, model.config.num_classes, 5))
    whole, shared = sample_codes(model, labels, config, index), torch.zeros(9, model.config.block_size, dtype=torch.int64)
    for rank in range(processes):
        mine = index[rank::processes]
        share = torch.from_numpy(sample_labels(mine, model.config.num_classes, 5))
        shared[mine] = sample_codes(model, share, config, mine)
    assert torch.equal(shared, whole)


@pytest.mark.parametrize("name", ["cfg_scale", "temperature", "top_p"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_numbers_that_are_none_are_refused(name, value):
    """A guidance scale that is not finite would make every token the last code."""
    with pytest.raises(NppkitError, match=f"{name} {value} is not a number"):
        SamplingConfig(**{name: value})


def test_no_token_comes_of_logits_that_are_not_finite():
    """A model with one NaN is refused at its first token."""
    model = GPT(GPTConfig(dim=16, n_layer=1, n_head=2, vocab_size=32, num_classes=10, grid_size=4)).eval()
    with torch.no_grad():
        model.norm.weight[0] = float("nan")
    tokens = decode_tokens(model, torch.tensor([3]), SamplingConfig(), np.arange(1))
    with pytest.raises(NppkitError, match="token 0 are not finite"):
        next(tokens)


@pytest.mark.parametrize("extreme", [dict(cfg_scale=1e39), dict(temperature=1e-45)])
def test_no_token_comes_of_a_scale_beyond_all_numbers(extreme):
    """Guidance and temperature that turn finite logits into infinite ones are refused as NaN is."""
    with pytest.raises(NppkitError, match="token 0 are not finite: check the weights, cfg_scale and temperature"):
        sample_codes(gpt(), torch.tensor([3]), SamplingConfig(**extreme), np.arange(1))


def test_labels_follow_shares():
    """A class of a tenth of the images has a tenth of the labels; one without images none; uniform labels stay what they were."""
    shares = (0.7, 0.0, 0.1, 0.2)
    labels = sample_labels(np.arange(20_000), 4, 0, shares)
    assert np.abs(np.bincount(labels, minlength=4) / 20_000 - shares).max() < 0.01 and (labels != 1).all()
    assert np.array_equal(sample_labels(np.arange(50, 60), 4, 0, shares), labels[50:60])
    with pytest.raises(NppkitError, match="4 shares are not those of 3 classes"):
        sample_labels(np.arange(3), 3, 0, shares)
    with pytest.raises(NppkitError, match="1 together"):
        SamplingConfig(shares=(0.5, 0.6))


def test_dropout_is_off_whatever_the_mode():
    """A model in training mode draws what it draws in eval mode, and is in training mode afterwards, also after an error."""
    model, config = gpt(), SamplingConfig(cfg_scale=2.0)
    expected = sample_codes(model, LABELS, config, INDEX)
    assert model.tok_dropout.p == 0.1 and not model.training
    assert torch.equal(sample_codes(model.train(), LABELS, config, INDEX), expected)
    assert all(module.training for module in model.modules())
    with pytest.raises(NppkitError, match="not finite"):
        sample_codes(model, LABELS, SamplingConfig(cfg_scale=1e39), INDEX)
    assert all(module.training for module in model.modules())


def test_without_indices_images_are_unlike():
    """Samples of one class have noise of their own, which the seed decides, and are the first ones of a study."""
    model, labels = gpt(), torch.full((4,), 3)
    codes, other = (sample_codes(model, labels, SamplingConfig(seed=seed)) for seed in (0, 1))
    assert len(codes.unique(dim=0)) == 4 and (codes != other).any(-1).all()
    assert torch.equal(codes, sample_codes(model, labels, SamplingConfig(), np.arange(4)))


def test_index_and_prefix_belong_to_labels():
    """One index for three labels would draw the same noise three times; a list of indices is as good as an array."""
    model, config = gpt(), SamplingConfig()
    assert torch.equal(sample_codes(model, LABELS[:3], config, [0, 1, 2]), sample_codes(model, LABELS[:3], config, INDEX[:3]))
    for index in (np.array([0]), np.arange(4), np.zeros((3, 1), int), 0):
        with pytest.raises(NppkitError, match=r"index .*for labels \[3\]"):
            sample_codes(model, LABELS[:3], config, index)
    with pytest.raises(NppkitError, match=r"prefix \[1, 2\] for labels \[3\]"):
        next(decode_tokens(model, LABELS[:3], config, prefix=torch.zeros(1, 2, dtype=torch.int64)))
    with pytest.raises(NppkitError, match=r"labels \[0\]: give one label or more"):
        sample_codes(model, LABELS[:0], config, INDEX[:0])
    none_given = torch.zeros(3, 0, dtype=torch.int64)
    assert torch.equal(
        torch.stack(list(decode_tokens(model, LABELS[:3], config, prefix=none_given)), 1), sample_codes(model, LABELS[:3], config)
    )
    for call in (lambda: sample_codes(model, LABELS[:1], config, [0.5]), lambda: sample_labels(INDEX, 5, seed=1.9)):
        with pytest.raises(NppkitError, match=r"holds float64: .* must be integers"):
            call()
