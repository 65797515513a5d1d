"""The script for a GPU at hand: each part is kept before the next begins, and none begins that may not end in time."""

import itertools
import json
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

import gpu_session
from gpu_session import Part, session


def listed(calls):
    return [Part(f"part {i}", 10.0, lambda i=i: calls.append(i) or {"value": i}) for i in range(4)]


def rows(folder):
    (path,) = folder.glob("*.json")
    return json.loads(path.read_text())["rows"]


@pytest.mark.parametrize("time", [0, 5, 15, 25, 35, 45])
def test_the_clock_runs_out_at_every_part(tmp_path, time):
    """Each part takes its ten seconds; those that fit are kept, and a second session goes on where the first one stopped."""
    calls, now = [], [0.0]
    parts = [part._replace(measure=lambda m=part.measure: now.__setitem__(0, now[0] + 10) or m()) for part in listed(calls)]
    left = session(parts, time, tmp_path, lambda: now[0])
    fitting = min(time // 10, 4)
    assert calls == list(range(fitting)) and len(left) == 4 - fitting
    assert all("takes up to 10 s" in line for line in left)
    assert not session(parts, 100, tmp_path, lambda: now[0]) and calls == [0, 1, 2, 3]
    assert [rows(tmp_path)[f"part {i}"]["value"] for i in range(4)] == [0, 1, 2, 3]


def test_another_machines_report_is_not_this_ones(tmp_path, capsys):
    """Reports of other GPUs are committed: here everything is measured, once, and what is there is said to be."""
    (tmp_path / "another-gpu.json").write_text(json.dumps({"rows": {f"part {i}": {} for i in range(4)}}))
    calls = []
    assert not session(listed(calls), 1000, tmp_path) and calls == [0, 1, 2, 3]
    capsys.readouterr()
    assert not session(listed(calls), 1000, tmp_path) and len(calls) == 4
    assert capsys.readouterr().out.count("is there already, in") == 4


def test_a_part_that_fails_is_named(tmp_path):
    """An error costs its own part alone."""
    calls = []
    parts = listed(calls)
    parts[1] = Part("part 1", 10.0, lambda: 1 / 0)
    (line,) = session(parts, 1000, tmp_path)
    assert line.startswith("part 1: ZeroDivisionError") and set(rows(tmp_path)) == {"part 0", "part 2", "part 3"}


def test_small_sizes_run_on_a_cpu(tmp_path, home):
    """Every part but the tests and the trainings, at small sizes, through the real trainer and sampler."""
    parts = gpu_session.parts([], small=True)
    assert [part.row for part in parts] == ["tests", "B 32 step", "B 128 step", "B sampling"]
    assert not session([parts[1], parts[3]], 1000, tmp_path)
    found = rows(tmp_path)
    assert set(found["B 32 step"]["seconds"]) == {"eager 1", "eager 2", "eager 4"} and found["B sampling"]["images"] == 4
    assert next(itertools.islice(found["B 32 step"]["flops"].values(), 1)) > 0
