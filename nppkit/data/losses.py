"""What a tokenizer's training lowers beside L1 and squared error: the adversarial loss and its judge, and that of colours.

PatchGAN with a hinge loss, as in VQGAN (Esser et al., 2021, arXiv 2012.09841). Images are in [-1, 1]; perceptual.py has the
loss of a network's features.
"""

import torch.nn.functional as F
from torch import Tensor, nn


class Discriminator(nn.Module):
    """PatchGAN (Isola et al., 2017, arXiv 1611.07004): is each patch of an image real?"""

    def __init__(self):
        super().__init__()
        parts = [nn.Conv2d(3, 32, 4, stride=2, padding=1), nn.LeakyReLU(0.2)]
        for width, out, stride in ((32, 64, 2), (64, 128, 1)):
            parts += [nn.Conv2d(width, out, 4, stride, padding=1, bias=False)]
            parts += [nn.GroupNorm(8, out), nn.LeakyReLU(0.2)]  # not of the batch: an image's logits are its own
        self.network = nn.Sequential(*parts, nn.Conv2d(128, 1, 4, padding=1))
        for module in self.network:
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, std=0.02)

    def forward(self, images: Tensor) -> Tensor:
        """Logits (B, 1, h, w) of images (B, 3, S, S), above 0 where they look real."""
        return self.network(images)


def discriminator_loss(real: Tensor, fake: Tensor) -> Tensor:
    """Hinge loss of a discriminator's logits: 0 when real ones are above 1 and fake ones below -1."""
    return 0.5 * (F.relu(1 - real).mean() + F.relu(1 + fake).mean())


def chroma(images: Tensor) -> Tensor:
    """Colours without brightness: each channel of (B, 3, S, S) minus the mean of the three, 0 where an image is gray."""
    return images - images.mean(1, keepdim=True)
