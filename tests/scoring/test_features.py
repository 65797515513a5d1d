"""Feature extractors: their files are checked before they are read, and all answer alike."""

import pickle

import pytest
import torch
from safetensors.torch import save_file
from sklearn.datasets import load_sample_image
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

from nppkit import files
from nppkit.errors import NppkitError
from nppkit.scoring import features
from nppkit.scoring.classifier import DigitClassifier
from nppkit.scoring.features import extract_features, load_extractor
from nppkit.study import graph


def noise_images(n: int, side: int = 32, seed: int = 0) -> torch.Tensor:
    return torch.randint(0, 256, (n, 3, side, side), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def random_inception(path) -> None:
    """A file of torch-fidelity's format with random weights."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "load", lambda *args, **kwargs: {})
        patch.setattr(FeatureExtractorInceptionV3, "load_state_dict", lambda self, state: None)
        torch.manual_seed(0)
        network = FeatureExtractorInceptionV3("inception-v3-compat", ["2048"], "none")
    for parameter in network.parameters():
        if parameter.ndim == 4:  # torch's default shrinks the signal from layer to layer
            torch.nn.init.kaiming_normal_(parameter)
    torch.save(network.state_dict(), path)


@pytest.fixture(scope="module")
def inception(tmp_path_factory):
    path = tmp_path_factory.mktemp("inception") / "inception.pth"
    random_inception(path)
    return path


@pytest.fixture
def digits(tmp_path):
    torch.manual_seed(0)
    save_file(DigitClassifier(7).state_dict(), tmp_path / "digits.safetensors")
    return tmp_path / "digits.safetensors"


def test_digits(digits):
    """The digit classifier's head turns its features into its logits, and batches do not matter."""
    extractor, pixels = load_extractor("digits", digits), noise_images(10)
    found = extract_features(extractor, pixels, batch_size=4)
    assert found["features"].shape == (10, 64) and extractor.sha256 == files.sha256(digits)
    torch.testing.assert_close(found["logits"], extractor.classifier(pixels))
    torch.testing.assert_close(found["logits"], extractor.classifier.head(found["features"]))


def test_inception(inception):
    """Inception's features and class scores are torch-fidelity's 2048 and logits_unbiased."""
    pixels = noise_images(2, 40)
    extractor = load_extractor("inception-v3-compat", inception, files.sha256(inception))
    found = extract_features(extractor, pixels, batch_size=1)
    theirs = FeatureExtractorInceptionV3("x", ["logits_unbiased", "logits", "2048"], str(inception))
    logits_unbiased, logits, pooled = theirs(pixels)
    assert found["features"].shape == (2, 2048) and found["logits"].shape == (2, 1008)
    assert pooled.std() > 1e-3 and not torch.allclose(logits_unbiased, logits)
    torch.testing.assert_close(found, {"features": pooled, "logits": logits_unbiased})


def test_autocast_does_not_reach_the_features(digits):
    """Samples may be drawn in bf16; their features are the same fp32 numbers."""
    extractor, pixels = load_extractor("digits", digits), noise_images(3)
    plain = extract_features(extractor, pixels)
    with torch.autocast("cpu", torch.bfloat16):
        assert extractor(pixels)[1].dtype is torch.bfloat16
        within = extract_features(extractor, pixels)
    torch.testing.assert_close(within, plain, rtol=0, atol=0)


class Trap:
    """Unpickling it writes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def test_digest_before_unpickling(tmp_path):
    """A file that is not the published one is refused with nothing of it unpickled; so is code whose digest is given."""
    path, mark = tmp_path / "trap.pth", tmp_path / "unpickled"
    path.write_bytes(pickle.dumps(Trap(mark)))
    for name in ("inception-v3-compat", "efficientnet-lite0"):
        with pytest.raises(NppkitError, match=r"trap\.pth have sha256 .* not [0-9a-f]{64}"):
            load_extractor(name, path)
    with pytest.raises(NppkitError, match=r"trap\.pth are not those of inception"):
        load_extractor("inception-v3-compat", path, files.sha256(path))
    assert not mark.exists()


def test_digest_in_capitals(digits):
    """A digest is accepted in either case, and a wrong one is refused for every extractor."""
    assert load_extractor("digits", digits, files.sha256(digits).upper()).sha256 == files.sha256(digits)
    with pytest.raises(NppkitError, match=r"digits\.safetensors have sha256"):
        load_extractor("digits", digits, "0" * 64)


def test_unfit_files(digits, tmp_path):
    """Missing and empty files and weights of another network are refused by name."""
    with pytest.raises(NppkitError, match=r"weights .*absent\.pth do not exist"):
        load_extractor("inception-v3-compat", tmp_path / "absent.pth")
    with pytest.raises(NppkitError, match="do not exist: run the tokenize job"):
        load_extractor("digits", "")
    (tmp_path / "empty.pth").touch()
    with pytest.raises(NppkitError, match=r"empty\.pth are not those of inception-v3-compat \(EOFError\)"):
        load_extractor("inception-v3-compat", tmp_path / "empty.pth", files.sha256(tmp_path / "empty.pth"))
    save_file({"head.bias": torch.zeros(10)}, tmp_path / "other.safetensors")
    with pytest.raises(NppkitError, match=r"other\.safetensors are not those of digits"):
        load_extractor("digits", tmp_path / "other.safetensors")


def test_inception_download(inception, tmp_path, monkeypatch, home):
    """Without a file, torch-fidelity's download is asked for with the published digest, once; offline the remedy is named.

    A file in weights/ is used without asking.
    """
    asked = []

    def download(url, target, digest, progress):
        asked.append((url, digest))
        if len(asked) == 1:
            raise OSError("offline")
        graph.Path(target).write_bytes(inception.read_bytes())

    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", download)
    with pytest.raises(NppkitError, match=r"6726825d\.pth cannot be downloaded \(offline\): put a copy into "):
        load_extractor("inception-v3-compat")
    for _ in range(2):
        assert load_extractor("inception-v3-compat", "", files.sha256(inception)).sha256 == files.sha256(inception)
    assert asked == [(features.URL_INCEPTION_V3, features.SHA256["inception-v3-compat"])] * 2
    (home / "weights").mkdir()
    (home / "weights" / "weights-inception-2015-12-05-6726825d.pth").write_bytes(b"found")
    assert features.weights_file("inception-v3-compat").read_bytes() == b"found"


def test_efficientnet_sees_each_image_alone():
    """An image's features do not depend on those that share its part or its batch, and come in the images' order."""
    pixels = torch.randint(0, 256, (11, 3, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    extractor = load_extractor("efficientnet-lite0")
    together = extract_features(extractor, pixels)["features"]
    alone = torch.cat([extract_features(extractor, pixels[i : i + 1])["features"] for i in range(11)])
    torch.testing.assert_close(together, alone, rtol=1e-3, atol=1e-4)


def test_efficientnet_sees_a_photograph():
    """The wheel's EfficientNet-Lite0 calls scikit-learn's photograph of a daisy a daisy (ImageNet class 985)."""
    pixels = torch.from_numpy(load_sample_image("flower.jpg").copy()).permute(2, 0, 1)[None, :, :, 107:534]
    extractor = load_extractor("efficientnet-lite0")
    found = extract_features(extractor, pixels)
    assert found["features"].shape == (1, 1280)
    assert found["logits"].argmax().item() == 985
    scaled = (pixels.float() - 127) / 128
    image = torch.nn.functional.interpolate(scaled, size=(224, 224), mode="bicubic", antialias=True)
    torch.testing.assert_close(found["logits"], extractor.classifier.network(image), rtol=1e-4, atol=1e-4)
