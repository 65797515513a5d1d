"""The cost model: its closed forms against what torch counts and keeps, and against the paper's and LlamaGen's numbers."""

import pytest
import torch

from nppkit import cost, gpus
from nppkit.model import GPT, MODELS, GPTConfig, count_parameters
from nppkit.schedule import multi_scale_segments, ntp_segments

SMALL = dict(dim=64, n_head=4, grid_size=8, vocab_size=50)
CONFIGS = [GPTConfig(**SMALL, n_layer=2), GPTConfig(**SMALL, n_layer=3, n_kv_head=2)]


@pytest.mark.parametrize("config", CONFIGS)
def test_parameters(config):
    """The closed form is the model's count, also with fewer kv heads; the family's are the paper's."""
    assert cost.parameters(config) == count_parameters(GPT(config))
    assert [cost.parameters(GPTConfig(**sizes)) for sizes in MODELS.values()] == [110888448, 342910976, 774699520, 1410972672]


@pytest.mark.parametrize("patch_size", [1, 2, 4, 8])
@pytest.mark.parametrize("config", CONFIGS)
def test_train_flops(config, patch_size):
    """The closed form is what torch counts on the real step, at every patch side."""
    codes, labels = torch.zeros(3, 64, dtype=torch.long), torch.zeros(3, dtype=torch.long)
    assert 3 * cost.train_flops(config, patch_size) == cost.step_flops(GPT(config), codes, labels, patch_size)


@pytest.mark.parametrize(("grid", "window"), [((48,), (4,)), ((4, 6), (2, 3)), ((2, 4, 6), (2, 2, 3))])
def test_train_flops_of_any_grid(grid, window):
    """The closed form holds on grids of one, two and three axes."""
    config = GPTConfig(dim=48, n_head=4, n_layer=2, vocab_size=50, grid_size=grid)
    codes, labels = torch.zeros(3, config.block_size, dtype=torch.long), torch.zeros(3, dtype=torch.long)
    assert 3 * cost.train_flops(config, window) == cost.step_flops(GPT(config), codes, labels, window)


def kept_bytes(config, precision, batch=3):
    """Bytes of everything of a batch that the forward pass keeps for the backward pass, dropout's masks aside."""
    model, kept = GPT(config).eval(), {}
    own = {t.untyped_storage().data_ptr() for t in (*model.parameters(), *model.buffers())}

    def pack(t):
        if t.shape[0] in (batch, batch * config.block_size) and t.untyped_storage().data_ptr() not in own:
            kept[t.untyped_storage().data_ptr()] = t.untyped_storage()  # held, so that no address comes twice
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t), torch.autocast("cpu", enabled=precision == "bf16"):
        model(torch.zeros(batch, config.block_size, dtype=torch.long), torch.zeros(batch, dtype=torch.long))
    return sum(storage.nbytes() for storage in kept.values())


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("kv_heads", [0, 2])
def test_layer_bytes(precision, kv_heads):
    """One more layer keeps what the formula says, within 4 %."""
    two, three = (GPTConfig(**SMALL, n_layer=n, n_kv_head=kv_heads) for n in (2, 3))
    grown = (kept_bytes(three, precision) - kept_bytes(two, precision)) / (3 * 64)
    torch.testing.assert_close(float(cost.layer_bytes(two, precision) - 2 * two.dim), grown, rtol=0.04, atol=0)


def test_largest_batch():
    """The batch is halved until states and activations fit, and 0 where the weights alone are too many."""
    xxl = GPTConfig(**MODELS["XXL"], grid_size=24)
    batch = cost.largest_batch(xxl, "bf16", 80e9, 256)
    used = [cost.state_bytes(xxl) + b * cost.activation_bytes(xxl, "bf16") for b in (batch, 2 * batch)]
    assert 0 < batch < 256 and used[0] <= 0.9 * 80e9 < used[1]
    assert cost.largest_batch(xxl, "bf16", 8e9, 256) == 0


def test_sampling_is_bound_by_traffic_or_by_arithmetic():
    """One sequence reads the weights at every position; many cost their FLOPs; guidance never costs more than twice."""
    gpu, c = gpus.GPUS["A100-80G"], GPTConfig(**MODELS["L"])
    one = cost.sampling_seconds(c, gpu, 1, False, utilisation=1)
    assert one == pytest.approx(256 * 2 * cost.linear_weights(c) / gpu.bandwidth, rel=0.05)
    fast = gpus.GPU(gpu.flops, gpu.memory, 1e20)
    assert cost.sampling_seconds(c, fast, 64, True, 1) == pytest.approx(
        64 * 256 * 4 * cost.linear_weights(c) / gpu.flops, rel=0.05
    )
    assert one < cost.sampling_seconds(c, gpu, 1, True, 1) <= 2 * one
    weights, sequences = cost.linear_weights(c), 2 * 128  # at a batch of an evaluation the cache is most of the traffic
    cache = 2 * c.n_layer * c.dim * 128  # keys and values of half of the 256 positions
    slow, fast = (gpus.GPU(flops, gpu.memory, bandwidth) for flops, bandwidth in ((1e30, 1e12), (1e12, 1e30)))
    assert cost.sampling_seconds(c, slow, 128, True, 1) == pytest.approx(256 * 2 * (weights + sequences * cache) / 1e12)
    attention = c.n_layer * 2 * 128 * c.dim
    assert cost.sampling_seconds(c, fast, 128, True, 1) == pytest.approx(256 * 2 * sequences * (weights + attention) / 1e12)


def test_llamagens_days():
    """At the default utilisation, 300 epochs of B and L on 8 A100-80G take within a third of LlamaGen's 1 and 2 days."""
    for size, days in (("B", 1), ("L", 2)):
        flops = 300 * 1_281_167 * cost.train_flops(GPTConfig(**MODELS[size]), 1)
        assert flops / (8 * gpus.GPUS["A100-80G"].flops * gpus.UTILISATION) / 86400 == pytest.approx(days, rel=1 / 3)


def test_gpu_hours_follow_the_flops():
    """An hour at the stated share of the peak is that many FLOPs; a coarse half costs what its shorter sequences cost."""
    c, gpu = GPTConfig(**MODELS["B"]), gpus.GPUS["A100-80G"]
    hours = cost.gpu_hours(c, ntp_segments(1), 1000, gpu, 0.5)
    assert hours * 3600 * gpu.flops * 0.5 == pytest.approx(1000 * cost.train_flops(c, 1))
    half = cost.gpu_hours(c, multi_scale_segments(2, 2, "1/2"), 1000, gpu, 0.5)
    assert half / hours == pytest.approx(1 + cost.train_flops(c, 2) / cost.train_flops(c, 1))
