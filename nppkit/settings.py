"""Settings from a file: every key known, every value of its type and in its range, before any work is done."""

import dataclasses
import math
import re
import types
import typing

from nppkit.errors import NppkitError


def settings(section: typing.Any) -> dict:
    """What a section of a preset sets otherwise than its defaults: all of it that decides a digest.

    A setting that a later version adds thus leaves what was computed before valid, as long as its default does.
    """
    fields = [(field, getattr(section, field.name)) for field in dataclasses.fields(section)]
    return {field.name: value for field, value in fields if value != _default(field)}


def _default(field: dataclasses.Field) -> typing.Any:
    return field.default if field.default_factory is dataclasses.MISSING else field.default_factory()


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


NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")  # becomes a folder
LARGEST = 2**31  # of all numbers: beyond it, a slip
ABOVE_0 = [
    *("image_size", "batch_size", "epochs", "steps_per_epoch", "lr", "grad_clip", "samples", "select_samples"),
    *("temperature", "kid_subsets", "threads", "tokenizer_threads", "gpus"),
]
AT_MOST_1 = ["decay_fraction", "beta1", "beta2", "dropout", "label_dropout", "top_p"]


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
