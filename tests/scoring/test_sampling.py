"""Sampling by several processes: the same tokens whoever draws them."""

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from test_sample import gpt

from nppkit.data.codes import CodeStore
from nppkit.machine.processes import Processes
from nppkit.sample import SamplingConfig, sample_codes, sample_labels
from nppkit.scoring import sampling
from nppkit.scoring.config import EvaluationConfig
from nppkit.scoring.evaluate import sampling_roles

CONFIG, SAMPLES, BATCH = SamplingConfig(cfg_scale=2.0, seed=5), 23, 3


@pytest.fixture(scope="module")
def whole():
    """The model, and the codes of one process that keeps nothing."""
    model, batches = gpt(), [np.arange(start, min(start + BATCH, SAMPLES)) for start in range(0, SAMPLES, BATCH)]
    labels = [torch.from_numpy(sample_labels(index, model.config.num_classes, 5)) for index in batches]
    codes = [sample_codes(model, part, CONFIG, index) for part, index in zip(labels, batches, strict=True)]
    return model, torch.cat(codes), torch.cat(labels)


@pytest.mark.parametrize("size", [1, 2, 4])
def test_tokens_do_not_depend_on_the_number_of_processes(whole, tmp_path, size):
    """1, 2 and 4 processes draw the tokens and labels of one, in any order; only the last to finish has the store."""
    model, codes, labels = whole
    folder = sampling.place(tmp_path, CONFIG)
    stores = [
        sampling.draw(model, CONFIG, SAMPLES, BATCH, folder, "w", processes=Processes(rank, size))
        for rank in reversed(range(size))
    ]
    assert all(store is None for store in stores[:-1])
    found, names = stores[-1].batch(np.arange(SAMPLES), np.zeros(SAMPLES, np.int64))
    assert torch.equal(found, codes) and torch.equal(names, labels)
    index = np.arange(5, 9)
    assert torch.equal(partial(sampling.drawn, folder=tmp_path)(model, labels[5:9], CONFIG, index), codes[5:9])


def test_a_killed_drawing_goes_on(whole, tmp_path, monkeypatch):
    """What was drawn before a kill is not drawn again; other weights are drawn anew."""
    model, codes, _ = whole
    sampling.draw(model, CONFIG, SAMPLES, BATCH, tmp_path, "w", processes=Processes(0, 2))
    drawn = []
    monkeypatch.setattr(sampling, "draw_codes", lambda *args: drawn.append(args[-1]) or sample_codes(*args))
    left = []
    store = sampling.draw(model, CONFIG, SAMPLES, BATCH, tmp_path, "w", show=lambda starts: left.extend(starts) or starts)
    assert len(left) == 4  # so that the time left is of these
    assert torch.equal(store.batch(np.arange(SAMPLES), np.zeros(SAMPLES, np.int64))[0], codes)
    assert min(index.min() for index in drawn) > 0 and len(drawn) == 4
    assert sampling.draw(model, CONFIG, SAMPLES, BATCH, tmp_path, "w") is not None and len(drawn) == 4
    sampling.draw(model, CONFIG, SAMPLES, BATCH, tmp_path, "others")
    assert len(drawn) == 12


def test_all_that_decides_the_codes_is_in_their_digest(whole):
    """Codes drawn with another configuration, batch size, precision or other weights are not taken for those asked for."""
    asked = {"weights": "w", "config": CONFIG, "samples": SAMPLES, "batch_size": BATCH, "precision": "fp32"}
    others = {"weights": "v", "config": replace(CONFIG, top_k=3), "batch_size": BATCH + 1, "precision": "bf16"}
    made = [sampling._manifest(whole[0], **{**asked, **change}) for change in ({}, *({key: others[key]} for key in others))]
    assert len({manifest.digest for manifest in made}) == 5


def test_labels_are_drawn_in_their_shares(whole, tmp_path):
    """A class that has all of the share is that of every sample, of its codes and in the store's labels."""
    model, shares = whole[0], (0.0, 0.0, 1.0, 0.0, 0.0)
    evaluation = EvaluationConfig(guidance=[2.0], samples=6, select_samples=3, batch_size=3)
    sampling.draw_all(model, evaluation, shares, tmp_path, "fp32", "a run")
    for config, samples in sampling_roles(evaluation, 2.0, shares).values():
        store, index = CodeStore(sampling.place(tmp_path, config)), np.arange(samples)
        parts = [sample_codes(model, torch.full((3,), 2), config, part) for part in np.split(index, range(3, samples, 3))]
        assert torch.equal(store.batch(index, np.zeros_like(index))[0], torch.cat(parts)) and set(store.labels) == {2}


def test_weights_have_a_digest(whole):
    """Another weight is another digest."""
    model = gpt()
    before = sampling.weights_digest(model)
    assert before == sampling.weights_digest(gpt())
    model.output.weight.data[0, 0] += 1
    assert sampling.weights_digest(model) != before


def test_all_that_an_evaluation_draws_is_kept(whole, tmp_path, monkeypatch):
    """Both roles at every guidance scale; asked again, as after a kill, nothing is drawn."""
    model, _, _ = whole
    evaluation = EvaluationConfig(guidance=(1.5, 2.0), samples=8, select_samples=6, batch_size=3)
    sampling.draw_all(model, evaluation, (), tmp_path, "fp32", "a run")
    for scale in evaluation.guidance:
        for config, samples in sampling_roles(evaluation, scale).values():
            index = np.arange(samples)
            labels = torch.from_numpy(sample_labels(index, model.config.num_classes, config.seed))
            parts = [sample_codes(model, labels[part], config, part) for part in np.split(index, range(3, samples, 3))]
            assert torch.equal(sampling.drawn(model, labels, config, index, tmp_path), torch.cat(parts))
    monkeypatch.setattr(sampling, "draw_codes", None)
    sampling.draw_all(model, evaluation, (), tmp_path, "fp32", "a run")
