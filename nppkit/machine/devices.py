"""Where and how precisely a model computes."""

import functools
import logging
import shutil
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress

import torch
from torch import Tensor, nn

from nppkit.errors import NppkitError
from nppkit.files import first_line

CPU = torch.device("cpu")


def autocast(device: torch.device, precision: str) -> AbstractContextManager:
    """bf16 autocast over fp32 weights, or nothing for fp32."""
    if precision not in ("fp32", "bf16"):
        raise NppkitError(f"precision {precision!r} is unknown: use fp32 or bf16")
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16")


def rounded(model: nn.Module, precision: str) -> nn.Module:
    """The model with its products' weights held in bf16, if that is how they are used: cast once, not at every token.

    Under `autocast` its output has the same bits as before. For a model that is not trained any more.
    """
    for layer in model.modules():
        if precision == "bf16" and isinstance(layer, nn.Linear):
            layer.to(torch.bfloat16)
    return model


def pick_device(name: str) -> torch.device:
    """The device of that name; "auto" takes a GPU if there is one."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        tried = torch.zeros(1, device=name)
        tried.item()  # torch's "meta" device has shapes and no numbers
        return tried.device
    except (RuntimeError, AssertionError) as error:
        raise NppkitError(f"device {name!r} is not available ({first_line(error)}): use auto or cpu") from None


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """The tensor on the device. A GPU fetches it from pinned memory while it still computes the step before."""
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


def compiled(loss: Callable, device: torch.device) -> Callable:
    """The loss under torch.compile, one static shape per patch side; eager where that cannot be, said once a process."""
    if device.type == "cpu" and not any(map(shutil.which, ("c++", "g++", "clang++"))):
        _run_eagerly("no C++ compiler found")
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)  # says on a CPU that there is no GPU
    if may_compile():
        with suppress(CannotCompile), compiling():
            return torch.compile(loss, dynamic=False)
    return loss


def may_compile() -> bool:
    """Whether torch.compile has not failed yet in this process."""
    return not _run_eagerly.cache_info().currsize


@contextmanager
def compiling() -> Iterator[None]:
    """A block that may compile: where the compiler is there but fails, a line says why, and CannotCompile is raised.

    The reasons that people meet: no Python.h, no OpenMP, a cache that is read-only or mounted noexec, a space in a path.
    """
    try:
        yield
    except Exception as error:
        if not (isinstance(error, OSError) or type(error).__module__.startswith(("torch._dynamo", "torch._inductor"))):
            raise
        inner = getattr(error, "inner_exception", error)
        _run_eagerly(f"torch.compile failed ({type(inner).__name__}: {' '.join(str(inner).split())[:150]})")
        raise CannotCompile from None


class CannotCompile(Exception):
    """The same work is to be done eagerly."""


@functools.cache  # so that it is said once, and remembered
def _run_eagerly(why: str) -> None:
    warnings.warn(f"{why}: this runs eagerly, somewhat slower", stacklevel=3)
