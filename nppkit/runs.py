"""Runs and the graph: run ids, jobs, where their results lie, and completion records.

tokenize -> train -> evaluate -> tables and figure. A job's configuration holds everything that decides
its result, including its upstream jobs' configurations, so its digest says whether a result is current.
"""

import contextlib
import functools
import hashlib
import json
import os
import platform
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from fractions import Fraction
from importlib import metadata
from pathlib import Path

from safetensors import SafetensorError

from nppkit.errors import NppkitError, run_command
from nppkit.presets import Preset, TrainingConfig, load_preset, settings
from nppkit.schedule import Segment, multi_scale_segments, ntp_segments, parse_lambda, single_scale_segments

FIGURES = {  # a report's figures, by what follows its name; the others have one
    "table5_cost": (),
    "claims": (),
    "gain": ("", "_switch"),
    "equal_compute": ("", "_time", "_fid", "_fid_time"),
    "when_it_pays": ("", "_flops", "_nll"),
}
COARSE = "study_8x8"  # the preset that when_it_pays reads besides its own
REPORTS = ("table1_main", "table2_patch_size", "table3_lambda", "table4_levels", "table5_cost", "figure1_cost_vs_fid")
LARGE = "-384"  # suffix of a size trained at 1.5 times the image side: the tables' "384" rows
RUN_ID = re.compile(r"GPT-(?P<size>[A-Za-z0-9]+)(?P<large>-384)?_(?P<recipe>[A-Za-z0-9_-]+)_seed(?P<seed>\d+)")
RECIPE = re.compile(
    r"(?:ntp|npp_(?P<kind>[pL])(?P<value>\d+)_lambda(?P<numerator>\d+)-(?P<denominator>\d+))"
    r"(?:_epochs(?P<epochs>[1-9]\d*))?(?:_lr(?P<lr>(?:[1-9]\d*)?[1-9]e-[1-9]))?(?P<constant>_constant)?(?P<reset>_reset)?"
)


@dataclass(frozen=True)
class Run:
    """One training run. levels 1 means a single patch side: patch_size until lambda * T, then 1.

    Variants: `epochs` other than the preset's (0), a learning rate `lr` other than the preset's (as text: 15e-4), the rate
    `constant` as LlamaGen trained, the optimiser's state `reset` at each segment.
    """

    size: str
    patch_size: int = 1
    levels: int = 1
    lam: Fraction | None = None
    large: bool = False
    seed: int = 0
    epochs: int = 0
    lr: str = ""
    constant: bool = False
    reset: bool = False

    def __post_init__(self):
        if self.levels == 2:  # #L = 2 is p = 2: one run
            object.__setattr__(self, "levels", 1)
            object.__setattr__(self, "patch_size", 2)
        if self.lam is not None:
            object.__setattr__(self, "lam", parse_lambda(self.lam))

    @property
    def recipe(self) -> str:
        variant = f"_epochs{self.epochs}" * bool(self.epochs) + f"_lr{self.lr}" * bool(self.lr)
        variant += "_constant" * self.constant + "_reset" * self.reset
        if self.lam is None:
            return f"ntp{variant}"
        scale = f"L{self.levels}" if self.levels > 1 else f"p{self.patch_size}"
        return f"npp_{scale}_lambda{self.lam.numerator}-{self.lam.denominator}{variant}"

    @property
    def id(self) -> str:
        """Readable and unique, e.g. GPT-L_npp_p2_lambda2-3_seed0."""
        return f"GPT-{self.size}{LARGE if self.large else ''}_{self.recipe}_seed{self.seed}"

    def of(self, size: str, **changes: object) -> "Run":
        """The same run at another size, or with other changes."""
        return replace(self, size=size, **changes)

    @classmethod
    def parse(cls, run_id: str) -> "Run":
        """The run of that id. NppkitError if it is not one."""
        match = RUN_ID.fullmatch(run_id)
        recipe = RECIPE.fullmatch(match["recipe"]) if match else None
        if not recipe:
            raise NppkitError(f"run {run_id!r} is not a run id: expected e.g. GPT-B_npp_p2_lambda1-2_seed0")
        run = dict(size=match["size"], large=bool(match["large"]), seed=int(match["seed"]))
        run |= dict(epochs=int(recipe["epochs"] or 0), lr=recipe["lr"] or "")
        run |= dict(constant=bool(recipe["constant"]), reset=bool(recipe["reset"]))
        if recipe["kind"]:
            run["lam"] = parse_lambda(f"{recipe['numerator']}/{recipe['denominator']}")
            run["levels" if recipe["kind"] == "L" else "patch_size"] = int(recipe["value"])
        return cls(**run)

    def training(self, preset: Preset) -> TrainingConfig:
        """The preset's training with what this variant changes."""
        schedule = "constant" if self.constant else preset.training.lr_schedule
        epochs, reset = self.epochs or preset.training.epochs, self.reset or preset.training.reset_optimizer
        lr = float(self.lr or preset.training.lr)
        return replace(preset.training, epochs=epochs, lr=lr, lr_schedule=schedule, reset_optimizer=reset)

    def segments(self, epochs: int) -> tuple[Segment, ...]:
        """The run's segments in schedule epochs, of which there are `epochs` unless the run has its own number."""
        epochs = self.epochs or epochs
        if self.lam is None:
            return ntp_segments(epochs)
        if self.levels > 1:
            return multi_scale_segments(epochs, self.levels, self.lam)
        return single_scale_segments(epochs, self.patch_size, self.lam)


def preset_runs(preset: Preset) -> list[Run]:
    """Every run of the preset, in its order; NppkitError names a recipe that is not one, and a number of seeds of no run."""
    names = [f"{size}_{recipe}" for size, recipes in preset.runs.items() for recipe in recipes]
    first = [Run.parse(f"GPT-{name}_seed0") for name in names]
    for name, run in zip(names, first, strict=True):
        if run.id != f"GPT-{name}_seed0":
            raise NppkitError(f"preset {preset.name}: runs: {name} is spelt {run.recipe} here: change it")
    if unknown := set(preset.seeds) - {*preset.runs, *names}:
        raise NppkitError(f"preset {preset.name}: seeds: {min(unknown)!r} is none of its sizes or size_recipe: see runs")
    runs = list(dict.fromkeys(replace(run, seed=seed) for run in first for seed in seeds(preset, run)))
    if unknown := set(preset.weights) - {run.id for run in runs}:
        raise NppkitError(f"preset {preset.name}: weights of {min(unknown)}, which is not one of its runs: add it to runs")
    for run in runs:
        check_patches(preset, run)
    return runs


def seed_count(preset: Preset, run: Run) -> int:
    """How many seeds of a run the preset has: that of its recipe, else that of its size; 0 if it does not list the run."""
    size = f"{run.size}{LARGE * run.large}"
    if run.recipe not in preset.runs.get(size, []):
        return 0
    return int(preset.seeds.get(f"{size}_{run.recipe}", preset.seeds.get(size, 1)))


def seeds(preset: Preset, run: Run) -> range:
    """The seeds of a run that the preset lists; empty if it does not list the run."""
    return range(preset.first_seed, preset.first_seed + seed_count(preset, run))


def check_patches(preset: Preset, run: Run) -> None:
    """NppkitError if the tokenizer does not divide the run's image side, or a patch side its code grid."""
    side, pixels = image_size(preset, run.large), preset.tokenizer.downsampling
    if side % pixels:
        raise NppkitError(
            f"preset {preset.name}: run {run.id}: image side {side} is not a multiple of the tokenizer's {pixels}: "
            "change data.image_size"
        )
    grid = side // pixels
    for segment in run.segments(preset.training.epochs):
        if grid % segment.patch_size:
            raise NppkitError(
                f"preset {preset.name}: run {run.id}: patch side {segment.patch_size} does not divide the {grid} x {grid} "
                f"code grid ({pixels} pixels a code): use fewer levels, or a shorter tokenizer.vq.ch_mult"
            )


def find_run(preset: Preset, run_id: str) -> Run:
    """The preset's run of that id. NppkitError if its model is not in the preset."""
    run = Run.parse(run_id)
    if run.size not in preset.models:
        raise NppkitError(f"run {run_id}: preset {preset.name} has no model {run.size}: use {', '.join(preset.models)}")
    check_patches(preset, run)
    return run


def home() -> Path:
    """The folder of results/, figures/ and checkpoints/: NPPKIT_HOME, else the repository."""
    repository = Path(__file__).parents[1]
    default = repository if (repository / "pyproject.toml").is_file() else Path.cwd()
    return Path(os.environ.get("NPPKIT_HOME", default)).resolve()


def located(path: str) -> Path:
    """A path of a preset: a relative one starts at `home()`, an empty one stays empty."""
    return home() / Path(path).expanduser() if path else Path()


@dataclass(frozen=True)
class Job:
    """One papermill execution: notebook, parameters, result folder, what it writes, what it needs, its configuration."""

    name: str
    notebook: str
    parameters: dict
    folder: Path
    outputs: tuple[str, ...]
    upstream: tuple["Job", ...]
    config: dict
    spared: tuple[str, ...] = ()  # outputs without which it counts as done, until a job needs them: made again, they are the same

    @property
    def record(self) -> Path:
        """The completion record, written last."""
        return self.folder / f"{self.notebook}.record.json"

    @functools.cached_property
    def digest(self) -> str:
        """sha256 of the configuration, which includes the upstream configurations' digests."""
        content = {"config": self.config, "upstream": [job.digest for job in self.upstream]}
        return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()


def results_dir(preset: Preset) -> Path:
    return home() / "results" / preset.name


def figures_dir(preset: Preset) -> Path:
    return home() / "figures" / preset.name


def run_dir(preset: Preset, run: Run) -> Path:
    return results_dir(preset) / "runs" / run.id


def tokenizer_preset(preset: Preset) -> Preset:
    """The preset whose tokenizer, extractor and codes this one uses: its own, or those of `tokenizer_of`."""
    if not preset.tokenizer_of:
        return preset
    other = load_preset(preset.tokenizer_of)
    for section in ("data", "tokenizer", "extractor"):
        if getattr(preset, section) != getattr(other, section):
            raise NppkitError(
                f"preset {preset.name}: {section} differs from that of {other.name}: make it equal, or own a tokenizer"
            )
    return other


def tokenizer_dir(preset: Preset, large: bool = False) -> Path:
    return results_dir(tokenizer_preset(preset)) / f"tokenizer{LARGE if large else ''}"


def checkpoint_dir(preset: Preset, run: Run) -> Path:
    """Outside git, keyed by the configuration's digest: a changed preset never resumes an old run."""
    return home() / "checkpoints" / preset.name / run.id / train_job(preset, run).digest[:12]


def image_size(preset: Preset, large: bool = False) -> int:
    return preset.data.image_size * 3 // 2 if large else preset.data.image_size


def tokenize_job(preset: Preset, large: bool = False) -> Job:
    """Train or load the tokenizer and the extractor, extract the codes. The large one only extracts, at 1.5 x the side."""
    preset = tokenizer_preset(preset)
    outputs = ["metrics.json", "reconstructions.png", *store_files(preset)]
    upstream = (tokenize_job(preset),) if large else ()
    if not large:
        outputs += ["tokenizer.safetensors", "tokenizer.json"] + (
            ["extractor.safetensors"] if preset.extractor.name == "digits" else []
        )
    config = {"data": settings(preset.data), "tokenizer": settings(preset.tokenizer), "extractor": settings(preset.extractor)}
    config["image_size"] = image_size(preset, large)
    parameters = {"preset": preset.source, "large": large, "threads": preset.tokenizer_threads}
    folder = tokenizer_dir(preset, large)
    spared = tuple(store_files(preset)) if large else ()  # a clone of the study has room for the other codes only
    return Job(f"tokenize{LARGE if large else ''}", "tokenize", parameters, folder, tuple(outputs), upstream, config, spared)


def store_files(preset: Preset) -> list[str]:
    """The files of the two code stores of a tokenize job."""
    codes = "codes.npz" if preset.data.packed else "codes.npy"
    return [f"{split}/{name}" for split in ("train", "heldout") for name in (codes, "labels.npy", "manifest.json")]


def train_job(preset: Preset, run: Run) -> Job:
    """Train one run."""
    config = {"model": preset.models[run.size], "training": settings(run.training(preset)), "run": run.id}
    outputs = ("config.json", "history.csv", "train_metrics.json")
    config, parameters = {**config, **_precision(preset)}, _parameters(preset, run)
    return Job(f"train {run.id}", "train", parameters, run_dir(preset, run), outputs, _tokenize_jobs(preset, run), config)


def _tokenize_jobs(preset: Preset, run: Run) -> tuple[Job, ...]:
    return (tokenize_job(preset), tokenize_job(preset, True)) if run.large else (tokenize_job(preset),)


def _parameters(preset: Preset, run: Run) -> dict:
    return {"preset": preset.source, "run": run.id, "precision": preset.precision, "threads": preset.threads}


def _precision(preset: Preset) -> dict:
    """What decides a result unless it is the default."""
    return {} if preset.precision == "fp32" else {"precision": preset.precision}


def evaluate_job(preset: Preset, run: Run) -> Job:
    """Sample and score one run, as it was trained here or from released weights."""
    outputs = ("metrics.json", "samples.png")
    config, upstream = {"evaluation": settings(preset.evaluation), **_precision(preset)}, (train_job(preset, run),)
    if run.id in preset.weights:
        config, upstream = {**config, "weights": preset.weights[run.id], "run": run.id}, _tokenize_jobs(preset, run)
    folder, parameters = run_dir(preset, run), _parameters(preset, run)
    return Job(f"evaluate {run.id}", "evaluate", parameters, folder, outputs, upstream, config)


def report_job(preset: Preset, report: str) -> Job:
    """One table or figure."""
    outputs = [f"{report}.{suffix}" for suffix in (("csv", "md", "tex") if report.startswith("table") else ("csv",))]
    figures = [f"{report}{part}.{suffix}" for part in FIGURES.get(report, ("",)) for suffix in ("png", "pdf")]
    folder, config = results_dir(preset), {"report": report}
    outputs += [os.path.relpath(figures_dir(preset) / name, folder) for name in figures]
    upstream = tuple(evaluate_job(preset, run) for run in report_runs(preset, report))
    if report == "when_it_pays":
        coarse = load_preset(COARSE)
        config[COARSE] = {run.id: _outputs_digest(evaluate_job(coarse, run)) for run in preset_runs(coarse)}
    return Job(report, report, {"preset": preset.source}, folder, tuple(outputs), upstream, config)


def report_runs(preset: Preset, report: str) -> list[Run]:
    """The preset's runs that a report needs: of a table its rows', of Figure 1 Table 5's, of others all."""
    from nppkit.rows import table_runs  # only here, because it needs this module

    table = re.match(r"table(\d)", report.replace("figure1_", "table5_"))
    wanted = table_runs(int(table[1])) if table else None
    return [run for run in preset_runs(preset) if wanted is None or replace(run, seed=0) in wanted]


def reports(preset: Preset) -> tuple[str, ...]:
    """The reading notebooks of a preset: the paper's tables and Figure 1, and what else it asks for."""
    return tuple(dict.fromkeys((*REPORTS, *preset.reports)))


def graph(preset: Preset) -> list[Job]:
    """All jobs of a preset, upstream first."""
    runs = preset_runs(preset)
    tokenize = [tokenize_job(preset)] + [tokenize_job(preset, True)] * any(run.large for run in runs)
    train = [train_job(preset, run) for run in runs if run.id not in preset.weights]
    evaluate = [evaluate_job(preset, run) for run in runs]
    return [*tokenize, *train, *evaluate, *(report_job(preset, report) for report in reports(preset))]


def sha256(path: str | Path) -> str:
    """Hex digest of a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Where to write what becomes `path` at the end of the block: either the old or the new file, also after a power cut.

    NppkitError if the disk is full; nothing half written is left.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        yield temporary
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except (OSError, SafetensorError, RuntimeError) as error:  # RuntimeError: torch.save's
        raise NppkitError(f"{path} could not be written ({' '.join(str(error).split())}): free some space") from None
    finally:
        temporary.unlink(missing_ok=True)


def write_atomic(path: Path, text: str) -> None:
    """Write a text file as `replacing` does."""
    with replacing(path) as temporary:
        temporary.write_text(text)


def write_record(job: Job) -> None:
    """Record that the job is complete, with the digests of what it wrote. NppkitError names a missing output."""
    missing = [name for name in job.outputs if not (job.folder / name).is_file()]
    if missing:
        raise NppkitError(
            f"{job.name}: {(job.folder / missing[0]).resolve()} was not written: read {job.folder}/{job.notebook}.ipynb"
        )
    outputs = {name: sha256(job.folder / name) for name in job.outputs}
    upstream = {up.name: _outputs_digest(up) for up in job.upstream}
    record = {"job": job.name, "config_digest": job.digest, "config": job.config, "upstream": upstream, "outputs": outputs}
    write_atomic(job.record, json.dumps(record, indent=1, default=str) + "\n")


def _outputs_digest(job: Job) -> str:
    """One digest for all that a complete job wrote, as its record has it; empty without a record."""
    record = _read_record(job)
    return hashlib.sha256(json.dumps(record["outputs"], sort_keys=True).encode()).hexdigest() if record else ""


def _read_record(job: Job) -> dict | None:
    try:
        record = json.loads(job.record.read_text())
        return record if {"config_digest", "outputs", "upstream"} <= record.keys() else None
    except (OSError, ValueError, AttributeError):
        return None


def why_incomplete(job: Job, needed: bool = True) -> str:
    """Empty if the job's record is valid for today's configuration and files; otherwise one line that says why not.

    needed: by a job that is to run, which wants the spared files, too.
    """
    if not job.record.is_file():
        return "not run yet"
    record = _read_record(job)
    if record is None:
        return f"{job.record} is damaged"
    if record["config_digest"] != job.digest:
        return "its configuration has changed"
    for upstream in job.upstream:
        if record["upstream"].get(upstream.name) != _outputs_digest(upstream):
            return f"the results of {upstream.name} have changed"
    for name in job.outputs:
        path = job.folder / name
        if name in job.spared and not needed and not path.exists():
            continue
        if not path.is_file() or sha256(path) != record["outputs"].get(name):
            return f"{path.resolve()} is missing or has changed"
    return ""


def set_aside_stale(preset: Preset) -> list[str]:
    """Rename every record that is no longer valid, so that its job runs again; returns a line for each."""
    jobs = graph(preset)
    reasons = {job.name: why_incomplete(job, needed=False) for job in jobs}
    for job in jobs:
        trained = job.notebook == "evaluate" and job.parameters["run"] not in preset.weights
        if trained and reasons[job.name] and not reasons[job.upstream[0].name]:
            reasons[job.upstream[0].name] = _checkpoint_gone(preset, Run.parse(job.parameters["run"]))
    for run in {job.parameters["run"] for job in jobs if job.notebook in ("train", "evaluate") and reasons[job.name]}:
        for upstream in _tokenize_jobs(preset, Run.parse(run)):
            reasons[upstream.name] = why_incomplete(upstream)
    lines = []
    for job in (job for job in jobs if reasons[job.name] and job.record.is_file()):
        job.record.replace(job.record.with_suffix(".stale"))
        lines.append(f"{job.name} will run again: {reasons[job.name]}")
    return lines


def _checkpoint_gone(preset: Preset, run: Run) -> str:
    """A finished training whose checkpoint is gone counts until someone needs the checkpoint."""
    folder = checkpoint_dir(preset, run)
    return "" if any(folder.glob("step_*")) else f"its checkpoint in {folder} is gone"


def extractor_weights(preset: Preset) -> Path:
    """The feature extractor's weights file: the trained digit classifier's, or the one the preset names."""
    if preset.extractor.name == "digits":
        return tokenizer_dir(preset) / "extractor.safetensors"
    return located(preset.extractor.weights)


def versions() -> dict[str, str]:
    """Versions of what decides a number."""
    return {
        "python": platform.python_version(),
        **{name: metadata.version(name) for name in ("nppkit", "torch", "torch-fidelity")},
    }


def rule_name(job: Job) -> str:
    """The job's name as Snakemake shows it and takes it as a target; table1_main is table1."""
    numbered = re.match(r"(table|figure)\d+", job.name)
    return numbered[0] if numbered else re.sub(r"[^A-Za-z0-9]", "_", job.name)


def launch_arguments(job: Job) -> str:
    """The launcher's command line for the job, without the preset."""
    run = f" --run {job.parameters['run']}" if "run" in job.parameters else ""
    return f"{job.notebook}{run}{' --large' if job.parameters.get('large') else ''}"


def priority(preset: Preset, job: Job) -> int:
    """Evaluations first, because they are short; then trainings: the "384" rows last, seed by seed, the longest first."""
    if job.notebook == "evaluate":
        return 100_000
    if job.notebook != "train":
        return 0
    run = Run.parse(job.parameters["run"])
    length = sum((s.end - s.start) / s.patch_size**2 for s in run.segments(preset.training.epochs))
    cost = 100 * list(preset.models).index(run.size) + min(99, int(40 * length / preset.training.epochs))
    return 10_000 * (not run.large) + 1000 * max(0, 9 - (run.seed - preset.first_seed)) + min(cost, 999)


def main() -> int:
    """Print where a preset's tables and figure are: python -m nppkit.runs PRESET [table1 ...]."""
    name, *wanted = sys.argv[1:]
    preset = load_preset(name)
    for job in (report_job(preset, report) for report in reports(preset)):
        if not wanted or rule_name(job) in wanted:
            print(f"{job.name}:", *((job.folder / name).resolve().relative_to(home()) for name in job.outputs))
    return 0


if __name__ == "__main__":
    run_command(main)
