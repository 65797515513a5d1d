"""The public API: what `from nppkit import ...` offers, each with an example that runs."""

import doctest
import subprocess
import sys
from pathlib import Path

import pytest

import nppkit

ROOT = Path(__file__).parents[1]
FUNCTIONS = [name for name in nppkit.__all__ if callable(getattr(nppkit, name))]


@pytest.mark.parametrize("name", FUNCTIONS)
def test_examples_run(name, monkeypatch):
    """Every public name has a docstring with an example, which gives what it says."""
    monkeypatch.setenv("NPPKIT_HOME", str(ROOT))
    value = getattr(nppkit, name)
    tests = doctest.DocTestFinder(recurse=False).find(value, name, globs=vars(sys.modules[value.__module__]).copy())
    assert sum(len(test.examples) for test in tests), f"{name} has no example"
    for test in tests:
        assert doctest.DocTestRunner(optionflags=doctest.IGNORE_EXCEPTION_DETAIL).run(test).failed == 0


def test_import_alone_is_free():
    """`import nppkit` imports no torch; the first use of a name does, and an unknown one is named."""
    code = "import sys, nppkit; print('torch' in sys.modules); nppkit.patch_loss; print('torch' in sys.modules)"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).split() == ["False", "True"]
    with pytest.raises(AttributeError, match="no attribute 'patch_los'"):
        nppkit.patch_los  # noqa: B018


def test_help_is_a_page(capsys):
    """help(nppkit) begins with the method and lists every public name."""
    help(nppkit)
    page = capsys.readouterr().out
    assert "Next Patch Prediction" in page and all(name in page for name in nppkit.__all__)
