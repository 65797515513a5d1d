"""Settings from a file: every key known, every value of its type and in its range, before any work is done."""

import dataclasses
import functools
import re
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import pydantic
import yaml
from pydantic import AfterValidator, BeforeValidator, Field

from nppkit.errors import NppkitError

LIMIT = 2**31  # of all numbers: beyond it, a slip
EXAMPLE = "see nppkit/presets/demo.yaml"


def _bool(value: Any) -> Any:
    spelt = {"true": True, "false": False, "1": True, "0": False}
    value = spelt.get(value.lower(), value) if isinstance(value, str) else value
    if not isinstance(value, bool):
        raise ValueError(f"{value!r} is not a bool")
    return value


def _that(holds: Callable[[Any], object], otherwise: str) -> Callable[[Any], Any]:
    """A check of a value, with what is said of one that does not hold."""

    def check(value: Any) -> Any:
        if not holds(value):
            raise ValueError(f"{value!r} {otherwise}")
        return value

    return check


def named(pattern: str, otherwise: str) -> Callable[[str], str]:
    """A check that a text is of that pattern, all of it."""
    return _that(re.compile(pattern).fullmatch, otherwise)


def _real(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < LIMIT


Bool = Annotated[bool, BeforeValidator(_bool)]
Int = Annotated[int, BeforeValidator(_that(lambda value: not isinstance(value, float | bool), "is not an int"))]
Float = Annotated[float, BeforeValidator(_that(lambda value: not isinstance(value, bool), "is not a number"))]
Count = Annotated[Int, Field(ge=0, lt=LIMIT)]
Positive = Annotated[Int, Field(gt=0, lt=LIMIT)]
Few = Annotated[Positive, Field(le=4096)]  # threads, processes, repeats, levels
Number = Annotated[Float, Field(ge=0, lt=LIMIT, allow_inf_nan=False)]
Above0 = Annotated[Float, Field(gt=0, lt=LIMIT, allow_inf_nan=False)]
Share = Annotated[Float, Field(ge=0, le=1, allow_inf_nan=False)]
Below1 = Annotated[Share, Field(lt=1)]
Real = Annotated[Any, AfterValidator(_that(_real, "is not a number from 0 to 2^31"))]  # an int or a float, as it was written
Name = Annotated[str, AfterValidator(named(r"[A-Za-z0-9][A-Za-z0-9_.-]*", "cannot name a folder: use letters, digits, _ and -"))]
KINDS = {int: Int, float: Float, bool: Bool, str: str}


@typing.dataclass_transform(frozen_default=True, field_specifiers=(dataclasses.field,))
def section(cls: type) -> type:
    """A frozen dataclass whose values are checked by pydantic wherever it is made; what is wrong is a NppkitError."""
    made = pydantic.dataclasses.dataclass(cls, frozen=True, config=pydantic.ConfigDict(extra="forbid"))
    init = made.__init__

    @functools.wraps(init)
    def checked(self: Any, *args: Any, **values: Any) -> None:
        try:
            init(self, *args, **values)
        except pydantic.ValidationError as error:
            raise NppkitError(explained(error, made)) from None

    made.__init__ = checked
    return made


def build(cls: type, values: Any, where: str) -> Any:
    """A section from a mapping. NppkitError names the file or what else `where` says, and the first setting that is wrong."""
    try:
        return _adapter(cls).validate_python(values)
    except pydantic.ValidationError as error:
        raise NppkitError(f"{where}: {explained(error, cls)}") from None


def explained(error: pydantic.ValidationError, cls: type) -> str:
    """The first of pydantic's findings in our words: which setting, what is wrong with it, what would be right."""
    first = error.errors(include_url=False)[0]
    at = first["loc"][:-2] if first["loc"][-1:] == ("[key]",) else first["loc"]  # of a mapping, whose key is then the input
    place, kind, value = ".".join(map(str, at)), first["type"], first["input"]
    if kind == "value_error":
        return ": ".join(filter(None, (place, str(first["ctx"]["error"]))))
    if kind == "unexpected_keyword_argument":
        higher = " (that stands at the left margin)" if "." in place and first["loc"][-1] in _fields(cls, ()) else ""
        return f"unknown setting {place!r}{higher}: use one of {', '.join(_fields(cls, first['loc'][:-1]))}"
    if kind == "missing":
        few = f"{place.rpartition('.')[0]} has too few numbers"
        lacks = few if isinstance(at[-1], int) else f"setting {at[-1]!r} is missing"
        return f"{lacks}: {EXAMPLE}"
    if kind.startswith("dataclass"):
        return f"{place or 'it'} must be a mapping of {', '.join(_fields(cls, first['loc']))}"
    if kind == "literal_error":
        return f"{place} {value!r} is unknown: use {first['ctx']['expected'].replace(chr(39), '')}"
    if re.fullmatch("(int|float|string|dict|list|tuple)_(type|parsing|from_float)", kind):
        name = {"string": "text", "dict": "mapping", "tuple": "list"}.get(kind.split("_")[0], kind.split("_")[0])
        return ": ".join(filter(None, (place, f"{value!r} is not {'an' if name == 'int' else 'a'} {name}")))
    return f"{place} {value!r}: {first['msg'].lower().replace('input', 'it', 1)}: {EXAMPLE}"


def _fields(cls: type, place: tuple) -> list[str]:
    for name in place:
        cls = cls.__dataclass_fields__[name].type
    return list(cls.__dataclass_fields__)


def settings(part: Any) -> dict:
    """What a section of a preset sets otherwise than its defaults: all of it that decides a digest.

    A setting that a later version adds thus leaves what was computed before valid, as long as its default does.
    """
    return _adapter(type(part)).dump_python(part, exclude_defaults=True)


_adapter = functools.cache(pydantic.TypeAdapter)


def _refuse_traps(node: yaml.Node, seen: set[int]) -> None:
    """ValueError with the line of a key that stands twice, or of an octal or base-60 number, which YAML would take silently."""
    if id(node) in seen:  # an alias: a file of thirty lines can name a node a billion times
        return
    seen.add(id(node))
    if isinstance(node, yaml.ScalarNode):
        digits = node.value.lstrip("+-")
        if node.tag.endswith((":int", ":float")) and (":" in digits or (digits[:1] == "0" and digits[1:].isdigit())):
            raise ValueError(f"line {node.start_mark.line + 1}: {node.value} is no plain number: write it in decimal digits")
        return
    pairs, lines = node.value if isinstance(node, yaml.MappingNode) else [(None, child) for child in node.value], {}
    for key, child in pairs:
        line = key.start_mark.line + 1 if isinstance(key, yaml.ScalarNode) else 0
        if line and lines.setdefault(key.value, line) != line:
            raise ValueError(f"line {line}: {key.value!r} stands already in line {lines[key.value]}: keep one")
        _refuse_traps(child, seen)


def read_yaml(path: Path) -> dict:
    """A YAML file that holds a mapping. NppkitError names the file, and the line of a key that stands twice."""
    try:
        text = path.read_text()
        if (tree := yaml.compose(text, yaml.SafeLoader)) is not None:
            _refuse_traps(tree, set())
        content = yaml.safe_load(text)
    except (OSError, yaml.YAMLError, ValueError, RecursionError) as error:
        raise NppkitError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(content, dict):
        raise NppkitError(f"{path} is not a mapping of settings: {EXAMPLE}")
    return content
