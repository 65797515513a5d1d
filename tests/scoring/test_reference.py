"""References: moments and features of ADM's file or an own data set, kept without pickles, refused when unfit."""

import hashlib
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from nppkit import files
from nppkit.data.images import ImageSet, reference_pixels
from nppkit.errors import NppkitError
from nppkit.scoring import reference as module
from nppkit.scoring.classifier import DigitClassifier
from nppkit.scoring.features import extract_features, load_extractor
from nppkit.scoring.reference import Moments, load_reference, prepare_reference, reference_from_adm, reference_from_images

DIM = 64


def image_set(n: int, seed: int = 0) -> ImageSet:
    pixels = np.random.default_rng(seed).integers(0, 256, (n, 40, 36, 3), dtype=np.uint8)
    return ImageSet(np.zeros(n, np.int64), ("all",), f"digest {seed}", lambda i: Image.fromarray(pixels[i]))


def make_extractor(path, seed: int = 0):
    torch.manual_seed(seed)
    save_file(DigitClassifier().state_dict(), path)
    return load_extractor("digits", path)


@pytest.fixture
def extractor(tmp_path):
    return make_extractor(tmp_path / "digits.safetensors")


def adm_arrays(n: int = 5) -> dict:
    rng = np.random.default_rng(1)
    samples = rng.normal(size=(200, DIM))
    images = rng.integers(0, 256, (n, 32, 32, 3), dtype=np.uint8)
    return {"arr_0": images, "mu": samples.mean(0), "sigma": np.cov(samples, rowvar=False)}


def test_moments_in_batches():
    """Mean and covariance over uneven batches are those of all features at once, far from zero too."""
    features = torch.randn(57, 6, generator=torch.Generator().manual_seed(0)) + 1000
    moments = Moments()
    for part in features.split(10):
        moments.add(part)
    np.testing.assert_allclose(moments.mean, features.double().numpy().mean(0), rtol=1e-12)
    np.testing.assert_allclose(moments.sigma, np.cov(features.double().numpy(), rowvar=False), atol=1e-9)


def test_own_images(extractor, monkeypatch):
    """An own reference has the moments of all images, features of the kept ones, and the pixels' digest."""
    monkeypatch.setattr(module, "KEPT", 7)
    monkeypatch.setattr(module, "CHUNK", 4)
    images = image_set(11)
    pixels = reference_pixels(images, 32)
    everything = extract_features(extractor, torch.from_numpy(pixels))["features"]
    found = reference_from_images(images, 32, extractor)
    np.testing.assert_allclose(found.mu, everything.double().numpy().mean(0), atol=1e-6)  # fp32 features vary with the batch
    np.testing.assert_allclose(found.sigma, np.cov(everything.double().numpy(), rowvar=False), atol=1e-6)
    torch.testing.assert_close(found.features, everything[found.index])
    assert len(set(found.index)) == 7 and found.index.tolist() != list(range(7))  # a random choice: sets are sorted by class
    assert found.mu.dtype == np.float64
    assert found.digest == hashlib.sha256(pixels.tobytes()).hexdigest()


def test_adm_file(extractor, tmp_path):
    """ADM's file gives its own moments in fp64, the features of its images, and its digest."""
    arrays = adm_arrays()
    arrays["mu"] = arrays["mu"].astype(np.float32)
    np.savez(tmp_path / "adm.npz", **arrays, mu_s=np.zeros(3))
    found = reference_from_adm(tmp_path / "adm.npz", extractor)
    images = torch.from_numpy(arrays["arr_0"]).permute(0, 3, 1, 2)
    torch.testing.assert_close(found.features, extract_features(extractor, images)["features"])
    assert found.mu.dtype == found.sigma.dtype == np.float64
    np.testing.assert_array_equal(found.mu, arrays["mu"].astype(np.float64))
    np.testing.assert_array_equal(found.sigma, arrays["sigma"])
    assert (found.source, found.digest) == ("adm.npz", files.sha256(tmp_path / "adm.npz"))


def spoil(key: str, value) -> dict:
    arrays = adm_arrays()
    arrays[key] = value(arrays[key])
    return arrays


def with_entry(array: np.ndarray, index, value: float) -> np.ndarray:
    array[index] = value
    return array


@pytest.mark.parametrize(
    ("arrays", "says"),
    [
        ({"arr_0": adm_arrays()["arr_0"]}, "has no mu, sigma: it holds arr_0"),
        ({k: v for k, v in adm_arrays().items() if k != "arr_0"}, "has no arr_0"),
        (spoil("mu", lambda a: a[:-1]), r"mu \(63,\) and sigma \(64, 64\) are not of the extractor's 64 features"),
        (spoil("sigma", lambda a: a[:, :-1]), r"sigma \(64, 63\) are not"),
        (spoil("mu", lambda a: with_entry(a, 3, np.nan)), r"mu \(float64\) holds NaN"),
        (spoil("sigma", lambda a: with_entry(a, (3, 4), np.inf)), r"sigma \(float64\) holds NaN"),
        (spoil("sigma", lambda a: with_entry(a, (3, 4), 9.0)), "sigma is not symmetric"),
        (spoil("sigma", lambda a: with_entry(a, (3, 3), -0.1)), "sigma has a negative variance"),
        (spoil("arr_0", lambda a: a.astype(np.float32)), "arr_0 is float32"),
        (spoil("arr_0", lambda a: a.transpose(0, 3, 1, 2)), r"arr_0 is uint8 \(5, 3, 32, 32\), not uint8 \(images"),
        (spoil("arr_0", lambda a: a[:0]), r"arr_0 is uint8 \(0, 32, 32, 3\)"),
        (spoil("mu", lambda a: a.astype(object)), r"cannot be read as npz \(Object arrays"),
    ],
)
def test_unfit_adm_files(extractor, tmp_path, arrays, says):
    """Wrong keys, shapes, NaN, impossible covariances and pickled arrays are refused by the file's name."""
    np.savez(tmp_path / "unfit.npz", **arrays)
    with pytest.raises(NppkitError, match=rf"unfit\.npz.*{says}"):
        reference_from_adm(tmp_path / "unfit.npz", extractor)


def test_files_that_are_no_npz(extractor, tmp_path):
    """Missing, empty, cut and foreign files are refused by name."""
    np.savez(tmp_path / "whole.npz", **adm_arrays())
    np.save(tmp_path / "one.npy", np.zeros(3))
    (tmp_path / "cut.npz").write_bytes((tmp_path / "whole.npz").read_bytes()[:-100])
    (tmp_path / "text.npz").write_text("mu sigma arr_0")
    (tmp_path / "empty.npz").touch()
    for name in ("absent.npz", "empty.npz", "cut.npz", "text.npz", "one.npy"):
        with pytest.raises(NppkitError, match=f"{name} cannot be read"):
            prepare_reference(str(tmp_path / name), image_set(3), 32, extractor, tmp_path)


def test_saved_reference(extractor, tmp_path):
    """A saved reference comes back as it was; a flipped byte and another extractor are refused by name."""
    made, path = reference_from_images(image_set(6), 32, extractor), tmp_path / "folder" / "own.npz"
    made.save(path)
    back = load_reference(path, extractor)
    torch.testing.assert_close(back.features, made.features, rtol=0, atol=0)
    for key in ("mu", "sigma", "index"):
        np.testing.assert_array_equal(getattr(back, key), getattr(made, key))
    assert [(back.source, back.digest, back.extractor_sha256)] == [(made.source, made.digest, made.extractor_sha256)]
    with pytest.raises(NppkitError, match=r"own\.npz holds features of digits with other weights"):
        load_reference(path, make_extractor(tmp_path / "other.safetensors", seed=1))
    content = bytearray(path.read_bytes())
    content[500] ^= 1
    path.write_bytes(content)
    with pytest.raises(NppkitError, match=r"own\.npz cannot be read"):
        load_reference(path, extractor)


def test_prepared_once(extractor, tmp_path, monkeypatch):
    """A reference is extracted once for each source, side and extractor, and read from the cache afterwards."""
    calls = []
    monkeypatch.setattr(module, "extract_features", lambda e, p: calls.append(len(p)) or extract_features(e, p))
    images = image_set(6)
    first = prepare_reference("", images, 32, extractor, tmp_path / "cache")
    again = prepare_reference("", images, 32, extractor, tmp_path / "cache")
    assert calls == [6] and again.digest == first.digest
    other = make_extractor(tmp_path / "other.safetensors", seed=1)
    for arguments in ((image_set(6, seed=1), 32, extractor), (images, 24, extractor), (images, 32, other)):
        prepare_reference("", *arguments, tmp_path / "cache")
    assert calls == [6, 6, 6, 6]


def test_prepared_from_a_file(extractor, tmp_path):
    """evaluation.reference may be ADM's file, by its content and not its name, or a saved reference."""
    np.savez(tmp_path / "adm.npz", **adm_arrays())
    made = prepare_reference(str(tmp_path / "adm.npz"), image_set(3), 32, extractor, tmp_path / "cache")
    np.testing.assert_array_equal(made.mu, adm_arrays()["mu"])
    np.savez(tmp_path / "adm.npz", **spoil("mu", lambda a: a + 1))
    changed = prepare_reference(str(tmp_path / "adm.npz"), image_set(3), 32, extractor, tmp_path / "cache")
    np.testing.assert_array_equal(changed.mu, adm_arrays()["mu"] + 1)
    made.save(tmp_path / "saved.npz")
    assert prepare_reference(str(tmp_path / "saved.npz"), image_set(3), 32, extractor, tmp_path / "cache").digest == made.digest


def test_too_few_images():
    """One image has no covariance."""
    with pytest.raises(NppkitError, match="a reference of 1 images"):
        reference_from_images(image_set(1), 32, SimpleNamespace())


def test_a_damaged_reference_of_the_cache_is_made_again(extractor, tmp_path):
    """It is made from the images, which are there."""
    first = prepare_reference("", image_set(6), 32, extractor, tmp_path)
    (kept,) = tmp_path.glob("reference-*.npz")
    kept.write_bytes(kept.read_bytes()[:500])
    assert np.array_equal(prepare_reference("", image_set(6), 32, extractor, tmp_path).mu, first.mu)
    assert load_reference(kept, extractor).digest == first.digest


def test_references_of_other_sides_are_refused(extractor, tmp_path):
    """A saved one that says its side, and ADM's file by its images."""
    reference_from_images(image_set(6), 24, extractor).save(tmp_path / "saved.npz")
    np.savez(tmp_path / "adm.npz", **spoil("arr_0", lambda a: a[:, :, :16].copy()))
    with pytest.raises(NppkitError, match=r"saved\.npz is of images of side 24, and 32 is scored"):
        prepare_reference(str(tmp_path / "saved.npz"), image_set(3), 32, extractor, tmp_path)
    with pytest.raises(NppkitError, match=r"adm\.npz: images of 16 x 32 pixels are no reference for 32 x 32"):
        prepare_reference(str(tmp_path / "adm.npz"), image_set(3), 32, extractor, tmp_path)
    assert prepare_reference(str(tmp_path / "saved.npz"), image_set(3), 24, extractor, tmp_path).features.shape[0] == 6
