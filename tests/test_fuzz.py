"""Every boundary under damaged and foreign input: our own error in one line, or the right values; nothing else."""

import copy
import json
import shlex
import shutil

import numpy as np
import pytest
import test_reference
import torch
import yaml
from conftest import write_store
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nppkit import files, releases
from nppkit.checkpoint import load_checkpoint, save_checkpoint
from nppkit.data import codes
from nppkit.errors import NppkitError
from nppkit.jobs import launch, targets
from nppkit.scoring import reference
from nppkit.study import graph, presets, records

FEW = settings(max_examples=80, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
JUNK = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.sampled_from([2**70, -1, 0, "", "../x", "/etc"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=5,
)


@st.composite
def damaged(draw, content):
    """The bytes with some flipped, cut off, repeated or inserted; never the same as before."""
    kind, at = draw(st.sampled_from(["flip", "cut", "insert", "overwrite", "repeat"])), draw(st.integers(0, len(content) - 1))
    if kind == "flip":
        return content[:at] + bytes([content[at] ^ 1 << draw(st.integers(0, 7))]) + content[at + 1 :]
    if kind == "cut":
        return content[:at]
    if kind == "repeat":
        return content + content[at:]
    new = draw(st.binary(min_size=1, max_size=16).filter(lambda new: new != content[at : at + len(new)]))
    return content[:at] + new + content[at if kind == "insert" else at + len(new) :]


def one_line(error):
    text = str(error.value if hasattr(error, "value") else error)
    assert "\n" not in text and len(text) > 10
    return text


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("fuzz")


TENSORS = {"model": {"w": torch.arange(24.0).reshape(4, 6)}, "optimizer": {"step.w": torch.tensor(3.0)}}


@pytest.mark.parametrize("file", ["state.json", "model.safetensors", "optimizer.safetensors"])
@FEW
@given(data=st.data())
def test_damaged_checkpoint(folder, file, data):
    """Whatever is damaged in a checkpoint, it is refused and the file is named: its numbers are never used."""
    shutil.rmtree(folder / "c", ignore_errors=True)
    path = save_checkpoint(folder / "c", 7, TENSORS, {"config_digest": "d", "losses": [0.5, 1e-5], "history": [{"step": 1}]})
    content = (path / file).read_bytes()
    (path / file).write_bytes(data.draw(damaged(content)))
    try:
        tensors, state = load_checkpoint(path, "d")
    except NppkitError as error:
        assert file in one_line(error) or "another configuration" in one_line(error)
    else:  # the same in other words: a digit in another spelling, a name that nothing reads
        assert file == "state.json" and state["losses"] == [0.5, 1e-5] and state["step"] == 7
        assert torch.equal(tensors["model"]["w"], TENSORS["model"]["w"])


@FEW
@given(state=JUNK, files=JUNK)
def test_foreign_checkpoint(folder, state, files):
    """A state.json of any JSON content never leads anywhere but to one line."""
    path = folder / "foreign"
    path.mkdir(exist_ok=True)
    state = {"config_digest": "d", "step": 1, "files": files} | (state if isinstance(state, dict) else {"files": state})
    (path / "state.json").write_text(json.dumps(state))
    try:
        assert load_checkpoint(path, "d")[0] == {}
    except NppkitError as error:
        assert str(path) in one_line(error)


def test_checkpoint_files_stay_in_their_folder(tmp_path):
    """A state.json that names a file elsewhere, or a checkpoint that is a link, is refused."""
    path = save_checkpoint(tmp_path / "c", 1, TENSORS, {"config_digest": "d"})
    outside = shutil.copy(path / "model.safetensors", tmp_path / "outside.safetensors")
    for name in ("../../outside.safetensors", str(outside)):
        state = json.loads((path / "state.json").read_text())
        state.pop("digest", None)
        (path / "state.json").write_text(json.dumps({**state, "files": {name: files.sha256(outside)}}))
        with pytest.raises(NppkitError, match="missing or damaged"):
            load_checkpoint(path, "d")
    (tmp_path / "c" / "step_00000009").symlink_to(path)
    from nppkit.checkpoint import checkpoints

    assert checkpoints(tmp_path / "c") == [path]


@pytest.mark.parametrize("file", ["manifest.json", "codes.npy", "labels.npy"])
@FEW
@given(data=st.data())
def test_damaged_store(folder, file, data):
    """A damaged code store is refused by name, or its codes and labels are within the vocabulary and the classes."""
    store = write_store(folder / "store")
    (store / file).write_bytes(data.draw(damaged((store / file).read_bytes())))
    try:
        opened = codes.CodeStore(store)
        rows, labels = opened.batch(np.arange(len(opened)), np.zeros(len(opened), np.int64))
    except NppkitError as error:
        assert str(store) in one_line(error)
    else:
        assert 0 <= rows.min() <= rows.max() < opened.vocab_size and 0 <= labels.min() <= labels.max() < opened.num_classes


@FEW
@given(data=st.data())
def test_foreign_manifest(folder, data):
    """A manifest with any JSON value in any place is refused by name, or fits the files."""
    store = write_store(folder / "store")
    manifest = json.loads((store / "manifest.json").read_text())
    manifest[data.draw(st.sampled_from(sorted(manifest)))] = data.draw(JUNK)
    (store / "manifest.json").write_text(json.dumps(manifest))
    try:
        opened = codes.CodeStore(store)
        assert len(opened) == 10 and opened.codes.shape == (10, opened.crops, opened.grid_size**2)
        opened.batch(np.arange(3), np.zeros(3, np.int64))
    except NppkitError as error:
        assert "manifest.json" in one_line(error) or "codes.npy" in one_line(error) or "labels.npy" in one_line(error)


@FEW
@given(data=st.data())
def test_damaged_reference(folder, extractor, data):
    """A damaged file of reference statistics is refused by name, or read as it was."""
    path = folder / "reference.npz"
    if not path.exists():
        reference.reference_from_images(test_reference.image_set(6), 32, extractor).save(path)
    right, other = reference.load_reference(path, extractor), folder / "damaged.npz"
    other.write_bytes(data.draw(damaged(path.read_bytes())))
    try:
        found = reference.load_reference(other, extractor)
    except NppkitError as error:
        assert str(other) in one_line(error)
    else:
        np.testing.assert_array_equal(found.mu, right.mu)
        assert torch.equal(found.features, right.features)


extractor = test_reference.extractor


@FEW
@given(data=st.data())
def test_damaged_weights(folder, data):
    """A damaged weights file is refused by name, in either format, and with nothing run."""
    path = folder / data.draw(st.sampled_from(["w.pt", "w.safetensors"]))
    if path.suffix == ".pt":
        torch.save({"model": {"a": torch.ones(3)}}, path)
    else:
        from safetensors.torch import save_file

        save_file({"a": torch.ones(3)}, path)
    path.write_bytes(data.draw(damaged(path.read_bytes())))
    try:
        releases.read_state(path)
    except NppkitError as error:
        assert str(path) in one_line(error)


SMOKE = yaml.safe_load((presets.FOLDER / "smoke.yaml").read_text())
PLACES = [(key,) for key in SMOKE] + [(k, kk) for k, v in SMOKE.items() if isinstance(v, dict) for kk in v]
PLACES += [("models", "B", key) for key in SMOKE["models"]["B"]] + [("tokenizer", "vq", key) for key in SMOKE["tokenizer"]["vq"]]
PLACES += [
    ("name",),
    ("seeds",),
    ("reports",),
    ("gpu",),
    ("weights",),
    ("precision",),
    ("threads",),
    ("training", "epochs"),
    ("evaluation", "top_p"),
    ("data", "path"),
]


@settings(FEW, max_examples=300)
@given(place=st.sampled_from(PLACES), value=JUNK)
def test_presets(folder, place, value):
    """A preset with anything in any place is refused in one line that names it, or makes a graph in its own folders."""
    content = copy.deepcopy(SMOKE)
    inner = content
    for key in place[:-1]:
        inner = inner[key]
    inner[place[-1]] = value
    path = folder / "some.yaml"
    path.write_text(yaml.safe_dump(content))
    try:
        preset = presets.load_preset(str(path))
        jobs = graph.graph(preset)
    except NppkitError as error:
        assert place[-1] in one_line(error) or "some" in one_line(error), (place, value, error)
    else:
        assert all(job.record.resolve().is_relative_to(files.home() / "results") for job in jobs)
        assert all(shlex.join(words.split()) == words for words in map(targets.launch_arguments, jobs))
        assert preset.training.steps_per_epoch > 0 and preset.training.batch_size > 0 and preset.training.lr > 0


@FEW
@given(values=st.dictionaries(st.sampled_from(["preset", "run", "device", "threads", "devices", "other"]), JUNK, max_size=3))
def test_parameters(values):
    """Parameters of a notebook reach it in the declared types, or are refused by name."""
    declared = launch.declared_parameters(
        'preset: str = "smoke"\nrun: str = ""\ndevice: str = "auto"\nthreads: int = 1\ndevices: int = 1\n'
    )
    try:
        checked = launch.check_parameters(values, declared, "nb")
    except NppkitError as error:
        assert any(name in one_line(error) for name in values)
    else:
        assert {name: type(value) for name, value in checked.items()} == {name: kind for name, (kind, _) in declared.items()}


@FEW
@given(text=st.text() | st.sampled_from(['"""', "'); import os  #", '\\"\n1/0\n', "{x!r}", "\\", "\\u0027"]))
def test_parameters_are_data(text):
    """A string of quotes, newlines or Python reaches the notebook as that string: papermill's cell holds it as a literal."""
    from papermill.translators import PythonTranslator

    namespace = {}
    exec(PythonTranslator.codify({"preset": text}), {"__builtins__": {}}, namespace)
    assert namespace == {"preset": text}


@FEW
@given(content=st.binary(max_size=40) | JUNK.map(lambda value: json.dumps(value).encode()))
def test_records(folder, content):
    """A completion record of any content counts as damaged, never as complete."""
    preset = presets.load_preset("smoke")
    job = graph.tokenize_job(preset)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NPPKIT_HOME", str(folder))
        job = graph.tokenize_job(preset)
        job.folder.mkdir(parents=True, exist_ok=True)
        job.record.write_bytes(content)
        assert records.why_incomplete(job)
