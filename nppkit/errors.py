"""The one exception that nppkit raises for bad input, and a check of the sizes of models."""

from dataclasses import fields
from typing import Any


class NppkitError(ValueError):
    """One line: the file or parameter, what is wrong with it, and what to do.

    >>> from nppkit import multi_scale_segments
    >>> multi_scale_segments(300, 2, "3/2")
    Traceback (most recent call last):
    nppkit.errors.NppkitError: lambda 3/2 is outside (0, 1): the coarse part is a true fraction of the training
    """

    status = 1  # of a command that ends with it


def refuse(what: str, wrong: dict[str, object]) -> None:
    """NppkitError about `what`, with the first message of `wrong` whose condition holds."""
    if found := next((message for message, true in wrong.items() if true), ""):
        raise NppkitError(f"{what}: {found}")


def require_kinds(sizes: Any) -> None:
    """NppkitError for the first int, bool or float of a dataclass that is another kind of value, or an int too small."""
    for f in fields(sizes):
        value = getattr(sizes, f.name)
        number = f.type is not float or (isinstance(value, int | float) and not isinstance(value, bool))
        if not number or (f.type in (int, bool) and (type(value) is not f.type or value < min(1, f.default))):
            raise NppkitError(f"{f.name} {value!r} is no {f.type.__name__}, or too small: its default is {f.default}")


class Diverged(NppkitError):
    """A training whose loss, gradient or held-out likelihood is no longer a number: an outcome, which a study counts."""

    status = 76  # which no other end has, so that torchrun can tell
