"""Runs on disk: found, tabulated and followed by their result files alone."""

import json
import os

import pandas as pd
import pytest

from nppkit.errors import NppkitError
from nppkit.show import monitor

SEGMENTS = [{"patch_size": 2, "start": 0, "end": 5}, {"patch_size": 1, "start": 5, "end": 10}]


def write_run(home, step, name="GPT-B_ntp_seed0", rows=4, speed=(100.0, 50.0), **files):
    """A run of 10 epochs of 10 steps and 16 codes an image that has logged `rows` rows up to `step`."""
    folder = home / "results" / "demo" / "runs" / name
    folder.mkdir(parents=True)
    training = {"steps_per_epoch": 10, "batch_size": 20}
    config = {"training": training, "segments": SEGMENTS, "model": {"grid_size": 4}}
    steps = [step * (i + 1) // rows for i in range(rows)]
    sides = [2 if s < 50 else 1 for s in steps]
    columns = {"step": steps, "epoch": [s / 10 for s in steps], "patch_size": sides, "lr": 0.1, "loss": 2.5, "seconds": 30.0}
    history = pd.DataFrame({**columns, "images_per_second": [speed[0] if p == 2 else speed[1] for p in sides]})
    (folder / "config.json").write_text(json.dumps(config))
    history.to_csv(folder / "history.csv", index=False)
    for file, content in files.items():
        (folder / f"{file}.json").write_text(json.dumps(content))
    return folder


def test_a_running_training(tmp_path):
    """State, step, segment, loss, tokens a second, and the time that the rest takes at each side's own speed."""
    run = write_run(tmp_path, 80)
    found = monitor.progress_of(run)
    assert (found.state, found.step, found.total, found.patch_size, found.loss) == ("running", 80, 100, 1, 2.5)
    assert found.tokens_per_second == 50 * 16
    assert found.eta_seconds == pytest.approx(20 * 20 / 50)  # 20 steps of 20 images at 50 a second
    assert "step 80 of 100" in monitor.say(found) and "about 0.1 min left" in monitor.say(found)


@pytest.mark.parametrize(("grid", "longer"), [(4, 4), ([16], 2), ([2, 4, 4], 8)], ids=["image", "text", "video"])
def test_time_left_of_a_side_not_reached(tmp_path, grid, longer):
    """It is the known side's, scaled by the tokens of a window: at p = 1 of an image four times what p = 2 takes."""
    run = write_run(tmp_path, 40)
    config = json.loads((run / "config.json").read_text())
    config["model"]["grid_size"] = grid
    (run / "config.json").write_text(json.dumps(config))
    assert monitor.progress_of(run).eta_seconds == pytest.approx(10 * 20 / 100 + 50 * 20 / 100 * longer)


def test_states(tmp_path):
    """Quiet for long: stopped; all steps done: trained; with metrics: evaluated; without a row: running for a while."""
    run = write_run(tmp_path, 80)
    age = os.path.getmtime(run / "history.csv")
    assert monitor.progress_of(run, now=age + 299).state == "running"  # ten rows of 30 seconds
    assert monitor.progress_of(run, now=age + 301).state == "stopped"
    assert monitor.progress_of(write_run(tmp_path, 100, "trained")).state == "trained"
    assert monitor.progress_of(write_run(tmp_path, 100, "scored", metrics={"guidance": []})).state == "evaluated"
    again = write_run(tmp_path, 40, "again", metrics={"guidance": []})  # trained again: the metrics are those of before
    assert monitor.progress_of(again).state == "running"
    (run / "history.csv").unlink()
    fresh = monitor.progress_of(run)
    assert (fresh.state, fresh.step, fresh.eta_seconds, fresh.patch_size) == ("running", 0, None, 2)
    begun = os.path.getmtime(run / "config.json")  # twenty minutes for what comes before the first row
    assert [monitor.progress_of(run, now=begun + s).state for s in (1199, 1201)] == ["running", "stopped"]


def test_half_written_files_are_no_error(tmp_path):
    """A file that another machine is writing reads as "nothing known yet"."""
    run = write_run(tmp_path, 80)
    (run / "config.json").write_text('{"training": {"steps')
    assert monitor.progress_of(run).total is None
    (run / "history.csv").write_text("")
    assert monitor.read_history(run).empty and monitor.progress_of(run).step == 0


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("config.json", "[]"),
        ("config.json", "null"),
        ("config.json", '{"segments": [{"newer": 1}]}'),
        ("history.csv", "epoch,accuracy\n1,0.5\n"),
        ("metrics.json", "[1]"),
    ],
)
def test_files_of_another_program_leave_the_other_runs(tmp_path, file, content):
    """One odd folder does not take down the table."""
    odd, whole = write_run(tmp_path, 80), write_run(tmp_path, 80, "b", metrics={"guidance": []})
    (odd / file).write_text(content)
    assert monitor.run_table([odd, whole])["run"].tolist() == ["GPT-B_ntp_seed0", "b"]
    assert monitor.run_table([odd, whole])["loss"].iloc[1] == 2.5


def test_a_row_that_is_being_copied_is_not_read(tmp_path):
    """The rows before it are."""
    run = write_run(tmp_path, 80)
    with (run / "history.csv").open("a") as history:
        history.write("90,9.0")
    assert monitor.progress_of(run).step == 80


def test_only_what_changed_is_read_again(tmp_path, monkeypatch):
    """A second look at all runs opens no file; a grown history is read again, and no other."""
    first, second = write_run(tmp_path, 40), write_run(tmp_path, 80, "b", metrics={"guidance": []})
    monitor.run_table([first, second])
    opened, read_csv = [], pd.read_csv
    monkeypatch.setattr(pd, "read_csv", lambda path: opened.append(path) or read_csv(path))
    monkeypatch.setattr(json, "loads", lambda _: pytest.fail("a configuration was read again"))
    monitor.run_table([first, second])
    assert opened == []
    with (first / "history.csv").open("a") as history:
        history.write("50,5.0,1,0.1,2.25,30.0,50.0\n")
    assert monitor.run_table([first, second])["loss"].tolist() == [2.25, 2.5]
    assert opened == [first / "history.csv"]


def test_run_table(tmp_path):
    """A row a run with its metrics at the guidance scale that the selecting seed chose."""
    rows = [{"cfg_scale": 1.0, "select_fid": 3, "fid": 3.1}, {"cfg_scale": 2.0, "select_fid": 2, "fid": 4.5}]
    scored = write_run(tmp_path, 100, "a", metrics={"heldout_nll": 2.0, "guidance": rows})
    table = monitor.run_table([scored, write_run(tmp_path, 40, "b")]).set_index("run")
    assert (table.loc["a", "FID"], table.loc["a", "at scale"], table.loc["a", "NLL"]) == (4.5, 2.0, 2.0)
    assert pd.isna(table.loc["b", "FID"]) and table.loc["b", "minutes"] == 2
    assert monitor.run_table([]).empty


def test_homes(tmp_path):
    """One a line; a folder without results is named, and runs are found in all of them."""
    for name in ("here", "there"):
        write_run(tmp_path / name, 40)
    homes = monitor.parse_homes(f"{tmp_path}/here\n\n {tmp_path}/there \n")
    assert [run.parents[3].name for run in monitor.find_runs(homes)] == ["here", "there"]
    with pytest.raises(NppkitError, match="nowhere has no results/ folder"):
        monitor.parse_homes("/nowhere")
