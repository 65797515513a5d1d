"""torchrun for the processes of one job: its command line, its log, its end.

    torchrun --nproc-per-node 8 -m nppkit train PRESET RUN

The train notebook starts the same command when it is given more than one device, follows its log, and ends it with
itself. Within Slurm, `nodes` are the job's: one torchrun on each, started by srun.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

from nppkit.errors import Diverged, NppkitError
from nppkit.machine import guard
from nppkit.machine.progress import BATCH

MAX_RESTARTS = 3  # of all processes, after one was lost
SHUTDOWN = int(guard.GRACE_SECONDS) - 10  # seconds that workers have for a checkpoint before torchrun kills them; its own are 30
PORTS = range(29577, 30577)  # one of them is where the nodes of a Slurm job's run meet
SAID = "error: "  # how a line of nppkit's begins
ERROR = re.compile(rf"{SAID}|(\[rank\d+\]: )?[\w.]+(Error|Exception): \S")  # one of nppkit's, or a traceback's last line


def command(words: list[str], devices: int, nodes: int = 1) -> list[str]:
    """torchrun's command line for a command of nppkit on devices x nodes. NppkitError for nodes without Slurm."""
    torchrun = [sys.executable, "-m", "nppkit", "torchrun", f"--nproc-per-node={devices}", f"--max-restarts={MAX_RESTARTS}"]
    torchrun.append(f"--shutdown-timeout={SHUTDOWN}")
    meeting, srun = ["--standalone"], []
    if nodes > 1:
        job = os.environ.get("SLURM_JOB_ID", "0")
        place = f"{_first_node(nodes)}:{PORTS[int(job) % len(PORTS)]}"
        meeting = [f"--nnodes={nodes}", f"--rdzv-id={job}", "--rdzv-backend=c10d", f"--rdzv-endpoint={place}"]
        srun = ["srun", "--overlap", f"--nodes={nodes}", "--ntasks-per-node=1"]
    return [*srun, *torchrun, *meeting, "-m", "nppkit", *words]


def _first_node(nodes: int) -> str:
    """The host where the nodes of this Slurm job meet."""
    if int(os.environ.get("SLURM_JOB_NUM_NODES", 0)) < nodes:
        raise NppkitError(f"nodes {nodes}: this is no Slurm job of as many nodes; start torchrun on each, see docs/scaling.md")
    found = subprocess.run(["scontrol", "show", "hostnames"], capture_output=True, text=True, check=True).stdout
    return found.split()[0]


def run(arguments: list[str], log: Path) -> None:
    """Run a command, print its lines as they come and keep them in `log`. NppkitError, or Diverged, with its last error if it
    fails.

    A signal to stop is passed on as SIGTERM, and raises Interrupted when the command has ended.
    """
    last = ""  # of its errors, nppkit's if there is one: other ranks then lose their connection, and torchrun says less
    options = dict(stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env={**os.environ, BATCH: "1"})
    options |= dict(text=True, errors="backslashreplace")  # a library may write what is no UTF-8
    with open(log, "w") as file, subprocess.Popen(arguments, **options) as process, guard.StopRequest(process.terminate) as stop:
        try:
            for line in process.stdout:
                print(line, end="", flush=True)
                print(line, end="", file=file, flush=True)
                if ERROR.match(line) and line.startswith(SAID) >= last.startswith(SAID):
                    last = line
        except BaseException:  # interrupted by hand
            process.terminate()
            raise
    if stop.requested:
        raise guard.Interrupted(f"asked to stop; the same command goes on (log: {log})", stop.requested)
    if process.returncode == Diverged.status:
        raise Diverged(last.strip().removeprefix(SAID))
    if process.returncode:
        raise NppkitError(f"torchrun failed with status {process.returncode}: {last.strip()} (read {log})")


def start(words: list[str]) -> None:
    """torchrun with these words, but it ends with its parent, and its workers find each other after a restart.

    After Diverged there is none, since it would end alike: torchrun ends with that status.
    """
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher import api
    from torch.distributed.run import main as torchrun

    class Agent(api.LocalElasticAgent):
        def _monitor_workers(self, group: object) -> object:
            found = super()._monitor_workers(group)
            if diverged(found.failures):
                self._remaining_restarts = 0
            return found

    def diverged(failures: dict) -> bool:
        return Diverged.status in [failure.exitcode for failure in failures.values()]

    guard.die_with_parent()
    os.environ["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = "1"  # else restarted workers read each other's addresses of the last time
    api.LocalElasticAgent = Agent
    try:
        torchrun(words)
    except ChildFailedError as error:
        if diverged(error.failures):
            sys.exit(Diverged.status)
        raise
