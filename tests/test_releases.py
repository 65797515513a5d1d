"""Released weights: every container in and out, and nothing in a file ever runs."""

import argparse
import dataclasses
import hashlib
import json
import os
import sys
import types
from pathlib import Path

import golden
import pytest
import torch
from safetensors.torch import load_file, save_file

from nppkit import cli, releases
from nppkit.checkpoint import save_checkpoint
from nppkit.data import prepare_tokenizer
from nppkit.errors import NppkitError
from nppkit.files import sha256
from nppkit.model import GPT, MODELS, GPTConfig
from nppkit.show import pretrained
from nppkit.study.presets import load_preset
from nppkit.tokenizer import VQModel
from nppkit.tokenizer_config import TOKENIZERS, VQConfig

TINY = GPTConfig(dim=16, n_layer=2, n_head=2, vocab_size=32, num_classes=5, grid_size=4, multiple_of=8)
TINY_VQ = VQConfig(ch=4, ch_mult=(1, 1), num_res_blocks=1, z_channels=8, codebook_size=16, norm_groups=2)


def gpt(config=TINY):
    """A model whose every weight, the output head's included, is its own."""
    return golden.fill(GPT(config)).eval()


def logits(model):
    codes = torch.arange(32).reshape(2, 16)
    with torch.inference_mode():
        return model(codes, torch.tensor([1, 5]))


def trained(state):
    """What LlamaGen's training script saves: weights, AdamW's state, steps, the parsed command line."""
    model = torch.nn.Linear(2, 2)
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    arguments = argparse.Namespace(gpt_model="GPT-B", lr=1e-4, betas=(0.9, 0.95), resume=None)
    return {"model": state, "optimizer": optimizer.state_dict(), "steps": 7, "args": arguments}


def flat(state):
    """Views of one storage, of a tensor type with attributes: FSDP's full state dict."""
    storage = torch.cat([value.flatten() for value in state.values()])
    parts = storage.split([value.numel() for value in state.values()])
    views = {key: part.view(value.shape) for (key, value), part in zip(state.items(), parts, strict=True)}
    for view in views.values():
        view.origin = "fsdp"
    return views


def prefixed(prefix):
    return lambda state: {"model": {prefix + key: value for key, value in state.items()}}


CONTAINERS = {
    "training": (trained, "model"),
    "release": (lambda state: {"model": state}, "model"),
    "deepspeed": (lambda state: {"module": state, "global_steps": 3}, "module"),
    "state_dict": (lambda state: {"state_dict": state, "epoch": 1}, "state_dict"),
    "settings": (lambda state: {"model": {"dim": 16}, "ema": None, "state_dict": state}, "state_dict"),
    "bare": (lambda state: state, "bare"),
    "fsdp": (flat, "bare"),
    "ddp": (prefixed("module."), "model"),
    "compiled": (prefixed("_orig_mod."), "model"),
    "ddp of compiled": (prefixed("module._orig_mod."), "model"),
    "compiled ddp": (prefixed("_orig_mod.module."), "model"),
    "rotary table": (lambda state: {"model": {**state, "freqs_cis": torch.zeros(17, 4, 2)}}, "model"),
}


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("container", CONTAINERS)
def test_containers_round_trip(tmp_path, container, zipped):
    """Each container, in torch's new and old file format, in and out again: the same names, the same bits."""
    wrap, kind = CONTAINERS[container]
    source, converted, out = tmp_path / "source.pt", tmp_path / "converted.safetensors", tmp_path / "out.pt"
    state = gpt().state_dict()
    torch.save(wrap(state), source, _use_new_zipfile_serialization=zipped)
    assert releases.convert(source, converted, TINY)["container"] == kind
    releases.export(converted, out)
    back = torch.load(out, weights_only=True)
    assert list(back) == ["model"] and back["model"].keys() == state.keys()
    assert all(torch.equal(back["model"][key], value) for key, value in state.items())


def test_converted_model(tmp_path):
    """A converted file gives the model of the release, frozen; its JSON says where it came from."""
    model, source, out = gpt(), tmp_path / "c2i_B_256.pt", tmp_path / "new" / "b.safetensors"
    torch.save(trained(model.state_dict()), source)
    about = releases.convert(source, out, TINY)
    assert about == json.loads(out.with_suffix(".json").read_text())
    assert about["source"] == "c2i_B_256.pt" and about["sha256"] == sha256(source) and about["class"] == "GPT"
    assert about["parameters"] == sum(p.numel() for p in model.parameters()) and about["config"]["grid_size"] == 4
    loaded = GPT(GPTConfig(**about["config"])).eval()
    releases.load_weights(loaded, out)
    assert loaded.config == TINY and torch.equal(logits(loaded), logits(model))


def test_converted_tokenizer(tmp_path):
    """The tokenizer converts too, its configuration included, and decodes as before."""
    torch.manual_seed(0)
    model, source, out = VQModel(TINY_VQ).eval(), tmp_path / "vq_ds16_c2i.pt", tmp_path / "vq.safetensors"
    torch.save({"model": model.state_dict()}, source)
    about, codes = releases.convert(source, out, TINY_VQ), torch.arange(16)[None]
    assert about["class"] == "VQModel"
    loaded = VQModel(VQConfig(**about["config"])).eval()
    releases.load_weights(loaded, out)
    assert loaded.config == TINY_VQ and torch.equal(loaded.decode(codes), model.decode(codes))


def test_every_tokenizer_is_told_by_its_weights(tmp_path):
    """VQ-8 has a level less than VQ-16."""
    for name, config in TOKENIZERS.items():
        with torch.device("meta"):
            state = VQModel(config).state_dict()
        torch.save({"model": {key: torch.zeros(1) for key in state}}, tmp_path / "vq.pt")
        assert releases.release_config(tmp_path / "vq.pt") == TOKENIZERS[name]


def test_a_kept_tokenizer_is_read_as_weights():
    """That of the package lacks a buffer that nothing reads; `tokenizer.weights` and `tokenizer.start` take it all the same."""
    folder = pretrained.HOME / "results/demo/tokenizer"
    model = VQModel(load_preset("demo").tokenizer.network)
    releases.load_weights(model, folder / "tokenizer.safetensors")
    assert torch.equal(model.quantize.embedding.weight, prepare_tokenizer.load_tokenizer(folder).quantize.embedding.weight)


@pytest.mark.parametrize("about", ["[1]", '{"config": null}', '{"config": [1]}', "no JSON"])
def test_what_lies_beside_weights_may_be_anything(tmp_path, about):
    """A JSON file of another program's, beside a file of safetensors."""
    save_file(gpt().state_dict(), tmp_path / "mine.safetensors")
    (tmp_path / "mine.json").write_text(about)
    assert releases.known_grid(tmp_path / "mine.safetensors") == 0


def test_a_training_on_patches_is_not_exported(tmp_path):
    """What takes the mean's place is not a release's: one line says to wait for the end."""
    save_file({"output.weight": torch.zeros(2), "windows.4.weight": torch.zeros(2)}, tmp_path / "half.safetensors")
    with pytest.raises(NppkitError, match=r"holds windows\.4\.weight: it still trains on patches"):
        releases.export(tmp_path / "half.safetensors", tmp_path / "ours.pt")
    assert not (tmp_path / "ours.pt").exists()


@pytest.mark.parametrize("left", [True, False])
def test_a_checkpoint_of_the_patches_is_not_exported(tmp_path, left):
    """Patches by the mean leave no tensor behind; the state that lies beside the weights tells."""
    folder = save_checkpoint(tmp_path, 3, {"model": gpt().state_dict()}, {"config_digest": "d", "patches_left": left})
    if not left:
        releases.export(folder, tmp_path / "ours.pt")
        return
    with pytest.raises(NppkitError, match="step_00000003 still trains on patches: take a checkpoint of the end"):
        releases.export(folder, tmp_path / "ours.pt")


@pytest.mark.parametrize("file", ["", "model.safetensors"])
def test_a_training_on_names_is_not_exported(tmp_path, file):
    """Its table of bytes has the shape of a table of classes, so LlamaGen's scripts would read it and draw nonsense."""
    folder = save_checkpoint(tmp_path, 3, {"model": gpt().state_dict()}, {"config_digest": "d", "condition": "names"})
    with pytest.raises(NppkitError, match="was trained on names of classes"):
        releases.export(folder / file, tmp_path / "ours.pt")
    assert not (tmp_path / "ours.pt").exists()


def test_exported_checkpoint(tmp_path):
    """A checkpoint of our training, exported, is plain tensors under "model", and gives identical logits."""
    model = gpt()
    folder = save_checkpoint(tmp_path, 3, {"model": model.state_dict()}, {"config_digest": "d"})
    releases.export(folder, tmp_path / "ours.pt")
    content = torch.load(tmp_path / "ours.pt", weights_only=True)
    assert all(type(value) is torch.Tensor for value in content["model"].values())
    loaded = GPT(TINY).eval()
    assert releases.load_weights(loaded, tmp_path / "ours.pt") == sha256(tmp_path / "ours.pt")
    assert torch.equal(logits(loaded), logits(model))
    assert os.listdir(tmp_path).count("ours.pt") == 1 and not list(tmp_path.glob(".ours*"))


class Payload:
    """Creates a file when unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


class Call(Payload):
    def __reduce__(self):
        return (os.system, (f"touch {self.path}",))


@pytest.mark.parametrize("payload", [Payload, Call])
@pytest.mark.parametrize("place", ["args", "model", "namespace", "bare"])
@pytest.mark.parametrize("protocol", [2, 4])
def test_payload_does_not_run(tmp_path, payload, place, protocol):
    """A pickle that would call something is refused by name, wherever the call hides, and does not run."""
    source, trace, state = tmp_path / "evil.pt", tmp_path / "trace", gpt().state_dict()
    evil = payload(trace)
    hidden = {
        "args": {"model": state, "args": evil},
        "model": {"model": {**state, "x": evil}},
        "namespace": {"model": state, "args": argparse.Namespace(x=evil)},
        "bare": evil,
    }
    torch.save(hidden[place], source, pickle_protocol=protocol)
    with pytest.raises(NppkitError, match=r"evil\.pt (holds|is no weights file)") as error:
        releases.load_weights(GPT(TINY), source)
    assert not trace.exists() and "\n" not in str(error.value)
    torch.load(source, weights_only=False)
    assert trace.exists(), "the payload works, so its absence above means something"


@dataclasses.dataclass
class Settings:
    lr: float = 1e-4


def test_unknown_class_is_refused(tmp_path):
    """A harmless class other than argparse.Namespace is refused by name; the allowance does not leak."""
    torch.save({"model": gpt().state_dict(), "args": Settings()}, tmp_path / "odd.pt")
    with pytest.raises(NppkitError, match=r"odd\.pt holds test_releases\.Settings, which could run code, and was refused"):
        releases.read_state(tmp_path / "odd.pt")
    assert argparse.Namespace not in torch.serialization.get_safe_globals()


def damaged(state, change):
    state = dict(state)
    if change == "missing":
        del state["layers.1.ffn_norm.weight"]
    if change == "unexpected":
        state["layers.1.attention.bias"] = torch.zeros(3)
    if change == "shape":
        state["norm.weight"] = torch.ones(17)
    if change == "other model":
        state = {f"decoder.{key}": value for key, value in state.items()}
    return state


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("missing", r"missing: layers\.1\.ffn_norm\.weight\)"),
        ("unexpected", r"unexpected: layers\.1\.attention\.bias\)"),
        ("shape", r"wrong shape: norm\.weight is \(17,\), not \(16,\)\)"),
        ("other model", r"missing: \S+ \S+ \S+ and 15 more; unexpected: decoder\.\S+ \S+ \S+ and 15 more\)"),
    ],
)
def test_file_that_does_not_fit(tmp_path, change, message):
    """Missing, unexpected and wrongly shaped tensors are named in one line, and nothing is loaded or converted."""
    torch.save({"model": damaged(gpt().state_dict(), change)}, tmp_path / "wrong.pt")
    model = GPT(TINY)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(NppkitError, match=rf"wrong\.pt does not fit this GPT \({message}: check") as error:
        releases.load_weights(model, tmp_path / "wrong.pt")
    assert "\n" not in str(error.value) and all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    with pytest.raises(NppkitError, match=r"wrong\.pt does not fit"):
        releases.convert(tmp_path / "wrong.pt", tmp_path / "out.safetensors", TINY)
    assert not list(tmp_path.glob("*out*"))


@pytest.mark.parametrize("keep", [0.0, 0.3, 0.9])
@pytest.mark.parametrize("name", ["new.pt", "old.pt", "ours.safetensors"])
def test_truncated_file(tmp_path, name, keep):
    """A file that ends early is named, in every format."""
    path, state = tmp_path / name, gpt().state_dict()
    if name == "ours.safetensors":
        save_file(state, path)
    else:
        torch.save({"model": state}, path, _use_new_zipfile_serialization=name == "new.pt")
    path.write_bytes(path.read_bytes()[: int(keep * path.stat().st_size)])
    with pytest.raises(NppkitError, match=rf"{name} (is damaged|is no weights file, or damaged)") as error:
        releases.read_state(path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("content", [{}, [], {"model": {"a": 1}}, {"model": {}}, {"args": {"lr": 1.0}}, {1: torch.ones(1)}])
def test_no_state_dict(tmp_path, content):
    """A file of something else is named."""
    torch.save(content, tmp_path / "other.pt")
    with pytest.raises(NppkitError, match=r"other\.pt holds no state dict"):
        releases.read_state(tmp_path / "other.pt")


def test_missing_files(tmp_path):
    """A file that is not there is named, and so is a conversion under another suffix."""
    with pytest.raises(NppkitError, match=r"absent\.pt does not exist"):
        releases.read_state(tmp_path / "absent.pt")
    save_file(gpt().state_dict(), tmp_path / "alone.safetensors")
    with pytest.raises(NppkitError, match=r"out\.pt: the converted file is named \*\.safetensors"):
        releases.convert(tmp_path / "alone.safetensors", tmp_path / "out.pt", TINY)


@pytest.mark.parametrize("size", MODELS)
def test_configuration_of_a_release(tmp_path, monkeypatch, size):
    """Width, depth, vocabulary and classes come from the weights, heads from the family, the grid from the file's name."""
    with torch.device("meta"):
        state = GPT(GPTConfig(**MODELS[size])).state_dict()
    monkeypatch.setattr(releases, "read_state", lambda path: (state, "model"))
    assert releases.release_config(Path(f"c2i_{size}_256.pt")) == GPTConfig(**MODELS[size])
    assert releases.release_config(Path(f"c2i_{size}_384.pt")) == GPTConfig(**MODELS[size], grid_size=24)
    assert releases.release_config(Path("mine.pt"), grid_size=24) == GPTConfig(**MODELS[size], grid_size=24)
    with pytest.raises(NppkitError, match=r"mine\.pt: weights do not hold the grid size"):
        releases.release_config(Path("mine.pt"))


def test_the_grid_of_a_converted_file_is_known(tmp_path):
    """What `convert` wrote beside the weights says their grid, by whatever name they go."""
    torch.save({"model": gpt().state_dict()}, tmp_path / "small.pt")
    releases.convert(tmp_path / "small.pt", tmp_path / "mine.safetensors", TINY)
    assert releases.known_grid(tmp_path / "mine.safetensors") == TINY.grid_size
    assert releases.release_config(tmp_path / "mine.safetensors", n_head=TINY.n_head).grid_size == TINY.grid_size


def test_configuration_of_another_family(tmp_path):
    """A size that is not in the table needs its heads; grouped-query attention and the hidden size are seen."""
    path, config = tmp_path / "small.pt", dataclasses.replace(TINY, n_head=4, n_kv_head=2, multiple_of=48)
    torch.save({"model": gpt(config).state_dict()}, path)
    assert releases.release_config(path, grid_size=4, n_head=4) == config
    with pytest.raises(NppkitError, match=r"small\.pt: weights do not hold n_head, and 2 layers of 16 are no model"):
        releases.release_config(path, grid_size=4)
    torch.save({"model": {"fc.weight": torch.ones(2, 2)}}, path)
    with pytest.raises(NppkitError, match=r"small\.pt is not a transformer's weights"):
        releases.release_config(path, grid_size=4)
    torch.save({"model": {name: x.flatten() for name, x in gpt(config).state_dict().items()}}, path)
    with pytest.raises(NppkitError, match=r"small\.pt has weights of other shapes than a transformer's, as a shard"):
        releases.release_config(path, grid_size=4, n_head=4)


def test_a_tokenizer_without_what_is_unused_is_exported_whole(tmp_path):
    """The package's own lacks the released state's unused counts, which LlamaGen's scripts load."""
    model = VQModel(VQConfig(ch=4, ch_mult=(1, 1), num_res_blocks=1, z_channels=8, codebook_size=16, norm_groups=2))
    kept = {name: value.contiguous() for name, value in model.state_dict().items() if name != "quantize.codebook_used"}
    save_file(kept, tmp_path / "kept.safetensors")
    releases.export(tmp_path / "kept.safetensors", tmp_path / "out.pt")
    model.load_state_dict(torch.load(tmp_path / "out.pt")["model"])


def hub(monkeypatch, download, digest=""):
    """Replace huggingface_hub by one function and the digest that it states; None: not installed."""
    module = types.SimpleNamespace(hf_hub_download=download) if download else None
    if module:
        module.hf_hub_url = lambda repo_id, filename: f"{repo_id}/{filename}"
        module.get_hf_file_metadata = lambda url: types.SimpleNamespace(etag=digest)
    monkeypatch.setitem(sys.modules, "huggingface_hub", module)


def test_fetch_prefers_the_local_file(tmp_path, monkeypatch):
    """A file that lies in weights/ is used without the network; NPP's and LlamaGen's of one name stay apart."""
    hub(monkeypatch, None)
    monkeypatch.setenv("NPPKIT_HOME", str(tmp_path))
    for repo in ("LlamaGen", "LlamaGen-NPP"):
        (tmp_path / "weights" / repo).mkdir(parents=True)
        (tmp_path / "weights" / repo / "c2i_B_256.pt").write_text(repo)
    assert releases.fetch("LlamaGen-B-256").read_text() == "LlamaGen"
    assert releases.fetch("NPP-B-256").read_text() == "LlamaGen-NPP"


def test_fetch_downloads(tmp_path, monkeypatch):
    """Otherwise the hub's client downloads into that folder; a file of another digest than the hub's does not stay."""

    def download(repo_id, filename, *, local_dir):
        assert (repo_id, filename) == ("pytttttt/LlamaGen-NPP", "c2i_XL_256.pt")
        local_dir.mkdir(parents=True, exist_ok=True)
        (local_dir / filename).write_text("weights")
        return str(local_dir / filename)

    monkeypatch.setenv("NPPKIT_HOME", str(tmp_path))
    hub(monkeypatch, download, "0" * 64)
    with pytest.raises(NppkitError, match="another sha256 than the hub states"):
        releases.fetch("NPP-XL-256")
    assert not list(tmp_path.rglob("*.pt"))
    hub(monkeypatch, download, hashlib.sha256(b"weights").hexdigest())
    path = releases.fetch("NPP-XL-256")
    assert path == tmp_path / "weights" / "LlamaGen-NPP" / "c2i_XL_256.pt" and path.read_text() == "weights"


def test_fetch_offline(tmp_path, monkeypatch):
    """Without the network or the client, the error says which file of which repository to put where."""

    def offline(*args, **kwargs):
        raise ConnectionError("Cannot reach huggingface.co\ndetails")

    place = r"LlamaGen/vq_ds16_c2i\.pt .*put vq_ds16_c2i\.pt of https://huggingface\.co/FoundationVision/LlamaGen there"
    monkeypatch.setenv("NPPKIT_HOME", str(tmp_path))
    hub(monkeypatch, offline)
    with pytest.raises(NppkitError, match=place) as error:
        releases.fetch("VQ-16")
    assert "\n" not in str(error.value) and "Cannot reach huggingface.co" in str(error.value)
    hub(monkeypatch, None)
    with pytest.raises(NppkitError, match=place + ", or install huggingface_hub"):
        releases.fetch("VQ-16")


def test_releases(monkeypatch):
    """LlamaGen's XL and XXL at 256 were never released, which is said; an unknown name lists the known ones."""
    hub(monkeypatch, None)
    for size in ("XL", "XXL"):
        with pytest.raises(NppkitError, match=rf"LlamaGen-{size}-256: its weights were not released: .* NPP-{size}-256"):
            releases.fetch(f"LlamaGen-{size}-256")
    with pytest.raises(NppkitError, match=r"'B' is unknown: use one of VQ-16, LlamaGen-B-256, .*NPP-XXL-256"):
        releases.fetch("B")
    assert {name for name, r in releases.RELEASES.items() if not r.repo} == {"LlamaGen-XL-256", "LlamaGen-XXL-256"}
    for name, r in releases.RELEASES.items():
        assert name == "VQ-16" or (name.endswith(f"-{r.size}-{r.image_size}") and r.file == f"c2i_{r.size}_{r.image_size}.pt")


def test_command_line(tmp_path, capsys):
    """convert and export from the command line; bad input is one line, not a traceback."""
    source, out, back = (str(tmp_path / name) for name in ("c2i_B_256.pt", "b.safetensors", "back.pt"))
    torch.save({"model": gpt(dataclasses.replace(TINY, grid_size=16)).state_dict()}, source)

    def run(*arguments):
        return cli.call(["weights", *arguments])

    assert run("convert", source, out, "--n-head", "2") == 0
    assert json.loads(capsys.readouterr().out)["config"]["grid_size"] == 16
    assert run("export", out, back) == 0
    assert torch.load(back)["model"].keys() == torch.load(source)["model"].keys()
    assert run("convert", back, out) == 1
    assert capsys.readouterr().err.startswith(f"error: {back}: weights do not hold the grid size")
    assert run("convert", source, out, "--grid-size", "-4", "--n-head", "2") == 1
    assert "grid_size -4 must be of whole numbers above 0" in capsys.readouterr().err
    assert run("convert", source, out, "--n-head", "-2") == 1 and "n_head -2 is no int" in capsys.readouterr().err
    assert run("fetch", "LlamaGen-XL-256") == 1
    assert capsys.readouterr().err.startswith("error: LlamaGen-XL-256: its weights were not released")


@pytest.mark.parametrize(
    "wrap",
    [
        lambda key: f"_orig_mod.{key}",
        lambda key: f"module._orig_mod.{key}",
        lambda key: key.replace("layers.0.", "layers.0._fsdp_wrapped_module."),
        lambda key: key.replace("layers.0.", "layers.0._checkpoint_wrapped_module._orig_mod."),
        lambda key: f"model.{key}",
    ],
)
@pytest.mark.parametrize("ending", ["pt", "safetensors"])
def test_what_wrappers_leave_in_names(tmp_path, wrap, ending):
    """Prefixes of wrappers anywhere in a name, alone or nested, in either kind of file."""
    model, path = gpt(), tmp_path / f"wrapped.{ending}"
    state = {wrap(key): value for key, value in model.state_dict().items()}
    save_file(state, path) if ending == "safetensors" else torch.save(state, path)
    loaded = gpt()
    releases.load_weights(loaded, path)
    assert torch.equal(logits(loaded), logits(model))


def prefixed_by(name, state):
    return {f"{name}.{key}": value for key, value in state.items()}


@pytest.mark.parametrize("ending", ["pt", "safetensors"])
@pytest.mark.parametrize(
    ("store", "says"),
    [
        (lambda ours, other: {"ema": other, "model": ours}, "model is read, not ema"),
        (lambda ours, other: {"ema": ours, "steps": 3}, "ema is read"),
        (lambda ours, other: {**prefixed_by("model_ema", other), **prefixed_by("model", ours)}, "model is read, not model_ema"),
        (lambda ours, other: prefixed_by("ema_model.module", ours), "ema_model is read"),
        (lambda ours, other: {**prefixed_by("module", ours), "n_averaged": torch.tensor(7)}, ""),
    ],
)
def test_moving_averages(tmp_path, capsys, store, says, ending):
    """Beside the model the model is read, alone the average, and it is said which; names that do not fit are in the error."""
    path, ours = tmp_path / f"averaged.{ending}", gpt().state_dict()
    content = store(ours, {key: value + 1 for key, value in ours.items()})
    if ending == "safetensors":
        if not all(isinstance(value, torch.Tensor) for value in content.values()):
            pytest.skip("safetensors holds no containers")
        save_file({key: value.clone() for key, value in content.items()}, path)
    else:
        torch.save(content, path)
    state, _ = releases.read_state(path)
    assert state.keys() == ours.keys() and all(torch.equal(state[key], value) for key, value in ours.items())
    assert capsys.readouterr().err == (f"{path}: {says}\n" if says else "")
    with pytest.raises(NppkitError, match=r"missing: cls_.*unexpected: average\.cls_"):
        save_file(prefixed_by("average", ours), tmp_path / "other.safetensors")
        releases.load_weights(gpt(), tmp_path / "other.safetensors")


def test_a_release_of_another_image_size_is_refused(tmp_path):
    """Shapes agree, as rotary tables are not in a file: the size is known by the release's name, or by what `convert` wrote."""
    model = gpt()
    for name in ("c2i_B_384.pt", "renamed.pt"):
        torch.save({"model": model.state_dict()}, tmp_path / name)
    with pytest.raises(NppkitError, match=r"c2i_B_384\.pt was trained on a grid of 24 x 24, and the codes have 4 x 4"):
        releases.load_weights(gpt(), tmp_path / "c2i_B_384.pt")
    releases.convert(tmp_path / "renamed.pt", tmp_path / "ours.safetensors", dataclasses.replace(TINY, grid_size=8))
    with pytest.raises(NppkitError, match=r"ours\.safetensors was trained on a grid of 8 x 8"):
        releases.load_weights(gpt(), tmp_path / "ours.safetensors")
    releases.load_weights(gpt(), tmp_path / "renamed.pt")  # nothing is known of it


def test_tied_tensors_are_converted(tmp_path):
    """Two names of one tensor in a file, here embedding and output, are written as two."""
    state = gpt().state_dict()
    state["output.weight"] = state["tok_embeddings.weight"]
    torch.save(state, tmp_path / "tied.pt")
    releases.convert(tmp_path / "tied.pt", tmp_path / "tied.safetensors", TINY)
    written = load_file(tmp_path / "tied.safetensors")
    torch.testing.assert_close(written["output.weight"], written["tok_embeddings.weight"])


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite(tmp_path, value):
    """One NaN in a file is refused by name, before anything is sampled with it."""
    model = gpt()
    with torch.no_grad():
        model.layers[0].attention.wo.weight[0, 0] = value
    save_file(model.state_dict(), tmp_path / "bad.safetensors")
    with pytest.raises(NppkitError, match=r"bad\.safetensors holds NaN or Inf in layers\.0\.attention\.wo\.weight"):
        releases.load_weights(gpt(), tmp_path / "bad.safetensors")


@pytest.mark.parametrize(
    "stored",
    [
        lambda w: w.to(torch.float8_e4m3fn),
        lambda w: w.to_sparse(),
        lambda w: (127 * w).to(torch.int8),
        lambda w: w.to(torch.complex64),
    ],
    ids=["float8", "sparse", "int8", "complex"],
)
def test_weights_of_another_kind_of_number(tmp_path, stored):
    """Weights of 8 bits, of whole numbers or sparse ones are refused by name; whole numbers would be taken as they are."""
    state = gpt().state_dict()
    torch.save(state | {"output.weight": stored(state["output.weight"])}, tmp_path / "small.pt")
    for use in (releases.convert, lambda file, out, config: releases.load_weights(GPT(config), file)):
        with pytest.raises(NppkitError, match=r"small\.pt.*output\.weight.*16, 32 or 64 bits"):
            use(tmp_path / "small.pt", tmp_path / "small.safetensors", TINY)
    with pytest.raises(NppkitError, match=r"small\.pt.*output\.weight"):
        releases.export(tmp_path / "small.pt", tmp_path / "out.pt")


def test_a_file_with_a_wrong_checksum_is_refused(tmp_path):
    """torch reads a weight that a disk has changed; the container knows better."""
    torch.save({"model": gpt().state_dict()}, tmp_path / "mine.pt")
    content = bytearray((tmp_path / "mine.pt").read_bytes())
    content[len(content) // 2] ^= 255
    (tmp_path / "mine.pt").write_bytes(content)
    torch.load(tmp_path / "mine.pt", weights_only=True)
    with pytest.raises(NppkitError, match=r"mine\.pt is no weights file, or damaged"):
        releases.read_state(tmp_path / "mine.pt")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda state: state["output.weight"].fill_(float("nan")), r"model\.safetensors holds NaN or Inf in output\.weight"),
        (lambda state: state["output.weight"].add_(1), r"model\.safetensors is damaged: take another checkpoint"),
        (lambda state: state.pop("tok_embeddings.weight"), r"model\.safetensors holds no transformer's or tokenizer's weights"),
    ],
)
def test_what_is_no_whole_model_is_not_exported(tmp_path, spoil, message):
    """Its own state knows the digest of each file; an optimiser's moments are no model."""
    folder, state = save_checkpoint(tmp_path, 3, {"model": gpt().state_dict()}, {"config_digest": "d"}), gpt().state_dict()
    spoil(state)
    save_file(state, folder / "model.safetensors")
    if "tok_embeddings.weight" not in state:
        (folder / "state.json").unlink()
    with pytest.raises(NppkitError, match=message):
        releases.export(folder, tmp_path / "ours.pt")
    assert not (tmp_path / "ours.pt").exists()
