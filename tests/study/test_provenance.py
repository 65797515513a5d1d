"""How a result was made: what a record says of it, and what it does not change."""

import json
import subprocess

from nppkit.study import provenance, records
from nppkit.study.records import Job


def git(folder, *words):
    identity = ["-c", "user.name=n", "-c", "user.email=n@example.org"]
    return subprocess.run(["git", "-C", folder, *identity, *words], check=True, capture_output=True, text=True).stdout.strip()


def test_a_record_says_how_it_was_made(tmp_path):
    """A record names commit, versions and machine; they decide nothing: the record is as valid with others."""
    (tmp_path / "metrics.json").write_text("{}")
    job = Job("evaluate x", "evaluate", {}, tmp_path, ("metrics.json",), (), {})
    records.write_record(job)
    record = json.loads(job.record.read_text())
    made = record["made"]
    assert made["versions"].keys() >= {"python", "nppkit", "torch", "torch-fidelity"} and made["time"].endswith("+00:00")
    assert made["machine"]["cores"] > 0 and made["machine"]["processor"][0]
    job.record.write_text(json.dumps(record | {"made": {}}))
    assert records.why_incomplete(job) == ""


def test_the_commit_of_a_checkout(tmp_path):
    """The commit's full name, whether files differ from it that make results, and nothing where there is no repository."""
    assert provenance.commit(tmp_path) == ""
    git(tmp_path, "init", "-q")
    (tmp_path / "results").mkdir()
    for name in ("a", "results/a"):
        (tmp_path / name).write_text("1")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-qm", "a")
    git(tmp_path, "tag", "-am", "v1", "v1")
    (tmp_path / "results/a").write_text("2")  # a run that is made again
    (tmp_path / "new").touch()
    assert provenance.commit(tmp_path) == git(tmp_path, "rev-parse", "HEAD")
    (tmp_path / "a").write_text("2")
    assert provenance.commit(tmp_path) == git(tmp_path, "rev-parse", "HEAD") + "-dirty"


def test_processors_of_one_name_are_told_apart(tmp_path):
    """Two generations are both called AMD EPYC and round otherwise; where the kernel tells neither, only the name is known."""
    told = "processor\t: 0\ncpu family\t: 25\nmodel\t\t: {}\nmodel name\t: AMD EPYC\n\n"
    for model in (1, 17):
        (tmp_path / "cpuinfo").write_text(told.format(model) * 2)
        assert provenance.processor(tmp_path / "cpuinfo") == ["AMD EPYC", f"family 25, model {model}"]
    (tmp_path / "cpuinfo").write_text("cpu\t: POWER9\nmodel\t\t: 8335-GTH\n")  # half of it is no generation
    assert provenance.processor(tmp_path / "cpuinfo") == []
    (tmp_path / "cpuinfo").write_text("processor\t: 0\nBogoMIPS\t: 48.00\n")
    assert provenance.processor(tmp_path / "cpuinfo") == provenance.processor(tmp_path / "none") == []


def test_the_line_below_a_table():
    """Commits, versions and machines with their numbers; what is older than such records is counted, and sent elsewhere."""
    machine = {"processor": ["Xeon"], "cores": 2, "gpus": ["H100"], "system": "Linux"}
    one = {"commit": "a" * 40, "versions": {"python": "3.11.7", "torch": "2"}, "machine": machine}
    line = provenance.said([one, one, {**one, "commit": "b" * 40 + "-dirty"}, {}])
    assert line.startswith("made by 4 trainings and evaluations; commits: aaaaaaa (2), bbbbbbb-dirty (1); ")
    assert "versions: python 3.11.7, torch 2 (3); machines: Xeon, 2 cores, H100 (3); 1 are older" in line
    assert provenance.said([]) == "nothing is trained yet"
