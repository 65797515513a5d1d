"""The benchmarks' reports: the fit of step time against patch side, and the table of targets."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from nppkit.errors import NppkitError

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

import speed


def test_fit_recovers_its_own_law():
    """Times made by a + b / p**2 give a and b back."""
    sides = [1, 2, 4, 8, 16]
    np.testing.assert_allclose(speed.fit_patch_cost(sides, [0.03 + 5.0 / p**2 for p in sides]), (0.03, 5.0), rtol=1e-9)


def test_fit_weighs_every_side_alike():
    """The fit minimises relative errors: a tenth off at the longest time does not hide the constant."""
    sides = [1, 2, 4, 8, 16]
    seconds = [0.1 + 10.0 / p**2 for p in sides]
    seconds[0] *= 1.1
    a, _ = speed.fit_patch_cost(sides, seconds)
    assert abs(a - 0.1) < 0.01


def test_a_report_of_ones_own_changes_no_page(tmp_path):
    """What `make bench` writes here is read by its name; tables of all machines are of the reports that git keeps."""
    for name in ("kept", "own"):
        (tmp_path / f"{name}.json").write_text("{}")
    assert speed.committed(tmp_path) == ["kept", "own"]  # without git
    for words in (["init", "-q"], ["add", "kept.json"]):
        subprocess.run(["git", *words], cwd=tmp_path, check=True)
    assert speed.committed(tmp_path) == ["kept"] and speed.report_names(tmp_path) == ["kept", "own"]


@pytest.fixture
def reports(tmp_path, monkeypatch):
    """A folder with the report of one machine that measured two rows."""
    rows = {
        "step": {"compiled_of_yardstick": 0.9, "eager_of_yardstick": 0.6, "load_average": [0.1, 1.5]},
        "loss": {"4": {"times_faster": 3.0, "difference": 2e-6}, "load_average": [0.2, 0.1]},
    }
    (tmp_path / "box.json").write_text(json.dumps({"machine": {"name": "box"}, "rows": rows}))
    monkeypatch.setattr(speed, "REPORTS", tmp_path)


def test_targets_table(reports):
    """A figure at its bound or better meets the target, on either side; rows that were not measured say so."""
    table = speed.targets_table(speed.load_report("box"))
    assert len(table) == len(speed.TARGETS)
    verdicts = table["verdict"].to_dict()
    assert verdicts["step, compiled: FLOP rate against the yardstick"] == "met"
    assert verdicts["step, eager: FLOP rate against the yardstick"] == "missed"
    assert verdicts["patch loss at p = 4: times faster than repeated logits"] == "met"
    assert verdicts["patch loss at p = 4: difference from repeated logits"] == "missed"
    assert (table["verdict"] == "not measured").sum() == len(table) - 4
    assert table["load"].max() == 1.5


def test_machines_table(reports):
    """A column for each machine's figures beside the targets; what one did not measure is missing in its column alone."""
    (speed.REPORTS / "other.json").write_text(json.dumps({"rows": {"step": {"compiled_of_yardstick": 0.8}}}))
    table = speed.machines_table()
    assert list(table) == ["target", "box", "other"]
    assert table.loc["step, compiled: FLOP rate against the yardstick"].tolist() == [">= 0.85", 0.9, 0.8]
    assert table["box"].notna().sum() == 4 and table["other"].notna().sum() == 1


def test_unknown_machine(reports):
    """A machine without a report is named, with those that have one."""
    with pytest.raises(NppkitError, match="machine 'other' has no report in results/bench: use box, or make bench"):
        speed.load_report("other")


@pytest.mark.parametrize("machine", speed.report_names())
def test_committed_reports_are_complete(machine):
    """Every target has its figure in every committed report, with the machine's load."""
    table = speed.targets_table(speed.load_report(machine))
    assert table["measured"].notna().all() and table["load"].notna().all()


def test_gpu_steps():
    """Half of the epochs at p = 2 and half at p = 1; a mode and side that was not measured is missing, and nothing else."""
    seconds = {"eager 1": 0.4, "eager 2": 0.4, "graph 1": 0.2, "graph 2": 0.1, "graph 4": 0.05}
    step = {"flops": {"1": 8e12, "2": 2e12, "4": 1e12}, "seconds": {k: {"median": t} for k, t in seconds.items()}}
    report = {
        "machine": {"name": "NVIDIA H200"},
        "rows": {"tests": {}, "B 32 step": step, "B sampling": {"seconds": {"plain": {"median": 6.0}, "graph": {"median": 2.0}}}},
    }
    step["product_flops_per_second"] = 80e12
    table = speed.gpu_steps(report)
    assert list(table.index) == [("B", 32, "eager"), ("B", 32, "graph")]
    assert table["#L = 2, time"].tolist() == [1.0, 0.75] and table["#L = 2, FLOPs"].tolist() == [0.625, 0.625]
    assert table["of peak"].tolist() == pytest.approx([0.25, 0.5]) and table["p = 4, ms"].isna().tolist() == [True, False]
    assert speed.gpu_sampling(report)["times faster"].to_dict() == {"B": 3.0}


@pytest.mark.parametrize("name", speed.committed(speed.GPU_REPORTS))
def test_committed_gpu_reports(name):
    """Every model's time falls with p as a CUDA graph, and no step is faster than the GPU's peak."""
    table = speed.gpu_steps(speed.load_report(name, speed.GPU_REPORTS))
    assert table["of peak"].between(0.01, 1).all()
    assert table.xs("graph", level="mode")["#L = 2, time"].between(0.6, 0.8).all()


def test_operations_and_their_figures():
    """Kinds by name; shares add up to the step's time; a point's rate is its FLOPs a second, under min(peak, bandwidth x)."""
    rows = [("aten::mm", 3.0, 6e9, 1e7), ("aten::_flash_attention", 1.0, 1e9, 1e7), ("aten::mul", 0.5, 0.0, 1e9)]
    found = [dict(name=n, calls=1, seconds=s, flops=f, bytes=b) for n, s, f, b in [*rows, ("other", 0.5, 0.0, 0.0)]]
    operations = speed.operations({"rows": {"breakdown": {"operations": found}}})
    assert operations["kind"].tolist() == ["matrix products", "attention", "element-wise, reductions", "other"]
    bars = speed.time_shares(operations).axes[0].patches
    assert sorted(bar.get_width() for bar in bars) == [10, 10, 20, 60]
    axes = speed.roofline(operations, peak=4e9, bandwidth=1e9).axes[0]
    points = [part.get_offsets()[0].tolist() for part in axes.collections]
    np.testing.assert_allclose(points, [[100, 1], [600, 2]])
    x, limit = axes.lines[0].get_data()
    np.testing.assert_allclose(limit, np.minimum(4.0, x))


def test_step_times_figure():
    """The ideal line starts at the measured p = 1 and falls by p**2; the fitted one is a + b / p**2."""
    seconds = {str(p): dict(median=1.0 + 3 / p**2, min=0.9, max=5.0, repeats=2) for p in (1, 2, 4)} | {"yardstick": {}}
    ideal, fitted = speed.step_times({"seconds": seconds, "a": 1.0, "b": 3.0}).axes[0].lines[:2]
    np.testing.assert_allclose(ideal.get_ydata()[[0, -1]], [4, 4 / 16])
    np.testing.assert_allclose(fitted.get_ydata()[[0, -1]], [4, 1 + 3 / 16])
