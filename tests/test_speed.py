"""The benchmarks' reports: the fit of step time against patch side, and the table of targets."""

import json

import numpy as np
import pytest

from nppkit import speed
from nppkit.errors import NppkitError


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


def test_unknown_machine(reports):
    """A machine without a report is named, with those that have one."""
    with pytest.raises(NppkitError, match="machine 'other' has no report in results/bench: use box, or make bench"):
        speed.load_report("other")


@pytest.mark.parametrize("machine", speed.report_names())
def test_committed_reports_are_complete(machine):
    """Every target has its figure in every committed report, with the machine's load."""
    table = speed.targets_table(speed.load_report(machine))
    assert table["measured"].notna().all() and table["load"].notna().all()
