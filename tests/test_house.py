"""The house: each module in its room, arrows between rooms that point one way, short functions."""

import ast
import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]
CONTRACTS = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]


def test_arrows_point_one_way():
    """import-linter's contracts in pyproject.toml: layers, no circles, a method that needs torch, einops and numpy alone."""
    linter = Path(sys.executable).with_name("lint-imports")
    done = subprocess.run([linter, "--no-cache"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and "0 broken" in done.stdout, done.stdout + done.stderr


def imports(path: Path) -> set[str]:
    """The modules that a file imports anywhere; `from nppkit import x` and `from os import x` as nppkit.x and os.x."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            ours = node.module.startswith("nppkit.")
            found |= {node.module} if ours else {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def test_the_method_needs_nothing_else():
    """Beside the standard library the method imports torch, einops and numpy, and nothing else that is installed."""
    contract = next(c for c in CONTRACTS if c["name"].startswith("The method"))
    for module in contract["source_modules"]:
        outside = {name.partition(".")[0] for name in imports(ROOT / f"{module.replace('.', '/')}.py")} - sys.stdlib_module_names
        assert outside <= {"torch", "einops", "numpy", "nppkit"}, module


def test_the_public_api_is_no_way_around_the_rooms():
    """Within the package a name comes from its own module: what `nppkit` itself offers, import-linter does not see."""
    modules = {".".join(path.relative_to(ROOT).with_suffix("").parts) for path in (ROOT / "nppkit").rglob("*.py")}
    modules |= {name.removesuffix(".__init__") for name in modules}
    for path in (ROOT / "nppkit").rglob("*.py"):
        near = {name for name in imports(path) if name.startswith("nppkit")}
        assert near <= modules | {"nppkit.__version__"}, path
        by_name = {"__init__.py", "warm.py"}  # the API itself, and the server that imports a list of modules ahead
        assert path.name in by_name or "importlib" not in imports(path), path


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
    code = "import sys, nppkit.cli, nppkit.jobs.slurm, nppkit.jobs.targets, nppkit.study.graph; print('torch' in sys.modules)"
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


def test_code_and_notebooks_are_formatted():
    """By ruff, as `make lint` asks, so that a change shows what it changes; sentences of notebooks may be longer."""
    for words in (["format", "--check"], ["check"]):
        done = subprocess.run([sys.executable, "-m", "ruff", *words, "."], cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout
