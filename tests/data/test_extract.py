"""Extraction: resumable, the same for any number of processes; LlamaGen's files; random rows beside their images."""

import dataclasses
import multiprocessing
import os
import re
import shutil
import signal
import zipfile
from collections import namedtuple

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from nppkit import cli, files
from nppkit.data import codes, extract
from nppkit.data.codes import CodeStore, Manifest
from nppkit.data.extract import encode_pixels, extract_codes, verify_rows
from nppkit.data.images import crop_images, mnist_images
from nppkit.data.llamagen import import_llamagen
from nppkit.errors import NppkitError
from nppkit.machine import guard
from nppkit.machine.progress import BATCH
from nppkit.tokenizer import VQModel, reconstruct
from nppkit.tokenizer_config import VQConfig

TINY_VQ = VQConfig(ch=4, ch_mult=(1, 1, 1), num_res_blocks=1, z_channels=8, codebook_size=16, norm_groups=2)
BATCHES = 7  # of three images, the last of two


@pytest.fixture(scope="module")
def images():
    """Twenty digits of all classes."""
    return mnist_images().subset(np.arange(0, 5000, 250))


@pytest.fixture(scope="module")
def model():
    """An untrained tokenizer: 8 x 8 codes of 16."""
    torch.manual_seed(0)
    return VQModel(TINY_VQ).eval().requires_grad_(False)


@pytest.fixture
def encoded(monkeypatch):
    """How many crops each call of the encoder got."""
    calls = []
    monkeypatch.setattr(extract, "encode_pixels", lambda model, pixels: calls.append(len(pixels)) or encode_pixels(model, pixels))
    return calls


def run(model, images, folder, sha="sha", **options):
    """Extraction in batches of three images of five crops."""
    return extract_codes(model, images, folder, "shift", 32, sha, batch_size=3, **options)


def killed_after(batches):
    """A progress that kills its process when that many batches are done."""

    def progress(items):
        for i, item in enumerate(items):
            if i == batches:
                os.kill(os.getpid(), signal.SIGKILL)
            yield item

    return progress


def start(*args, **options):
    """`run` in a process of its own."""
    process = multiprocessing.get_context("fork").Process(target=run, args=args, kwargs=options)
    process.start()
    return process


def kill_after(batches, *args, **options):
    """`run` in a process of its own that is killed after so many batches."""
    process = start(*args, progress=killed_after(batches), **options)
    process.join()
    assert process.exitcode == -signal.SIGKILL


def contents(folder):
    """Every file of a folder by name."""
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_extracted_codes_are_the_encoders(model, images, tmp_path):
    """Each crop's row in the store is what the tokenizer says of that crop, with its label and manifest."""
    store = run(model, images, tmp_path)
    assert store.codes.shape == (20, 5, 64) and store.codes.dtype == np.uint16
    pixels = crop_images(images.load(5), "shift", 32)[3]
    assert np.array_equal(store.codes[5, 3], encode_pixels(model, pixels[None])[0])
    assert store.labels.tolist() == images.labels.tolist()
    expected = dict(images=20, crops=5, grid_size=8, vocab_size=16, class_names=list("0123456789"), tokenizer_sha256="sha")
    assert store.manifest == Manifest(**expected, source_digest=images.digest, image_size=32, crop_kind="shift")
    assert sorted(contents(tmp_path)) == ["codes.npy", "labels.npy", "manifest.json"]


def test_many_crops_are_encoded_in_parts(model, images, monkeypatch):
    """The encoder sees a bounded number of pixels at once, and the codes stay those of each crop."""
    pixels = crop_images(images.load(1), "shift", 32)
    seen, encode = [], model.encode
    monkeypatch.setattr(model, "encode", lambda x: seen.append(len(x)) or encode(x))
    monkeypatch.setattr(extract, "images_at_once", lambda side, device: 2)
    codes = encode_pixels(model, pixels)
    assert seen == [2, 2, 1]
    assert np.array_equal(codes, np.concatenate([encode_pixels(model, pixel[None]) for pixel in pixels]))


@pytest.mark.parametrize("world_size", [2, 4, 9])
def test_shares_make_the_store_of_one_process(model, images, tmp_path, world_size, encoded):
    """Two, four, and more processes than batches write byte for byte the serial store, and encode each image once."""
    run(model, images, tmp_path / "serial")
    crops = sum(encoded)
    stores = [run(model, images, tmp_path / "shared", rank=r, world_size=world_size) for r in reversed(range(world_size))]
    assert stores[:-1] == [None] * (world_size - 1) or world_size > BATCHES
    assert isinstance(stores[-1], CodeStore) and sum(encoded) == 2 * crops
    assert contents(tmp_path / "shared") == contents(tmp_path / "serial")


def test_processes_at_the_same_time(model, images, tmp_path):
    """Four processes that start together end with the serial store."""
    run(model, images, tmp_path / "serial")
    processes = [start(model, images, tmp_path / "shared", rank=r, world_size=4) for r in range(4)]
    for process in processes:
        process.join()
    assert contents(tmp_path / "shared") == contents(tmp_path / "serial")


def test_a_killed_extraction_continues(model, images, tmp_path, encoded):
    """What was on disk when the process was killed is not encoded again, and the store is the uninterrupted one."""
    run(model, images, tmp_path / "whole")
    encoded.clear()
    kill_after(4, model, images, tmp_path / "s")
    with pytest.raises(
        NppkitError, match=r"manifest\.json does not exist: run the tokenize job \(make reproduce does\), or let it finish"
    ):
        CodeStore(tmp_path / "s")
    run(model, images, tmp_path / "s")
    assert encoded == [15, 15, 10]
    assert contents(tmp_path / "s") == contents(tmp_path / "whole")


def test_another_number_of_processes_continues(model, images, tmp_path, encoded):
    """One process finishes what two began, and two what one began, whatever the batch size."""
    run(model, images, tmp_path / "whole")
    for rank in range(2):
        kill_after(1 + rank, model, images, tmp_path / "s", rank=rank, world_size=2)
    encoded.clear()
    kill_after(2, model, images, tmp_path / "s")  # in a process of its own: not counted
    assert run(model, images, tmp_path / "s", rank=0, world_size=2) is None
    assert run(model, images, tmp_path / "s", rank=1, world_size=2) is not None
    assert sum(encoded) == 5 * (20 - 3 - 6 - 6)
    assert contents(tmp_path / "s") == contents(tmp_path / "whole")
    kill_after(2, model, images, tmp_path / "t")
    encoded.clear()
    extract_codes(model, images, tmp_path / "t", "shift", 32, "sha", batch_size=4)
    assert sum(encoded) == 5 * (20 - 4)
    assert contents(tmp_path / "t") == contents(tmp_path / "whole")


@pytest.mark.parametrize("change", ["tokenizer", "images", "crops"])
def test_a_part_of_another_configuration_is_discarded(model, images, tmp_path, change, encoded, capsys):
    """Codes of another tokenizer, source or kind of crops are never continued; one line says so."""
    kill_after(4, model, images, tmp_path)
    other = images.subset(np.arange(19, -1, -1)) if change == "images" else images
    sha, crops = ("new" if change == "tokenizer" else "sha"), ("center" if change == "crops" else "shift")
    store = extract_codes(model, other, tmp_path, crops, 32, sha, batch_size=3)
    assert sum(encoded) == 20 * store.crops
    assert np.array_equal(store.codes[1, 0], encode_pixels(model, crop_images(other.load(1), "center", 32))[0])
    assert len(re.findall("discarded, because", capsys.readouterr().out)) == 1
    assert sorted(contents(tmp_path)) == ["codes.npy", "labels.npy", "manifest.json"]


def test_a_complete_store_is_opened(model, images, tmp_path, encoded):
    """Nothing is encoded a second time, unless the tokenizer has changed or the codes are damaged."""
    run(model, images, tmp_path)
    assert run(model, images, tmp_path, rank=1, world_size=3) is not None and len(encoded) == BATCHES
    whole = (tmp_path / "codes.npy").read_bytes()
    (tmp_path / "codes.npy").write_bytes(whole[:-1])
    run(model, images, tmp_path)
    assert len(encoded) == 2 * BATCHES and (tmp_path / "codes.npy").read_bytes() == whole
    assert run(model, images, tmp_path, "new").manifest.tokenizer_sha256 == "new" and len(encoded) == 3 * BATCHES


def test_the_old_store_stays_until_the_new_one_is_complete(model, images, tmp_path):
    """A killed extraction with another tokenizer leaves the store that was there."""
    run(model, images, tmp_path)
    kill_after(4, model, images, tmp_path, "new")
    assert CodeStore(tmp_path).manifest.tokenizer_sha256 == "sha"


def test_killed_before_the_manifest(model, images, tmp_path, encoded, monkeypatch):
    """All codes written and renamed, no manifest: not a store, and completed without encoding."""
    run(model, images, tmp_path, "old")
    encoded.clear()

    def fail(path, text):
        if path.name == "manifest.json":
            raise KeyboardInterrupt
        files.write_atomic(path, text)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(codes, "write_atomic", fail)
        run(model, images, tmp_path)
    with pytest.raises(NppkitError, match=r"manifest\.json does not exist"):
        CodeStore(tmp_path)
    assert run(model, images, tmp_path) is not None and len(encoded) == BATCHES
    assert sorted(contents(tmp_path)) == ["codes.npy", "labels.npy", "manifest.json"]


def test_a_packed_store_holds_the_same(model, images, tmp_path, encoded):
    """Packed codes are smaller on disk, the same when opened, not encoded again, and replaced by those of another tokenizer."""
    plain = run(model, images, tmp_path / "plain")
    packed = run(model, images, tmp_path / "packed", packed=True)
    assert sorted(contents(tmp_path / "packed")) == ["codes.npz", "labels.npy", "manifest.json"]
    assert np.array_equal(packed.codes, plain.codes) and packed.codes.dtype == np.uint16
    with zipfile.ZipFile(tmp_path / "packed/codes.npz") as file:
        assert [entry.compress_type for entry in file.infolist()] == [zipfile.ZIP_LZMA]
    encoded.clear()
    assert run(model, images, tmp_path / "packed", packed=True) is not None and not encoded
    assert run(model, images, tmp_path / "packed", "new").manifest.tokenizer_sha256 == "new"
    assert not (tmp_path / "packed/codes.npz").exists()
    for packed in (True, False, True):  # whatever form a store was left in, it comes in the one that is asked for
        encoded.clear()
        assert np.array_equal(run(model, images, tmp_path / "plain", packed=packed).codes, plain.codes) and not encoded
        assert sorted(contents(tmp_path / "plain"))[0] == ("codes.npz" if packed else "codes.npy")
    (tmp_path / "plain/codes.npz").write_bytes(b"damaged")
    with pytest.raises(NppkitError, match=r"codes\.npz cannot be opened .*: extract the codes again"):
        CodeStore(tmp_path / "plain")


def test_notes_without_their_file_count_for_nothing(model, images, tmp_path, encoded):
    """If someone removes the codes but not the notes about them, everything is encoded again."""
    kill_after(4, model, images, tmp_path)
    next(tmp_path.glob("*.part")).unlink()
    run(model, images, tmp_path)
    assert len(encoded) == BATCHES


def test_unfit_arguments_and_a_full_disk_are_named(model, images, tmp_path, monkeypatch):
    """A rank beyond the world, no images a batch, too little space: one line each."""
    with pytest.raises(NppkitError, match="rank 2 is not one of 2 processes"):
        run(model, images, tmp_path, rank=2, world_size=2)
    for size in (0, -1):
        with pytest.raises(NppkitError, match=rf"batch_size {size}: give 1 image or more"):
            extract_codes(model, images, tmp_path, "shift", 32, "sha", batch_size=size)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: namedtuple("Usage", "free")(20 * 5 * 64 * 2 - 1))
    with pytest.raises(NppkitError, match="make room first"):
        run(model, images, tmp_path)
    assert not contents(tmp_path)


def test_a_disk_that_fills_up_is_named(model, images, tmp_path, encoded, monkeypatch):
    """When a batch of codes can no longer be written it is one line, and what was written before is not encoded again."""
    sync, count = os.fsync, iter(range(100))

    def full(descriptor):
        if next(count) == 4:  # two for each batch: the codes, and the note that they are there
            raise OSError(28, "No space left on device")
        sync(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(NppkitError, match=r"\.part could not be written .*No space left.*what it holds is kept"):
            run(model, images, tmp_path)
    encoded.clear()
    run(model, images, tmp_path)
    assert len(encoded) == BATCHES - 2 and contents(tmp_path).keys() == {"codes.npy", "labels.npy", "manifest.json"}


def llamagen(folder, n=6, crops=10, tokens=16, vocab=16384, seed=0):
    """LlamaGen's two folders, with random codes; returns them and the codes (n, crops, tokens)."""
    codes = np.random.default_rng(seed).integers(0, vocab, (n, crops, tokens))
    codes[0, 0, :2] = 0, vocab - 1
    for name in ("codes", "labels"):
        (folder / name).mkdir(parents=True)
    for i in range(n):
        np.save(folder / "codes" / f"{i}.npy", codes[i : i + 1])
        np.save(folder / "labels" / f"{i}.npy", np.array([i % 4]))
    return folder / "codes", folder / "labels", codes


def test_import_of_llamagens_files(tmp_path):
    """The packed codes are the files' codes, in the order of their numbers, with labels and manifest."""
    codes_folder, labels_folder, codes = llamagen(tmp_path, n=12)
    store = import_llamagen([codes_folder], labels_folder, tmp_path / "out", tokenizer_sha256="sha")
    assert store.codes.dtype == np.uint16 and np.array_equal(store.codes, codes)
    assert store.labels.tolist() == [i % 4 for i in range(12)] and store.manifest.class_names == ["0", "1", "2", "3"]
    m = store.manifest
    assert (m.images, m.crops, m.grid_size, m.vocab_size, m.image_size) == (12, 10, 4, 16384, 64)
    assert m.tokenizer_sha256 == "sha" and len(m.source_digest) == 64
    assert sorted(contents(tmp_path / "out")) == [".codes.lock", "codes.npy", "labels.npy", "manifest.json"]


def test_two_imports_into_one_folder(tmp_path, monkeypatch):
    """The second is refused while the first writes: both would write one file, and images of zeros would be published."""
    codes, labels, _ = llamagen(tmp_path, n=3)
    monkeypatch.setattr(guard, "LOCK_SECONDS", 0.1)

    def meanwhile(numbers):
        with pytest.raises(NppkitError, match="out is being written by another process"):
            import_llamagen([codes], labels, tmp_path / "out")
        return numbers

    assert len(import_llamagen([codes], labels, tmp_path / "out", progress=meanwhile)) == 3


def test_import_of_both_sets(tmp_path):
    """A second folder's crops follow the first's; its codes change the digest."""
    first, labels, a = llamagen(tmp_path / "110")
    second, _, b = llamagen(tmp_path / "105", seed=1)
    store = import_llamagen([first, second], labels, tmp_path / "out", class_names=list("abcde"))
    assert np.array_equal(store.codes, np.concatenate([a, b], 1)) and store.num_classes == 5
    alone = import_llamagen([first], labels, tmp_path / "one")
    assert store.manifest.source_digest != alone.manifest.source_digest


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("codes/3.npy", np.zeros((1, 10, 16), np.float32), r"codes/3\.npy holds float32, not integers"),
        ("codes/3.npy", np.zeros((1, 10, 16), object), r"codes/3\.npy cannot be read .*allow_pickle=False"),
        ("codes/3.npy", b"npz", r"codes/3\.npy holds several arrays, not integers"),
        ("codes/3.npy", np.zeros((1, 10, 25), int), r"codes/3\.npy has shape \(1, 10, 25\), 0\.npy of the first .*\(1, 10, 16\)"),
        ("codes/0.npy", np.zeros((1, 10, 15), int), r"codes/0\.npy has shape \(1, 10, 15\), not .*square"),
        ("codes/0.npy", np.zeros((10, 16), int), r"codes/0\.npy has shape \(10, 16\), not"),
        (
            "codes/3.npy",
            np.full((1, 10, 16), 16384),
            r"codes/3\.npy holds codes 16384 to 16384, not of a vocabulary of 16384: give its size",
        ),
        ("codes/3.npy", np.full((1, 10, 16), -1), r"codes/3\.npy holds codes -1"),
        ("codes/3.npy", None, r"codes/3\.npy is missing: of 6 files, 1 are"),
        ("codes/5.npy", None, r"codes/5\.npy is missing"),
        ("labels/5.npy", None, r"labels/5\.npy is missing"),
        ("labels/2.npy", np.zeros(2, int), r"labels/2\.npy is not one class label"),
        ("labels/2.npy", np.array([-1]), r"labels/2\.npy is not one class label"),
        ("labels/2.npy", np.array([7]), r"labels/2\.npy holds label 7, but there are 4 class names"),
        ("labels/2.npy", np.array([1.0]), r"labels/2\.npy holds float64"),
    ],
)
def test_files_that_are_not_llamagens_are_named(tmp_path, file, content, message):
    """Another type, shape, range or a gap in the numbers: the file is named, and no store is left."""
    codes, labels, _ = llamagen(tmp_path)
    (tmp_path / file).unlink()
    if isinstance(content, bytes):
        np.savez(tmp_path / "other.npz", np.zeros(3, int))
        (tmp_path / "other.npz").rename(tmp_path / file)
    elif content is not None:
        np.save(tmp_path / file, content, allow_pickle=True)
    with pytest.raises(NppkitError, match=message):
        import_llamagen([codes], labels, tmp_path / "out", class_names=list("abcd"))
    assert not (tmp_path / "out" / "manifest.json").exists()


def test_damaged_and_missing_folders_are_named(tmp_path):
    """A truncated file and a folder that is not there."""
    codes, labels, _ = llamagen(tmp_path)
    (codes / "2.npy").write_bytes((codes / "2.npy").read_bytes()[:200])
    with pytest.raises(NppkitError, match=r"codes/2\.npy cannot be read"):
        import_llamagen([codes], labels, tmp_path / "out")
    with pytest.raises(NppkitError, match="nothing does not exist"):
        import_llamagen([tmp_path / "nothing"], labels, tmp_path / "out")
    with pytest.raises(NppkitError, match="vocab_size 65537 does not fit uint16"):
        import_llamagen([codes], labels, tmp_path / "out", vocab_size=2**16 + 1)
    with pytest.raises(NppkitError, match="image_size -3: give pixels, or 0"):
        import_llamagen([codes], labels, tmp_path / "out", image_size=-3)


@pytest.mark.parametrize(
    ("names", "wrong"),
    [("a\nb\n\nd\ne\n", "''"), ("a\nb\n \nd\ne\n", "' '"), ("a\nb\nc\nd\né\n", r"'\\udce9'")],
)
def test_class_names_that_are_none_are_named(tmp_path, capsys, names, wrong):
    """Twice the same, a blank line, another encoding than UTF-8: one line says which, and no store is left."""
    codes, labels, _ = llamagen(tmp_path)
    (tmp_path / "names.txt").write_text(names, encoding="latin1")
    options = ["--class-names", str(tmp_path / "names.txt")]
    assert cli.call(["codes", "import", str(codes), str(labels), str(tmp_path / "out"), *options]) == 1
    assert re.match(f"error: class name {wrong}: .* in UTF-8", capsys.readouterr().err)
    assert not (tmp_path / "out").exists()


def test_random_rows_beside_their_images(model, images, tmp_path):
    """The rows are crops of the images, decoded from the stored codes; all codes are found again."""
    store = run(model, images, tmp_path)
    rows = verify_rows(store, images, model, 6, seed=1)
    assert rows.originals.shape == rows.decoded.shape == (6, 3, 32, 32)
    assert rows.originals.dtype == rows.decoded.dtype == torch.uint8
    assert torch.equal(rows.decoded, reconstruct(model, rows.originals)) and rows.reproduced == 1.0
    crops = {crop.tobytes() for i in range(20) for crop in crop_images(images.load(i), "shift", 32)}
    assert {row.permute(1, 2, 0).numpy().tobytes() for row in rows.originals} <= crops
    assert not torch.equal(rows.originals, verify_rows(store, images, model, 6, seed=2).originals)


def test_rows_of_wrong_codes_show(model, images, tmp_path):
    """Codes that are not the images' own are not found again, and other images' labels are refused."""
    store = run(model, images, tmp_path)
    codes = np.load(tmp_path / "codes.npy")
    np.save(tmp_path / "codes.npy", (codes + 1) % 16)
    assert verify_rows(CodeStore(tmp_path), images, model).reproduced < 0.5
    with pytest.raises(NppkitError, match="has the labels of other images"):
        verify_rows(store, images.subset(np.arange(19, -1, -1)), model)
    dataclasses.replace(store.manifest, crops=3, crop_kind="").write(tmp_path)
    np.save(tmp_path / "codes.npy", codes[:, :3])
    with pytest.raises(NppkitError, match="of a kind that is not known"):
        verify_rows(CodeStore(tmp_path), images, model)


def test_rows_of_an_imported_store(model, images, tmp_path):
    """LlamaGen's ten crops at 1.1 are compared with the same crops of the images."""
    some = images.subset(np.arange(5))
    for name in ("codes", "labels"):
        (tmp_path / name).mkdir()
    for i in range(5):
        codes = encode_pixels(model, crop_images(some.load(i), "ten_crop", 32)[:10])
        np.save(tmp_path / "codes" / f"{i}.npy", codes[None])
        np.save(tmp_path / "labels" / f"{i}.npy", some.labels[i : i + 1])
    store = import_llamagen([tmp_path / "codes"], tmp_path / "labels", tmp_path / "out", 16, image_size=32)
    assert verify_rows(store, some, model, 5).reproduced > 0.99


@pytest.fixture
def preset(home, model):
    """A preset file of 20 digits with a tokenizer from a weights file."""
    save_file(model.state_dict(), home / "vq.safetensors")
    path = home / "tiny.yaml"
    path.write_text(
        "data: {source: mnist, image_size: 32, crops: shift, heldout: 5, limit: 20}\n"
        f"tokenizer: {{weights: {home / 'vq.safetensors'}, vq: {{ch: 4, ch_mult: [1, 1, 1], num_res_blocks: 1, z_channels: 8,"
        " codebook_size: 16, norm_groups: 2}}\n"
        "description: tiny\nextractor: {steps: 1}\ntraining: {}\nevaluation: {}\n"
        "models: {B: {dim: 16, n_layer: 1, n_head: 1}}\nruns: {B: [ntp]}\n"
    )
    return path


def test_killed_before_the_old_packed_codes_are_gone(model, images, tmp_path, encoded, monkeypatch):
    """They are not taken for the new ones, which a killed process has left beside them."""
    old = run(model, images, tmp_path, "old", packed=True)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        replace = type(tmp_path).replace

        def killed(self, target):
            replace(self, target)
            if self.name.endswith(".part"):
                raise KeyboardInterrupt

        patch.setattr(type(tmp_path), "replace", killed)
        run(model, images.subset(np.arange(len(images))[::-1]), tmp_path)
    again = run(model, images.subset(np.arange(len(images))[::-1]), tmp_path)
    assert np.array_equal(again.codes, old.codes[::-1]) and not np.array_equal(again.codes, old.codes)


@pytest.mark.parametrize("packed", [False, True])
def test_command_line_extracts_what_the_notebook_finds(preset, home, model, monkeypatch, capsys, encoded, packed):
    """Two processes extract both splits, in the preset's form, with the digest of the file that the notebook will write."""
    preset.write_text(preset.read_text().replace("limit: 20", f"limit: 20, packed: {packed}"))
    monkeypatch.setenv(BATCH, "1")
    for rank, said in ((1, "this share is done, other processes are not"), (0, "complete")):
        arguments = ["codes", "extract", str(preset), "--rank", str(rank), "--world-size", "2", "--batch-size", "2"]
        assert cli.call([*arguments, "--device", "cpu"]) == 0
        assert capsys.readouterr().out.count(said) == 2
    stores = {path.parent.name: CodeStore(path.parent) for path in home.rglob("manifest.json")}
    assert {name: len(store) for name, store in stores.items()} == {"train": 15, "heldout": 5}
    assert stores["train"].require(tokenizer_sha256=files.sha256(home / "vq.safetensors"))
    assert sum(encoded) == 5 * 20
    assert len([*home.rglob(f"codes.np{'z' if packed else 'y'}")]) == 2 == len([*home.rglob("codes.np?")])


def test_command_line_imports(tmp_path, monkeypatch, capsys):
    """The import command packs both sets with names and the tokenizer's digest."""
    monkeypatch.setenv(BATCH, "1")
    codes, labels, _ = llamagen(tmp_path)
    (tmp_path / "names.txt").write_text("a\nb\nc\nd\ne\n")
    (tmp_path / "vq.safetensors").write_bytes(b"weights")
    options = ["--second-set", str(codes), "--class-names", str(tmp_path / "names.txt"), "--tokenizer"]
    arguments = ["codes", "import", str(codes), str(labels), str(tmp_path / "out"), *options, str(tmp_path / "vq.safetensors")]
    assert cli.call(arguments) == 0 and "codes (6, 20, 16), 5 classes" in capsys.readouterr().out
    wanted = dict(grid_size=4, vocab_size=16384, num_classes=5, tokenizer_sha256=files.sha256(tmp_path / "vq.safetensors"))
    assert CodeStore(tmp_path / "out").require(**wanted)


def test_an_imported_store_takes_the_place_of_extraction(model, images, tmp_path, encoded):
    """Imported codes of the right size are taken as they are; of another size or tokenizer they are refused by name."""
    some = images.subset(np.arange(6))
    codes, labels, _ = llamagen(tmp_path, n=6, tokens=64, vocab=16)
    import_llamagen([codes], labels, tmp_path / "store", 16, image_size=32)
    store = run(model, some, tmp_path / "store")
    assert store.crops == 10 and store.manifest.imported and not encoded
    with pytest.raises(NppkitError, match="store was imported with images 6, not 20: remove it, or import others"):
        run(model, images, tmp_path / "store")
    import_llamagen([codes], labels, tmp_path / "store", 16, tokenizer_sha256="other", image_size=32)
    with pytest.raises(NppkitError, match="imported with tokenizer_sha256 other, not sha"):
        run(model, some, tmp_path / "store")


def test_no_images_are_a_store_too(model, images, tmp_path):
    """A preset that holds nothing out has an empty store of held-out images."""
    assert len(run(model, images.subset(np.arange(0)), tmp_path / "heldout")) == 0
    assert len(run(model, images.subset(np.arange(0)), tmp_path / "heldout")) == 0


def test_an_import_does_not_replace_what_was_extracted(tmp_path, store):
    """Codes that were extracted took hours; those that were imported may be imported again. No two classes have one name."""
    codes, labels, _ = llamagen(tmp_path)
    before = store.codes.copy()
    with pytest.raises(NppkitError, match="store holds codes that were extracted here: remove the folder, or name another"):
        import_llamagen([codes], labels, store.folder)
    assert np.array_equal(CodeStore(store.folder).codes, before)
    for _ in range(2):
        import_llamagen([codes], labels, tmp_path / "out")
    with pytest.raises(NppkitError, match="class name 'crane' stands twice: tell the classes apart"):
        import_llamagen([codes], labels, tmp_path / "out", class_names=["crane", "dog", "crane", "cat"])
