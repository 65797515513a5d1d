"""What a machine does for a job, and not what the job computes: the one place of these options.

A running notebook takes them as one text, `options: str = "devices=8 save_minutes=5"`; the launcher and the Slurm profile
write it from `-p devices 8`. None of them changes a result but for rounding and, where dropout is above 0, another sample of
its noise: that depends on device, devices, nodes and micro_batch.
"""

import dataclasses

from nppkit.errors import NppkitError
from nppkit.settings import Bool, Count, Few, Number, Positive, build, section, settings


@section
class Options:
    """Devices, processes, pieces of a batch, and checkpoints. NppkitError names a value out of its range.

    >>> Options.parse("devices=8 micro_batch=32").devices
    8
    """

    device: str = "auto"  # auto, cpu, cuda, cuda:1 ...
    threads: Few = 1  # CPU threads of a process
    devices: Few = 1  # processes on a machine, each with its own GPU if there are GPUs
    nodes: Few = 1  # machines, within a Slurm job of as many
    shard: Bool = False  # on several: weights and AdamW's moments split over them (FSDP), not repeated on each
    micro_batch: Count = 0  # images that a process computes at once; 0: its whole share of the batch
    graphs: Bool = False  # each patch side's whole step as one CUDA graph, where one process trains on a GPU
    tensorboard: Bool = False  # TensorBoard's event files beside history.csv
    save_minutes: Number = 10.0  # between two checkpoints; besides there is one at the end of each segment
    keep_last: Positive = 2  # checkpoints that stay; should the newest be damaged, there is one before it
    keep_best: Count = 0  # checkpoints of the lowest held-out likelihood that stay besides

    @classmethod
    def parse(cls, text: str) -> "Options":
        """The options of a text of name=value."""
        pairs = [word.partition("=") for word in text.split()]
        if wrong := [name for name, equals, _ in pairs if not equals]:
            raise NppkitError(f"options: {wrong[0]!r} is not name=value: write e.g. devices=8 save_minutes=5")
        return build(cls, {name: value for name, _, value in pairs}, "options")

    def __str__(self) -> str:
        return " ".join(f"{name}={value}" for name, value in settings(self).items())

    @property
    def processes(self) -> int:
        """How many compute a job together."""
        return self.devices * self.nodes

    def one_process(self) -> "Options":
        """For one process that looks at what several have trained: on the CPU, because a GPU may not hold all of it."""
        return dataclasses.replace(self, device="cpu", devices=1, nodes=1, graphs=False) if self.processes > 1 else self


NAMES = tuple(field.name for field in dataclasses.fields(Options))
