"""Training: a loop over segments and steps that stops and resumes anywhere, bit for bit.

Batches, crops and label dropout are pure functions of (seed, step, sample), dropout noise of
(seed, step, rank), the learning rate of the step: a checkpoint needs no random state and no data position.
"""

import functools
import math
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from nppkit import noise
from nppkit.checkpoint import checkpoints, load_newest, load_optimizer, optimizer_tensors, save_checkpoint, set_aside
from nppkit.cost import step_flops
from nppkit.data.codes import CodeStore, prompts
from nppkit.errors import Diverged, NppkitError
from nppkit.files import check_space, write_atomic
from nppkit.loss import npp_loss
from nppkit.machine.devices import CannotCompile, autocast, compiled, compiling, pick_device, to_device
from nppkit.machine.guard import Interrupted, StopRequest, exclusive
from nppkit.machine.options import Options
from nppkit.machine.processes import ALONE, Processes, part_of, whole
from nppkit.model import GPT, GPTConfig, evaluating
from nppkit.patches import make_windows
from nppkit.schedule import Segment, is_coarse, learning_rate, patch_size_at, segment_at
from nppkit.training.batches import batch_at
from nppkit.training.config import TrainingConfig
from nppkit.training.events import Events
from nppkit.training.graphs import StepGraph
from nppkit.window import Window, area, of_side, patches

HELDOUT_BATCH = 100  # images whose held-out likelihood one process takes at a time


def make_optimizer(model: GPT, config: TrainingConfig, graphs: bool = False) -> torch.optim.AdamW:
    """AdamW with weight decay on every parameter of two or more dimensions (Section 3.1)."""
    matrices = [p for p in model.parameters() if p.dim() >= 2]
    vectors = [p for p in model.parameters() if p.dim() < 2]
    groups = [{"params": matrices, "weight_decay": config.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    lr = torch.tensor(config.lr, device=matrices[0].device) if graphs else config.lr  # a graph reads it where it lies
    return torch.optim.AdamW(groups, lr=lr, betas=(config.beta1, config.beta2), fused=True, capturable=graphs)


def make_model(store: CodeStore, sizes: dict, config: TrainingConfig, seed: int) -> GPT:
    """A new transformer for the codes of a store. Runs of one seed and size start from the same weights."""
    torch.manual_seed(noise.torch_seed(seed))
    shape = dict(vocab_size=store.vocab_size, num_classes=store.num_classes, grid_size=store.grid_size)
    shape |= dict(names=prompts(store.manifest.class_names)) if config.condition == "names" else {}
    model = GPT(GPTConfig(**{**shape, "dropout": config.dropout, **sizes}))
    model.recompute = config.recompute
    return model


def clock() -> tuple[float, float]:
    """Seconds on the wall, and of this process's CPU time."""
    return time.perf_counter(), time.process_time()


@dataclass
class Trainer:
    """One run: model, optimiser, data, schedule, and where checkpoints and history go."""

    model: GPT
    store: CodeStore
    heldout: CodeStore
    segments: tuple[Segment, ...]
    config: TrainingConfig
    seed: int
    history_path: Path
    checkpoint_folder: Path
    config_digest: str
    options: Options = field(default_factory=Options)
    precision: str = "fp32"
    processes: Processes = ALONE

    def __post_init__(self):
        self.grid, m = self.model.config.grid, self.store.manifest
        self.total_steps = self.segments[-1].end * self.config.steps_per_epoch
        self.data_digest = f"{m.tokenizer_sha256}/{m.source_digest}/{m.image_size}"
        for p in self.sizes():
            patches(self.grid, self.window(p))
        self._check_options()
        self.device = pick_device(self.options.device)
        self.replays = self.options.graphs and self.processes == ALONE and self.device.type == "cuda"
        self.model.windows = self.make_windows()
        self.model.to(self.device)
        if self.device.type == "cuda":
            torch.set_float32_matmul_precision("high")  # TF32 for the products that autocast leaves in fp32
        self.replica = self.processes.replicate(self.model, self.options.shard, partial=len(self.model.windows) > 0)
        self.optimizer = make_optimizer(self.model, self.config, self.replays)  # of what this process holds of the weights
        self.loss_fn = compiled(npp_loss, self.device) if self.config.compile else npp_loss
        self.step, self.losses, self.norms, self.spent, self.history = 0, [], [], [0.0, 0.0], []
        self.pending = []  # loss and gradient norm of steps since the last look, still on the device
        self.graphs: dict[int, StepGraph] = {}  # by patch side
        follow = self.options.tensorboard and self.processes.rank == 0
        self.events = Events(self.history_path.parent) if follow else None

    def window(self, patch_size: Window) -> Window:
        """What a segment's patch side is on this grid: the same along every axis."""
        return of_side(patch_size, self.grid)

    def sizes(self, step: int = 0) -> list[Window]:
        """The patch sizes of the segments that are not over at a step, in their order."""
        left = [s.shares for s in self.segments if s.end * self.config.steps_per_epoch > step]
        return list(dict.fromkeys(p for shares in left for p in shares))

    def make_windows(self) -> nn.ModuleDict:
        """What takes the mean's place at each size, as it begins."""
        return make_windows(self.config.patch, map(self.window, self.sizes()), self.model.config.dim).to(self.device)

    def drop_windows(self) -> None:
        """Forget it where its size comes no more: what is left at p = 1 are the released parameters, and their moments."""
        for K in set(self.model.windows) - {str(area(self.window(p))) for p in self.sizes(self.step)}:
            for p in self.model.windows.pop(K).parameters():
                self.optimizer.state.pop(p, None)

    def _check_options(self) -> None:
        batch, o, n = self.config.batch_size, self.options, self.processes.size
        if batch < n:
            raise NppkitError(f"batch_size {batch} is below {n} processes: use fewer devices")
        if o.micro_batch > batch:
            raise NppkitError(f"micro_batch {o.micro_batch} is above batch_size {batch}: use at most {batch}")
        if o.graphs and n == 1 and self.config.recompute and not self.config.compile:
            raise NppkitError("graphs: training.recompute is no part of them without training.compile: set that, or graphs=false")
        if o.shard and batch % n:  # all must compute as many pieces
            raise NppkitError(f"shard: {n} processes do not divide batch_size {batch}")

    @contextmanager
    def running(self) -> Iterator[range]:
        """Be the only writer of this run, from its newest checkpoint on: the steps that are still to be made.

        Each is made by `train_step` and ends with `after`. SIGTERM, Ctrl-C and SIGHUP are noted meanwhile.
        """
        with self.only_writer(), StopRequest() as self.stop:
            self.resume()
            self.warm_up()
            self.mark, self.saved = clock(), time.perf_counter()
            yield range(self.step, self.total_steps)

    def segment(self, step: int) -> Segment:
        """The segment that a step belongs to."""
        return self.segments[segment_at(step, self.segments, self.config.steps_per_epoch)]

    def patch_size(self, step: int) -> Window:
        """The patch side of a step: its segment's, or, where that draws it, this step's."""
        return patch_size_at(step, self.segments, self.config.steps_per_epoch, self.seed)

    def after(self, step: int) -> None:
        """Log and save where it is time; when asked to stop, save and raise Interrupted."""
        segment, per_epoch, self.step = self.segment(step), self.config.steps_per_epoch, step + 1
        per_row, per_likelihood = self.config.log_every or per_epoch, self.config.heldout_every * per_epoch
        boundary = self.step == segment.end * per_epoch
        if boundary:
            self.drop_windows()
        measured = boundary or (per_likelihood and self.step % per_likelihood == 0)
        if measured or self.step % per_row == 0:
            self.log(segment, measured)
        late = time.perf_counter() - self.saved > 60 * self.options.save_minutes
        due, stopping = self.processes.any(late, bool(self.stop.requested))
        if boundary or due or stopping or (self.options.keep_best and math.isfinite(self.score)):
            self.save()
            self.saved = time.perf_counter()
        if stopping:
            raise Interrupted(f"stopped after step {self.step} and saved; the same command goes on", self.stop.requested)

    def train_step(self, step: int, patch_size: int) -> None:
        """One optimiser step on the step's batch: this process's share of it, in pieces of `micro_batch`."""
        codes, labels = self.batch(step)
        if self.config.reset_optimizer and step == self.segment(step).start * self.config.steps_per_epoch:
            self.forget()
        self.set_rate(self.learning_rate(step))
        torch.manual_seed(noise.torch_seed(self.seed, noise.DROPOUT, step, self.processes.rank))
        compute = self.graphs.get(patch_size) or functools.partial(self.compute, patch_size)
        self.pending.append(compute(codes, labels))

    def compute(self, patch_size: int, codes: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Gradients, clipping and AdamW: the step's loss, and the norm of its gradients before clipping."""
        loss = self.backward(codes, labels, patch_size)
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), self.config.grad_clip)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return loss, norm

    def set_rate(self, lr: float) -> None:
        """AdamW's learning rate from now on."""
        for group in self.optimizer.param_groups:
            group["lr"] = group["lr"].fill_(lr) if isinstance(group["lr"], Tensor) else lr

    def forget(self) -> None:
        """AdamW's state as at the beginning."""
        for value in optimizer_tensors(self.optimizer, self.model).values():
            value.zero_()

    def backward(self, codes: Tensor, labels: Tensor, patch_size: int) -> Tensor:
        """Gradients of the global batch's mean loss, and this process's part of that loss."""
        size, parts = self.options.micro_batch or len(codes), []
        for start in range(0, len(codes), size):
            piece, last = slice(start, start + size), start + size >= len(codes)
            with autocast(self.device, self.precision), self.exchange_gradients(last):
                loss = self.loss_fn(self.replica, codes[piece], labels[piece], self.window(patch_size), self.grid)
                loss = loss * (len(codes[piece]) / self.config.batch_size)
                (loss * self.processes.size).backward()  # because gradients are averaged over the processes
            parts.append(loss.detach())
        return sum(parts[1:], start=parts[0])

    def exchange_gradients(self, now: bool) -> AbstractContextManager:
        """Let the processes average their gradients in this backward pass, or not yet; always, where none has room for all."""
        return nullcontext() if now or self.options.shard or self.processes == ALONE else self.replica.no_sync()

    def batch(self, step: int) -> tuple[Tensor, Tensor]:
        """This process's share of the global batch, which is the same for any number of processes."""
        codes, labels = batch_at(self.store, step, self.config.batch_size, self.seed, self.config.label_dropout)
        mine = self.processes.share(self.config.batch_size)
        return to_device(codes[mine], self.device), to_device(labels[mine], self.device)

    def learning_rate(self, step: int) -> float:
        return learning_rate(step, self.segments, self.config.steps_per_epoch, **self.config.rates)

    def warm_up(self, patch_sizes: tuple[int, ...] = ()) -> None:
        """Compile these patch sides, or every one that is still to come, and record its graph, outside the measured time."""
        self.model.train()
        for p in patch_sizes or self.sizes(self.step):
            if self.loss_fn is npp_loss and not self.replays:
                return
            try:
                with compiling():
                    self.record_graph(p) if self.replays else self.backward(*self.batch(0), p)
            except CannotCompile:
                self.loss_fn, self.replays = npp_loss, False
            self.optimizer.zero_grad(set_to_none=True)

    def record_graph(self, patch_size: int) -> None:
        """The graph of a step. The steps that prepare it have a learning rate of 0, and AdamW's state is put back after them."""
        self.set_rate(0.0)
        before = {key: value.clone() for key, value in optimizer_tensors(self.optimizer, self.model).items()}
        pool = next((graph.graph.pool() for graph in self.graphs.values()), None)
        self.graphs[patch_size] = StepGraph(functools.partial(self.compute, patch_size), *self.batch(0), pool)
        for key, value in optimizer_tensors(self.optimizer, self.model).items():
            value.copy_(before.get(key, torch.zeros_like(value)))  # none before the first step

    def lap(self) -> None:
        """Add the time since the last mark, after the device has finished, and check the losses so far."""
        self.losses += self.processes.total([float(loss) for loss, _ in self.pending])
        self.norms += [float(whole(norm)) for _, norm in self.pending]
        self.pending = []
        self.spent = [spent + now - mark for spent, now, mark in zip(self.spent, clock(), self.mark, strict=True)]
        for i, (loss, norm) in enumerate(zip(self.losses, self.norms, strict=True)):
            if not (math.isfinite(loss) and math.isfinite(norm)):
                raise self.not_finite(self.step - len(self.losses) + i, f"loss {loss}, gradient norm {norm}")

    def not_finite(self, step: int, what: str) -> Diverged:
        """The error that ends a run which has diverged at that step."""
        newest = checkpoints(self.checkpoint_folder)[-1:]
        last = f"the last good checkpoint is {newest[0]}" if newest else "no checkpoint was written yet"
        return Diverged(f"step {step}: {what}: lower training.lr; {last}")

    def log(self, segment: Segment, measured: bool) -> None:
        """Add a history row: means since the last row, and, where `measured`, the held-out likelihood."""
        self.lap()
        steps = len(self.losses)
        row = {"step": self.step, "epoch": self.step / self.config.steps_per_epoch, "segment": self.segments.index(segment)}
        row |= {"patch_size": segment.patch_size, "lr": self.learning_rate(self.step - 1)}
        if segment.coarse < 1:
            row["coarse"] = sum(self.patch_size(step) != 1 for step in range(self.step - steps, self.step)) / steps
        row |= {"loss": sum(self.losses) / steps, "grad_norm": sum(self.norms) / steps}
        row |= {"seconds": self.spent[0], "cpu_seconds": self.spent[1]}
        row |= {"images_per_second": steps * self.config.batch_size / self.spent[0], "heldout_nll": math.nan}
        if measured:
            row["heldout_nll"] = heldout_nll(self.model, self.heldout, self.device, self.precision, processes=self.processes)
            if len(self.heldout) and not math.isfinite(row["heldout_nll"]):
                raise self.not_finite(self.step - 1, f"held-out likelihood {row['heldout_nll']}")
        self.history.append(row)
        self.losses, self.norms, self.spent = [], [], [0.0, 0.0]
        self.write_history()
        if self.events:
            self.events.write(row)
        self.mark = clock()

    def write_history(self) -> None:
        """Write history.csv, if this is the first process: to nine digits, which tell any two fp32 numbers apart."""
        if self.processes.rank == 0:
            write_atomic(self.history_path, pd.DataFrame(self.history).to_csv(index=False, float_format="%.9g"))

    @property
    def score(self) -> float:
        """The held-out likelihood of these very weights, NaN where it was not measured."""
        last = self.history[-1] if self.history else {"step": -1}
        return last["heldout_nll"] if last["step"] == self.step else math.nan

    def save(self) -> None:
        """Write a checkpoint, if this is the first process. NaN never reaches disk, wherever it came from."""
        self.lap()
        tensors = {"model": self.model.state_dict(), "optimizer": optimizer_tensors(self.optimizer, self.model)}
        state = {"config_digest": self.config_digest, "data": self.data_digest, "history": self.history}
        state |= {"losses": self.losses, "norms": self.norms, "spent": self.spent, "score": self.score}
        state |= {"condition": self.config.condition, "patches_left": any(p != 1 for p in self.sizes(self.step))}
        tensors = {group: self.processes.gather(named) for group, named in tensors.items()}
        bad = next((name for group in tensors.values() for name, value in group.items() if not value.isfinite().all()), "")
        if self.processes.any(bool(bad))[0]:  # the first process has seen them whole; all stop
            raise self.not_finite(self.step - 1, f"{bad or 'a weight or moment'} holds NaN or Inf")
        if self.processes.rank == 0:
            save_checkpoint(self.checkpoint_folder, self.step, tensors, state, self.options.keep_last, self.options.keep_best)
        self.mark = clock()

    def only_writer(self) -> AbstractContextManager:
        """Keep others from this run, and see that its checkpoints fit on the disk."""
        if self.processes.rank > 0:
            return nullcontext()
        self.checkpoint_folder.mkdir(parents=True, exist_ok=True)
        size = 3 * sum(p.numel() * p.element_size() for p in self.model.parameters())  # weights and AdamW's two moments
        missing = self.options.keep_last + self.options.keep_best - len(checkpoints(self.checkpoint_folder))
        check_space(self.checkpoint_folder, size * (max(missing, 0) + 1), "the run's checkpoints")
        return exclusive(self.checkpoint_folder)

    def resume(self) -> None:
        """Continue from the newest complete checkpoint, if there is one."""
        found = load_newest(self.checkpoint_folder, self.config_digest)
        step = found[1]["step"] if found else 0
        if self.processes.total([step]) != [step * self.processes.size]:
            raise NppkitError(f"{self.checkpoint_folder} differs between the processes: use a file system that all of them share")
        if self.processes.rank == 0:
            set_aside(self.checkpoint_folder, step)
        if found is None:
            return
        tensors, state = found
        if state["data"] != self.data_digest:
            raise NppkitError(f"checkpoints in {self.checkpoint_folder} were trained on other codes: remove them")
        self.step = step
        self.drop_windows()
        own = self.model.state_dict()
        self.model.load_state_dict({name: part_of(value, own[name]) for name, value in tensors["model"].items()})
        load_optimizer(self.optimizer, self.model, tensors["optimizer"])
        for key in ("losses", "norms", "spent", "history"):
            setattr(self, key, state[key])
        self.write_history()  # of the checkpoint, whatever has become of the file

    def steps_of_sizes(self) -> Counter[Window]:
        """How many of all steps are made at each patch size."""
        found, per_epoch = Counter(), self.config.steps_per_epoch
        for s in self.segments:
            coarse = is_coarse(np.arange(s.start * per_epoch, s.end * per_epoch), s, per_epoch, self.seed)
            found += Counter({s.patch_size: int(coarse.sum())}) + Counter({1: int((~coarse).sum())})
        return found

    def measured_cost(self) -> dict[str, float]:
        """Seconds so far, from the history, without compilation; FLOPs of all steps, counted on this run's real ones.

        cpu_seconds are this process's own, summed over its threads: on a shared machine the steadier figure of the two.
        """
        codes, labels = (part[:1] for part in self.batch(0))  # no FLOP is shared by images: those of one, times the batch
        left, self.model.windows = self.model.windows, self.make_windows()  # as they were while they were used
        flops = {p: step_flops(self.model, codes, labels, self.window(p)) * self.config.batch_size for p in self.sizes()}
        self.model.windows, total = left, sum(flops[p] * n for p, n in self.steps_of_sizes().items())
        seconds = {key: sum(row[key] for row in self.history) for key in ("seconds", "cpu_seconds")}
        return {**seconds, "flops": total, "flops_per_step": flops}


@torch.inference_mode()
def heldout_nll(
    model: GPT, store: CodeStore, device: torch.device, precision: str = "fp32", processes: Processes = ALONE
) -> float:
    """Negative log-likelihood per token in nats at p = 1 over every image's first crop: eval mode, no label dropout.

    NaN without images.
    """
    total = 0.0
    with evaluating(model):
        for start in range(0, len(store), HELDOUT_BATCH * processes.size):
            together = np.arange(start, min(start + HELDOUT_BATCH * processes.size, len(store)))
            index = together[processes.share(len(together))]
            some = index if len(index) else together[:1]  # sharded weights are whole in all processes' forward passes or in none
            codes, labels = (t.to(device) for t in store.batch(some, np.zeros_like(some)))
            with autocast(device, precision):
                total += npp_loss(model, codes, labels, 1, model.config.grid).item() * len(index)
    return processes.total([total])[0] / len(store) if len(store) else math.nan
