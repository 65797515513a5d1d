"""Presets: every number that decides a study, in one YAML file, checked before any work is done."""

import dataclasses
import re
import typing
from dataclasses import dataclass, field
from pathlib import Path

import yaml

from nppkit.data.config import DataConfig, TokenizerConfig
from nppkit.errors import NppkitError
from nppkit.scoring.config import EvaluationConfig, ExtractorConfig
from nppkit.settings import _check_list, _check_table, _is_count, _is_number, build, check_numbers, settings
from nppkit.training.config import TrainingConfig

FOLDER = Path(__file__).parents[1] / "presets"


@dataclass(frozen=True)
class Preset:
    """A study: data, tokenizer, model sizes, training, evaluation, and the runs of the tables.

    models: size -> transformer sizes; runs: size (B or B-384) -> recipes; seeds: size, or size_recipe,
    -> number of seeds (default 1), counted from first_seed.
    weights: run id -> a release (nppkit weights fetch) or a file, which is evaluated in place of training the run.

    >>> sorted(load_preset("demo").models)
    ['B', 'L', 'XL', 'XXL']
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
    """Names of the presets in the package.

    >>> "imagenet256" in preset_names()
    True
    """
    return sorted(p.stem for p in FOLDER.glob("*.yaml"))


def load_preset(name: str) -> Preset:
    """The preset of that name, or of that YAML file. NppkitError names an unknown preset, key or type.

    >>> load_preset("demo").data.image_size  # pixels
    32
    """
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


NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")  # becomes a folder
REPORT = re.compile(r"(?!(tokenize|train|evaluate)$)[a-z0-9_]+")  # a reading notebook: becomes a path, and a word of a command
SIZE = re.compile(r"[A-Za-z0-9]+(-384)?")  # of a model, in run ids


def check_preset(preset: typing.Any) -> None:
    """NppkitError names the first setting of a preset that is out of its range, or is no name."""
    where = f"preset {preset.name}"
    if not NAME.fullmatch(preset.name):
        raise NppkitError(f"preset name {preset.name!r} cannot name a folder: use letters, digits, _ and -")
    check_numbers(preset, where)
    _check_table(where, "tokenizer.vq", preset.tokenizer.vq, lambda v: all(map(_is_count, v if isinstance(v, list) else [v])))
    _check_list(where, "tokenizer.vq.ch_mult", preset.tokenizer.vq.get("ch_mult", [1]), _is_count)
    _check_table(where, "models", preset.models, lambda v: isinstance(v, dict) and all(map(_is_number, v.values())), SIZE)
    _check_table(where, "seeds", preset.seeds, _is_count)
    _check_table(where, "weights", preset.weights, lambda v: isinstance(v, str))
    for size, recipes in preset.runs.items():
        _check_list(where, f"runs.{size}", recipes, lambda v: isinstance(v, str))
    _check_table(where, "runs", preset.runs, lambda v: True, SIZE)
    if preset.reports:
        _check_list(where, "reports", preset.reports, lambda v: isinstance(v, str) and REPORT.fullmatch(v))
    _check_list(where, "evaluation.guidance", preset.evaluation.guidance, _is_number)
