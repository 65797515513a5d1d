"""More than one process: each knows its share of the work, and what the others found."""

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn


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

    def replicate(self, model: nn.Module, shard: bool = False, partial: bool = False) -> nn.Module:
        """The model with gradients averaged over the processes (DDP, or FSDP to `shard` it); alone, the model itself.

        partial: some steps leave parameters out.
        """
        if self.size == 1:
            return model
        if shard:
            return _sharded(model, self.size)
        options = dict(gradient_as_bucket_view=True, find_unused_parameters=partial)
        return nn.parallel.DistributedDataParallel(model, forward_sync_buffers=False, **options)

    def gather(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """The tensors, whole and on the CPU, in the first process; all must ask. One after the other: two may not fit a GPU."""
        gathered = {}
        for name, tensor in tensors.items():
            full = whole(tensor)
            if self.rank == 0:
                gathered[name] = full.cpu()
            del full  # before the next one is put together
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
    if int(os.environ.get("WORLD_SIZE") or 1) == 1:
        yield ALONE
        return
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]) % torch.cuda.device_count())
    dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo")
    yield Processes(dist.get_rank(), dist.get_world_size())
    dist.barrier()  # nobody leaves while rank 0 still writes; after an error nobody waits
    dist.destroy_process_group()
