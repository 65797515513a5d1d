"""The house: each module in its room, arrows between rooms that point one way, short functions."""

import ast
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_arrows_point_one_way():
    """import-linter's contracts in pyproject.toml: layers, no circles, a method that needs torch, einops and numpy alone."""
    linter = Path(sys.executable).with_name("lint-imports")
    done = subprocess.run([linter, "--no-cache"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and "0 broken" in done.stdout, done.stdout + done.stderr


def functions(path: Path) -> list[tuple[str, int]]:
    """Name and length in lines of every function of a module."""
    nodes = ast.walk(ast.parse(path.read_text()))
    return [(f"{path}:{node.name}", node.end_lineno - node.lineno + 1) for node in nodes if isinstance(node, ast.FunctionDef)]


def test_functions_are_short():
    """No function of the package is longer than 40 lines, and half of them have 8 or fewer."""
    found = [function for path in (ROOT / "nppkit").rglob("*.py") for function in functions(path)]
    assert not [function for function in found if function[1] > 40]
    assert sorted(length for _, length in found)[len(found) // 2] <= 8


def test_the_graph_needs_no_torch():
    """The Snakefile and `nppkit where` start at once: what they import does not import torch."""
    code = "import sys, nppkit.cli, nppkit.jobs.slurm, nppkit.study.graph; print('torch' in sys.modules)"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "False"


def test_no_private_name_crosses_a_file():
    """A name that begins with an underscore is used in its own file alone."""
    found = []
    for path in (ROOT / "nppkit").rglob("*.py"):
        nodes = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.ImportFrom)]
        found += [
            (path.name, a.name) for n in nodes if (n.module or "").startswith("nppkit") for a in n.names if a.name[0] == "_"
        ]
    assert not found
