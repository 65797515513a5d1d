"""The graph: the jobs of a preset, and where their results lie.

tokenize -> train -> evaluate -> tables and figure. A job's configuration holds everything that decides
its result, including its upstream jobs' configurations, so its digest says whether a result is current.
"""

import os
from dataclasses import replace
from pathlib import Path

from nppkit.errors import NppkitError
from nppkit.files import home, located, read_json, sha256, write_atomic
from nppkit.machine.options import Options
from nppkit.model_config import MODELS
from nppkit.release_table import local
from nppkit.settings import settings
from nppkit.study.presets import Preset, load_preset, preset_names
from nppkit.study.published import REPORTS, table_runs
from nppkit.study.records import Job, changed_input, is_of_other_settings, outputs_digest, recorded_inputs, why_incomplete
from nppkit.study.runs import LARGE, Run, image_size, preset_runs

NOTEBOOKS = Path(__file__).parents[2] / "notebooks"


def results_dir(preset: Preset) -> Path:
    return home() / "results" / preset.name


def figures_dir(preset: Preset) -> Path:
    return home() / "figures" / preset.name


def run_dir(preset: Preset, run: Run) -> Path:
    return results_dir(preset) / "runs" / run.id


def tokenizer_preset(preset: Preset) -> Preset:
    """The preset whose tokenizer, extractor and codes this one uses: its own, or those of `tokenizer_of`."""
    if preset.models_of:
        return tokenizer_preset(models_preset(preset))
    return _lender(preset, preset.tokenizer_of, ("data", "tokenizer", "extractor"), "own a tokenizer")


def models_preset(preset: Preset) -> Preset:
    """The preset whose trained runs this one scores: its own, or those of `models_of`."""
    trained_here = ("extractor",) if preset.extractor.name == "digits" else ()
    alike = ("data", "tokenizer", *trained_here, "models", "training", "precision")
    lender = _lender(preset, preset.models_of, alike, "take models_of away")
    if preset.models_of and (lender.weights or lender.models_of):
        raise NppkitError(f"preset {preset.name}: {lender.name} trains nothing: name one that does, or copy its weights")
    return lender


def _lender(preset: Preset, name: str, alike: tuple[str, ...], remedy: str) -> Preset:
    """The preset itself, or that of the name, which must be like it in those settings."""
    other = load_preset(name) if name else preset
    if unlike := [setting for setting in alike if getattr(preset, setting) != getattr(other, setting)]:
        raise NppkitError(f"preset {preset.name}: {unlike[0]} differs from that of {other.name}: make it equal, or {remedy}")
    return other


def tokenizer_dir(preset: Preset, large: bool = False) -> Path:
    return results_dir(tokenizer_preset(preset)) / f"tokenizer{LARGE if large else ''}"


def checkpoint_dir(preset: Preset, run: Run) -> Path:
    """Outside git, keyed by the configuration's digest and the codes': a changed preset or data never resume an old run."""
    codes = tokenizer_dir(preset, run.large) / "train/manifest.json"
    key = f"{train_job(preset, run).digest[:12]}{'-' + sha256(codes)[:8] if codes.is_file() else ''}"
    return home() / "checkpoints" / models_preset(preset).name / run.id / key


def last_checkpoint(preset: Preset, run: Run) -> Path:
    """Where a run's trained transformer lies once the training is finished."""
    t = run.training(preset)
    return checkpoint_dir(preset, run) / f"step_{t.epochs * t.steps_per_epoch:08d}"


def samples_dir(preset: Preset, run: Run) -> Path:
    """Where a run's images go as they are drawn: beside its checkpoints; for another preset's run, to a folder of one's own."""
    return home() / "checkpoints" / preset.name / run.id / checkpoint_dir(preset, run).name


def tokenize_job(preset: Preset, large: bool = False) -> Job:
    """Train or load the tokenizer and the extractor, extract the codes. The large one only extracts, at 1.5 x the side."""
    preset = tokenizer_preset(preset)
    if preset.data.text:
        return _text_job(preset)
    outputs, upstream = ("metrics.json", "reconstructions.png", *store_files(preset)), (tokenize_job(preset),) if large else ()
    if not large:
        outputs += ("tokenizer.safetensors", "tokenizer.json", *["extractor.safetensors"] * (preset.extractor.name == "digits"))
    config = {"data": settings(preset.data), "tokenizer": settings(preset.tokenizer), "extractor": settings(preset.extractor)}
    config["image_size"] = image_size(preset, large)
    parameters = {"preset": preset.source, "large": large, "options": str(Options(threads=preset.tokenizer_threads))}
    folder = tokenizer_dir(preset, large)
    name, inputs = f"tokenize{LARGE if large else ''}", tokenizer_inputs(preset)
    spared = outputs[1:]  # a clone has room for the tokenizers and codes of a few studies
    return Job(name, "tokenize", parameters, folder, outputs, upstream, config, spared, inputs)


def _text_job(preset: Preset) -> Job:
    """The windows of a text. Its codes are its bytes: nothing is trained."""
    config, outputs = {"data": settings(preset.data)}, ("metrics.json", *store_files(preset))
    return Job("tokenize", "tokenize_text", {"preset": preset.source}, tokenizer_dir(preset), outputs, (), config)


def tokenizer_inputs(preset: Preset) -> tuple[str, ...]:
    """What a tokenize job reads from outside: folders of images, files, weights. torchvision checks its files itself."""
    d, t = preset.data, preset.tokenizer
    images = (d.path, d.heldout_path) if d.source in ("folder", "npz") else ()
    return (*images, local(t.weights), local(t.start), t.perceptual_weights, preset.extractor.weights)


def store_files(preset: Preset) -> tuple[str, ...]:
    """The files of the two code stores of a tokenize job."""
    codes = "codes.npz" if preset.data.packed else "codes.npy"
    return tuple(f"{split}/{name}" for split in ("train", "heldout") for name in (codes, "labels.npy", "manifest.json"))


def train_job(preset: Preset, run: Run) -> Job:
    """Train one run."""
    preset = models_preset(preset)
    config = {"model": preset.models[run.size], "training": settings(run.training(preset)), "run": run.id, **_precision(preset)}
    folder, outputs = run_dir(preset, run), ("config.json", "history.csv", "train_metrics.json")
    return Job(f"train {run.id}", "train", _parameters(preset, run), folder, outputs, _tokenize_jobs(preset, run), config)


def _tokenize_jobs(preset: Preset, run: Run) -> tuple[Job, ...]:
    return (tokenize_job(preset), tokenize_job(preset, True)) if run.large else (tokenize_job(preset),)


def _parameters(preset: Preset, run: Run) -> dict:
    options = str(Options(threads=preset.threads, graphs=preset.graphs))
    return {"preset": preset.source, "run": run.id, "options": options}


def _precision(preset: Preset) -> dict:
    """What decides a result unless it is the default."""
    return {} if preset.precision == "fp32" else {"precision": preset.precision}


def evaluate_job(preset: Preset, run: Run) -> Job:
    """Sample and score one run, as it was trained here or from released weights."""
    outputs = ("metrics.json", "samples.png")
    config, upstream = {"evaluation": settings(preset.evaluation), **_precision(preset)}, (train_job(preset, run),)
    if preset.models_of:  # elsewhere the extractor is that of the tokenize job
        config["extractor"] = settings(preset.extractor)
    if run.id in preset.weights:
        named = {"weights": preset.weights[run.id], "run": run.id, "model": preset.models[run.size]}
        config, upstream = {**config, **named}, _tokenize_jobs(preset, run)
    folder, parameters = run_dir(preset, run), _parameters(preset, run)
    spared = ("samples.png",)  # a study of many seeds keeps the grids of a few
    extractor = preset.extractor.weights * bool(preset.models_of)
    inputs = (preset.evaluation.reference, local(preset.weights.get(run.id, "")), extractor)
    return Job(f"evaluate {run.id}", "evaluate", parameters, folder, outputs, upstream, config, spared, inputs)


def result_job(preset: Preset, run: Run) -> Job:
    """The job that ends with the numbers of a run: its evaluation, or, of a text, its training, which looks at held-out text."""
    return train_job(preset, run) if preset.data.text else evaluate_job(preset, run)


def says_of_itself(report: str) -> dict[str, list[str]]:
    """What a reading notebook's metadata says under "nppkit": what follows its name in those of its `figures` (else it has one),
    the settings of a preset that name other presets whose results it `reads`, and those that it `needs` to show anything."""
    path = NOTEBOOKS / f"{report}.ipynb"
    return read_json(path)["metadata"].get("nppkit", {}) if path.is_file() else {}


def report_job(preset: Preset, report: str, known: dict[str, dict] | None = None) -> Job:
    """One table or figure. known: the results of other presets that it reads, by name, as far as they were looked up."""
    says = says_of_itself(report)
    written = ("csv", "md", "tex") if report in REPORTS and report.startswith("table") else ("csv",)
    outputs = [f"{report}.{suffix}" for suffix in written]
    figures = [f"{report}{part}.{suffix}" for part in says.get("figures", [""]) for suffix in ("png", "pdf")]
    folder, config = results_dir(preset), {"report": report, **_asked(preset)}
    outputs += [os.path.relpath(figures_dir(preset) / name, folder) for name in figures]
    upstream = tuple(result_job(preset, run) for run in report_runs(preset, report))
    known = {} if known is None else known
    for name, other in _read_presets(preset, says.get("reads", [])).items():
        if name not in known:
            known[name] = {run.id: outputs_digest(result_job(other, run)) for run in preset_runs(other)} | _asked(other)
        config[name] = known[name]
    return Job(report, report, {"preset": preset.source}, folder, tuple(outputs), upstream, config)


def _asked(preset: Preset) -> dict:
    """What a preset asks of its results, apart from how they are made: a page that tells of them is made again for another."""
    asked = ("questions", "equal_flops", "metric", "rates")
    return {name: value for name, value in settings(preset).items() if name in asked}


def _read_presets(preset: Preset, settings: list[str]) -> dict[str, Preset]:
    """Those that a preset names by these settings, and those that they name by them in turn."""
    found, asked = {}, [preset]
    while asked:
        values = [getattr(asked[-1], setting) for setting in settings]  # a preset's name, or several, or none
        names = [name for value in values for name in ([value] if isinstance(value, str) else value)]
        new = {name: load_preset(name) for name in names if name and name not in {*found, preset.name}}
        found, asked = found | new, asked[:-1] + list(new.values())
    return found


def report_runs(preset: Preset, report: str) -> list[Run]:
    """The preset's runs that a report needs: of a table its rows', of Figure 1 Table 5's, of others all.

    Table 1's page shows sizes that are not the paper's, too, and Figure 1's those and what is compared at equal FLOPs.
    """
    wanted = table_runs(REPORTS[report]) if report in REPORTS else None
    own = set(preset.models) - set(MODELS) if report in ("table1_main", "figure1_cost_vs_fid") else set()
    longer = {epochs for _, epochs in preset.equal_flops.values()} if report == "figure1_cost_vs_fid" else set()
    runs = preset_runs(preset)
    return [r for r in runs if wanted is None or replace(r, seed=0) in wanted or r.size in own or r.epochs in longer]


def reports(preset: Preset) -> tuple[str, ...]:
    """The reading notebooks of a preset: the paper's tables and Figure 1, for runs like its own, and what else it asks for.

    NppkitError for one that is not there, or that shows what the preset does not have.
    """
    if gone := [name for name in preset.reports if NOTEBOOKS.is_dir() and not (NOTEBOOKS / f"{name}.ipynb").is_file()]:
        raise NppkitError(f"preset {preset.name}: reports: there is no notebooks/{gone[0]}.ipynb: take it away, or add it")
    for name in preset.reports:
        if lacking := [key for key in says_of_itself(name).get("needs", []) if not getattr(preset, key)]:
            raise NppkitError(f"preset {preset.name}: reports: {name} shows its {lacking[0]}: set that, or take {name} away")
    return tuple(dict.fromkeys((*(() if preset.beyond else REPORTS), *preset.reports)))


def graph(preset: Preset) -> list[Job]:
    """All jobs of a preset, upstream first."""
    runs = preset_runs(preset)
    tokenize = [tokenize_job(preset)] + [tokenize_job(preset, True)] * any(run.large for run in runs)
    train = [train_job(preset, run) for run in runs if run.id not in preset.weights]
    evaluate = [] if preset.data.text else [evaluate_job(preset, run) for run in runs]
    known = {}
    return [*tokenize, *train, *evaluate, *(report_job(preset, report, known) for report in reports(preset))]


def stale(preset: Preset) -> dict[str, str]:
    """Why each job that has a record is to run again, by the job's name; nothing is changed."""
    jobs = graph(preset)
    changed = {job.name: changed_input(job) for job in jobs}
    reasons = {job.name: changed[job.name] or why_incomplete(job, needed=False) for job in jobs}
    for job in jobs:
        trained = job.notebook == "evaluate" and job.parameters["run"] not in preset.weights
        if trained and reasons[job.name] and not reasons[job.upstream[0].name]:
            reasons[job.upstream[0].name] = _checkpoint_gone(preset, Run.parse(job.parameters["run"]))
    for run in {job.parameters["run"] for job in jobs if job.notebook in ("train", "evaluate") and reasons[job.name]}:
        for upstream in _tokenize_jobs(preset, Run.parse(run)):
            reasons[upstream.name] = reasons[upstream.name] or why_incomplete(upstream)
    again = {job.name for job in jobs if changed[job.name] or (job.notebook in ("train", "evaluate") and reasons[job.name])}
    for job in jobs:  # what comes after, because Snakemake asks no further where a result is there: it would leave an older one's
        if found := [upstream.name for upstream in job.upstream if upstream.name in again]:
            again.add(job.name)
            reasons[job.name] = reasons[job.name] or f"{found[0]} runs again"
    return {job.name: reasons[job.name] for job in jobs if reasons[job.name] and (job.record.is_file() or job.stale.is_file())}


def outlook(preset: Preset, reasons: dict[str, str]) -> list[str]:
    """A line for every job that is to run again, and for inputs that are not there to be compared."""
    absent = {name: job.name for job in graph(preset) for name in recorded_inputs(job) if not located(name).exists()}
    unknown = "is not there to be compared: what was made from it is taken as recorded:"
    again = [f"{name} will run again: {reason}" for name, reason in reasons.items()]
    return again + [f"{located(name)} {unknown} {job} and what follows" for name, job in absent.items()]


def set_aside_stale(preset: Preset) -> list[str]:
    """Rename every record that is no longer valid, so that its job runs again, and back where it is; returns `outlook`."""
    claim(preset)
    reasons = stale(preset)
    for job in graph(preset):
        if job.name in reasons and job.record.is_file():
            job.record.replace(job.stale)
        elif job.name not in reasons and job.stale.is_file() and not job.record.is_file():
            job.stale.replace(job.record)
    return outlook(preset, reasons)


def claim(preset: Preset) -> None:
    """Note which file a preset's results are of. NppkitError where they are those of another one of this name."""
    note = results_dir(preset) / ".preset"
    owner = note.read_text(errors="surrogateescape") if note.is_file() else preset.source
    is_one = owner in preset_names() or Path(owner).is_file()
    if is_one and Path(owner).resolve() != Path(preset.source).resolve():  # two paths may lead to one file, as by a link
        raise NppkitError(f"{results_dir(preset)} holds the results of {owner}: give {preset.source} another name")
    write_atomic(note, preset.source)


def check_codes(job: Job) -> None:
    """NppkitError where the codes that a job uses, or makes more of, are of other settings, which it would not notice."""
    if job.notebook.startswith("tokenize") and is_of_other_settings(job):
        preset, large = job.parameters["preset"], " --large" * job.parameters.get("large", False)
        remedy = f"nppkit run {preset} tokenize{large} makes them again"
        raise NppkitError(f"{job.folder} holds codes of other settings than preset {preset} has today: {remedy}")
    for upstream in job.upstream:
        check_codes(upstream)


def _checkpoint_gone(preset: Preset, run: Run) -> str:
    """A finished training whose last checkpoint is gone counts until someone needs the checkpoint."""
    last = last_checkpoint(preset, run)
    return "" if last.is_dir() else f"its checkpoint in {last.parent} is gone"


def options(job: Job) -> Options:
    """What the machine does for a job, unless it is told otherwise."""
    return Options.parse(job.parameters.get("options", ""))
