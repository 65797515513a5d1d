"""Processes that begin with their imports done: a server that has made them forks one for each job and each kernel.

    nppkit warm snakemake --cores 2 ...

While that command runs, `nppkit run` and the kernels of its notebooks are forked by the server whose socket NPPKIT_WARM
names. A job stays what it is, a launcher and a kernel of its own, without the processor time in which both import what
every job imports. On another machine, from another environment or without the variable they start by themselves.

A request is a connection: three streams and a line of JSON (program, environment, folder) go in, the process's id comes
back, and its exit status at its end. Where whoever asked is gone, the process is asked to stop, as by SIGTERM.
"""

import contextlib
import functools
import gc
import importlib
import json
import multiprocessing
import os
import runpy
import signal
import socket
import subprocess
import sys
import tempfile
from multiprocessing.connection import wait
from pathlib import Path

WARM, FORKED = "NPPKIT_WARM", "NPPKIT_FORKED"
MODULES = """
torch._dynamo torch._inductor.compile_fx torch._inductor.async_compile torch._inductor.codegen.cpp torch.utils.flop_counter
papermill nbclient ipykernel.kernelapp matplotlib.backends.backend_agg matplotlib.backends.backend_pdf
nppkit.jobs.launch nppkit.jobs.torchrun nppkit.study.models nppkit.study.tables nppkit.scoring.probe nppkit.scoring.sampling
nppkit.show.figures nppkit.show.pages
"""  # not matplotlib_inline's backend, which a kernel has to import itself to be told when a cell ends, and to show its figure
LOOK_SECONDS = 0.1  # between two looks whether the command has ended
SOCKET_PATH = 80  # bytes of a folder in which a socket can lie: with its name it may have about a hundred
ASK_SECONDS = 5  # for a client to say what it wants


def environment(variables: dict[str, str]) -> str:
    """Whose modules and whose share of a machine a process has: a server forks for its own environment alone."""
    of = (variables.get(name, "") for name in ("PYTHONPATH", "SLURM_JOB_ID"))
    return " ".join((sys.prefix, str(Path(__file__).resolve()), *of))  # bin/python and bin/python3.11 are one environment


class Process(subprocess.Popen):
    """A process that the server has forked for us; what a Popen does with signals, this one does, too."""

    stdin = stdout = stderr = None

    def __init__(self, program: list[str], variables: dict[str, str], folder: str, session: bool = False):
        """Run `python -m *program`. ConnectionError without a server, or if it is of another environment."""
        self.connection, self.args, self.returncode = socket.socket(socket.AF_UNIX), program, None
        request = dict(program=program, variables=variables, folder=folder, session=session, environment=environment(variables))
        request["ignored"] = [n for n in (signal.SIGINT, signal.SIGHUP) if signal.getsignal(n) == signal.SIG_IGN]  # nohup
        try:
            self.connection.connect(os.environ.get(WARM, ""))
            socket.send_fds(self.connection, [b" "], [0, 1, 2])
            self.connection.sendall(json.dumps(request).encode() + b"\n")
            self.answers = self.connection.makefile()
            self.pid = int(self.answers.readline() or 0)
        except OSError as error:
            raise ConnectionError(f"no warm server ({error})") from None
        if not self.pid:
            raise ConnectionError("the warm server is of another environment")

    def poll(self) -> int | None:
        """The exit status, or minus the signal that ended it; None while it runs."""
        ended = self.returncode is None and wait([self.connection], 0)
        return self.wait() if ended else self.returncode

    def wait(self) -> int:
        """Its exit status, as soon as it has one; processes do not outlive a server that is gone."""
        if self.returncode is None:
            self.returncode = int(self.answers.readline() or -signal.SIGKILL)
        return self.returncode


def command(words: list[str]) -> int | None:
    """Run a command of nppkit in a forked process, and return its exit status; None where no server does it."""
    if WARM not in os.environ or os.environ.get(FORKED) == str(os.getpid()):
        return None
    try:
        process = Process(["nppkit", *words], dict(os.environ), os.getcwd())
    except ConnectionError:
        return None
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, lambda number, _: process.send_signal(number))
    status = process.wait()
    return status if status >= 0 else 128 - status


def serve(words: list[str]) -> int:
    """Run a command, and fork processes for whoever asks until it has ended; its exit status."""
    from nppkit.jobs.environment import set_environment  # here, because a client of the server imports nothing

    threads = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0]  # OpenMP takes a list: the outermost level's first
    set_environment(int(threads) if threads.isdecimal() else 1)
    place = tempfile.gettempdir() if len(tempfile.gettempdir()) < SOCKET_PATH else "/tmp"
    with tempfile.TemporaryDirectory(prefix="nppkit-", dir=place) as folder, socket.socket(socket.AF_UNIX) as listener:
        listener.bind(f"{folder}/warm")
        listener.listen(64)
        # not in a with statement, which would wait for it if we failed, while it waited for us
        process = subprocess.Popen(words, env={**os.environ, WARM: f"{folder}/warm"})
        for number in (signal.SIGINT, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)  # the command's to answer; we end with it
        signal.signal(signal.SIGTERM, lambda *_: process.terminate())
        jobs, asked = {}, False
        while process.poll() is None or jobs:
            if process.returncode is not None and not asked:  # it was killed: its jobs save, and end
                asked = True
                for left in multiprocessing.active_children():
                    left.terminate()
            answer(listener, jobs)
    return process.returncode if process.returncode >= 0 else 128 - process.returncode


@functools.cache
def ready() -> None:
    """Import what jobs import: at the first request, because a command that finds everything done makes none."""
    os.environ.setdefault("MPLBACKEND", "module://matplotlib_inline.backend_inline")  # a kernel's, read at matplotlib's import
    for name in MODULES.split():
        importlib.import_module(name)
    if "pandas" in sys.modules:  # imported outside a kernel it takes its output for a terminal's, and leaves columns out
        sys.modules["pandas"].set_option("display.max_columns", 20)
    gc.freeze()


def answer(listener: socket.socket, jobs: dict[int, tuple]) -> None:
    """Look for a new request, a process that has ended, and a connection whose other end is gone.

    jobs: a process's sentinel -> the process and its connection, None when nobody waits for its end any more.
    """
    open_ones = [connection for _, connection in jobs.values() if connection]
    found = wait([listener, *open_ones, *jobs], LOOK_SECONDS)
    for sentinel, (process, connection) in list(jobs.items()):
        if sentinel in found:
            process.join()
            del jobs[sentinel]
            if connection:
                with contextlib.suppress(OSError), connection:
                    connection.sendall(f"{process.exitcode}\n".encode())
        elif connection in found:
            process.terminate()
            connection.close()
            jobs[sentinel] = process, None
    if listener in found:
        accept(listener, jobs, open_ones)


def accept(listener: socket.socket, jobs: dict[int, tuple], others: list[socket.socket]) -> None:
    """Fork a process for whoever asks. The server has no threads and runs nothing, so that a fork is safe."""
    connection, _ = listener.accept()
    request, streams = hear(connection)
    if request.get("environment") == environment(dict(os.environ)):
        ready()
        fork = multiprocessing.get_context("fork")
        process = fork.Process(target=become, args=(connection, streams, [listener, *others], request))
        process.start()
        jobs[process.sentinel] = process, connection
    else:
        connection.close()
    for stream in streams:
        os.close(stream)


def hear(connection: socket.socket) -> tuple[dict, list[int]]:
    """What a client wants, and its three streams; nothing from one that was killed or stopped while it asked."""
    streams = []
    try:
        connection.settimeout(ASK_SECONDS)
        _, streams, _, _ = socket.recv_fds(connection, 1, 3)
        with connection.makefile("rb") as file:
            request = json.loads(file.readline())
        connection.settimeout(None)
    except (OSError, ValueError):
        return {}, streams
    return request, streams


def become(connection: socket.socket, streams: list[int], others: list[socket.socket], request: dict) -> None:
    """In a forked process: take the place of the program that was asked for."""
    from nppkit.machine.guard import die_with_parent  # here, because a client of the server imports nothing

    for other in others:
        other.close()
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
    sys.stdin = os.fdopen(0, closefd=False)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    for number, handler in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
        signal.signal(number, signal.SIG_IGN if number in request["ignored"] else handler)
    if request["session"]:
        os.setsid()
    os.environ.clear()
    os.environ.update(request["variables"], **{FORKED: str(os.getpid())})
    os.chdir(request["folder"])
    connection.sendall(f"{os.getpid()}\n".encode())  # after setsid: whoever reads it signals all of the session
    connection.close()
    die_with_parent()
    sys.argv = list(request["program"])
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
