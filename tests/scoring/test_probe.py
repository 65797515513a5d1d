"""The linear probe: what it finds, what it is worth, and its file."""

import dataclasses

import numpy as np
import pytest
import torch
from cells import run_cells

from nppkit.data.images import mnist_images
from nppkit.errors import NppkitError
from nppkit.scoring.features import load_extractor
from nppkit.scoring.probe import fit_probe, probe_scores
from nppkit.scoring.reference import reference_from_images
from nppkit.study.presets import load_preset


def blobs(n, seed, spread=0.5):
    """Features (n, 6) around three centres, in features of very unlike scales, and their labels."""
    g = torch.Generator().manual_seed(seed)
    labels = torch.arange(n) % 3
    centres = 2 * torch.eye(3, 6)
    scales = torch.tensor([1.0, 100.0, 0.01, 1.0, 10.0, 1.0])
    return (centres[labels] + spread * torch.randn(n, 6, generator=g)) * scales + 5, labels


def test_separable_classes_are_found():
    """Classes that lie apart are told apart on images that it has not seen, whatever the features' units."""
    probe = fit_probe(*blobs(300, 0), 3)
    scores = probe_scores(probe, *blobs(99, 1))
    assert scores["accuracy"] > 0.95 and scores["balanced_accuracy"] > 0.95 and scores["majority"] == pytest.approx(1 / 3)
    assert torch.equal(probe.weight, fit_probe(*blobs(300, 0), 3).weight)


def test_one_feature_has_the_known_optimum():
    """Two classes, one feature of -1 and 1: the penalised optimum solves sigmoid(-w) = penalty * w / 2, w the difference."""
    features, labels = torch.tensor([[-1.0], [1.0]]), torch.tensor([0, 1])
    weight = fit_probe(features, labels, 2, penalty=0.1).weight[:, 0].double()
    w = weight[1] - weight[0]
    assert torch.sigmoid(-w).item() == pytest.approx(0.1 * w.item() / 2, abs=1e-5) and weight.sum().abs() < 1e-5


def test_chance_is_said():
    """Features that know nothing do no better than always naming the most frequent class, and a rare class shows it."""
    g = torch.Generator().manual_seed(0)
    labels = (torch.rand(600, generator=g) < 0.1).long()
    features = torch.randn(600, 4, generator=g)
    scores = probe_scores(fit_probe(features[:400], labels[:400], 2), features[400:], labels[400:])
    assert scores["accuracy"] <= scores["majority"] + 0.02 and scores["balanced_accuracy"] == pytest.approx(0.5, abs=0.1)


def test_a_class_without_images_and_a_constant_feature():
    """A class that training lacks is never named; a feature that never changes does no harm."""
    features, labels = blobs(90, 0)
    features[:, 3] = 7.0
    probe = fit_probe(features, labels, 5)
    assert probe.logits(features).isfinite().all() and probe.classes(features).max() <= 2


def test_what_a_probe_refuses():
    """Unlike numbers of features and labels, and a score without images."""
    features, labels = blobs(30, 0)
    probe = fit_probe(features, labels, 3)
    with pytest.raises(NppkitError, match="30 features with 29 labels"):
        fit_probe(features, labels[1:], 3)
    with pytest.raises(NppkitError, match="there are none"):
        probe_scores(probe, features[:0], labels[:0])


def test_an_imagenet_network_tells_digits_apart():
    """The features of a reference are matched with their own images' labels, and held-out images are named by them."""
    images = mnist_images()
    training, heldout = images.subset(np.arange(0, 5000, 50)), images.subset(np.arange(7, 5000, 250))
    extractor = load_extractor("efficientnet-lite0")
    reference = reference_from_images(training, 32, extractor)
    study = dataclasses.replace(load_preset("solar"), data=load_preset("demo").data)
    given = {"study": study, "settings": study.evaluation, "extractor": extractor, "target": reference}
    made = run_cells("evaluate", "probe-1", training=training, unseen=heldout, **given)
    probe, scores = made["probe"], made["worth"]
    assert probe.weight.shape == (10, 1280) and scores["accuracy"] > 0.4 and scores["majority"] == pytest.approx(0.1)
