"""The code store: opening, batches, refusal of what does not fit."""

import json

import numpy as np
import pytest
import torch
from conftest import write_store

from nppkit.data import codes
from nppkit.data.codes import UNKNOWN, CodeStore
from nppkit.errors import NppkitError


def test_batch(store):
    """A batch holds the asked crop of each image, as int64."""
    rows, labels = store.batch(np.array([3, 0]), np.array([1, 0]))
    assert rows.dtype == labels.dtype == torch.int64
    assert np.array_equal(rows.numpy(), store.codes[[3, 0], [1, 0]]) and labels.tolist() == [0, 0]


@pytest.mark.parametrize("array", ["float32", "int64", "float16", "V2"])
def test_codes_of_another_type_are_refused(tmp_path, array):
    """Only uint16 codes are read: other types, bf16 (which NumPy stores as V2) among them, mean another or an altered file."""
    folder = write_store(tmp_path / "s")
    np.save(folder / "codes.npy", np.load(folder / "codes.npy").astype(array))
    with pytest.raises(NppkitError, match=rf"codes\.npy holds {np.dtype(array)}"):
        CodeStore(folder)


def test_code_beyond_the_vocabulary_is_refused(tmp_path):
    """A code that the vocabulary lacks is named."""
    folder = write_store(tmp_path / "s")
    array = np.load(folder / "codes.npy")
    array[2, 1, 3] = 16
    np.save(folder / "codes.npy", array)
    with pytest.raises(NppkitError, match="code 16 is beyond the vocabulary of 16"):
        CodeStore(folder)


def test_codes_of_a_large_store_are_checked_batch_by_batch(tmp_path, monkeypatch):
    """A store too large to be looked at whole names a code that the vocabulary lacks when a batch holds it."""
    folder = write_store(tmp_path / "s")
    array = np.load(folder / "codes.npy")
    array[2, 1, 3] = 16
    np.save(folder / "codes.npy", array)
    monkeypatch.setattr(codes, "CHECK_BYTES", 0)
    large = CodeStore(folder)
    large.batch(np.array([2]), np.array([0]))
    with pytest.raises(NppkitError, match="code 16 is beyond the vocabulary of 16"):
        large.batch(np.array([0, 2]), np.array([0, 1]))


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (np.zeros(10), "labels.npy holds float64, not integers"),
        (np.full(10, -1), "a label is outside the 3 classes"),
        (np.full(10, 3), "a label is outside the 3 classes"),
    ],
)
def test_labels_that_are_no_classes_are_refused(tmp_path, labels, message):
    """Labels that are not integers, negative, or beyond the classes are refused by name."""
    folder = write_store(tmp_path / "s")
    np.save(folder / "labels.npy", labels)
    with pytest.raises(NppkitError, match=message):
        CodeStore(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(images=9), "shape"),
        (dict(grid_size=8), "shape"),
        (dict(class_names=["0"]), "label"),
        (dict(vocab_size=3), "vocabulary"),
    ],
)
def test_manifest_that_disagrees_is_refused(tmp_path, change, message):
    """Files that differ from the manifest are refused."""
    with pytest.raises(NppkitError, match=message):
        CodeStore(write_store(tmp_path / "s", **change))


def test_missing_and_damaged_files_are_named(tmp_path):
    """A missing manifest, broken JSON, a missing key, a truncated array, an array of objects: each named."""
    with pytest.raises(NppkitError, match="run the tokenize job"):
        CodeStore(tmp_path / "nothing")
    folder = write_store(tmp_path / "s")
    whole = (folder / "codes.npy").read_bytes()
    (folder / "codes.npy").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(NppkitError, match=r"codes\.npy cannot be opened"):
        CodeStore(folder)
    np.save(folder / "codes.npy", np.array([{}], dtype=object), allow_pickle=True)
    with pytest.raises(NppkitError, match=r"codes\.npy cannot be opened"):
        CodeStore(folder)
    manifest = json.loads((folder / "manifest.json").read_text())
    del manifest["vocab_size"]
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(NppkitError, match="lacks vocab_size"):
        CodeStore(folder)
    (folder / "manifest.json").write_text("{")
    with pytest.raises(NppkitError, match="not valid JSON"):
        CodeStore(folder)


def test_a_store_that_fits_the_model(store):
    """What the model needs and the store has: the store itself, whatever is not asked."""
    assert store.require(grid_size=4, vocab_size=16, num_classes=3, tokenizer_sha256="tokenizer") is store
    assert store.require() is store and store.require(vocab_size=16) is store


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        (dict(grid_size=6), r"grid_size is 4, not 6 \(extract at the model's image size, or take a model of this grid\)$"),
        (dict(vocab_size=32), r"vocab_size is 16, not 32 \(extract with the model's tokenizer"),
        (dict(num_classes=0), r"num_classes is 3, not 0 \(extract the images that the model was made for"),
        (dict(tokenizer_sha256="other"), r"tokenizer_sha256 is tokenizer, not other \(extract with this tokenizer"),
        (dict(grid_size=4, vocab_size=32, num_classes=2), r"model: vocab_size is 16, not 32 .*; num_classes is 3, not 2"),
    ],
)
def test_a_store_that_does_not_fit_is_refused(store, wanted, message):
    """Each difference from the model in one line, with what to do; the store is named."""
    with pytest.raises(NppkitError, match=message) as error:
        store.require(**wanted)
    assert str(store.folder) in str(error.value) and "\n" not in str(error.value)


def test_an_import_that_names_no_tokenizer_is_refused(tmp_path):
    """Codes of an unknown tokenizer are refused where the tokenizer counts, with the option that names it."""
    store = CodeStore(write_store(tmp_path / "s", tokenizer_sha256=UNKNOWN))
    assert store.require(vocab_size=16) is store
    with pytest.raises(NppkitError, match="does not say which tokenizer made it: import it again with --tokenizer FILE"):
        store.require(tokenizer_sha256="abc")
