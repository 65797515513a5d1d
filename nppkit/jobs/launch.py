"""The launcher: one job is one papermill execution, with checked parameters and a record written last.

    nppkit run demo train GPT-B_ntp_seed0

Parameters are data: they reach the notebook as typed literals through papermill's Python interface,
unknown names and wrong types are refused, and a failed job leaves its executed notebook for reading.
"""

import ast
import os
import threading
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

from nppkit.errors import Diverged, NppkitError
from nppkit.files import remedy
from nppkit.jobs.environment import set_environment
from nppkit.jobs.leases import leased
from nppkit.machine.guard import GRACE_SECONDS, Interrupted, StopRequest, exclusive
from nppkit.machine.options import NAMES, Options
from nppkit.machine.progress import BATCH
from nppkit.settings import KINDS, build
from nppkit.study.graph import NOTEBOOKS, claim, evaluate_job, report_job, reports, tokenize_job, train_job
from nppkit.study.presets import Preset, load_preset
from nppkit.study.records import Job, changed_input, last_divergence, read_inputs, why_incomplete, write_diverged, write_record
from nppkit.study.runs import find_run

TYPES = {kind.__name__: kind for kind in KINDS}
DECIDED = {"preset", "run", "large"}  # by the job that its record names
KERNEL_START_SECONDS = 300
KERNEL_STARTS = 5  # a kernel ends at its start where another process took a port between its choice and its use
ATTEMPT = "NPPKIT_ATTEMPT"  # how many times Snakemake has started this job, this one included
KERNEL_DIED = "its kernel died (out of memory, or killed)"
QUIET = {  # the notebook's errors come back with it, so that the kernel itself need say nothing
    "start_timeout": KERNEL_START_SECONDS,
    "progress_bar": False,
    "log_output": False,
    "extra_arguments": ["--log-level=CRITICAL"],
}


def declared_parameters(source: str) -> dict[str, tuple[type, object]]:
    """Name -> (type, default) of a parameters cell: one `name: type = literal  # help` a line."""
    declared = {}
    for node in ast.parse(source).body:
        try:
            declared[node.target.id] = (TYPES[node.annotation.id], ast.literal_eval(node.value))
        except (AttributeError, KeyError, ValueError):
            raise NppkitError(f"parameters cell: line {node.lineno} is not `name: type = literal`") from None
    return declared


def check_parameters(values: dict, declared: dict[str, tuple[type, object]], where: str) -> dict:
    """The values in their declared types, defaults filled in. NppkitError names an unknown name or a wrong type."""
    if unknown := [name for name in values if name not in declared]:
        raise NppkitError(f"{where}: unknown parameter {unknown[0]!r}: use one of {', '.join(declared)}")
    return {
        name: build(KINDS[kind], values.get(name, default), f"{where}: parameter {name}")
        for name, (kind, default) in declared.items()
    }


def notebook_parameters(namespace: dict) -> None:
    """Check a running notebook's own parameters, in place; to be called in the cell after `parameters`.

    The annotations of that cell declare them; a cell that papermill injected is known by its first line.
    """
    annotations = namespace.get("__annotations__", {})
    declared = {name: (kind, namespace[name]) for name, kind in annotations.items() if kind in KINDS}
    if not declared:
        raise NppkitError("parameters: run the parameters cell first")
    injected = next((cell for cell in namespace.get("In", []) if cell.startswith("# Parameters")), "")
    names = [node.targets[0].id for node in ast.parse(injected).body]
    namespace.update(check_parameters({name: namespace[name] for name in (*declared, *names)}, declared, "parameters"))


def with_options(values: dict, overrides: dict) -> dict:
    """Both; those that are options of the machine as one text, the later one where two are alike, `devices 8` as devices=8."""
    named = [f"{name}={value}" for name, value in overrides.items() if name in NAMES]
    words = [*values.get("options", "").split(), *overrides.get("options", "").split(), *named]
    text = " ".join({word.partition("=")[0]: word for word in words}.values())
    others = {name: value for name, value in overrides.items() if name not in NAMES}
    return values | others | ({"options": text} if words else {})


def job_parameters(job: Job, notebook: Path, overrides: dict) -> dict:
    """All values of the notebook's parameters. NppkitError names what is unknown, of a wrong type, or the record's to say."""
    import papermill

    if not notebook.is_file():
        raise NppkitError(f"{notebook} does not exist: a preset's reports are notebooks in that folder")
    cells = papermill.iorw.load_notebook_node(str(notebook))["cells"]
    source = next(cell["source"] for cell in cells if "parameters" in cell["metadata"].get("tags", []))
    values = check_parameters(with_options(job.parameters, overrides), declared_parameters(source), notebook.name)
    if changed := [name for name in DECIDED & job.parameters.keys() if values[name] != job.parameters[name]]:
        raise NppkitError(f"{notebook.name}: parameter {changed[0]} is decided by the preset and the run: change those")
    return values


def execute(job: Job, overrides: dict) -> None:
    """Run the job's notebook with papermill in its own folder, then write the completion record.

    NppkitError if the notebook fails or another process writes this job; Interrupted when asked to stop.
    """
    import papermill
    from nbclient.exceptions import DeadKernelError
    from papermill.exceptions import PapermillExecutionError

    from nppkit.jobs.kernels import NAME, OwnKernel, use_forked_kernels

    notebook, executed = NOTEBOOKS / f"{job.notebook}.ipynb", job.folder / f"{job.notebook}.ipynb"
    values = job_parameters(job, notebook, overrides)
    machine = prepare(job, values)
    options = dict(cwd=NOTEBOOKS, kernel_name=NAME, language="python", kernel_manager_class=OwnKernel, **QUIET)
    gpus = leased(machine.devices) if machine.device in ("auto", "cuda") else nullcontext()
    use_forked_kernels()
    with exclusive(job.folder, job.notebook), gpus, StopRequest(stop_kernels) as stop:
        try:
            inputs = read_inputs(job)
            options["on_notebook_start"] = lambda **_: stop.requested and stop_kernels()  # asked before there was a kernel
            with_kernel(lambda: papermill.execute_notebook(notebook, executed, values, **options), stop)
        except PapermillExecutionError as error:
            reason = f"{error.ename}: {error.evalue.strip()}".split("\n")[0]
            if error.ename == Diverged.__name__:
                write_diverged(job, reason)
        except DeadKernelError:
            reason = KERNEL_DIED
        except OSError as error:
            reason = f"{error}: {remedy(error)}"
        except RuntimeError as error:
            reason = f"its kernel did not start ({error})"
        else:
            write_record(job, inputs)
            return
    saved = reason.startswith("Interrupted: ")
    if stop.requested or saved:
        said = reason.removeprefix("Interrupted: ") if saved else "stopped; the same command begins it again"
        raise Interrupted(f"{job.name}: {said}", stop.requested)
    raise NppkitError(f"{job.name} failed: {reason} (read {executed})")


def prepare(job: Job, values: dict) -> Options:
    """The machine that the job runs on, its processes' environment set, and the preset's results claimed.

    Diverged where Snakemake retries a training that just has: it would go on from a checkpoint, and come to the same end.
    """
    if os.environ.get(ATTEMPT, "1") != "1" and (reason := last_divergence(job)):
        raise Diverged(f"{job.name} is not tried again: {reason}")
    machine = Options.parse(values.get("options", "device=cpu"))
    most = {"train": machine.processes, "evaluate": machine.devices}.get(job.notebook, 1)
    if machine.processes > most:
        raise NppkitError(f"{job.name}: several devices are for train and evaluate, several nodes for train: leave them out")
    if source := job.parameters.get("preset"):
        claim(load_preset(source))
    os.environ[BATCH] = "1"
    set_environment(machine.threads)
    return machine


def with_kernel(run: Callable[[], object], stop: StopRequest) -> None:
    """Run a notebook, again where its kernel ended before it could say anything."""
    for start in range(1, KERNEL_STARTS + 1):
        if stop.requested:
            raise RuntimeError("asked to stop")
        try:
            run()
            return
        except RuntimeError as error:  # jupyter_client's, which has no class of its own
            if "before replying" not in str(error) or stop.requested or start == KERNEL_STARTS:
                raise


def stop_kernels() -> None:
    """Ask the kernels of this process to stop, as after SIGTERM, and end them after GRACE_SECONDS."""
    from nppkit.jobs.kernels import KERNELS

    for kernel in KERNELS:
        kernel.terminate()
    deadline = threading.Timer(GRACE_SECONDS, lambda: [kernel.kill() for kernel in KERNELS])
    deadline.daemon = True
    deadline.start()


def find_job(notebook: str, preset: Preset, run_id: str = "", large: bool = False) -> Job:
    """The job of that notebook. NppkitError names an unknown notebook or run."""
    if notebook == "evaluate" and preset.data.text:
        raise NppkitError(f"preset {preset.name}: a text's runs have no images to evaluate: their numbers are in history.csv")
    tokenizers, trained = ("tokenize", tokenize_job(preset).notebook), ("train", "evaluate")
    if notebook not in (*tokenizers, *trained, *reports(preset)):
        raise NppkitError(f"notebook {notebook!r} is unknown: use {', '.join(('tokenize', *trained, *reports(preset)))}")
    if large and notebook not in tokenizers:
        raise NppkitError(f"--large is for tokenize, not for {notebook}: leave it out")
    if run_id and notebook not in trained:
        raise NppkitError(f"run {run_id!r} is for train and evaluate, not for {notebook}: leave it out")
    if notebook in tokenizers:
        return tokenize_job(preset.of_images() if large else preset, large)
    if notebook in trained:
        return (train_job if notebook == "train" else evaluate_job)(preset, find_run(preset, run_id))
    return report_job(preset, notebook)


def _changed(job: Job, looked: dict[str, str]) -> str:
    """Which input of the job, or of what it needs, is another than its results were made from; empty if none is.

    looked: what was found of each job's own, because a table's many runs share one folder of pictures.
    """
    if job.name not in looked:
        looked[job.name] = changed_input(job)
    return next(filter(None, (looked[job.name], *(_changed(upstream, looked) for upstream in job.upstream))), "")


def ensure(job: Job, looked: dict[str, str] | None = None) -> None:
    """Run the job, and what it needs, unless its results are there and current. Used by notebooks opened by hand."""
    looked = {} if looked is None else looked
    reason = _changed(job, looked) or why_incomplete(job)
    if not reason:
        return
    for upstream in job.upstream:
        ensure(upstream, looked)
    print(f"{job.name}: {reason}; running notebooks/{job.notebook}.ipynb first")
    execute(job, {})
    looked[job.name] = ""
