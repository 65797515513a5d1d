"""Texts: documents, their split, windows as a code store, and a transformer trained on patches of them."""

import dataclasses
import json

import numpy as np
import pytest
import torch

from nppkit import cost
from nppkit.data import text
from nppkit.data.codes import CodeStore
from nppkit.errors import NppkitError
from nppkit.machine.options import Options
from nppkit.schedule import single_scale_segments
from nppkit.study.presets import load_preset
from nppkit.study.runs import Run, check_patches
from nppkit.training import trainer
from nppkit.training.config import TrainingConfig

DATA = load_preset("text").data
SIZES = dict(dim=16, n_layer=1, n_head=2, multiple_of=8)


def paragraphs(texts):
    return {" ".join(p.split()) for content in texts.values() for p in content.split("\n\n")}


def test_no_paragraph_is_on_both_sides():
    """Whole documents are held out, the same ones each time, and no paragraph of theirs stands in a training document, too."""
    training, heldout = text.study_texts(DATA)
    assert len(heldout) == DATA.heldout and not training.keys() & heldout.keys()
    assert not paragraphs(training) & paragraphs(heldout)
    assert text.study_texts(DATA) == (training, heldout)
    assert sum(map(len, heldout.values())) > 0.05 * sum(map(len, training.values()))


@pytest.mark.parametrize("heldout", [0, 3, 4])
def test_a_split_leaves_something_on_both_sides(heldout):
    """A number of held-out documents that leaves nothing to train on, or to look at, is named."""
    with pytest.raises(NppkitError, match=rf"data.heldout {heldout}: hold out at least one of 3"):
        text.study_texts(dataclasses.replace(DATA, heldout=heldout, limit=3))


@pytest.mark.parametrize("packed", [True, False])
def test_a_store_holds_the_bytes(tmp_path, packed):
    """The store's rows are the text's bytes in order, one crop of one class on a grid of one axis, whatever lay there before."""
    content = text.windows({"a": "naïve text, ", "b": "and more"}, 8)
    text.store_text(tmp_path / "s", content[::-1], not packed)
    store = text.store_text(tmp_path / "s", content, packed)
    assert (store.grid_size, store.crops, store.vocab_size, store.num_classes) == ((8,), 1, 256, 1)
    codes, labels = store.batch(np.arange(2), np.zeros(2, int))
    assert bytes(codes.flatten().tolist()).decode() == "naïve text, \n\na"[:15] and labels.tolist() == [0, 0]
    with pytest.raises(NppkitError, match=r"data\.window 99 is longer than the text of 5 bytes"):
        text.windows({"a": "short"}, 99)


@pytest.mark.parametrize("grid", [[], [0], [2.5], ["8"], [4, 4, 8]])
def test_a_grid_that_is_none_is_refused(tmp_path, grid):
    """A manifest whose grid has no axis, an axis of no length, or more tokens than the codes have, is refused."""
    text.store_text(tmp_path / "s", np.zeros((3, 8), np.uint8))
    path = tmp_path / "s/manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "grid_size": grid}))
    with pytest.raises(NppkitError, match=r"grid_size is not what it should be|has shape"):
        CodeStore(tmp_path / "s")


def test_baselines():
    """A text of two alternating bytes: each is as likely as the other alone, and nearly certain behind the other."""
    content = np.tile(np.array([65, 66], np.uint8), (5000, 1))
    found = text.baselines(content, content[:500])
    assert found["bytes_alone"] == pytest.approx(np.log(2), abs=0.03) and found["bytes_behind_a_byte"] < 0.06 > found["xz"]


@pytest.fixture
def trained(tmp_path):
    """A trainer on a tiny text: patches of four bytes for two epochs, then single bytes for one."""
    store = text.store_text(tmp_path / "s", text.windows({"a": "abcdefgh" * 12}, 16))
    config = TrainingConfig(epochs=3, steps_per_epoch=2, batch_size=4, lr=1e-2, label_dropout=0.0, dropout=0.0)
    model = trainer.make_model(store, SIZES, config, seed=0)
    places = tmp_path / "history.csv", tmp_path / "ckpt", "digest"
    made = trainer.Trainer(model, store, store, single_scale_segments(3, 4, "2/3"), config, 0, *places, Options(device="cpu"))
    with made.running() as steps:
        for step in steps:
            made.train_step(step, made.patch_size(step))
            made.after(step)
    return made


def test_a_patch_side_is_a_length_on_one_axis(trained):
    """On a text p = 4 means four bytes in a row: by its FLOPs, by its loss, and in the history by its side."""
    counted = trained.measured_cost()["flops_per_step"]
    assert counted == {p: 4 * cost.train_flops(trained.model.config, (p,)) for p in (1, 4)}
    assert [row["patch_size"] for row in trained.history] == [4, 4, 1]
    codes, labels = trained.batch(0)
    logits = trained.model(codes, labels, (4,)).log_softmax(-1)  # (B, 4, V)
    wanted = torch.stack([logits[:, i // 4].gather(-1, codes[:, i : i + 1]) for i in range(16)]).mean()
    assert trained.backward(codes, labels, 4).item() == pytest.approx(-wanted.item(), rel=1e-5)


def test_runs_of_a_text_are_checked():
    """A window that no patch of K bytes fills, and a run on larger images, are named before anything starts."""
    preset = load_preset("text")
    check_patches(preset, Run("B", patch_size=4, lam="2/3"))
    with pytest.raises(NppkitError, match=r"_p3_.*patch_size 3 does not divide the 128 grid along w.*data.window"):
        check_patches(preset, Run("B", patch_size=3, lam="2/3"))
    with pytest.raises(NppkitError, match="no larger images"):
        check_patches(preset, Run("B", large=True))


def test_fewer_epochs_cost_what_patches_cost():
    """The runs that are called equal in FLOPs are so within 1 %, as counted on the real step."""
    preset = load_preset("text")
    run, config = Run("B", patch_size=4, lam="2/3"), dict(vocab_size=256, num_classes=1, grid_size=(DATA.window,))
    model = trainer.GPT(trainer.GPTConfig(**preset.models["B"], **config))
    codes, labels = torch.zeros(1, DATA.window, dtype=torch.long), torch.zeros(1, dtype=torch.long)
    counted = {p: cost.step_flops(model, codes, labels, (p,)) for p in (1, 4)}
    patches = sum((s.end - s.start) * counted[s.patch_size] for s in run.segments(preset.training.epochs))
    short, long = preset.equal_flops["B"]
    assert short * counted[1] == pytest.approx(patches, rel=0.01)
    assert long / 300 * patches == pytest.approx(300 * counted[1], rel=0.01)
