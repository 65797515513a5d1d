"""npz files: images as ADM's scripts read them. Unfit files are refused in test_reference.py and test_images.py."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from nppkit import files
from nppkit.data.npz import read_npz, write_npz
from nppkit.errors import NppkitError


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


def test_another_clones_package_is_refused(tmp_path, monkeypatch):
    """In a clone whose package is not the one that Python imports, nothing runs: it would be other code, and other results."""
    (tmp_path / "nppkit").mkdir()
    (tmp_path / "nppkit/files.py").touch()
    (tmp_path / "notebooks").mkdir()
    for folder in (tmp_path, tmp_path / "notebooks"):
        monkeypatch.chdir(folder)
        with pytest.raises(NppkitError, match=f"^{tmp_path} is one clone, and Python takes nppkit from another"):
            files.home()


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "free some space"),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), "free some space"),
        (PermissionError(errno.EACCES, "Permission denied"), "choose a folder that you may write"),
        (OSError(errno.EROFS, "Read-only file system"), "choose a folder that you may write"),
        (RuntimeError("Some tensors share memory"), "mend that"),
        (RuntimeError("[enforce fail at inline_container.cc] PytorchStreamWriter failed writing file"), "free some space"),
    ],
)
def test_a_failed_write_says_its_cause(tmp_path, error, says):
    """Only a full disk is called one."""
    with pytest.raises(NppkitError, match=f"file could not be written .*: {says}"), files.replacing(tmp_path / "file"):
        raise error


@pytest.mark.parametrize("content", ["", "{", "[" * 100_000, "\0", None], ids=["empty", "cut off", "deep", "zeros", "none"])
def test_a_damaged_json_file_is_named(tmp_path, content):
    """Empty, cut off, nested beyond reason, of zeros or not there: one line that names it, or nothing noted."""
    path = tmp_path / "metrics.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(NppkitError, match=rf"^{path} cannot be read .*: run its job again$"):
        files.read_json(path)
    assert files.noted(path) == {}


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    """A file stands where the folder should be: one line, and the file is left as it is; a folder that is missing is made."""
    (tmp_path / "file").write_text("mine")
    with pytest.raises(NppkitError, match=r"file/below could not be written"):
        files.write_atomic(tmp_path / "file" / "below", "")
    assert (tmp_path / "file").read_text() == "mine"
    files.write_atomic(tmp_path / "some" / "folder" / "below", "new")
    assert (tmp_path / "some" / "folder" / "below").read_text() == "new"


def test_files_are_utf8_in_any_locale(tmp_path):
    """A preset with umlauts is read under a locale that knows none."""
    text = (Path(files.__file__).parent / "presets/smoke.yaml").read_text(encoding="utf-8")
    (tmp_path / "m\u00e4ine.yaml").write_text(f"{text}\n# gr\u00f6\u00dfer\n", encoding="utf-8")
    env = {**os.environ, "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "LC_ALL": "C", "NPPKIT_HOME": str(tmp_path)}
    command = [sys.executable, "-m", "nppkit", "where", str(tmp_path / "m\u00e4ine.yaml"), "table1"]
    result = subprocess.run(command, env=env, capture_output=True, encoding="utf-8")
    assert result.returncode == 0 and "results/maine/table1_main.csv" in result.stdout, result.stderr
