"""The Makefile: the commands of the README reach Snakemake as they are meant."""

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from nppkit.study.presets import FOLDER
from nppkit.study.published import REPORTS

ROOT = Path(__file__).parents[1]


def recipe(target):
    """The Snakemake command that `make TARGET PRESET=smoke` would run, with this environment's Snakemake."""
    result = subprocess.run(
        ["make", "-n", target, "PRESET=smoke", "CORES=1"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    line = next(line for line in result.stdout.splitlines() if "/snakemake" in line)
    words = shlex.split(line.replace("$PRESET", "smoke"), comments=True)
    last = next(i for i, word in enumerate(words) if word.endswith("/snakemake"))
    assert words[1:last] == ["-m", "nppkit", "warm"]
    return [sys.executable, "-m", "snakemake", *words[last + 1 :]]


def test_other_extras_are_installed_into_an_environment(tmp_path):
    """An environment that is there gets what `make env EXTRAS=` asks for, once; without EXTRAS nothing is done again."""
    env = {key: value for key, value in os.environ.items() if key not in ("EXTRAS", "MAKEFLAGS", "MAKEOVERRIDES")}
    (tmp_path / "bin").mkdir()
    for stamp in (".installed", ".installed-dev,hub"):
        (tmp_path / "bin" / stamp).touch()

    def installs(*words):
        command = ["make", "-n", "env", f"VENV={tmp_path}", *words]
        return "pip install" in subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=True).stdout

    assert not installs() and not installs("EXTRAS=dev,hub") and installs("EXTRAS=dev,photos")


@pytest.mark.parametrize(
    ("target", "reports", "needed"), [("reproduce", {r.split("_")[0] for r in REPORTS}, 5), ("table3", {"table3"}, 1)]
)
def test_targets_are_understood(home, target, reports, needed):
    """`make table3` asks for that table and the one of five runs that is in it, `make reproduce` for everything."""
    env = {**os.environ, "NPPKIT_HOME": str(home)}
    result = subprocess.run([*recipe(target), "--dry-run"], cwd=ROOT, env=env, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    jobs = result.stdout.split("have to be generated:\n")[1].splitlines()[0].strip().split(", ")
    assert {job for job in jobs if job.startswith(("table", "figure"))} == reports
    assert sum(job.startswith("evaluate") for job in jobs) == needed


BAD = {
    "preset file mine.yaml does not exist: copy one": None,
    "lambda 3/2 is outside (0, 1)": {"runs": {"B": ["npp_p2_lambda3-2"]}},
    "patch_size 16 does not divide the 8 x 8 grid": {"runs": {"B": ["npp_L5_lambda1-2"]}},
    "image_size 54 is not a multiple of the tokenizer's 4": {
        "data": {"image_size": 36, "heldout": 100, "limit": 600},
        "runs": {"B-384": ["ntp"]},
    },
}


@pytest.mark.parametrize(
    ("preset", "home", "said"),
    [
        (
            "a: b/mine.yaml",
            "",
            "error: preset {{'a': 'b/mine.yaml'}} is no text to Snakemake, which reads YAML: name a file without ': '",
        ),
        ("smoke", "h{o}me", "error: NPPKIT_HOME {}/h{{o}}me has braces, which Snakemake takes for wildcards: name another"),
    ],
)
def test_what_snakemake_would_read_otherwise_is_one_line(tmp_path, preset, home, said):
    """Its configuration is YAML, and its files' names have wildcards."""
    command = [sys.executable, "-m", "snakemake", "--snakefile", ROOT / "Snakefile", "--cores", "1", "-n"]
    command += ["--workflow-profile", "none", "--config", f"preset={preset}"]
    env = {**os.environ, "NPPKIT_HOME": str(tmp_path / home), "PYTHONPATH": str(ROOT)}
    result = subprocess.run([str(word) for word in command], cwd=tmp_path, env=env, capture_output=True, text=True)
    assert (result.returncode, (result.stdout + result.stderr).strip()) == (1, said.format(tmp_path))


@pytest.mark.parametrize("message", BAD)
def test_bad_presets_end_in_one_line_before_any_work(tmp_path, message):
    """What is wrong with a preset is one line of Snakemake's output, without a traceback, and nothing is written."""
    if BAD[message]:
        (tmp_path / "mine.yaml").write_text(yaml.safe_dump(yaml.safe_load((FOLDER / "smoke.yaml").read_text()) | BAD[message]))
    command = [sys.executable, "-m", "snakemake", "--snakefile", ROOT / "Snakefile", "--cores", "1"]
    command += ["--workflow-profile", "none", "--config", "preset=mine.yaml"]
    env = {**os.environ, "NPPKIT_HOME": str(tmp_path), "PYTHONPATH": str(ROOT)}
    result = subprocess.run([str(word) for word in command], cwd=tmp_path, env=env, capture_output=True, text=True)
    lines = (result.stdout + result.stderr).splitlines()
    assert result.returncode == 1 and len(lines) == 1 and lines[0].startswith("error: ") and message in lines[0]
    assert {path.name for path in tmp_path.iterdir()} <= {"mine.yaml", ".snakemake"}


def test_lab_opens_the_start_notebook():
    """`make lab` begins where a newcomer should."""
    result = subprocess.run(["make", "-n", "lab"], cwd=ROOT, capture_output=True, text=True, check=True)
    assert "jupyter lab notebooks/start_here.ipynb" in result.stdout and (ROOT / "notebooks/start_here.ipynb").is_file()


def test_freed_memory_is_kept():
    """Memory that a process of `make` gave back is there the second time: no page has to come from the system again."""
    echo = ["make", "--silent", "--eval", "settings:; @echo $$GLIBC_TUNABLES", "settings"]
    env = {key: value for key, value in os.environ.items() if key != "GLIBC_TUNABLES"}
    settings = subprocess.run(echo, cwd=ROOT, env=env, capture_output=True, text=True, check=True).stdout.strip()
    code = (
        "import resource; faults = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_minflt\n"
        "b'x' * (1 << 27); before = faults(); b'x' * (1 << 27); print(faults() - before)"
    )
    command = [sys.executable, "-c", code]
    found = subprocess.run(command, env=env | {"GLIBC_TUNABLES": settings}, capture_output=True, text=True, check=True)
    assert int(found.stdout) < 100
