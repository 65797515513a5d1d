"""What a preset may hold: every number in its range, every name a name, before any work is done."""

import dataclasses
import math
import re
import typing

from nppkit.errors import NppkitError

LARGEST = 2**31  # of all numbers: beyond it, a slip
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")  # becomes a folder
REPORT = re.compile(r"(?!(tokenize|train|evaluate)$)[a-z0-9_]+")  # a reading notebook: becomes a path, and a word of a command
SIZE = re.compile(r"[A-Za-z0-9]+(-384)?")  # of a model, in run ids
ABOVE_0 = [
    *("image_size", "batch_size", "epochs", "steps_per_epoch", "lr", "grad_clip", "samples", "select_samples"),
    *("temperature", "kid_subsets", "threads", "tokenizer_threads", "gpus"),
]
AT_MOST_1 = ["decay_fraction", "beta1", "beta2", "dropout", "label_dropout", "top_p"]


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


def check_numbers(section: typing.Any, where: str) -> None:
    """NppkitError names the first number of a section, and of the sections in it, that is out of its range."""
    for field in dataclasses.fields(section):
        value = getattr(section, field.name)
        if dataclasses.is_dataclass(value):
            check_numbers(value, f"{where}: {field.name}")
        elif isinstance(value, int | float) and not isinstance(value, bool):
            _check_number(value, field.name, f"{where}: {field.name}")


def _check_number(value: float, name: str, where: str) -> None:
    if not _is_number(value):
        raise NppkitError(f"{where} {value} is not a number from 0 to 2^31: check it")
    if name in ABOVE_0 and value == 0:
        raise NppkitError(f"{where} must be above 0")
    if name in AT_MOST_1 and value > 1:
        raise NppkitError(f"{where} {value} is above 1")


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value) and 0 <= value < LARGEST


def _is_count(value: object) -> bool:
    return isinstance(value, int) and _is_number(value) and value > 0


def _check_list(where: str, name: str, values: object, is_right: typing.Callable[[object], bool]) -> None:
    if not isinstance(values, list) or not values or not all(map(is_right, values)):
        raise NppkitError(f"{where}: {name} {values!r} is not a list of what it should hold: see nppkit/presets/demo.yaml")


def _check_table(where: str, name: str, table: dict, is_right: typing.Callable[[object], bool], key: re.Pattern = NAME) -> None:
    for k, value in table.items():
        if not (isinstance(k, str) and key.fullmatch(k) and is_right(value)):
            raise NppkitError(f"{where}: {name}: {k!r}: {value!r} is not what it should hold: see nppkit/presets/demo.yaml")
