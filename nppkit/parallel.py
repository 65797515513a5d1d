"""More than one process: torchrun starts them, and each knows its share of the work.

    torchrun --nproc-per-node 8 -m nppkit.train PRESET RUN

The train notebook starts the same command when it is given more than one device, follows its log, and ends it with
itself. Within Slurm, `nodes` are the job's: one torchrun on each, started by srun.
"""

import contextlib
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn

from nppkit import guard
from nppkit.errors import NppkitError
from nppkit.progress import BATCH

MAX_RESTARTS = 3  # of all processes, after one was lost
PORT = 29577  # where the nodes of one run meet
ERROR = re.compile(r"error: |(\[rank\d+\]: )?[\w.]+(Error|Exception): \S")  # one of nppkit's, or a traceback's last line


@dataclass(frozen=True)
class Processes:
    """This process among those that compute one thing together."""

    rank: int = 0
    size: int = 1

    def share(self, n: int) -> slice:
        """This process's part of n items; the parts follow each other and differ by one item at most."""
        return slice(n * self.rank // self.size, n * (self.rank + 1) // self.size)

    def total(self, values: list[float]) -> list[float]:
        """Each value summed over the processes, in fp64."""
        return self._reduce(values, dist.ReduceOp.SUM)

    def any(self, *flags: bool) -> list[bool]:
        """Each flag, if it is set in any process: all processes must ask at the same point."""
        return [bool(value) for value in self._reduce(flags, dist.ReduceOp.MAX)]

    def _reduce(self, values: list[float], operation: dist.ReduceOp) -> list[float]:
        if self.size == 1 or not values:
            return list(values)
        tensor = torch.tensor(values, dtype=torch.float64)  # on the CPU, over gloo: no wait for a GPU
        dist.all_reduce(tensor, operation)
        return tensor.tolist()

    def replicate(self, model: nn.Module, shard: bool = False) -> nn.Module:
        """The model with gradients averaged over the processes (DDP, or FSDP to `shard` it); alone, the model itself."""
        if self.size == 1:
            return model
        if shard:
            return _sharded(model, self.size)
        return nn.parallel.DistributedDataParallel(model, forward_sync_buffers=False, gradient_as_bucket_view=True)

    def gather(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """The tensors, whole and on the CPU, in the first process; all must ask. One after the other: two may not fit a GPU."""
        gathered = {}
        for name, tensor in tensors.items():
            full = whole(tensor)
            if self.rank == 0:
                gathered[name] = full.cpu()
        return gathered


ALONE = Processes()


def _sharded(model: nn.Module, size: int) -> nn.Module:
    """The model with every weight and gradient split over the processes; a block's weights are whole while it computes."""
    from torch.distributed.device_mesh import init_device_mesh  # here, because importing them takes a second
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh(next(model.parameters()).device.type, (size,))
    for part in (*model.layers, model):
        fully_shard(part, mesh=mesh, reshard_after_forward=True)
    return model


def whole(tensor: Tensor) -> Tensor:
    """A sharded tensor put together from all processes, which must all ask; another one as it is."""
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def part_of(tensor: Tensor, like: Tensor) -> Tensor:
    """The inverse: of a whole tensor what this process holds of one `like` it, on the same device."""
    if not hasattr(like, "device_mesh"):
        return tensor.to(like.device)
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(tensor, like.device_mesh, like.placements, src_data_rank=None)  # every process has read the file


@contextlib.contextmanager
def joined() -> Iterator[Processes]:
    """The processes that torchrun started, this one among them; ALONE without torchrun."""
    if int(os.environ.get("WORLD_SIZE", 1)) == 1:
        yield ALONE
        return
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]) % torch.cuda.device_count())
    dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo")
    yield Processes(dist.get_rank(), dist.get_world_size())
    dist.barrier()  # nobody leaves while rank 0 still writes; after an error nobody waits
    dist.destroy_process_group()


def command(module: str, arguments: list[str], devices: int, nodes: int = 1) -> list[str]:
    """torchrun's command line for a module of nppkit on devices x nodes. NppkitError for nodes without Slurm."""
    torchrun = [sys.executable, "-m", "nppkit.parallel", f"--nproc-per-node={devices}", f"--max-restarts={MAX_RESTARTS}"]
    meeting, srun = ["--standalone"], []
    if nodes > 1:
        meeting = [f"--nnodes={nodes}", "--rdzv-backend=c10d", f"--rdzv-endpoint={_first_node(nodes)}:{PORT}"]
        srun = ["srun", "--overlap", f"--nodes={nodes}", "--ntasks-per-node=1"]
    return [*srun, *torchrun, *meeting, "-m", module, *arguments]


def _first_node(nodes: int) -> str:
    """The host where the nodes of this Slurm job meet."""
    if int(os.environ.get("SLURM_JOB_NUM_NODES", 0)) < nodes:
        raise NppkitError(f"nodes {nodes}: this is no Slurm job of as many nodes; start torchrun on each, see docs/scaling.md")
    found = subprocess.run(["scontrol", "show", "hostnames"], capture_output=True, text=True, check=True).stdout
    return found.split()[0]


def run(arguments: list[str], log: Path) -> None:
    """Run a command, print its lines as they come and keep them in `log`. NppkitError with its last error if it fails.

    SIGTERM is passed on, and raises Interrupted when the command has ended.
    """
    last = ""  # of its errors; torchrun's own account of them, which follows, says less
    options = dict(stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env={**os.environ, BATCH: "1"})
    with open(log, "w") as file, subprocess.Popen(arguments, **options) as process, guard.StopRequest(process.terminate) as stop:
        try:
            for line in process.stdout:
                print(line, end="", flush=True)
                print(line, end="", file=file, flush=True)
                last = line if ERROR.match(line) else last
        except BaseException:  # interrupted by hand
            process.terminate()
            raise
    if stop.requested:
        raise guard.Interrupted(f"stopped after SIGTERM; the same command goes on (log: {log})")
    if process.returncode:
        raise NppkitError(f"torchrun failed with status {process.returncode}: {last.strip()} (read {log})")


def main() -> None:
    """torchrun, but it ends with its parent, and its workers find each other after a restart.

    python -m nppkit.parallel --nproc-per-node 8 -m nppkit.train ...
    """
    from torch.distributed.run import main as torchrun

    guard.die_with_parent()
    os.environ["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = "1"  # else restarted workers read each other's addresses of the last time
    torchrun()


if __name__ == "__main__":
    main()
