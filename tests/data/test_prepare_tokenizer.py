"""Training of the tokenizer and of the digit classifier, and what they are made from."""

import dataclasses
import shutil
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from torch import nn

from nppkit import noise
from nppkit.data import prepare_tokenizer, train_tokenizer
from nppkit.data.config import TokenizerConfig
from nppkit.data.images import mnist_images
from nppkit.errors import NppkitError
from nppkit.machine import guard
from nppkit.scoring import classifier
from nppkit.scoring.config import ExtractorConfig
from nppkit.study import models
from nppkit.tokenizer import VQModel, to_model_range
from nppkit.tokenizer_config import VQConfig

TINY_VQ = VQConfig(ch=4, ch_mult=(1, 1, 2), num_res_blocks=1, z_channels=8, codebook_size=16, norm_groups=2)


def rates(steps):
    """The learning rate of each step, of one at most."""
    optimizer = torch.optim.AdamW([nn.Parameter(torch.zeros(1))], lr=1.0)
    schedule, found = train_tokenizer.one_cycle(optimizer, 1.0, steps), []
    for _ in range(steps):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return found


@pytest.mark.parametrize("steps", [*range(1, 32), 300])
def test_one_cycle_of_any_length(steps):
    """Every number of steps has a schedule, ten among them: it ends near 0, and from ten on it rises for a tenth first."""
    found = rates(steps)
    assert len(found) == steps and abs(found[-1]) < 1e-3
    if steps >= 10:
        top = int(np.argmax(found))
        assert found[top] > 0.95 and found[0] == pytest.approx(0.04) and abs(top + 1 - max(2, steps / 10)) <= 1
        assert found[:top] == sorted(found[:top]) and found[top:] == sorted(found[top:], reverse=True)


@pytest.fixture(scope="module")
def pixels():
    """All crops of forty digits."""
    return train_tokenizer.all_crops(mnist_images().subset(np.arange(0, 5000, 125)), "shift", 32)


def test_tokenizer_learns(pixels):
    """Reconstructions get better, more than one code is used, and the same seed gives the same weights."""
    t = TokenizerConfig(steps=40, batch_size=8, lr=4e-3)
    model, history = train_tokenizer.train_tokenizer(pixels, TINY_VQ, t)
    assert [row["step"] for row in history] == list(range(1, 41)) and not model.training
    assert np.mean([row["l1"] for row in history[-5:]]) < 0.6 * history[0]["l1"]
    assert len(model.encode(to_model_range(pixels[:, 0])).unique()) > 4
    short = [dataclasses.replace(t, steps=2, seed=seed) for seed in (0, 0, 1)]
    models = [train_tokenizer.train_tokenizer(pixels, TINY_VQ, one)[0] for one in short]
    states = [list(m.state_dict().values()) for m in models]
    assert all(map(torch.equal, *states[:2])) and not all(map(torch.equal, states[0], states[2]))


def test_the_digit_classifier_learns_the_digits(pixels):
    """It is taught each image's own label; one that learnt other images' would name one digit of ten."""
    labels = torch.from_numpy(mnist_images().labels[np.arange(0, 5000, 125)])
    model = classifier.fit_classifier(pixels, labels, 10, ExtractorConfig(steps=40, batch_size=32))
    assert classifier.accuracy(model, pixels[:, 0], labels) > 0.7


def test_unused_codes_move_to_latents(pixels):
    """A code that nothing used becomes a latent of the batch, a used one stays, and counting starts again."""
    torch.manual_seed(0)
    model = VQModel(TINY_VQ)
    before, used = model.quantize.embedding.weight.detach().clone(), torch.ones(16)
    used[[3, 7]] = 0
    images = to_model_range(pixels[:4, 0])
    train_tokenizer.revive(model, images, used, 0, 0)
    after, latents = model.quantize.embedding.weight, model.latent(images).permute(0, 2, 3, 1).flatten(0, 2)
    moved = (after != before).any(1).nonzero()[:, 0].tolist()
    assert moved == [3, 7] and not used.any()
    assert all((latents - after[code]).abs().sum(1).min() < 1e-6 for code in moved)


def test_batches_are_pure(pixels):
    """A batch depends on its key alone: its crops are those of the images at the indices that come with it."""
    images, index = train_tokenizer.random_crops(pixels, 6, 0, 5)
    crops = noise.integers(pixels.shape[1], 0, 5, noise.CROP, np.arange(6))
    assert torch.equal(images, pixels[index, crops]) and torch.equal(train_tokenizer.random_crops(pixels, 6, 0, 5)[0], images)
    assert not torch.equal(train_tokenizer.random_crops(pixels, 6, 0, 6)[0], images)


def test_a_tokenizer_that_is_not_there(smoke, tmp_path, home, changed):
    """A missing file is refused before anything is written."""
    preset = changed(smoke, "tokenizer.weights", "absent.pt")
    with pytest.raises(NppkitError, match=r"absent\.pt does not exist"):
        prepare_tokenizer.prepare_tokenizer(preset.tokenizer, preset.data, None, tmp_path / "tokenizer")
    assert not (tmp_path / "tokenizer").exists()


def test_a_tokenizer_that_cannot_be_written_is_named(smoke, tmp_path, home, changed):
    """The file is named with the cause, a full disk or another."""
    few, images = changed(smoke, "tokenizer.steps", 1), mnist_images().subset(np.arange(40))
    (tmp_path / "tokenizer.safetensors").mkdir()
    with pytest.raises(NppkitError, match=r"tokenizer\.safetensors could not be written \("):
        prepare_tokenizer.prepare_tokenizer(few.tokenizer, few.data, images, tmp_path)


def test_a_trained_tokenizer_is_not_trained_again(smoke, tmp_path, home, changed):
    """Made from the same settings and images it is loaded; other settings, other images or an altered file train it anew."""
    few, images = changed(smoke, "tokenizer.steps", 2), mnist_images().subset(np.arange(0, 5000, 125))
    other = images.subset(np.arange(39))
    model, history = prepare_tokenizer.prepare_tokenizer(few.tokenizer, few.data, images, tmp_path)
    again, nothing = prepare_tokenizer.prepare_tokenizer(few.tokenizer, few.data, images, tmp_path)
    assert len(history) == 2 and nothing == [] and not again.training
    assert all(torch.equal(value, again.state_dict()[key]) for key, value in model.state_dict().items())
    for preset, source in ((few, other), (changed(few, "tokenizer.seed", 5), other)):
        assert len(prepare_tokenizer.prepare_tokenizer(preset.tokenizer, preset.data, source, tmp_path)[1]) == 2
    weights = tmp_path / "tokenizer.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    assert [len(prepare_tokenizer.prepare_tokenizer(preset.tokenizer, preset.data, source, tmp_path)[1]) for _ in range(2)] == [
        2,
        0,
    ]


def test_a_tokenizer_of_other_crops_is_trained_again(smoke, tmp_path, home, changed):
    """The same images cut otherwise are other data: what was trained on the others is not taken for it."""
    few, images = changed(smoke, "tokenizer.steps", 2), mnist_images().subset(np.arange(40))
    presets = [changed(few, "data.crops", crops) for crops in ("shift", "center", "center")]
    made = [prepare_tokenizer.prepare_tokenizer(p.tokenizer, p.data, images, tmp_path)[1] for p in presets]
    assert [len(history) for history in made] == [2, 2, 0]


def test_a_tokenizer_trains_on_what_memory_holds(smoke, tmp_path, home, changed, monkeypatch):
    """Of more images a fixed random choice: ImageNet's pixels would not fit."""
    few, images, seen = changed(smoke, "tokenizer.steps", 1), mnist_images().subset(np.arange(40)), []
    train = prepare_tokenizer.train_tokenizer
    monkeypatch.setattr(prepare_tokenizer, "MAX_BYTES", 8 * 5 * 3 * 32 * 32)
    monkeypatch.setattr(prepare_tokenizer, "train_tokenizer", lambda pixels, *a: seen.append(pixels.shape) or train(pixels, *a))
    prepare_tokenizer.prepare_tokenizer(few.tokenizer, few.data, images, tmp_path)
    assert seen == [(8, 5, 3, 32, 32)]


def test_what_is_no_grid_is_refused():
    """Codes of no square, pictures with a side that makes no grid or two that make no square, and sizes without a resolution."""
    model = VQModel(TINY_VQ).eval()
    with pytest.raises(NppkitError, match="10 tokens are not a square grid"):
        model.decode(torch.zeros(2, 10, dtype=torch.int64))
    for shape, message in (
        ((1, 3, 32, 30), "30 is not a multiple"),
        ((1, 3, 30, 32), "30 is not"),
        ((1, 3, 16, 32), "images of 16 x 32 pixels: cut squares of them"),
        ((1, 3, 8, 32), "images of 8 x 32 pixels: cut squares of them"),  # as many codes as a square of 16 would have
    ):
        with pytest.raises(NppkitError, match=message):
            model.encode(torch.zeros(shape))
    with pytest.raises(NppkitError, match=r"ch_mult \(\): give a list"):
        VQConfig(ch_mult=())


def test_two_trainings_of_one_tokenizer(smoke, tmp_path, home, changed, monkeypatch):
    """Presets with the same images and settings have the same tokenizer: while one trains it, the other says so."""
    few, images = changed(smoke, "tokenizer.steps", 1), mnist_images().subset(np.arange(40))
    monkeypatch.setattr(guard, "LOCK_SECONDS", 0.1)
    source = prepare_tokenizer._source(few.tokenizer, few.data, images)
    with guard.exclusive(home / "checkpoints/tokenizers", source[:16]), pytest.raises(NppkitError, match="by another process"):
        prepare_tokenizer.prepare_tokenizer(few.tokenizer, few.data, images, tmp_path)
    prepare_tokenizer.prepare_tokenizer(few.tokenizer, few.data, images, tmp_path)
    lock = home / f"checkpoints/tokenizers/.{source[:16]}.lock"  # outside of what is removed at the end, so others' stays theirs
    assert lock.is_file() and not (home / "checkpoints/tokenizers" / source[:16]).exists()


@pytest.mark.parametrize("setting", ["start", "perceptual_weights"])
def test_a_file_to_train_from_that_is_not_there(smoke, tmp_path, home, changed, setting):
    """It is named in one line."""
    preset = changed(changed(smoke, "tokenizer.perceptual", 1.0), f"tokenizer.{setting}", "absent.pt")
    with pytest.raises(NppkitError, match=r"absent\.pt"):
        prepare_tokenizer.prepare_tokenizer(preset.tokenizer, preset.data, mnist_images().subset(np.arange(40)), tmp_path)


def test_another_file_to_start_from_is_another_start(smoke, tmp_path, home, changed):
    """Under the same name too: what was trained from the file that stood there is not taken for it."""
    few, images = changed(smoke, "tokenizer.steps", 2), mnist_images().subset(np.arange(0, 5000, 125))
    tuned, start = changed(few, "tokenizer.start", str(tmp_path / "start.safetensors")), tmp_path / "start.safetensors"
    for seed, trained in ((0, [2, 0]), (5, [2, 0])):
        other = changed(few, "tokenizer.seed", seed)
        prepare_tokenizer.prepare_tokenizer(other.tokenizer, other.data, images, tmp_path / f"seed{seed}")
        shutil.copyfile(tmp_path / f"seed{seed}/tokenizer.safetensors", start)
        made = [prepare_tokenizer.prepare_tokenizer(tuned.tokenizer, tuned.data, images, tmp_path / "tuned") for _ in range(2)]
        assert [len(history) for _, history in made] == trained


def test_another_file_of_the_perceptual_network_trains_anew(smoke, tmp_path, home, changed):
    """Under the same name too."""
    preset = changed(changed(smoke, "tokenizer.steps", 2), "tokenizer.perceptual_weights", str(tmp_path / "network.pt"))
    images, trained = mnist_images().subset(np.arange(40)), []
    for content in ("one", "one", "other"):
        (tmp_path / "network.pt").write_text(content)
        trained.append(len(prepare_tokenizer.prepare_tokenizer(preset.tokenizer, preset.data, images, tmp_path / "made")[1]))
    assert trained == [2, 0, 2]


@pytest.mark.parametrize(
    ("setting", "value", "message"),
    [
        ("extractor.name", "inception-v3-compat", r"cannot be downloaded"),
        ("evaluation.reference", "absent.npz", r"absent\.npz cannot be read as npz"),
    ],
)
def test_inputs_are_checked_before_the_trainings(smoke, home, changed, monkeypatch, setting, value, message):
    """What a tokenize job needs after its trainings is looked at before them."""
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(home))
    monkeypatch.setattr(torch.hub, "download_url_to_file", Mock(side_effect=OSError("offline")))
    training = mnist_images()
    models.check_inputs(smoke, 32, training)
    with pytest.raises(NppkitError, match=message):
        models.check_inputs(changed(smoke, setting, value), 32, training)


def test_too_few_images_are_refused_before_the_trainings(smoke):
    """Every metric, and the distance between two halves of the real images, needs a few of them."""
    models.check_inputs(smoke, 32, mnist_images().subset(np.arange(8)))
    with pytest.raises(NppkitError, match="7 training images are too few to be scored: give at least 8"):
        models.check_inputs(smoke, 32, mnist_images().subset(np.arange(7)))
