"""What a job asks of a cluster: time, memory, CPUs and GPUs, from the plan of its preset."""

import dataclasses
import functools
import math

from nppkit.gpus import UTILISATION
from nppkit.study.graph import options
from nppkit.study.presets import Preset, load_preset
from nppkit.study.records import Job
from nppkit.study.runs import preset_runs

MINUTES = 24 * 60  # where no GPU is planned with
OVERHEAD = 30  # minutes for start, compilation, checkpoints, metrics
MARGIN = 1.5  # on the planned time; whoever runs out of it saves, and goes on in the next attempt
MEMORY = 16_000  # MB of host memory for each process; what holds more comes on top
GRACE = "--signal=TERM@120"  # seconds between the request to stop and the end of the time


def devices_of(preset: Preset, job: Job, devices: int = 0, nodes: int = 1) -> tuple[int, int]:
    """Devices a node, and nodes, that a job computes on: evaluations on one node, tables on one device. 0: the preset's."""
    if job.notebook not in ("train", "evaluate"):
        return 1, 1
    return devices or (preset.gpus if preset.gpu else 1), nodes if job.notebook == "train" else 1


def request(preset: Preset, job: Job, devices: int = 0, nodes: int = 1) -> dict[str, int | str]:
    """Snakemake's resources of a job, as its Slurm executor reads them: minutes, MB and CPUs a node, GPUs a node, nodes."""
    devices, nodes = devices_of(preset, job, devices, nodes)
    asked = {"runtime": MINUTES, "mem_mb": MEMORY * devices, "nodes": nodes, "slurm_extra": GRACE}
    asked["cpus_per_task"] = devices * options(job).threads
    if preset.gpu:
        asked["mem_mb"] += _held(preset, job)
        asked["gres"] = f"gpu:{devices}" if job.notebook in ("tokenize", "train", "evaluate") else ""
    if _is_planned(preset):
        asked["runtime"] = OVERHEAD + math.ceil(MARGIN * _planned(preset.source)[0].get(job.name, 0) / (devices * nodes) / 60)
    return {key: value for key, value in asked.items() if value != ""}


def _is_planned(preset: Preset) -> bool:
    """The plan is of a GPU, and of the paper's models on images."""
    return bool(preset.gpu) and not preset.beyond


def _held(preset: Preset, job: Job) -> int:
    """MB that one process holds as a whole: the images of an evaluation, a checkpoint of a training."""
    e, side = preset.evaluation, preset.data.image_size
    if job.notebook == "evaluate":
        return math.ceil((e.samples + e.select_samples) * preset.data.frames * 3 * side**2 / 1e6)
    return _planned(preset.source)[2][job.parameters["run"]] if job.notebook == "train" and _is_planned(preset) else 0


@functools.lru_cache(maxsize=1)
def _planned(preset: str) -> tuple[dict[str, float], dict[str, int], dict[str, int]]:
    """Seconds of each job on one device; of each run's training the images that a device holds at once, and a checkpoint's MB."""
    from nppkit import cost  # only here, because they bring torch
    from nppkit.jobs import plan

    preset = dataclasses.replace(load_preset(preset), models_of="")  # should a lender's run not be there, it is trained
    table = plan.plan(preset, UTILISATION).set_index("job")
    seconds = table["train"].to_dict()  # of the tokenize jobs
    for kind in ("train", "evaluate"):
        seconds |= {f"{kind} {name}": value for name, value in table[kind].items()}
    held = {name: int(of.split()[0]) for name, of in table["images a device"].fillna("").items() if of}
    saved = {run.id: math.ceil(cost.checkpoint_bytes(plan.model_config(preset, run)) / 1e6) for run in preset_runs(preset)}
    return seconds, held, saved


def parameters(preset: Preset, job: Job, devices: int = 0, nodes: int = 1, shard: bool = False) -> str:
    """The launcher's options for several devices or nodes, and for the part of a batch that a device can hold.

    That part is reckoned without `shard`, which leaves room for more.
    """
    devices, nodes = devices_of(preset, job, devices, nodes)
    words = f" -p devices {devices}" * (devices > 1) + f" -p nodes {nodes}" * (nodes > 1)
    words += " -p shard true" * (shard and job.notebook == "train")
    if _is_planned(preset) and job.notebook == "train":
        held = max(1, _planned(preset.source)[1][job.parameters["run"]])  # 0 would be the whole share
        words += f" -p micro_batch {held}" * (held < preset.training.batch_size // (devices * nodes))
    return words
