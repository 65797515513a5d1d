"""Presets: every number that decides a study, in one YAML file, checked before any work is done."""

import functools
import os
import re
import unicodedata
from dataclasses import field
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import AfterValidator, Field

from nppkit.data.config import MAX_VOCABULARY, DataConfig, TokenizerConfig
from nppkit.errors import NppkitError, refuse
from nppkit.files import located, write_atomic
from nppkit.gpus import GPUS
from nppkit.model_config import GPTConfig
from nppkit.scoring.config import EvaluationConfig, ExtractorConfig
from nppkit.settings import EXAMPLE, Bool, Count, Few, Name, Positive, Real, build, named, read_yaml, section, settings
from nppkit.training.config import TrainingConfig

FOLDER = Path(__file__).parents[1] / "presets"
SECTIONS = ("data", "tokenizer", "extractor", "training", "evaluation")  # of a base: what a file does not set in them stays
INHERITED = (*SECTIONS, "models", "precision")
Size = Annotated[str, AfterValidator(named(r"[A-Za-z0-9]+(-384)?", "is no model size: see nppkit/presets/demo.yaml"))]
ModelSetting = Literal["dim", "n_layer", "n_head", "n_kv_head", "dropout", "rope_base", "multiple_of", "norm_eps"]
Question = Literal["equal_epochs", "equal_flops", "patches", "levels", "lambda", "schedule"]
OUTSIDE = ("folder", "npz", "torchvision")  # sources of images that lie at data.path
RUNNING = "tokenize|tokenize_text|train|evaluate"
Report = Annotated[str, AfterValidator(named(rf"(?!({RUNNING}|table[1-5]|figure1)$)[a-z0-9_]+", "is no reading notebook's name"))]


@section
class Preset:
    """A study: data, tokenizer, model sizes, training, evaluation, and the runs of the tables.

    models: size -> transformer sizes; runs: size (B or B-384) -> recipes; seeds: size, or size_recipe,
    -> number of seeds (default 1), counted from first_seed.
    base, in a file: a packaged preset whose data, tokenizer, extractor, models, training and evaluation this one begins with.
    equal_flops: size -> epochs of NTP at the FLOPs of NPP's, and of NPP at those of NTP's.
    weights: run id -> a release (nppkit weights fetch) or a file, which is evaluated in place of training the run.

    >>> sorted(load_preset("demo").models)
    ['B', 'L', 'XL', 'XXL']
    """

    name: Name
    description: str
    data: DataConfig
    tokenizer: TokenizerConfig
    extractor: ExtractorConfig
    models: dict[Size, dict[ModelSetting, Real]]
    training: TrainingConfig
    evaluation: EvaluationConfig
    runs: Annotated[dict[Size, Annotated[list[str], Field(min_length=1)]], Field(min_length=1)]
    seeds: dict[Name, Few] = field(default_factory=dict)
    equal_flops: dict[Name, tuple[Positive, Positive]] = field(default_factory=dict)
    confirmatory: str = ""  # the preset whose seeds decide what this one has explored (docs/protocol.md)
    questions: dict[Question, Size] = field(default_factory=dict)  # of the protocol's, which it asks, and of which model size
    metric: Literal["fid", "kid"] = "fid"  # that decides them
    rates: dict[Literal["ntp", "npp"], str] = field(default_factory=dict)  # a method's, as in its recipes, where not training.lr
    domains: list[str] = field(default_factory=list)  # confirmatory presets of other images, for the report
    coarse: str = ""  # a preset of the same images on a coarser grid, for the report when_it_pays
    tokens: list[str] = field(default_factory=list)  # presets of tokens that say less or more, for the report when_it_pays
    beside: str = ""  # a preset of other images with runs of the same kinds, for the report patches
    pilot: str = ""  # the preset that explored what this one is to confirm, for the report
    rate_trial: str = ""  # the preset that chose its learning rate, for the report
    control: str = ""  # a preset with a run that none of the questions has, for the report
    same_rate: str = ""  # a preset with other seeds of its first question at the same rate, for the report
    second_look: str = ""  # a preset that scores its runs with another network, for the report
    first_seed: Count = 0  # confirmatory runs use seeds that no earlier study has seen
    tokenizer_of: str = ""  # another preset with the same data, tokenizer and extractor, whose files are used
    models_of: str = ""  # another preset with the same data, tokenizer, models and training, whose runs are scored in another way
    weights: dict[Name, str] = field(default_factory=dict)
    precision: Literal["fp32", "bf16"] = "fp32"  # of training and sampling: fp32, or bf16 autocast over fp32 weights
    gpu: str = ""  # what make plan reckons with (nppkit/gpus.py); empty: measure on this machine's CPU
    gpus: Positive = 1
    graphs: Bool = False  # training steps as CUDA graphs, where one process trains on a GPU
    reports: list[Report] = field(default_factory=list)  # reading notebooks besides the paper's tables and Figure 1
    threads: Few = 1  # CPU threads of a training or evaluation job
    tokenizer_threads: Few = 2  # of the tokenize job, which runs alone
    source: str = ""  # how load_preset finds it again: a name or a file's path; not a setting

    def __post_init__(self):
        d, k, e, t, x = self.data, self.tokenizer, self.evaluation, self.training, self.extractor
        pixels, codes, digits = k.network.downsampling, k.network.codebook_size, x.name == "digits"
        unknown = {size.removesuffix("-384") for size in self.runs} - set(self.models)
        wrong = {
            f"data.image_size {d.image_size} is not a multiple of the tokenizer's {pixels}": d.image_size % pixels,
            f"tokenizer.vq.codebook_size {codes} does not fit uint16: {MAX_VOCABULARY:,} at most": codes > MAX_VOCABULARY,
            f"tokenizer needs weights (a file) or steps (to train one): {EXAMPLE}": not (d.text or k.weights or k.steps),
            "extractor.steps is 0, and the digit classifier is trained here: set it": digits and not (x.steps or d.text),
            "extractor.weights are not of the digit classifier, which is trained here: take them away": digits and x.weights,
            f"data.heldout {d.heldout} leaves no training image of data.limit {d.limit}: use fewer": not d.heldout_path
            and 0 < d.limit <= d.heldout,
            f'tokenizer.vq stands beside tokenizer.name {k.name}: set name: "" for its sizes, or take vq away': k.name and k.vq,
            'tokenizer.start stands beside tokenizer.weights, which are used as they are: set weights: ""': k.weights and k.start,
            f"data.heldout_path is for folders and npz files, not for {d.source}: take it away": d.heldout_path
            and d.source not in ("folder", "npz"),
            f"data.path is empty: set it to where the {d.source} is": d.source in OUTSIDE and not d.path,
            f"data.frames {d.frames} are of a video: set data.source moving_mnist": d.frames > 1 and d.source != "moving_mnist",
            f"training.patch {t.patch} is a run's: name it in runs, as in npp_p2_lambda1-2_heads": t.patch != "mean",
            f"evaluation.common_guidance {e.common_guidance} is not in {e.guidance}": e.common_guidance not in e.guidance,
            f"evaluation.select_samples {e.select_samples} must not exceed samples {e.samples}: lower it": e.select_samples
            > e.samples,
            f"gpu {self.gpu!r} is unknown: use one of {', '.join(GPUS)}, or add its data sheet to nppkit/gpus.py": self.gpu
            and self.gpu not in GPUS,
            "evaluation.select_seed must differ from report_seed": e.report_seed == e.select_seed,
            "weights are of models that are told class tokens: take them away, or training.condition": self.weights
            and t.condition != "class",
            f"runs of model {', '.join(sorted(unknown))}, which models does not list": unknown,
        }
        refuse(f"preset {self.name}", wrong)
        for sizes in self.models.values():
            GPTConfig(**sizes, grid_size=(1,) * (1 if d.text else 2 + (d.frames > 1)))  # refuses what is no model

    def of_images(self) -> "Preset":
        """The preset itself. NppkitError where it is of a text, which has none to code, draw or score."""
        if self.data.text:
            raise NppkitError(f"preset {self.name} is of a text: it has no images; name a preset of images")
        return self

    @property
    def beyond(self) -> bool:
        """Whether its runs are none of the paper's, but of a text, of videos, or told names."""
        return self.data.text or self.data.frames > 1 or self.training.condition != "class"


def preset_names() -> list[str]:
    """Names of the presets in the package.

    >>> "imagenet256" in preset_names()
    True
    """
    return sorted(p.stem for p in FOLDER.glob("*.yaml"))


def load_preset(name: str | Path) -> Preset:
    """The preset of that name, or of that YAML file. NppkitError names an unknown preset, key or type.

    >>> load_preset("demo").data.image_size  # pixels
    32
    """
    name = os.fspath(name)
    own_file = name.endswith((".yaml", ".yml"))
    path = Path(os.path.expanduser(name)) if own_file else FOLDER / f"{name}.yaml"
    if own_file and not path.is_file() and located(name).is_file():
        path = located(name)  # as other paths in a preset; a notebook's kernel works in another folder than its launcher
    if own_file and not path.is_file():
        raise NppkitError(f"preset file {path} does not exist: copy one from {FOLDER}, or write it")
    if not own_file and (path.parent != FOLDER or not path.is_file()):
        raise NppkitError(f"preset {name!r} is unknown: use one of {', '.join(preset_names())}, or a YAML file")
    return _load(path, os.path.abspath(path) if own_file else name, (path.stat().st_mtime_ns, path.stat().st_size))


@functools.lru_cache(maxsize=64)  # a study asks for those of its runs thousands of times
def _load(path: Path, source: str, changed: tuple[int, int]) -> Preset:
    """The preset in a file of that time and size; source is how it is found again."""
    plain = unicodedata.normalize("NFKD", path.stem).encode("ascii", "ignore").decode()  # "größe 2" is results/groe_2
    preset = build(Preset, {"name": re.sub(r"[^A-Za-z0-9_.-]+", "_", plain), **_read(path), "source": source}, path.name)
    if preset.name in preset_names() and path.resolve().parent != FOLDER:
        raise NppkitError(f"{path} has the name of the packaged preset {preset.name}, and would take its results: rename it")
    return preset


def _read(path: Path) -> dict:
    """A preset's file; what it does not set of INHERITED is that of the packaged preset that it names as `base`."""
    own = read_yaml(path)
    if not (base := own.pop("base", "")):
        return own
    if base not in preset_names():
        raise NppkitError(f"{path}: base {base!r} is unknown: use one of {', '.join(preset_names())}")
    below = _read(FOLDER / f"{base}.yaml")
    taken = {key: below[key] for key in INHERITED if key in below}
    both = {key: _merged(taken.get(key), own[key]) for key in SECTIONS if key in own}
    return {**taken, **own, **both}


def _merged(below: Any, own: Any) -> Any:
    """A section of the base with what a file sets in it, and in what it holds (tokenizer.vq)."""
    if not (isinstance(below, dict) and isinstance(own, dict)):
        return own
    return {**below, **{key: _merged(below.get(key), value) for key, value in own.items()}}


def save_preset(preset: Preset, path: Path) -> None:
    """Write the preset as a YAML file that `load_preset` reads back. NppkitError if it cannot be written."""
    if path.suffix not in (".yaml", ".yml"):
        raise NppkitError(f"{path}: a preset's file is named *.yaml")
    content = {key: value for key, value in settings(preset).items() if key not in ("name", "source")}
    write_atomic(path, yaml.safe_dump(content, sort_keys=False, width=120))
