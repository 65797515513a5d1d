"""npz files: images as ADM's scripts read them. Unfit files are refused in test_reference.py and test_images.py."""

from pathlib import Path

import numpy as np
import torch

from nppkit import files
from nppkit.data.npz import read_npz, write_npz


def test_images_as_adm_reads_them(tmp_path):
    """Images are written as uint8 NHWC under arr_0, and read back as they were."""
    pixels = torch.randint(0, 256, (4, 3, 16, 16), dtype=torch.uint8)
    write_npz(tmp_path / "new" / "samples.npz", pixels)
    with np.load(tmp_path / "new" / "samples.npz") as file:
        assert file.files == ["arr_0"] and file["arr_0"].dtype == np.uint8
        np.testing.assert_array_equal(file["arr_0"], pixels.numpy().transpose(0, 2, 3, 1))
    torch.testing.assert_close(read_npz(tmp_path / "new" / "samples.npz"), pixels)
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["samples.npz"]


def test_home_is_absolute(tmp_path, monkeypatch):
    """A relative NPPKIT_HOME starts at the folder of the moment, an empty one is none."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("NPPKIT_HOME", "mine")
    assert files.home() == tmp_path / "mine"
    monkeypatch.setenv("NPPKIT_HOME", "")
    assert files.home() == Path(files.__file__).parents[1]
