"""Moving digits: where they are, who is held out, their codes as a store, and a transformer trained on windows of them."""

import dataclasses
import io

import numpy as np
import pytest
import torch
from PIL import Image

from nppkit import cost
from nppkit.data import extract, images, sources, video
from nppkit.data.codes import Manifest
from nppkit.data.extract import write_store
from nppkit.errors import NppkitError
from nppkit.machine.options import Options
from nppkit.schedule import single_scale_segments
from nppkit.study.presets import load_preset
from nppkit.study.runs import Run, check_patches, preset_runs
from nppkit.tokenizer import VQModel
from nppkit.tokenizer_config import VQConfig
from nppkit.training import trainer
from nppkit.training.config import TrainingConfig

DATA = load_preset("video").data
TOKENIZER = VQConfig(ch=8, ch_mult=(1, 2, 2), num_res_blocks=1, z_channels=8, codebook_size=16, norm_groups=4)
SIZES = dict(dim=24, n_layer=1, n_head=2, multiple_of=8)


def where(frame):
    """Left and upper edge of what is not black."""
    return frame.getbbox()[:2]


def test_a_digit_bounces(monkeypatch):
    """In a room of 6 x 5 pixels: 5 to the right and 2 a frame is at the wall's 6, then back; 0 from above and 1 up comes down."""
    picture = np.zeros((8, 8, 3), np.uint8)
    picture[3:6, 4:6] = 255, 128, 7  # 2 wide, 3 high, wherever it is
    digits = images.ImageSet(np.array([4]), tuple("01234"), "d", lambda i: Image.fromarray(picture))
    monkeypatch.setattr(video, "motion", lambda seed, i, room: (np.array([5, 0]), np.array([2, -1])))
    moving = video.moving_digits(digits, 4, seed=0)
    assert [where(moving.load(i)) for i in range(4)] == [(5, 0), (5, 1), (3, 2), (1, 3)]
    assert np.array_equal(np.asarray(moving.load(1))[1:4, 5:7], picture[3:6, 4:6])
    assert (len(moving), moving.frames, moving.labels.tolist()) == (4, 4, [4] * 4)


def test_motion_fills_the_room():
    """Digits start anywhere, move by one to three pixels in every direction, and stay within the frame."""
    room = np.array([12, 0])
    found = [video.motion(0, i, room) for i in range(300)]
    starts, speeds = (np.array(part) for part in zip(*found, strict=True))
    assert set(starts[:, 0]) == set(range(13)) and set(starts[:, 1]) == {0}
    assert {tuple(speed) for speed in speeds} == {(x, y) for x in (-3, -2, -1, 1, 2, 3) for y in (-3, -2, -1, 1, 2, 3)}
    places = np.array([video.bounced(starts + t * speeds, room) for t in range(8)])
    assert places.min() == 0 and places[..., 0].max() == 12 and places[..., 1].max() == 0


def test_held_out_digits_are_in_no_training_video():
    """The held-out videos are of the digits that the images' split holds out, and no digit is on both sides."""
    parts = sources.study_images(DATA)
    digits = images.split_heldout(images.mnist_images(), DATA.heldout)
    shapes = []
    for moving, still in zip(parts, digits, strict=True):
        assert len(moving) == DATA.frames * len(still) and np.array_equal(moving.labels[:: DATA.frames], still.labels)
        cut = (moving.load(i * DATA.frames) for i in range(len(still)))
        shapes.append({(image.crop(box := image.getbbox()).tobytes(), box[2] - box[0]) for image in cut})
    assert len(digits[1]) == len(shapes[1]) == 500 and not shapes[0] & shapes[1]
    assert parts[0].digest != parts[1].digest


def test_frames_need_videos():
    """Frames of a source that has none are named, as is a window that does not divide them."""
    preset = load_preset("video")
    with pytest.raises(NppkitError, match=r"data\.frames 8 are of a video: set data.source moving_mnist"):
        dataclasses.replace(preset, data=dataclasses.replace(DATA, source="mnist"))
    with pytest.raises(NppkitError, match="patch_size 2 does not divide the 7 x 8 x 8 grid along t"):
        check_patches(dataclasses.replace(preset, data=dataclasses.replace(DATA, frames=7)), Run("B", patch_size=2, lam="1/2"))


@pytest.fixture(scope="module")
def moving():
    return sources.study_images(dataclasses.replace(DATA, limit=12, heldout=4, frames=4))


@pytest.fixture
def store(tmp_path, moving):
    torch.manual_seed(0)
    model = VQModel(TOKENIZER).eval().requires_grad_(False)
    found = extract.extract_codes(model, moving[0], tmp_path / "s", "center", 32, "digest", batch_size=3, packed=True)
    return found, model


def test_a_store_of_videos(store, moving):
    """An item is a video: its frames' codes one after the other, its digit's label; other videos are found out."""
    found, model = store
    assert (found.codes.shape, found.grid_size, found.labels.tolist()) == ((8, 1, 256), (4, 8, 8), moving[0].labels[::4].tolist())
    frame = np.array(moving[0].load(5 * 4 + 2))[None]
    assert np.array_equal(found.codes[5, 0].reshape(4, 64)[2], extract.encode_pixels(model, frame)[0])
    rows = extract.verify_rows(found, moving[0], model, 3)
    assert rows.originals.shape == rows.decoded.shape == (12, 3, 32, 32) and rows.reproduced == 1
    with pytest.raises(NppkitError, match="labels of other images"):
        extract.verify_rows(found, moving[1], model)


def test_windows_of_two_by_two_by_two(tmp_path, store):
    """A side of 2 is a window of 2 x 2 x 2: by its FLOPs, and by the loss on each patch's eight codes, counted one by one."""
    found, _ = store
    config = TrainingConfig(epochs=2, steps_per_epoch=1, batch_size=2, lr=1e-2, label_dropout=0.0, dropout=0.0)
    model, segments = trainer.make_model(found, SIZES, config, seed=0), single_scale_segments(2, 2, "1/2")
    places = tmp_path / "history.csv", tmp_path / "ckpt", "digest"
    made = trainer.Trainer(model, found, found, segments, config, 0, *places, Options(device="cpu"))
    with made.running() as steps:
        for step in steps:
            made.train_step(step, made.patch_size(step))
            made.after(step)
    assert [row["patch_size"] for row in made.history] == [2, 1]
    counted = made.measured_cost()["flops_per_step"]
    assert counted == {p: 2 * cost.train_flops(model.config, (p, p, p)) for p in (1, 2)}
    codes, labels = made.batch(0)
    logits = model(codes, labels, (2, 2, 2)).log_softmax(-1)  # (B, 32, V): a grid of 2 x 4 x 4
    grid = codes.view(-1, 4, 8, 8)
    wanted = [logits[:, t // 2 * 16 + y // 2 * 4 + x // 2].gather(-1, grid[:, t, y, x, None]) for t, y, x in np.ndindex(4, 8, 8)]
    assert made.backward(codes, labels, 2).item() == pytest.approx(-torch.stack(wanted).mean().item(), rel=1e-5)


def test_fewer_epochs_cost_what_patches_cost(tmp_path):
    """The runs that are called equal in FLOPs are so within 1 %, as counted on the real step."""
    preset, grid = load_preset("video"), (8, 8, 8)
    about = Manifest(1, 1, list(grid), preset.tokenizer.network.codebook_size, list("0123456789"), "t", "s", 32)
    write_store(tmp_path, about, np.zeros((1, 1, 512)), np.zeros(1, int))
    model = trainer.make_model(trainer.CodeStore(tmp_path), preset.models["B"], preset.training, 0)
    codes, labels = torch.zeros(1, 512, dtype=torch.long), torch.zeros(1, dtype=torch.long)
    counted = {p: cost.step_flops(model, codes, labels, (p, p, p)) for p in (1, 2)}
    runs = preset_runs(preset)
    patched = next(run for run in runs if run.lam)
    patches = sum((s.end - s.start) * counted[s.patch_size] for s in patched.segments(preset.training.epochs))
    short, long = preset.equal_flops["B"]
    assert short in {run.epochs for run in runs}
    assert short * counted[1] == pytest.approx(patches, rel=0.01)
    assert long / 300 * patches == pytest.approx(300 * counted[1], rel=0.01)


def test_pictures_are_files():
    """One image becomes a PNG, frames a GIF that plays them in order without end, each pixel a square."""
    frames = torch.zeros(3, 3, 4, 4, dtype=torch.uint8)
    for t in range(3):
        frames[t, :, t, t] = 255
    for some, kind in ((frames[:1], "PNG"), (frames, "GIF")):
        video.save_picture(some, file := io.BytesIO(), scale=2)
        with Image.open(file) as image:
            assert (image.format, image.size, getattr(image, "n_frames", 1)) == (kind, (8, 8), len(some))
            for t in range(len(some)):
                image.seek(t)
                assert np.array_equal(np.asarray(image.convert("RGB"))[::2, ::2], frames[t].permute(1, 2, 0))
    assert image.info["loop"] == 0
