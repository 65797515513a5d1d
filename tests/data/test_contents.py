"""Contents of files: read once, noticed when they change, and named."""

import os
import time

import pytest
from PIL import Image

from nppkit.data import contents, images
from nppkit.data.images import folder_images, source_contents
from nppkit.errors import NppkitError


@pytest.fixture
def folder(home):
    """Two classes of two images, an hour old."""
    for name in ("cat/0.png", "cat/1.png", "dog/0.png", "dog/1.png"):
        path = home / "images" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), (len(name), int(name[4]), 0)).save(path)
    return home / "images"


def changes(folder, change):
    """The line that names what a change has done."""
    before = contents.digest_of(source_contents(folder))
    change()
    after = source_contents(folder)
    return contents.difference(before, after) if contents.digest_of(after) != before else ""


def test_what_has_changed_is_named(folder):
    """Images and classes that came, went, or were replaced or renamed; each by its name, at most three."""
    assert changes(folder, lambda: None) == ""
    assert (
        changes(folder, lambda: (folder / "cat/1.png").rename(folder / "cat/2.png"))
        == "1 added (cat/2.png), 1 removed (cat/1.png)"
    )
    assert (
        changes(folder, lambda: (folder / "dog/1.png").write_bytes((folder / "cat/0.png").read_bytes()))
        == "1 replaced (dog/1.png)"
    )
    assert changes(folder, lambda: (folder / "dog").rename(folder / "wolf")) == (
        "2 added (wolf/0.png, wolf/1.png), 2 removed (dog/0.png, dog/1.png)"
    )
    assert changes(folder, lambda: (folder / "notes.txt").write_text("not an image")) == ""
    assert contents.difference("0" * 64, {}) == "it held other files"  # without this machine's note


def test_a_file_of_equal_size_and_time_is_noticed(folder):
    """One bit of a picture, its size and its time of change as they were: the digest of the image set follows."""
    path, before = folder / "cat/0.png", folder_images(folder).digest
    time.sleep(contents.SETTLED + 0.1)
    assert folder_images(folder).digest == before
    state, content = path.stat(), bytearray(path.read_bytes())
    content[-20] ^= 1
    path.write_bytes(content)
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))
    assert folder_images(folder, check=False).digest != before


def test_files_that_did_not_change_are_not_read_again(folder, monkeypatch):
    """Once a file's times are old enough to tell a later write, its size and times decide."""
    read, sha256 = [], contents.sha256
    monkeypatch.setattr(contents, "sha256", lambda path: read.append(path.name) or sha256(path))
    source_contents(folder)
    source_contents(folder)  # the files are too new to be trusted
    assert len(read) == 8
    time.sleep(contents.SETTLED + 0.1)
    for _ in range(3):
        source_contents(folder)
    assert len(read) == 12
    (folder / "cat/0.png").touch()
    source_contents(folder)
    assert read[12:] == ["0.png"]


def test_files_of_one_folder_do_not_forget_each_other(home, monkeypatch):
    """Weights and references often lie side by side, and are gigabytes: each is read once."""
    read, sha256 = [], contents.sha256
    monkeypatch.setattr(contents, "sha256", lambda path: read.append(path.name) or sha256(path))
    for name in "ab":
        (home / name).write_bytes(b"weights")
        os.utime(home / name, (time.time() - 3600,) * 2)
    time.sleep(contents.SETTLED + 0.1)
    assert [source_contents(home / name) is not None for name in "ababab"] == [True] * 6 and read == ["a", "b"]


def test_one_pass_digests_and_looks(folder, monkeypatch):
    """The pass that looks for damaged pictures takes the digests; what it found good is not read again, what was bad is."""
    looked, why = [], images._why_unreadable
    monkeypatch.setattr(images, "_why_unreadable", lambda path: looked.append(path.name) or why(path))
    (folder / "cat/bad.png").write_bytes(b"no picture")
    time.sleep(contents.SETTLED + 0.1)
    source_contents(folder)
    assert sorted(looked) == ["0.png", "0.png", "1.png", "1.png", "bad.png"]
    with pytest.raises(NppkitError, match=r"1 of 5 images in .*/cat/bad\.png"):
        folder_images(folder)
    assert looked[5:] == ["bad.png"]


def test_what_may_not_be_read_is_named(folder, monkeypatch):
    """A picture or a folder of somebody else's is one line, and is read when it may be."""
    before, sha256, scandir = folder_images(folder).digest, contents.sha256, os.scandir

    def refuse(name, function):
        def read(path):
            if str(path).endswith(name):
                raise PermissionError(13, "Permission denied", str(path))
            return function(path)

        return read

    time.sleep(contents.SETTLED + 0.1)
    monkeypatch.setattr(contents, "sha256", refuse("dog/1.png", sha256))
    with pytest.raises(NppkitError, match=r"1 of 4 images in .*/dog/1\.png \(Permission denied\)"):
        folder_images(folder)
    monkeypatch.setattr(contents, "sha256", sha256)
    assert folder_images(folder).digest == before
    monkeypatch.setattr(os, "scandir", refuse("dog", scandir))
    for look in (folder_images, source_contents):
        with pytest.raises(NppkitError, match=r"images cannot be read \(.*Permission denied.*dog'\): make it readable"):
            look(folder)


def test_without_a_place_for_notes_files_are_read_each_time(folder, home):
    """A folder that cannot be written costs time, and nothing else."""
    (home / "checkpoints").write_text("a file")
    assert source_contents(folder) == source_contents(folder) and len(source_contents(folder)) == 4
    assert source_contents(folder / "cat/0.png").keys() == {"0.png"} and source_contents(home / "nowhere") is None
