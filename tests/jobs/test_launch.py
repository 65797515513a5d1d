"""The launcher: parameters are checked data, records are written last."""

import dataclasses
import errno
import json
import os
import signal
import subprocess
import sys

import nbformat
import pytest
import torch

from nppkit import cli, releases
from nppkit.errors import Diverged, NppkitError
from nppkit.jobs import kernels, launch, targets, workers
from nppkit.jobs.launch import check_parameters, declared_parameters, find_job, notebook_parameters
from nppkit.machine.guard import Interrupted
from nppkit.machine.options import Options
from nppkit.study import graph, models, records
from nppkit.study.presets import load_preset, preset_names
from nppkit.study.published import REPORTS

CELL = 'preset: str = "smoke"  # a preset\nthreads: int = 1\nlr: float = 0.1\nema: bool = False\n'


def test_declared_parameters():
    """The parameters cell is the interface: names, types, defaults."""
    assert declared_parameters(CELL) == {"preset": (str, "smoke"), "threads": (int, 1), "lr": (float, 0.1), "ema": (bool, False)}


@pytest.mark.parametrize("cell", ["x = 1", "x: list = []", "import os", "x: int = f()", "x: int", "x: int = 2 * 3"])
def test_parameters_cell_holds_typed_literals_alone(cell):
    """Anything but `name: type = literal` is not a declaration."""
    with pytest.raises(NppkitError, match="line 1 is not `name: type = literal`"):
        declared_parameters(cell)


def test_values_are_coerced_or_refused():
    """Strings become the declared type; wrong types and unknown names are refused by name."""
    declared = declared_parameters(CELL)
    assert check_parameters({"lr": "1e-4", "ema": "true"}, declared, "nb") == {
        "preset": "smoke",
        "threads": 1,
        "lr": 1e-4,
        "ema": True,
    }
    with pytest.raises(NppkitError, match="unknown parameter 'thread'"):
        check_parameters({"thread": 1}, declared, "nb")
    with pytest.raises(NppkitError, match="parameter threads: 'two' is not an int"):
        check_parameters({"threads": "two"}, declared, "nb")


def namespace(injected="", **values):
    """A kernel's namespace after the parameters cell and, if any, the injected one."""
    ns = {"In": ["", CELL, injected]}
    exec(CELL, ns)
    return ns | values


def test_plain_papermill_strings_are_coerced():
    """`papermill -p ema true` makes the string "true": the notebook makes it a bool again."""
    ns = namespace('# Parameters\nema = "true"\nlr = "1e-3"\n', ema="true", lr="1e-3")
    notebook_parameters(ns)
    assert ns["ema"] is True and ns["lr"] == 1e-3


def test_plain_papermill_unknown_names_are_refused():
    """papermill only warns of an unknown name: the notebook refuses it."""
    with pytest.raises(NppkitError, match="unknown parameter 'learning_rate'"):
        notebook_parameters(namespace("# Parameters\nlearning_rate = 1\n", learning_rate=1))


def test_other_variables_are_no_parameters():
    """In JupyterLab a notebook runs twice: its own variables do not count as parameters."""
    ns = namespace(history=[1], threads="2")
    notebook_parameters(ns)
    assert ns["threads"] == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("train", "nothing"), "preset 'nothing' is unknown"),
        (("train", "smoke", "GPT-B"), "run 'GPT-B' is not a run id"),
        (("paint", "smoke"), "notebook 'paint' is unknown"),
        (("train", "smoke", "GPT-B_ntp_seed0", True), "--large is for tokenize, not for train"),
        (("tokenize", "smoke", "GPT-B_ntp_seed0"), "run 'GPT-B_ntp_seed0' is for train and evaluate, not for tokenize"),
    ],
)
def test_unknown_jobs_are_named(arguments, message):
    """An unknown notebook, preset or run is one line."""
    with pytest.raises(NppkitError, match=message):
        find_job(arguments[0], load_preset(arguments[1]), *arguments[2:])


@pytest.mark.parametrize(("name", "value"), [("run", "GPT-B_ntp_seed1"), ("preset", "demo")])
def test_what_a_record_names_cannot_be_another(home, name, value):
    """A job's record would stand for another preset or run than was computed: refused before any work."""
    job = find_job("train", load_preset("smoke"), "GPT-B_ntp_seed0")
    with pytest.raises(NppkitError, match=f"parameter {name} is decided by the preset and the run"):
        launch.execute(job, {name: value})
    assert not job.folder.exists()


@pytest.mark.parametrize(("notebook", "name"), [("tokenize", "devices"), ("evaluate", "nodes")])
def test_devices_that_a_job_does_not_use_are_refused(home, smoke, notebook, name):
    """Rather than leased: before any work."""
    job = find_job(notebook, smoke, "GPT-B_ntp_seed0" * (notebook == "evaluate"))
    with pytest.raises(NppkitError, match=f"{job.name}: several devices are for train and evaluate, several nodes for train"):
        launch.execute(job, {name: "4"})
    assert not job.folder.exists()


def test_several_devices_need_torchrun(capsys, monkeypatch):
    """A command that would train or sample on one device, where more are asked for, says so."""
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    for command in ("train", "sample"):
        assert cli.call([command, "smoke", "GPT-B_ntp_seed0", "--options", "devices=8"]) == 1
        assert capsys.readouterr().err.startswith("error: options: devices=8: so many processes are started by nppkit run, or by")


@pytest.mark.parametrize("overrides", [{"options": "save_minutes=5 threads=2"}, {"save_minutes": "5", "threads": "2"}])
def test_options_add_to_the_presets(home, smoke, overrides):
    """By name or as one text: what is not named stays, as graphs when somebody sets minutes."""
    job = find_job("train", dataclasses.replace(smoke, threads=4, graphs=True), "GPT-B_ntp_seed0")
    values = launch.job_parameters(job, graph.NOTEBOOKS / "train.ipynb", overrides)
    assert Options.parse(values["options"]) == Options(threads=2, graphs=True, save_minutes=5.0)


@pytest.mark.parametrize(
    ("said", "expected"), [(None, Options(threads=4, graphs=True)), ("", Options()), ("threads=2", Options(threads=2))]
)
def test_a_training_by_hand_has_the_presets_options(home, smoke, said, expected):
    """Unless it is told its own, which then are all that it has: a notebook hands on what it decided."""
    job = find_job("train", dataclasses.replace(smoke, threads=4, graphs=True), "GPT-B_ntp_seed0")
    before = torch.get_num_threads()
    assert workers._begin(job, said) == expected and torch.get_num_threads() == expected.threads
    torch.set_num_threads(before)


def test_a_report_without_its_notebook_is_named(home, smoke):
    """A preset's report that is no notebook of the folder is one line, not an error of papermill."""
    with pytest.raises(NppkitError, match=r"notebooks/nothing\.ipynb does not exist"):
        launch.execute(graph.report_job(smoke, "nothing"), {})


KERNEL = """
from pathlib import Path
starts = Path(__file__).with_name("starts")
starts.write_text(f"{starts.read_text()}1" if starts.exists() else "1")
assert len(starts.read_text()) > FAILURES, "port in use"
import sys
sys.path.remove(str(Path(__file__).parent))
import runpy
runpy.run_module("ipykernel_launcher", run_name="__main__")
"""


def notebook_of(folder, *sources):
    """A notebook make.ipynb in that folder, with a parameters cell and cells of these sources."""
    cells = [nbformat.v4.new_code_cell(source) for source in ("preset: str = ''", *sources)]
    cells[0].metadata["tags"] = ["parameters"]
    metadata = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    folder.mkdir()
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata=metadata), folder / "make.ipynb")


def test_a_training_that_diverges_is_noted(tmp_path, monkeypatch):
    """The job fails with its words and leaves an outcome that a study counts, until it comes through."""
    raise_ = "from nppkit.errors import Diverged; raise Diverged('step 3: loss nan: lower training.lr')"
    notebook_of(tmp_path / "notebooks", raise_)
    monkeypatch.setattr(launch, "NOTEBOOKS", tmp_path / "notebooks")
    job = records.Job("make", "make", {}, tmp_path / "run", ("made.txt",), (), {})
    assert not records.divergence(job)
    with pytest.raises(NppkitError, match="make failed: Diverged: step 3: loss nan"):
        launch.execute(job, {})
    assert records.divergence(job) and not job.record.exists()
    monkeypatch.setenv(launch.ATTEMPT, "2")
    tried = (job.folder / "make.ipynb").stat().st_mtime_ns
    with pytest.raises(Diverged, match="make is not tried again: Diverged: step 3: loss nan"):
        launch.execute(job, {})
    assert (job.folder / "make.ipynb").stat().st_mtime_ns == tried
    os.utime(job.folder / "make.ipynb", ns=(tried, tried + 10**9))  # an attempt since then, which did not come to its end
    with pytest.raises(NppkitError, match="make failed: Diverged"):
        launch.execute(job, {})
    monkeypatch.setenv(launch.ATTEMPT, "1")  # the same command typed again
    with pytest.raises(NppkitError, match="make failed: Diverged"):
        launch.execute(job, {})
    assert (job.folder / "make.ipynb").stat().st_mtime_ns > tried
    (job.folder / "made.txt").write_text("through")
    records.write_record(job)
    assert not records.divergence(job)


def test_a_job_fails_in_one_line(tmp_path, monkeypatch):
    """However many the notebook's error has; they stay in the executed notebook."""
    notebook_of(tmp_path / "notebooks", "raise RuntimeError('shapes do not fit:\\n\\t[2, 3]\\n\\t[4, 5]')")
    monkeypatch.setattr(launch, "NOTEBOOKS", tmp_path / "notebooks")
    with pytest.raises(NppkitError) as error:
        launch.execute(records.Job("make", "make", {}, tmp_path / "run", ("made.txt",), (), {}), {})
    assert str(error.value) == f"make failed: RuntimeError: shapes do not fit: (read {tmp_path}/run/make.ipynb)"


@pytest.mark.parametrize(("failures", "done"), [(2, True), (99, False)])
def test_a_kernel_that_ends_at_its_start_is_started_again(tmp_path, monkeypatch, failures, done):
    """As when another process takes its port: the job is done nevertheless, or fails in one line after some starts."""
    notebook_of(tmp_path / "notebooks", "open('../made.txt', 'w').close()")
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/ipykernel_launcher.py").write_text(KERNEL.replace("FAILURES", str(failures)))
    monkeypatch.setattr(launch, "NOTEBOOKS", tmp_path / "notebooks")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "bin"))
    job = records.Job("make", "make", {}, tmp_path, ("made.txt",), (), {})
    if done:
        launch.execute(job, {})
    else:
        with pytest.raises(NppkitError, match=r"^make failed: its kernel did not start \(Kernel died before replying.*\) \(read"):
            launch.execute(job, {})
    assert job.record.exists() == (tmp_path / "made.txt").exists() == done
    assert len((tmp_path / "bin/starts").read_text()) == min(failures + 1, launch.KERNEL_STARTS)


@pytest.mark.parametrize(("owner", "name"), [(launch, "read_inputs"), (kernels.OwnKernel, "kernel_spec")])
def test_a_stop_before_there_is_a_kernel_is_heard(tmp_path, monkeypatch, owner, name):
    """SIGTERM while inputs are read, or just before the kernel is made: its cells do not run, and the status is 75."""
    notebook_of(tmp_path / "notebooks", "open('../made.txt', 'w').close()")
    monkeypatch.setattr(launch, "NOTEBOOKS", tmp_path / "notebooks")
    ordinary = getattr(owner, name)

    def told(asked):
        os.kill(os.getpid(), signal.SIGTERM)
        return ordinary(asked) if callable(ordinary) else ordinary.fget(asked)

    monkeypatch.setattr(owner, name, told if callable(ordinary) else property(told))
    job = records.Job("make", "make", {}, tmp_path, ("made.txt",), (), {})
    with pytest.raises(Interrupted, match="make: stopped; the same command begins it again") as error:
        launch.execute(job, {})
    assert error.value.status == 75 and not job.record.exists() and not (tmp_path / "made.txt").exists()


def test_command_line_prints_one_line(capsys):
    """A bad argument ends with exit status 1 and one line, no traceback."""
    assert cli.call(["run", "nothing", "train"]) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: preset 'nothing' is unknown") and error.count("\n") == 1


@pytest.mark.parametrize(
    "words",
    [
        "run text tokenize --large",
        "codes extract text",
        "evaluate text x.npz",
        "sample text GPT-B_ntp_seed0",
        "draw text GPT-B_ntp_seed0 topic 1 out",
    ],
)
def test_what_needs_images_refuses_a_text(home, capsys, words):
    """One line that says so, whatever would have been missing later."""
    assert cli.call(words.split()) == 1
    assert capsys.readouterr().err == "error: preset text is of a text: it has no images; name a preset of images\n"


def test_only_the_papers_reports_have_short_names(home):
    """A notebook of one's own may be called table1_mine: it is a rule of its own beside table1."""
    preset = dataclasses.replace(load_preset("smoke"), reports=["figure2_method"])
    job = graph.report_job(preset, "figure2_method")
    mine = dataclasses.replace(job, name="table1_mine")
    short = [targets.rule_name(graph.report_job(preset, name)) for name in REPORTS]
    assert short == ["table1", "table2", "table3", "table4", "table5", "figure1"]
    assert [targets.rule_name(other) for other in (mine, job)] == ["table1_mine", "figure2_method"]


def test_where_results_are(home, capsys):
    """Pictures first, where there are any; then tables and figures, and which are still to be made."""
    assert cli.call(["where", "smoke"]) == 0
    assert capsys.readouterr().out.splitlines()[0].startswith("table1_main (not made yet): results/smoke/table1_main.csv ")
    folder = home / "results/smoke/runs/GPT-B_ntp_seed0"
    folder.mkdir(parents=True)
    (folder / "samples.png").touch()
    assert cli.call(["where", "smoke"]) == 0
    assert capsys.readouterr().out.splitlines()[0] == "samples: results/smoke/runs/*/samples.png"
    for name in ("table1", "table1_main"):  # as a target of make, and as `run` wants it
        assert cli.call(["where", "smoke", name]) == 0 and capsys.readouterr().out.startswith("table1_main (")
    assert cli.call(["where", "smoke", "table1", "--notebooks"]) == 0 and capsys.readouterr().out == "table1_main\n"
    assert cli.call(["where", "smoke", "table1", "tabel1"]) == 1
    assert capsys.readouterr().err.startswith("error: preset smoke has no report 'tabel1': use one of table1, ")


@pytest.mark.parametrize("value", ["", "one"])
def test_a_rank_that_is_no_number_concerns_those_who_have_one(monkeypatch, value):
    """An empty or foreign RANK and WORLD_SIZE stop no other command; an empty one is none."""
    env = {**os.environ, "RANK": value, "WORLD_SIZE": value, "OMP_NUM_THREADS": ""}
    assert subprocess.run([*NPPKIT, "where", "demo", "table1"], env=env, capture_output=True, timeout=120).returncode == 0
    found = subprocess.run([*NPPKIT, "codes", "extract", "none"], env=env, capture_output=True, text=True, timeout=120)
    assert "Traceback" not in found.stderr and ("'none' is unknown" in found.stderr) != bool(value)


NPPKIT = [sys.executable, "-m", "nppkit"]


@pytest.mark.parametrize(("words", "unbuffered"), [("where demo", ""), ("where demo", "1"), ("--help", "")])
def test_whoever_has_read_enough_gets_no_error(words, unbuffered):
    """`nppkit where demo | head -1` ends in silence, whether Python writes at once or at the end."""
    env, pipe = {**os.environ, "PYTHONUNBUFFERED": unbuffered}, subprocess.PIPE
    with subprocess.Popen([*NPPKIT, *words.split()], stdout=pipe, stderr=pipe, text=True, env=env) as process:
        process.stdout.close()
        assert process.wait(120) == 128 + signal.SIGPIPE and not process.stderr.read()


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_output_that_a_disk_has_no_room_for_is_one_line(unbuffered):
    """`nppkit where demo > file` on a full disk."""
    env = {**os.environ, "PYTHONUNBUFFERED": unbuffered}
    with open("/dev/full", "w") as full:
        found = subprocess.run([*NPPKIT, "where", "demo"], stdout=full, stderr=subprocess.PIPE, text=True, env=env, timeout=120)
    assert (found.returncode, found.stderr) == (1, "error: where: No space left on device: free some space\n")


def test_a_closed_output_is_no_error():
    """`nppkit presets >&-`: there is nowhere to write to, and nothing is written."""
    found = subprocess.run(["bash", "-c", 'exec "$0" -m nppkit presets >&-', sys.executable], capture_output=True, text=True)
    assert (found.returncode, found.stderr) == (0, "")


def test_a_notebook_that_cannot_be_written_is_named(tmp_path, monkeypatch):
    """Papermill's error of a full quota names no file."""

    def full(*_, **__):
        raise OSError(errno.EFBIG, "File too large")

    notebook_of(tmp_path / "notebooks")
    monkeypatch.setattr(launch, "NOTEBOOKS", tmp_path / "notebooks")
    monkeypatch.setattr("papermill.execute_notebook", full)
    with pytest.raises(NppkitError, match=r"^make failed: .*File too large: .* \(read .*run/make\.ipynb\)$"):
        launch.execute(records.Job("make", "make", {}, tmp_path / "run", ("made.txt",), (), {}), {})


def test_a_full_disk_is_one_line_wherever_it_is_met(capsys, monkeypatch):
    """Also where papermill writes: it is not called a matter of paths and permissions."""

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(launch, "find_job", full)
    assert cli.call(["run", "smoke", "tokenize"]) == 1
    assert capsys.readouterr().err == "error: run: No space left on device: free some space\n"


def test_ctrl_c_claims_nothing_that_it_does_not_know(capsys, monkeypatch):
    """It may come in the first second or after hours of downloading or extracting."""

    def stopped(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(releases, "fetch", stopped)
    assert cli.call(["weights", "fetch", "LlamaGen-B-256"]) == 130
    assert capsys.readouterr().err == "error: stopped; what is finished stays, and the same command does the rest\n"


@pytest.mark.parametrize(
    "words", ["", "run", "train", "plan", "codes", "codes extract", "weights fetch", "where", "verdicts", "warm"]
)
def test_a_command_without_arguments_says_its_usage(capsys, words):
    """What is missing is named in one line after the usage; no command ends in a traceback."""
    with pytest.raises(SystemExit) as end:
        cli.call(words.split())
    error = capsys.readouterr().err
    assert end.value.code == 2 and error.startswith(f"usage: nppkit {words}".strip())
    assert "error: the following arguments are required" in error.splitlines()[-1]


def test_a_name_that_the_terminal_cannot_write():
    """A folder of a Windows zip has a name that is not UTF-8: it is shown with its bytes escaped, and the command goes on."""
    script = "from nppkit import cli\nwith cli.written():\n    print('gr\\udcf6')\n"
    env = {**os.environ, "PYTHONIOENCODING": "utf-8:strict"}
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, env=env)
    assert (found.returncode, found.stdout) == (0, b"gr\\udcf6\n")


@pytest.mark.parametrize("error", [MemoryError("all of it"), RuntimeError("CPUAllocator: can't allocate memory")])
def test_memory_that_is_not_there_is_one_line(capsys, monkeypatch, error):
    """Also without a notebook; what is no lack of memory stays what it is."""

    def fail(*_):
        raise error

    monkeypatch.setattr(workers, "train", fail)
    assert cli.call(["train", "smoke", "GPT-B_ntp_seed0"]) == 1
    said = capsys.readouterr().err
    assert said.startswith("error: train: out of memory (") and said.count("\n") == 1
    error = RuntimeError("CUDA error: an illegal memory access was encountered")
    with pytest.raises(RuntimeError, match="illegal memory access"):
        cli.call(["train", "smoke", "GPT-B_ntp_seed0"])


def test_what_is_said_of_images_is_no_json(home, capsys, monkeypatch):
    """`nppkit evaluate ... > out.json`: what the images' folder lacks is said elsewhere."""

    def found(preset, file, device):
        print("2 files are left out")
        return {"fid": 1.0}

    monkeypatch.setattr(models, "evaluate_file", found)
    assert cli.call(["evaluate", "smoke", "samples.npz"]) == 0
    said = capsys.readouterr()
    assert json.loads(said.out) == {"fid": 1.0} and "left out" in said.err


def test_the_presets_are_listed(capsys):
    """Each with what it is for; the help names the command."""
    assert cli.call(["presets"]) == 0
    assert [line.partition(": ")[0] for line in capsys.readouterr().out.splitlines()] == preset_names()
    with pytest.raises(SystemExit):
        cli.call(["--help"])
    assert "nppkit presets" in (text := capsys.readouterr().out) and "warm" not in text


def test_a_file_of_images_that_is_not_there_is_said_first(home, capsys, monkeypatch):
    """Before the reference, which may take an hour."""
    monkeypatch.setattr(models, "load_extractor", None)
    assert cli.call(["evaluate", "smoke", str(home / "samples.npz")]) == 1
    assert "samples.npz cannot be read" in capsys.readouterr().err
