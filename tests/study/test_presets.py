"""Presets: checked in full before any work is done."""

import contextlib
import dataclasses
from pathlib import Path
from typing import get_args

import pytest
import yaml

from nppkit.data.config import DataConfig, TokenizerConfig
from nppkit.data.images import CROPS
from nppkit.data.perceptual import NETWORKS
from nppkit.errors import NppkitError
from nppkit.model import MODELS, GPTConfig
from nppkit.releases import RELEASES
from nppkit.scoring.config import EvaluationConfig, ExtractorConfig
from nppkit.scoring.features import LAYERS
from nppkit.settings import KINDS, build, settings
from nppkit.study import presets
from nppkit.study.presets import FOLDER, load_preset, preset_names
from nppkit.study.published import published, row_run
from nppkit.study.runs import Run, preset_runs
from nppkit.training.config import TrainingConfig


@pytest.fixture
def smoke_file(tmp_path):
    """The smoke preset as a file to change: smoke_file(lambda content: ...)."""

    def write(change):
        content = yaml.safe_load((FOLDER / "smoke.yaml").read_text())
        change(content)
        path = tmp_path / "mine.yaml"
        path.write_text(yaml.safe_dump(content))
        return str(path)

    return write


@pytest.mark.parametrize("name", preset_names())
def test_packaged_presets_load(name):
    """Every preset of the package is valid."""
    assert load_preset(name).name == name


def test_own_file(smoke_file):
    """A YAML file of one's own is a preset, named after the file."""
    preset = load_preset(smoke_file(lambda c: c["training"].update(lr=0.5)))
    assert preset.name == "mine" and preset.training.lr == 0.5


DEFAULTS = {  # of the first release; a digest leaves them out, so another value here would belie every record
    DataConfig: dict(source="mnist", path="", name="", image_size=32, crops="shift", heldout=500, limit=0, window=128),
    TokenizerConfig: dict(name="", vq={}, weights="", steps=0, batch_size=64, lr=2e-3, seed=0),
    ExtractorConfig: dict(name="digits", weights="", sha256="", steps=0, batch_size=128, lr=3e-3, seed=0),
    TrainingConfig: dict(epochs=300, steps_per_epoch=4, batch_size=64, lr=1e-4, end_lr=1e-5, warmup_epochs=1.0)
    | dict(decay_fraction=0.2, beta1=0.9, beta2=0.95, weight_decay=0.05, grad_clip=1.0, dropout=0.1, label_dropout=0.1)
    | dict(lr_schedule="segments", reset_optimizer=False, log_every=0, heldout_every=0, compile=False),
    EvaluationConfig: dict(samples=2000, select_samples=1000, guidance=[1.0, 1.5, 2.0], common_guidance=1.5)
    | dict(temperature=1.0, top_k=0, top_p=1.0, report_seed=0, select_seed=1, batch_size=500, kid_subsets=10)
    | dict(reference="", save_npz=False),
}


@pytest.mark.parametrize("section", DEFAULTS)
def test_defaults_stay(section):
    """Defaults of published settings never change; `settings` shows what differs from them."""
    found = dataclasses.asdict(section())
    assert {key: found[key] for key in DEFAULTS[section]} == DEFAULTS[section]
    assert settings(section()) == {} and settings(section(batch_size=7) if "batch_size" in found else section(limit=7)) != {}


@pytest.mark.parametrize("name", ["nothing", "../presets/demo", "/etc/passwd", ""])
def test_unknown_preset(name):
    """An unknown preset is named with the known ones, and a name is never a path."""
    with pytest.raises(NppkitError, match="is unknown: use one of"):
        load_preset(name)


def test_a_file_that_is_not_there(tmp_path):
    """A YAML file of one's own that does not exist is told so, and not that its name is no preset's."""
    with pytest.raises(NppkitError, match=r"preset file .*mine\.yaml does not exist: copy one from"):
        load_preset(str(tmp_path / "mine.yaml"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c["training"].update(learning_rate=1), "unknown setting 'training.learning_rate': use one of epochs"),
        (lambda c: c["training"].update(graphs=True), r"'training.graphs' \(that stands at the left margin\)"),
        (lambda c: c["training"].update(batch_size="many"), "batch_size: 'many' is not an int"),
        (lambda c: c["training"].update(batch_size=2.5), r"batch_size: 2\.5 is not an int"),
        (lambda c: c["training"].update(compile=3), "compile: 3 is not a bool"),
        (lambda c: c.pop("models"), "'models' is missing"),
        (lambda c: c.update(equal_flops={"B": [1]}), r"equal_flops\.B has too few numbers"),
        (lambda c: c.update(equal_flops={"B": 3}), r"equal_flops\.B: 3 is not a list"),
        (lambda c: c.update(data=[1]), "data must be a mapping"),
        (lambda c: c["evaluation"].update(common_guidance=9.0), "common_guidance"),
        (lambda c: c["training"].update(patch="heads"), "training.patch heads is a run's: name it in runs"),
        (lambda c: c["evaluation"].update(select_seed=0), "select_seed"),
        *((lambda c, s=s: c.update(reports=[s]), f"'{s}' is no reading notebook's name") for s in ("table1", "figure1", "train")),
        (lambda c: c["evaluation"].update(samples=90), "select_samples 100 must not exceed samples 90: lower it"),
        (
            lambda c: c.update(gpu="RTX3090"),
            "gpu 'RTX3090' is unknown: use one of A100-40G, .*, or add its data sheet",
        ),
        *((lambda c, s=s: c["data"].update(source=s), f"data.path is empty.*{s}") for s in ("folder", "npz", "torchvision")),
        (lambda c: c["extractor"].update(weights="a.pth"), "extractor.weights are not of the digit classifier"),
        (lambda c: c["runs"].update(XL=["ntp"]), "runs of model XL"),
        (lambda c: c["data"].update(image_size=30), "image_size 30 is not a multiple of the tokenizer's 4"),
        (lambda c: c["tokenizer"].update(name="VQ-32"), "tokenizer.name 'VQ-32' is unknown"),
        (lambda c: c["tokenizer"].update(name="VQ-16"), "tokenizer.vq stands beside tokenizer.name VQ-16"),
        (lambda c: c["tokenizer"].update(start="a", weights="b"), "tokenizer.start stands beside tokenizer.weights"),
        (lambda c: c["data"].update(limit=100), "data.heldout 100 leaves no training image of data.limit 100"),
        (lambda c: c["extractor"].update(steps=0), "extractor.steps is 0"),
        (lambda c: c["tokenizer"].update(steps=0), r"tokenizer needs weights \(a file\) or steps"),
        (lambda c: c["tokenizer"].update(vq={"channels": 8}), "tokenizer.vq: 'channels' is unknown: use one of ch, "),
        (lambda c: c["tokenizer"].update(vq={"ch": 9}), "tokenizer ch 9 is not a multiple of norm_groups 32"),
        (lambda c: c["tokenizer"].update(vq={"ch_mult": []}), "ch_mult"),
        (lambda c: c["tokenizer"]["vq"].update(codebook_size=[32]), r"codebook_size \[32\] is no int"),
        (lambda c: c["tokenizer"]["vq"].update(z_channels=[3]), r"z_channels \[3\] is no int"),
        (lambda c: c["tokenizer"]["vq"].update(ch=True), "ch True is no int"),
        (lambda c: c["tokenizer"]["vq"].update(ch_mult=3), r"tokenizer\.vq: ch_mult 3: give a list of whole numbers"),
        (lambda c: c["tokenizer"]["vq"].update(gray=3), "gray 3 is no bool"),
        (lambda c: c["tokenizer"]["vq"].update(codebook_size=70000), "codebook_size 70000 does not fit uint16: 65,536 at most"),
        (lambda c: c["tokenizer"].update(perceptual_network="alexnet"), "perceptual_network 'alexnet' is unknown: use efficient"),
        (lambda c: c["extractor"].update(name="vgg"), "extractor.name 'vgg' is unknown: use digits, inception-v3-compat or eff"),
        (
            lambda c: c["data"].update(source="imagenette"),
            "source 'imagenette' is unknown: use mnist, elpv, .*moving_mnist or py",
        ),
        (
            lambda c: c["data"].update(crops="mirrored"),
            "crops 'mirrored' is unknown: use shift, ten_crop, center, mirror or flips",
        ),
        (lambda c: c.update(runs={}), "runs {}"),
        (lambda c: c["models"].update({"!": {}}), "models: '!' is no model size"),
    ],
)
def test_bad_settings_are_named(smoke_file, change, message):
    """An unknown key, a wrong type, a missing section or a contradiction is one line that names it."""
    with pytest.raises(NppkitError, match=message):
        load_preset(smoke_file(change))


def test_a_trial_of_few_images_beside_held_out_ones(smoke_file):
    """Images held out in a folder of their own are not taken from those of `limit`."""
    preset = load_preset(
        smoke_file(lambda c: c["data"].update(source="folder", path="a", heldout_path="b", heldout=100, limit=50))
    )
    assert preset.data.limit == 50


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        *(("training.steps_per_epoch", value) for value in (0, -1, 2**31)),
        *(("training.lr", value) for value in (0.0, -1e-3, float("nan"), float("inf"))),
        *(("training.batch_size", 0), ("training.dropout", 1.5), ("evaluation.top_p", 2.0), ("evaluation.temperature", -1.0)),
        *(("evaluation.guidance", []), ("evaluation.guidance", [1.5, "x"]), ("runs.B", "ntp"), ("models.B", 7), ("threads", 0)),
        *(("evaluation.samples", 3), ("evaluation.select_samples", 1), ("evaluation.top_p", 0), ("training.beta1", 1.0)),
        *(("training.beta2", 1), ("training.dropout", 1.0), ("models.B.dropout", 2.0), ("models.B.rope_base", 0)),
        *((f"models.B.{key}", value) for key in ("n_head", "n_layer", "dim", "multiple_of") for value in (0, 1.5)),
        *((f"models.B.{key}", 16) for key in ("n_heads", "num_classes", "vocab_size", "grid_size", "names")),
        *(("models.B.n_kv_head", 3), ("models.B.dim", 30), ("models.B.n_kv_head", 0.5)),
    ],
)
def test_values_out_of_range_are_named(smoke_file, setting, value):
    """A number that is not finite, negative, zero where something is counted, or a table of another kind is refused."""

    def change(content):
        *sections, key = setting.split(".")
        for section in sections:
            content = content[section]
        content[key] = value

    with pytest.raises(NppkitError, match=setting.split(".")[-1]):
        load_preset(smoke_file(change))


def test_kinds_that_a_preset_may_name_are_those_that_there_are():
    """Each crop, network and extractor has its function, and each setting of a model is one of the transformer's."""
    kinds = {
        (DataConfig, "crops"): CROPS,
        (TokenizerConfig, "perceptual_network"): NETWORKS,
        (ExtractorConfig, "name"): LAYERS,
    }
    for (section, name), known in kinds.items():
        assert get_args({f.name: f.type for f in dataclasses.fields(section)}[name]) == tuple(known)
    data = {"num_classes", "vocab_size", "grid_size", "names"}
    assert set(get_args(presets.ModelSetting)) == {f.name for f in dataclasses.fields(GPTConfig)} - data


@pytest.mark.parametrize(("base", "dim", "axes"), [("video", 32, 3), ("text", 18, 1), ("text", 20, 0)])
def test_heads_are_those_of_the_grid(tmp_path, base, dim, axes):
    """A video's three axes need a multiple of 6 dimensions a head, a text's one a multiple of 2: looked at on loading."""
    path, sizes = tmp_path / "mine.yaml", f"models: {{B: {{dim: {dim}, n_head: 2, n_layer: 1}}}}"
    path.write_text(f"base: {base}\ndescription: x\n{sizes}\nruns: {{B: [ntp]}}\n")
    with pytest.raises(NppkitError, match=f"multiple of {2 * axes} dim") if axes else contextlib.nullcontext():
        load_preset(str(path))


def test_code_in_yaml_does_not_run(tmp_path):
    """A preset that would call a function is refused by file name, and the function is not called."""
    path, trace = tmp_path / "evil.yaml", tmp_path / "trace"
    path.write_text(f"name: !!python/object/apply:os.mkdir ['{trace}']\n")
    with pytest.raises(NppkitError, match=r"evil\.yaml is not valid YAML"):
        load_preset(str(path))
    assert not trace.exists()
    yaml.unsafe_load(path.read_text())
    assert trace.exists(), "the payload works, so its absence above means something"


def test_a_preset_at_home_and_of_another_editor(smoke_file, monkeypatch):
    """`~` is the home folder also where no shell has said so; a byte-order mark and Windows' line ends change nothing."""
    path = Path(smoke_file(lambda content: None))
    before = load_preset(str(path))
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"\n", b"\r\n"))
    monkeypatch.setenv("HOME", str(path.parent))
    assert load_preset(f"~/{path.name}") == before
    with pytest.raises(NppkitError, match="does not exist"):
        load_preset("~nobody-of-this-name/mine.yaml")


@pytest.mark.parametrize("text", ["{", "- 1", ""])
def test_yaml_that_is_no_preset(tmp_path, text):
    """Broken and foreign YAML is refused by file name."""
    (tmp_path / "bad.yaml").write_text(text)
    with pytest.raises(NppkitError, match=r"bad\.yaml"):
        load_preset(str(tmp_path / "bad.yaml"))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("training: {lr: 1.0}", r"line 99: 'training' stands already in line \d+: keep one"),
        ("data: {limit: 1, limit: 2}", r"line 99: 'data' stands already"),
        ("threads: 0200", "line 99: 0200 is no plain number: write it in decimal digits"),
        ("threads: 1:30", "line 99: 1:30 is no plain number"),
        ("first_seed: 1:30.5", "line 99: 1:30.5 is no plain number"),
    ],
)
def test_traps_of_yaml(smoke_file, line, message):
    """A key that stands twice, octal and base-60 numbers are refused with their line; YAML would take them silently."""
    path = Path(smoke_file(lambda content: None))
    text = path.read_text()
    path.write_text(text + "\n" * (98 - text.count("\n")) + line + "\n")
    with pytest.raises(NppkitError, match=rf"mine\.yaml is not valid YAML: {message}"):
        load_preset(str(path))


@pytest.mark.parametrize(
    ("kind", "value", "expected"),
    [
        (float, "1e-4", 1e-4),
        (int, "3", 3),
        (bool, "true", True),
        (bool, "False", False),
        (float, 2, 2.0),
        (str, "x'\"\n", "x'\"\n"),
    ],
)
def test_strings_are_coerced_to_the_declared_type(kind, value, expected):
    """What papermill's command line passes as text becomes the declared type."""
    result = build(KINDS[kind], value, "parameter x")
    assert result == expected and type(result) is kind


@pytest.mark.parametrize(
    ("kind", "value"), [(int, "1.5"), (int, 1.5), (int, True), (bool, "yes"), (float, "fast"), (str, 3), (bool, 1)]
)
def test_other_values_are_refused(kind, value):
    """What does not spell the declared type is refused by name."""
    with pytest.raises(NppkitError, match="parameter x"):
        build(KINDS[kind], value, "parameter x")


def test_imagenet_presets_are_the_papers():
    """imagenet256 has every trained row of Tables 1-5, the paper's sizes, schedule and guidance scales, and LlamaGen's rate.

    Its evaluation twin has the rows whose weights were released, each with its own release.
    """
    preset, released = load_preset("imagenet256"), load_preset("imagenet256-eval")
    rows = {row_run(row) for number in (1, 2, 3, 4, 5) for _, row in published(number).iterrows()} - {None}
    assert rows | {Run("B", constant=True)} == set(preset_runs(preset))
    assert preset.models == released.models == MODELS
    t = preset.training
    assert (t.epochs, t.batch_size, t.lr, t.end_lr, t.steps_per_epoch) == (300, 256, 1e-4, 1e-5, 1281167 // 256)
    assert (t.beta1, t.beta2, t.weight_decay, t.dropout, t.label_dropout) == (0.9, 0.95, 0.05, 0.1, 0.1)
    assert {2.0, 1.75, 1.7, 1.65} <= set(preset.evaluation.guidance) and preset.evaluation == released.evaluation
    assert preset.evaluation.samples == 50_000 and preset.precision == "bf16" and preset.data.crops == "ten_crop"
    assert set(released.weights) == {run.id for run in preset_runs(released)}
    for run_id, name in released.weights.items():
        run, release = Run.parse(run_id), RELEASES[name]
        side = 384 if run.large else 256
        assert name == f"{'NPP' if run.lam else 'LlamaGen'}-{run.size}-{side}" and release.repo
        assert (release.size, release.image_size) == (run.size, side)


def test_unknown_precision(smoke_file):
    """A precision that is neither fp32 nor bf16 is named."""
    with pytest.raises(NppkitError, match="precision 'fp8' is unknown"):
        load_preset(smoke_file(lambda content: content.update(precision="fp8")))


@pytest.mark.parametrize("name", presets.preset_names())
def test_saved_preset_is_read_back(tmp_path, name):
    """A preset written as YAML loads as the same settings, under the file's name."""
    preset = presets.load_preset(name)
    presets.save_preset(preset, tmp_path / f"my_{name}.yaml")
    again = presets.load_preset(str(tmp_path / f"my_{name}.yaml"))
    assert dataclasses.replace(again, name=name, source=preset.source) == preset


def test_a_base_gives_what_a_file_does_not_set(tmp_path):
    """Sections are taken key by key, models whole; runs, seeds and reports are never taken; an unknown base is named."""
    path, study = tmp_path / "mine.yaml", load_preset("study")
    path.write_text(
        "base: study\ndescription: my\ntraining: {lr: 1.0e-3}\nmodels: {B: {dim: 8, n_layer: 1, n_head: 1}}\nruns: {B: [ntp]}\n"
    )
    mine = load_preset(str(path))
    assert mine.training == dataclasses.replace(study.training, lr=1e-3) and mine.tokenizer == study.tokenizer
    assert list(mine.models) == ["B"] and mine.runs == {"B": ["ntp"]} and not mine.seeds and not mine.reports and not mine.coarse
    path.write_text("base: studie\ndescription: mine\nruns: {B: [ntp]}\n")
    with pytest.raises(NppkitError, match=r"mine\.yaml: base 'studie' is unknown: use one of cifar10"):
        load_preset(str(path))


def test_a_packaged_presets_name_is_refused(tmp_path):
    """A private demo.yaml would take the results of the packaged one: one line says so, before anything is read."""
    (tmp_path / "demo.yaml").write_text((presets.FOLDER / "demo.yaml").read_text())
    with pytest.raises(NppkitError, match=r"demo\.yaml has the name of the packaged preset demo"):
        presets.load_preset(str(tmp_path / "demo.yaml"))


def test_preset_that_cannot_be_saved(tmp_path):
    """One line names the file, and what to do."""
    (tmp_path / "taken").touch()
    with pytest.raises(NppkitError, match=r"taken.* could not be written .*: mend that"):
        presets.save_preset(presets.load_preset("smoke"), tmp_path / "taken" / "mine.yaml")


def test_a_setting_within_the_tokenizer_keeps_the_others(tmp_path):
    """`tokenizer: {vq: {gray: true}}` on a base changes that alone; it once put the network's defaults in the place of all."""
    path = tmp_path / "mine.yaml"
    path.write_text("base: own-images\ndescription: mine\nruns: {B: [ntp]}\ntokenizer: {vq: {gray: true}}\n")
    base, mine = load_preset("own-images").tokenizer, load_preset(str(path)).tokenizer
    assert mine.vq == {**base.vq, "gray": True} and mine.network.downsampling == base.network.downsampling


def test_a_bomb_of_aliases_is_read_in_no_time(tmp_path):
    """Thirty lines that name each other twice are a billion nodes when they are walked, and thirty when each is seen once."""
    lines = ["a0: &a0 [1, 1]", *(f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}]" for n in range(1, 31))]
    (tmp_path / "bomb.yaml").write_text("\n".join(lines) + "\n")
    with pytest.raises(NppkitError, match=r"bomb\.yaml: setting 'description' is missing"):
        presets.load_preset(str(tmp_path / "bomb.yaml"))


def test_an_integer_beyond_a_float_is_refused(tmp_path):
    """A size of four hundred digits is one line, as any other number that is too large."""
    (tmp_path / "mine.yaml").write_text(f"base: demo\ndescription: x\nmodels: {{B: {{dim: {'9' * 400}}}}}\nruns: {{B: [ntp]}}\n")
    with pytest.raises(NppkitError, match="is not a number from 0 to"):
        presets.load_preset(str(tmp_path / "mine.yaml"))
