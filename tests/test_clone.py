"""A clone of one's own: in a path with a space and an umlaut, and beside another clone in one environment."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from nppkit.data.images import mnist_images

ROOT = Path(__file__).parents[1]
PARTS = ("nppkit", "notebooks", "profiles", "Snakefile", "Makefile", "pyproject.toml", "constraints.txt")


@pytest.fixture
def clone(tmp_path):
    """What `make reproduce` needs of the repository, in a folder of such a name; results/ is a link to another disk."""
    folder, disk = tmp_path / "my r\u00e9po 1", tmp_path / "another d\u00efsk"
    folder.mkdir()
    for part in PARTS:
        copy = shutil.copytree if (ROOT / part).is_dir() else shutil.copy
        copy(ROOT / part, folder / part)
    disk.mkdir()
    (folder / "results").symlink_to(disk)
    return folder


def environment(clone):
    """A virtual environment in the clone: this one's packages and the clone's own, as `make env` installs it."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", ".venv"], cwd=clone, check=True)
    packages = next((clone / ".venv/lib").glob("python*")) / "site-packages"
    (packages / "here.pth").write_text(f"{clone}\n{Path(yaml.__file__).parents[1]}\n")
    script = clone / ".venv/bin/snakemake"
    run = "import runpy\nrunpy.run_module('snakemake', run_name='__main__')\n"
    script.write_text(f"#!/bin/sh\n'''exec' \"{clone}/.venv/bin/python\" \"$0\" \"$@\"\n' '''\n{run}")  # as pip writes it
    script.chmod(0o755)
    (clone / ".venv/bin/.installed").touch()


def own_environment():
    """The variables of a shell in which no clone, no environment and no `make` (which may run these tests) is at work."""
    others = ("NPPKIT_HOME", "PYTHONPATH", "VIRTUAL_ENV", "MAKEFLAGS", "MAKELEVEL", "MFLAGS", "MAKEOVERRIDES", "EXTRAS")
    return {key: value for key, value in os.environ.items() if key not in others}


def pictures(folder):
    """A few digits as files, in folders that a person would name."""
    digits = mnist_images()
    for i in range(60):
        name = ("gr\u00fcne \u00c4pfel", "rote Birnen")[i % 2]
        (folder / name).mkdir(parents=True, exist_ok=True)
        digits.load(i * 80).save(folder / name / f"Bild {i}.png")


@pytest.mark.slow
def test_spaces_and_umlauts_in_every_path(clone):
    """Repository, environment, preset, data and results lie in folders with both: tokenizer, training, evaluation and a table."""
    environment(clone)
    pictures(clone.parent / "meine Bilder")
    preset = yaml.safe_load((ROOT / "nppkit/presets/smoke.yaml").read_text())
    preset["data"] = {"source": "folder", "path": "../meine Bilder", "image_size": 32, "crops": "center", "heldout": 10}
    preset |= {"runs": {"B": ["ntp"]}, "reports": []}
    preset["training"]["compile"] = True
    (clone.parent / "Vor gabe.yaml").write_text(yaml.safe_dump(preset))
    command = ["make", "table1", "PRESET=../Vor gabe.yaml", "CORES=1", "PYTHON=true"]
    result = subprocess.run(command, cwd=clone, env=own_environment(), capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
    assert (clone / "results/Vor_gabe/table1_main.csv").is_file() and "table1_main.csv" in result.stdout.splitlines()[-1]


@pytest.mark.slow
def test_each_clone_runs_its_own_code(clone):
    """In an environment that has installed another clone, a job runs this clone's package in its kernel, too, and writes here."""
    (clone / "nppkit/presets/smoke.yaml").rename(clone / "nppkit/presets/ours.yaml")  # which the other clone does not have
    env = own_environment()
    command = [sys.executable, "-m", "snakemake", "--cores", "1", "tokenize", "--config", "preset=ours"]
    result = subprocess.run(command, cwd=clone, env=env, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
    assert (clone / "results/ours/tokenizer/tokenize.record.json").is_file() and not (ROOT / "results/ours").exists()
    code = "import sys; sys.path.insert(0, sys.argv.pop(1)); from nppkit import cli; cli.main()"
    result = subprocess.run(
        [sys.executable, "-c", code, ROOT, "where", "demo"], cwd=clone, env=env, capture_output=True, text=True
    )
    assert result.returncode == 1 and result.stderr.startswith(
        f"error: {clone} is one clone, and Python takes nppkit from another"
    )
