"""The warm server: forked processes are the ones that were asked for, with their own streams, signals and ends."""

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from test_launch import notebook_of

from nppkit.jobs import warm

SERVE = "import sys; from nppkit.jobs import warm; warm.MODULES = {modules!r}; sys.exit(warm.serve(sys.argv[1:]))"

ONE = """
import os, sys, time
print(os.getcwd(), os.environ['WORD'], sys.argv[1:], flush=True)
time.sleep(float(sys.argv[1]))
sys.exit(7)
"""


def served(folder, script, modules="json", python=sys.executable, **variables):
    """What a script printed, and its exit status, that ran as the command of a server with these modules."""
    (folder / "script.py").write_text("import os, signal, sys, time\nfrom nppkit.jobs import warm\n" + textwrap.dedent(script))
    (folder / "one.py").write_text(ONE)
    words = [sys.executable, "-c", SERVE.format(modules=modules), python, str(folder / "script.py")]
    env = {**os.environ, "PYTHONPATH": str(folder), "WORD": "word", **variables}
    found = subprocess.run(words, cwd=folder, env=env, capture_output=True, text=True, timeout=120)
    return found.stdout, found.returncode, found.stderr


def test_a_forked_process_is_the_program_that_was_asked_for(tmp_path):
    """Arguments, environment, folder and output are the asker's; its exit status comes back, the command's is ours."""
    (tmp_path / "place").mkdir()
    script = """
    process = warm.Process(["one", "0"], {**os.environ, "WORD": "other"}, "place")
    assert process.pid != os.getpid()
    print(process.wait(), process.poll())
    sys.exit(3)
    """
    out, status, errors = served(tmp_path, script)
    assert out.splitlines() == [f"{tmp_path}/place other ['0']", "7 7"] and status == 3, errors


@pytest.mark.parametrize("variables", [{"TMPDIR": "x" * 100}, {"OMP_NUM_THREADS": "2,1"}, {"OMP_NUM_THREADS": ""}])
def test_a_long_temporary_folder_and_openmps_own_lists(tmp_path, variables):
    """A socket's name may have about a hundred bytes, and OpenMP takes a number of threads for each level."""
    if "TMPDIR" in variables:
        variables = {"TMPDIR": str(tmp_path / variables["TMPDIR"])}
        Path(variables["TMPDIR"]).mkdir()
    out, status, errors = served(tmp_path, 'sys.exit(warm.Process(["one", "0"], dict(os.environ), ".").wait())', **variables)
    assert out and status == 7, errors


def test_another_name_of_the_interpreter_is_the_same_environment(tmp_path):
    """make calls bin/python, and bin/snakemake begins with the name that made the environment, for example python3.11."""
    names = sorted(path for path in (Path(sys.prefix) / "bin").glob("python3*") if path.name.replace(".", "").isalnum())
    other = next(str(path) for path in names if str(path) != sys.executable)
    script = """
    print(sys.executable, warm.Process(["one", "0"], dict(os.environ), ".").wait())
    """
    assert served(tmp_path, script, python=other)[0].splitlines()[-1] == f"{other} 7"


def test_signals_arrive_and_are_told(tmp_path):
    """A process that is asked to stop, killed, or left alone by whoever asked for it ends by that signal."""
    script = """
    sys.stdout = open("said", "w")  # what the processes print goes elsewhere: without buffers it would fall between our words
    first, second, third = (warm.Process(["one", "60"], dict(os.environ), ".", session=True) for _ in range(3))
    assert os.getpgid(first.pid) == first.pid and first.poll() is None
    first.terminate()
    second.kill()
    print(first.wait(), second.wait())
    os.kill(third.pid, 0)
    third.connection.shutdown(2)
    for _ in range(200):
        time.sleep(0.05)
        try:
            os.kill(third.pid, 0)
        except ProcessLookupError:
            print("gone")
            break
    """
    _, status, errors = served(tmp_path, script)
    assert (tmp_path / "said").read_text().splitlines() == ["-15 -9", "gone"] and status == 0, errors


def test_whoever_asks_for_half_disturbs_nobody(tmp_path):
    """A client that is killed, or stopped, in the middle of asking: those who come after it are served."""
    script = """
    import json, socket

    def half(words):
        connection = socket.socket(socket.AF_UNIX)
        connection.connect(os.environ[warm.WARM])
        socket.send_fds(connection, [words[:1]], [0, 1, 2])
        connection.sendall(words[1:])
        return connection

    half(b"{").close()
    half(b"not a request\\n").close()
    silent = half(b'{"program"')
    print(warm.Process(["one", "0"], dict(os.environ), ".").wait())
    """
    out, status, errors = served(tmp_path, script)
    assert out.splitlines()[-1:] == ["7"] and status == 0, errors


def test_a_server_that_fails_leaves_its_command_alone(tmp_path):
    """Whoever asks it is told, and does its work by itself; they do not wait for each other."""
    script = """
    try:
        warm.Process(["one", "0"], dict(os.environ), ".")
    except ConnectionError:
        print("alone")
    """
    out, status, errors = served(tmp_path, script, modules="no_such_module")
    assert out == "alone\n" and status == 1 and "No module named 'no_such_module'" in errors


def test_a_command_that_is_killed_takes_its_jobs_along(tmp_path):
    """They are asked to stop, and waited for until they have saved; the status is the killed command's."""
    (tmp_path / "slow.py").write_text(
        "import signal, sys, time\n"
        "signal.signal(signal.SIGTERM, lambda *_: (time.sleep(1), open('saved', 'w').close(), sys.exit(75)))\n"
        "open('begun', 'w').close()\n"
        "time.sleep(60)\n"
    )
    script = """
    import subprocess
    asker = "import os; from nppkit.jobs import warm; print(warm.Process(['slow'], dict(os.environ), '.').wait(), flush=True)"
    subprocess.Popen([sys.executable, "-c", asker])
    while not os.path.exists("begun"):
        time.sleep(0.05)
    os.kill(os.getpid(), signal.SIGKILL)
    """
    out, status, errors = served(tmp_path, script)
    assert status == 137 and (tmp_path / "saved").exists() and out == "75\n", errors


def test_no_process_for_another_environment(tmp_path):
    """Other modules, another Slurm job, or no server: the asker is told, and starts its process itself."""
    script = """
    for variables in ({"PYTHONPATH": "elsewhere"}, {"SLURM_JOB_ID": "1"}):
        try:
            warm.Process(["one", "0"], {**os.environ, **variables}, ".")
        except ConnectionError as error:
            print(error)
    """
    assert served(tmp_path, script)[0].splitlines() == ["the warm server is of another environment"] * 2


def test_without_a_server(monkeypatch):
    """Nothing is asked where the variable is not set, or names what is gone."""
    monkeypatch.delenv(warm.WARM, raising=False)
    assert warm.command(["run"]) is None
    monkeypatch.setenv(warm.WARM, "/nowhere/warm")
    assert warm.command(["run"]) is None
    with pytest.raises(ConnectionError, match="no warm server"):
        warm.Process(["nppkit"], dict(os.environ), ".")


def test_a_job_in_a_forked_kernel(tmp_path):
    """The launcher's notebook runs in a kernel that the server forked, and leaves its record; its import is the server's.

    Its tables have as many columns as a started kernel's.
    """
    notebook_of(
        tmp_path / "notebooks",
        "import os, sys, pandas\ncolumns = pandas.get_option('display.max_columns')\n"
        "open('../made.txt', 'w').write(f\"{os.getppid()} {'colorsys' in sys.modules} {columns}\")",
    )
    script = """
    from pathlib import Path
    from nppkit.jobs import launch
    from nppkit.study.records import Job
    launch.NOTEBOOKS = Path("notebooks").resolve()
    launch.execute(Job("make", "make", {}, Path.cwd(), ("made.txt",), (), {}), {})
    print(os.getppid(), Path("made.txt").read_text(), Path("make.record.json").exists())
    """
    out, status, errors = served(tmp_path, script, modules="ipykernel.kernelapp colorsys pandas")
    server, *said = out.split()
    assert said == [server, "True", "20", "True"] and status == 0, errors


def test_a_forked_kernel_stops_with_its_launcher(tmp_path):
    """SIGTERM to the launcher is one to the kernel, which is no child of its process; none runs on."""
    notebook_of(tmp_path / "notebooks", "import time\nopen('../begun', 'w').close()\ntime.sleep(600)")
    script = """
    import threading
    from pathlib import Path
    from nppkit.jobs import kernels, launch
    from nppkit.machine.guard import Interrupted
    from nppkit.study.records import Job
    launch.NOTEBOOKS, begun = Path("notebooks").resolve(), Path("begun").resolve()

    def stop():
        while not begun.exists():
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=stop, daemon=True).start()
    try:
        launch.execute(Job("make", "make", {}, Path.cwd(), ("made.txt",), (), {}), {})
    except Interrupted as error:
        print(error.status, *(f"{type(kernel).__module__} {kernel.wait()}" for kernel in kernels.KERNELS))
    """
    out, status, errors = served(tmp_path, script, modules="ipykernel.kernelapp")
    assert out == "75 nppkit.jobs.warm -15\n" and status == 0, errors
