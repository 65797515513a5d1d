"""The digit classifier that the pipeline trains: its features look at small gray images."""

import itertools
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nppkit import noise
from nppkit.data.train_tokenizer import one_cycle, random_crops
from nppkit.scoring.config import ExtractorConfig

FEATURE_DIM = 64


class DigitClassifier(nn.Module):
    """Convolutional classifier of 32 x 32 grey digits with 64-d features."""

    def __init__(self, num_classes: int = 10):
        super().__init__()
        widths = [1, 16, 32, 64]
        self.convs = nn.ModuleList(nn.Conv2d(i, o, 3, padding=1, bias=False) for i, o in itertools.pairwise(widths))
        self.norms = nn.ModuleList(nn.BatchNorm2d(o) for o in widths[1:])
        self.embed = nn.Linear(widths[-1] * 16, FEATURE_DIM)
        self.head = nn.Linear(FEATURE_DIM, num_classes)

    def features(self, pixels: Tensor) -> Tensor:
        """(B, 64) of uint8 images (B, 3, S, S)."""
        x = pixels.float().mean(1, keepdim=True) / 127.5 - 1
        if x.shape[-1] != 32:
            x = F.interpolate(x, size=(32, 32), mode="bicubic", antialias=True)
        for conv, norm in zip(self.convs, self.norms, strict=True):
            x = F.max_pool2d(F.relu(norm(conv(x))), 2)
        return F.relu(self.embed(x.flatten(1)))

    def forward(self, pixels: Tensor) -> Tensor:
        """Logits (B, classes)."""
        return self.head(self.features(pixels))


def fit_classifier(
    pixels: Tensor, labels: Tensor, num_classes: int, e: ExtractorConfig, progress: Callable = iter
) -> DigitClassifier:
    """Train the digit classifier on uint8 crops (n, crops, 3, S, S) and labels (n,)."""
    torch.manual_seed(noise.torch_seed(e.seed))
    model = DigitClassifier(num_classes).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=e.lr, weight_decay=0.05)
    schedule = one_cycle(optimizer, e.lr, e.steps)
    for step in progress(range(e.steps)):
        images, index = random_crops(pixels, e.batch_size, e.seed, step)
        F.cross_entropy(model(images), labels[index], label_smoothing=0.1).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        schedule.step()
    return model.eval()


@torch.inference_mode()
def accuracy(model: DigitClassifier, pixels: Tensor, labels: Tensor) -> float:
    """Share of uint8 images (n, 3, S, S) whose class the classifier names."""
    predicted = torch.cat([model(batch).argmax(-1) for batch in pixels.split(256)])
    return (predicted == labels).float().mean().item()
