"""Training of a VQ tokenizer: one loop, from L1 and squared error alone to LlamaGen's VQGAN.

LlamaGen (arXiv 2406.06525, Section 2.1) trained VQ-16 with reconstruction, perceptual and codebook losses, and with a
PatchGAN discriminator's hinge loss from a part of the steps on (Esser et al., 2021, arXiv 2012.09841). With the settings'
defaults there is neither a perceptual loss nor a discriminator, which is enough for digits.
Losses and weights are those of images in [-1, 1]. Batches are pure functions of (seed, step): a training that was killed
continues from its newest checkpoint with the same bits.
"""

import math
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from nppkit import noise
from nppkit.checkpoint import load_newest, load_optimizer, optimizer_tensors, save_checkpoint
from nppkit.data.config import TokenizerConfig
from nppkit.data.images import ImageSet, crop_images
from nppkit.data.losses import Discriminator, chroma, discriminator_loss
from nppkit.data.muon import Muon, hidden_matrices
from nppkit.data.perceptual import PerceptualLoss
from nppkit.errors import NppkitError
from nppkit.machine.devices import CPU
from nppkit.machine.guard import Interrupted, StopRequest
from nppkit.releases import find, load_weights
from nppkit.tokenizer import VQModel, to_model_range
from nppkit.tokenizer_config import VQConfig

LOOK_EVERY = 50  # steps between two looks at the codebook and the losses
REVIVE_UNTIL = 0.7  # of the steps: later, a moved code would stay untrained
SAVE_EVERY = 200  # steps between two checkpoints
FALLEN = 0.25  # of its best perplexity, twice running (once may be a flat ground that is first found): the codebook has died
RISEN = 2.0  # times the lowest L1 without a discriminator: the discriminator has won


def all_crops(images: ImageSet, crops: str, size: int) -> Tensor:
    """Every crop of every image, uint8 (n, crops, 3, size, size)."""
    pixels = np.stack([crop_images(images.load(i), crops, size) for i in range(len(images))])
    return torch.from_numpy(pixels).permute(0, 1, 4, 2, 3).contiguous()


def random_crops(pixels: Tensor, batch_size: int, *key: int) -> tuple[Tensor, Tensor]:
    """A random crop of random images, and the images' indices; a pure function of the key."""
    slot = np.arange(batch_size)
    index = noise.integers(pixels.shape[0], *key, noise.PERMUTATION, slot)
    crop = noise.integers(pixels.shape[1], *key, noise.CROP, slot)
    return pixels[index, crop], torch.from_numpy(index)


def one_cycle(optimizer: torch.optim.Optimizer, lr: float, steps: int) -> torch.optim.lr_scheduler.LRScheduler:
    """Up for the first tenth of the steps; of ten steps for a fifth, because OneCycleLR cannot rise in a single one.

    Meanwhile it takes AdamW's first beta from 0.95 to 0.85, and back while the rate falls, whatever was set.
    """
    return torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=steps, pct_start=0.2 if steps == 10 else 0.1)


@torch.no_grad()
def revive(model: VQModel, images: Tensor, used: Tensor, step: int, seed: int) -> None:
    """Move every code that is unused since the last look to a random latent of the batch, and count anew."""
    dead = (used == 0).nonzero()[:, 0]
    latents = model.latent(images).permute(0, 2, 3, 1).flatten(0, 2)
    pick = noise.integers(len(latents), seed, step, 0, np.arange(len(dead)))
    model.quantize.embedding.weight[dead] = latents[pick]
    used.zero_()


def perplexity(counts: Tensor) -> float:
    """exp(entropy) of how often each code was used (V,): as many codes, used alike, would say as much; 0 without any."""
    share = counts.double() / counts.sum().clamp(min=1)
    return torch.exp(-torch.xlogy(share, share).sum()).item() if counts.any() else 0.0


class TokenizerTraining:
    """A tokenizer and its discriminator between two steps: weights, both optimisers, the counts of codes, the history.

    The codebook starts from latents of the first batch, and a code that nothing used since the last look moves to a
    random latent: otherwise most codes of a small codebook die. That of weights to start from has no such moves.
    """

    def __init__(self, config: VQConfig, settings: TokenizerConfig, device: torch.device = CPU):
        torch.manual_seed(noise.torch_seed(settings.seed))
        s, self.settings, self.device, self.step, self.history = settings, settings, device, 0, []
        self.model = VQModel(config).train()
        if s.start:
            load_weights(self.model, find(s.start))
        self.model = self.model.to(device, memory_format=torch.channels_last)  # a tenth faster on CPU
        self.used, self.lowest = torch.zeros(config.codebook_size, device=device), math.inf
        hidden = hidden_matrices(self.model) if s.muon else []
        self.muon = Muon(hidden, s.muon) if s.muon else None
        others = [p for p in self.model.parameters() if all(p is not matrix for matrix in hidden)]
        self.optimizer = torch.optim.AdamW(others, lr=s.lr, betas=(0.95, 0.95), weight_decay=0.0, fused=True)
        self.schedule = one_cycle(self.optimizer, s.lr, s.steps)
        self.optimizers = {"optimizer": (self.optimizer, self.model)}  # with what each trains, by its name in a checkpoint
        if s.muon:
            self.optimizers["muon"] = self.muon, self.model
        self.perceptual = self.discriminator = None
        self.start = int(s.discriminator_from * s.steps)  # the discriminator's first step
        if s.perceptual:
            self.perceptual = PerceptualLoss(s.perceptual_network, s.perceptual_weights, s.perceptual_side).to(device)
        if s.discriminator:
            self.discriminator = Discriminator().to(device, memory_format=torch.channels_last)
            self.critic = torch.optim.AdamW(self.discriminator.parameters(), betas=(0.5, 0.9), weight_decay=0.0, fused=True)
            self.optimizers["critic"] = self.critic, self.discriminator

    @property
    def rate(self) -> float:
        """The learning rate of this step, in parts of its highest."""
        return self.optimizer.param_groups[0]["lr"] / self.settings.lr

    def train_step(self, images: Tensor) -> None:
        """One step of the tokenizer on images (B, 3, S, S) in [-1, 1], then one of the discriminator, and a history row."""
        if self.step % LOOK_EVERY == 0:
            self.look(images)
        reconstruction, codebook_loss, codes = self.model(images)
        terms = {"l1": F.l1_loss(reconstruction, images), "l2": F.mse_loss(reconstruction, images)}
        terms["codebook_loss"] = codebook_loss
        if self.settings.chroma:
            found, wanted = chroma(reconstruction), chroma(images)
            terms["chroma"] = self.settings.chroma * (F.l1_loss(found, wanted) + F.mse_loss(found, wanted))
        if self.perceptual is not None:
            terms["perceptual"] = self.settings.perceptual * self.perceptual(reconstruction, images)
        if judged := self.discriminator is not None and self.step >= self.start:
            terms["adversarial"] = self.adversarial(reconstruction)
        sum(terms.values()).backward()
        self._descend()
        if judged:
            terms["discriminator"] = self.judge(images, reconstruction.detach())
        self.used += torch.bincount(codes.flatten(), minlength=len(self.used))
        self.step += 1
        self.history.append({"step": self.step, **{name: term.item() for name, term in terms.items()}})

    def _descend(self) -> None:
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        if self.muon is not None:
            self.muon.param_groups[0]["lr"] = self.settings.muon * self.rate
            self.muon.step()
        self.optimizer.step()
        self.model.zero_grad(set_to_none=True)
        self.schedule.step()

    def adversarial(self, reconstruction: Tensor) -> Tensor:
        """The weighted loss of not looking real, its gradient in the tokenizer alone."""
        self.discriminator.requires_grad_(False)
        return self.settings.discriminator * -self.discriminator(reconstruction).mean()

    def judge(self, real: Tensor, fake: Tensor) -> Tensor:
        """One step of the discriminator; its learning rate follows the tokenizer's."""
        self.discriminator.requires_grad_(True)
        loss = discriminator_loss(self.discriminator(real), self.discriminator(fake))
        loss.backward()
        self.critic.param_groups[0]["lr"] = self.settings.discriminator_lr * self.rate
        self.critic.step()
        self.critic.zero_grad(set_to_none=True)
        return loss

    def look(self, images: Tensor) -> None:
        """Log the codebook's use since the last look, end a training that cannot be saved, move unused codes."""
        if self.history:
            self.history[-1] |= {"codes_used": int((self.used > 0).sum()), "perplexity": perplexity(self.used)}
            self._check()
        if self.step < REVIVE_UNTIL * self.settings.steps and not self.settings.start:
            revive(self.model, images, self.used, self.step, self.settings.seed)
        else:
            self.used.zero_()

    def _check(self) -> None:
        """NppkitError where the codebook has died, the discriminator has won, or a loss is not finite."""
        l1 = self.checked_l1([])
        if self.discriminator is None or self.step <= self.start or self.lowest == math.inf:  # before it, or the first look
            self.lowest = min(self.lowest, l1)
        elif l1 > RISEN * self.lowest:
            won = f"the discriminator won, L1 {l1:.3f} after {self.lowest:.3f} without it"
            raise NppkitError(f"tokenizer, step {self.step}: {won}: lower tokenizer.discriminator")

    def finish(self) -> VQModel:
        """The tokenizer in eval mode. NppkitError where the last steps, at which nothing has looked, have ruined it."""
        self.checked_l1([perplexity(self.used)] if self.step % LOOK_EVERY == 0 else [])
        return self.model.eval()

    def checked_l1(self, last: list[float]) -> float:
        """The mean L1 since the last look. NppkitError if it is not finite, and where the codebook has died.

        That is by the perplexities of the looks so far, and of a last one that is not in the history.
        """
        l1 = float(np.mean([row["l1"] for row in self.history[-LOOK_EVERY:]]))
        if not math.isfinite(l1):
            raise NppkitError(f"tokenizer, step {self.step}: the loss is {l1}: lower tokenizer.lr")
        found = [row["perplexity"] for row in self.history if "perplexity" in row] + last
        if found and max(found[-2:]) < FALLEN * max(found):
            died = f"the codebook died, perplexity {found[-1]:.1f} after {max(found):.1f}"
            raise NppkitError(f"tokenizer, step {self.step}: {died}: lower tokenizer.lr")
        return l1

    def save(self, folder: Path, digest: str) -> None:
        """A checkpoint of everything; NppkitError if the disk is full."""
        groups = {"model": self.model.state_dict(), "codes": {"used": self.used}}
        groups |= {name: optimizer_tensors(*pair) for name, pair in self.optimizers.items()}
        if self.discriminator is not None:
            groups["discriminator"] = self.discriminator.state_dict()
        state = {"config_digest": digest, "history": self.history, "lowest": self.lowest}
        save_checkpoint(folder, self.step, {name: group for name, group in groups.items() if group}, state)

    def resume(self, folder: Path, digest: str) -> None:
        """Continue from the newest checkpoint, if there is one. NppkitError names one of another training."""
        if (found := load_newest(folder, digest)) is None:
            return
        tensors, state = found
        self.step, self.history, self.lowest = (state[key] for key in ("step", "history", "lowest"))
        self.model.load_state_dict(tensors["model"])
        for name, pair in self.optimizers.items():
            load_optimizer(*pair, tensors.get(name, {}))
        self.used.copy_(tensors["codes"]["used"])
        self.schedule.load_state_dict({"last_epoch": self.step - 1, "_step_count": self.step})
        self.schedule.step()
        if self.discriminator is not None:
            self.discriminator.load_state_dict(tensors["discriminator"])


def train_tokenizer(
    pixels: Tensor,
    config: VQConfig,
    settings: TokenizerConfig,
    progress: Callable[[range], Iterable[int]] = iter,
    device: torch.device = CPU,
    folder: Path | None = None,
    digest: str = "",
) -> tuple[VQModel, list[dict]]:
    """Train a tokenizer on uint8 crops (n, crops, 3, S, S). Returns it in eval mode, and a row of losses for each step.

    Every 50th row but the last tells how many codes these 50 steps used, and their perplexity. With a `folder` the training is
    saved there every 200 steps and when it is asked to stop (Interrupted), under the digest of all that decides it, and goes on
    from there. NppkitError where colours meet a tokenizer of gray, the codebook dies, a loss is not finite, or the discriminator
    wins.
    """
    if config.gray and not (pixels == pixels[:, :, :1]).all():
        raise NppkitError("tokenizer.vq.gray is for gray images, and these have colours: leave it out")
    training = TokenizerTraining(config, settings, device)
    if folder:
        training.resume(folder, digest)
    with StopRequest() as stop:
        for step in progress(range(training.step, settings.steps)):
            training.train_step(to_model_range(random_crops(pixels, settings.batch_size, settings.seed, step)[0].to(device)))
            if folder and (stop.requested or training.step % SAVE_EVERY == 0):
                training.save(folder, digest)
            if stop.requested:
                raise Interrupted(f"stopped after step {training.step}; the same command goes on", stop.requested)
    return training.finish(), training.history
