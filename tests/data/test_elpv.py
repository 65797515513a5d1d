"""The photographs of solar cells."""

import importlib.util
import json
import sys

import numpy as np
import pytest
from PIL import Image

from nppkit.data import elpv
from nppkit.data.images import CROPS, crop_images, split_heldout
from nppkit.data.sources import load_images
from nppkit.errors import NppkitError


@pytest.fixture
def wheel(tmp_path, monkeypatch):
    """A wheel of six made-up cells in the place of the real one: wheel(rows) writes its labels."""
    data = tmp_path / "elpv_dataset" / "data"
    (data / "images").mkdir(parents=True)
    (data.parent / "__init__.py").touch()
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "elpv_dataset", raising=False)
    elpv.elpv_images.cache_clear()
    yield lambda rows: write(data, rows)
    elpv.elpv_images.cache_clear()


def write(data, rows):
    """The files of these rows (defect, kind); cell i is of gray 10 i."""
    for i in range(len(rows)):
        Image.new("L", (300, 300), 10 * i).save(data / f"images/cell{i:04}.png")
    (data / "labels.csv").write_text("".join(f"images/cell{i:04}.png  {d}  {kind}\n" for i, (d, kind) in enumerate(rows)))


def test_labels_and_pictures(wheel):
    """Classes are the kind of cell times the probability of a defect, with names to read; pictures come in RGB, in order."""
    thirds = ("0.0", "0.3333333333333333", "0.6666666666666666", "1.0")
    wheel([*((d, "mono") for d in thirds), *((d, "poly") for d in thirds)])
    images = load_images("elpv")
    assert images.labels.tolist() == list(range(8)) and len(images.class_names) == 8
    assert (images.class_names[1], images.class_names[-1]) == ("mono, defect 1/3", "poly, defect 1")
    picture = images.load(3)
    assert picture.mode == "RGB" and picture.size == (300, 300) and picture.getpixel((5, 5)) == (30, 30, 30)


def test_digest_follows_pictures_and_labels(wheel):
    """Another picture or label is another data set."""
    digests = []
    for rows in ([("1.0", "mono")] * 2, [("1.0", "mono")] * 3, [("0.0", "mono")] * 2):
        elpv.elpv_images.cache_clear()
        wheel(rows)
        digests.append(elpv.elpv_images().digest)
    assert len(set(digests)) == 3


def test_without_the_wheel(monkeypatch):
    """Its absence is one line with the command that installs it."""
    elpv.elpv_images.cache_clear()
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(NppkitError, match=r"pip install elpv-dataset==1\.0\.0\.post1"):
        load_images("elpv")


@pytest.mark.skipif(importlib.util.find_spec("elpv_dataset") is None, reason="the wheel is not installed")
def test_the_real_set():
    """2,624 cells, with the shares that their authors state."""
    elpv.elpv_images.cache_clear()
    images = elpv.elpv_images()
    counts = np.bincount(images.labels, minlength=8).reshape(2, 4)
    assert counts.sum(0).tolist() == [1508, 295, 106, 715] and counts.sum(1).tolist() == [1074, 1550]
    training, heldout = split_heldout(images, 500)
    assert (len(training), len(heldout)) == (2124, 500) and json.dumps(images.class_names)


def test_flips():
    """The four flips of a picture, itself first; twice the same flip is the picture again."""
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8))
    crops = crop_images(picture, "flips", 32)
    assert len(crops) == CROPS["flips"] and np.array_equal(crops[0], crop_images(picture, "center", 32)[0])
    assert np.array_equal(crops[1][:, ::-1], crops[0]) and np.array_equal(crops[2][::-1], crops[0])
    assert np.array_equal(crop_images(picture, "mirror", 32), crops[:2]) and CROPS["mirror"] == 2
    assert np.array_equal(crops[3][::-1, ::-1], crops[0])
