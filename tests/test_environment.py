"""The pins: one list in pyproject.toml, repeated by environment.yml and kept by constraints.txt."""

import subprocess
import sys
import tomllib
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[1]


def pins(*extras: str) -> set[str]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return {*project["dependencies"], *(pin for extra in extras for pin in project["optional-dependencies"][extra])}


def normal(pin: str) -> str:
    return pin.strip().lower().replace("_", "-")


def test_environment_yml_has_the_pins():
    """conda users get what the Makefile installs: the Pythons that work, this one among them, and the same versions."""
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    listed = next(entry["pip"] for entry in environment["dependencies"] if isinstance(entry, dict))
    assert set(listed) - {"--editable ."} == pins("dev")
    python = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["requires-python"]
    assert f"python{python}" in environment["dependencies"] and sys.version_info[:2] in {(3, minor) for minor in (11, 12, 13)}


def test_constraints_agree_with_the_pins():
    """The lock file of indirect dependencies holds every direct pin unchanged."""
    locked = {normal(line) for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line}
    assert {normal(pin) for pin in pins("dev", "slurm", "site")} <= locked


def test_no_package_lacks_another():
    """What is installed satisfies what every package asks for."""
    found = subprocess.run([sys.executable, "-m", "pip", "check"], capture_output=True, text=True)
    assert not found.returncode, found.stdout + found.stderr


def test_every_pin_says_why():
    """Each dependency has its reason beside it."""
    lines = [line for line in (ROOT / "pyproject.toml").read_text().splitlines() if "==" in line]
    assert lines and all("#" in line for line in lines)
