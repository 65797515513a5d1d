"""The command line: nppkit COMMAND, or python -m nppkit COMMAND. A command's work begins with its imports, not before."""

import argparse
import contextlib
import io
import json
import locale
import logging
import os
import re
import signal
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import NoReturn

import nppkit
from nppkit.errors import NppkitError
from nppkit.gpus import GPUS, UTILISATION
from nppkit.jobs.warm import command as command_of_a_warm_server
from nppkit.tokenizer_config import TOKENIZERS

BEGIN = """begin with:
  nppkit presets                         what can be run
  nppkit plan demo                       what that takes, before it starts
  nppkit run demo tokenize               the pictures' codes
  nppkit run demo train GPT-B_ntp_seed0  a model of them
  nppkit draw demo GPT-B_ntp_seed0 7 12 sevens
make reproduce does all of a preset. nppkit COMMAND --help has an example of each."""
INTERNAL = ("pair", "verdicts", "warm", "torchrun")  # what make and the jobs call: nppkit --help leaves them out
layout = argparse.RawDescriptionHelpFormatter
parser = argparse.ArgumentParser(prog="nppkit", epilog=BEGIN, formatter_class=layout)
parser.description = "Next Patch Prediction: run a study, or a part of one."
parser.add_argument("--version", action="version", version=f"nppkit {nppkit.__version__}")
groups = {"": parser.add_subparsers(metavar="COMMAND", required=True)}


def argument(*names: str, **settings: object) -> tuple:
    """An argument of a command, as argparse takes it."""
    return names, settings


PRESET = argument("preset", metavar="PRESET", help="a name (nppkit presets lists them), or a YAML file")
RUN = argument("run", metavar="RUN", help="run id, e.g. GPT-B_npp_p2_lambda1-2_seed0")
DEVICE = argument("--device", default="auto", help="cpu, cuda, cuda:1 ...; auto takes a GPU if there is one")
OPTIONS = argument("--options", help="of the machine, e.g. 'threads=4' (nppkit/machine/options.py), in place of the preset's")


def command(name: str, example: str, *arguments: tuple) -> Callable:
    """Register a function of the parsed arguments as a command, `codes extract` as one within a group."""

    def register(function: Callable) -> Callable:
        group, _, last = name.rpartition(" ")
        if group not in groups:
            of = groups[""].add_parser(group, help=GROUPS[group], description=GROUPS[group])
            groups[group] = of.add_subparsers(metavar="COMMAND", required=True)
        text = function.__doc__.splitlines()[0]
        listed = {} if name in INTERNAL else {"help": text}
        own = groups[group].add_parser(last, description=text, formatter_class=layout, **listed)
        own.epilog = f"example:\n  nppkit {name} {example}"
        for names, settings in arguments:
            own.add_argument(*names, **settings)
        own.set_defaults(function=function)
        return function

    return register


GROUPS = {
    "codes": "The codes of a preset's images, and codes that others have extracted",
    "weights": "LlamaGen's and NPP's released weights",
}


@command("presets", "")
def presets(a: argparse.Namespace) -> None:
    """The studies that the package describes, and what each is for."""
    from nppkit.study.presets import load_preset, preset_names

    for name in preset_names():
        print(f"{name}: {load_preset(name).description}")


@command(
    "plan",
    "imagenet256 --gpu H100-80G --gpus 8",
    PRESET,
    argument("--gpu", default="", help=f"{', '.join(GPUS)}; default: the preset's, or this CPU, measured"),
    argument("--gpus", type=int, help="how many; default: the preset's number"),
    argument("--utilisation", type=float, default=UTILISATION, help=f"share of the GPU's peak, 0 to 1 (default {UTILISATION})"),
)
def plan(a: argparse.Namespace) -> None:
    """Steps, FLOPs, memory, disk and hours of every run of a preset, before anything starts."""
    from nppkit.jobs.plan import counted, report
    from nppkit.study.graph import outlook, stale

    if not 0 < a.utilisation <= 1:
        raise NppkitError(f"--utilisation {a.utilisation:g}: use a share of the peak, above 0 and up to 1")
    if a.gpus is not None and a.gpus < 1:
        raise NppkitError(f"--gpus {a.gpus}: use 1 or more")
    preset = replace(a.preset, gpu=a.gpu or a.preset.gpu, gpus=a.gpus or a.preset.gpus)
    for line in outlook(preset, stale(preset)):
        print(line)
    if not preset.beyond:
        print(counted(preset), flush=True)
    print(report(preset, a.utilisation))


@command(
    "run",
    "demo train GPT-B_ntp_seed0",
    PRESET,
    argument("notebook", metavar="NOTEBOOK", help="tokenize, train, evaluate, or a table or figure, e.g. table1_main"),
    argument("run", metavar="RUN", nargs="?", default="", help="run id, for train and evaluate"),
    argument("--large", action="store_true", help="the codes of the 384 rows, for tokenize"),
    argument("-p", nargs=2, action="append", default=[], metavar=("NAME", "VALUE"), help="another parameter of the notebook"),
    argument("--with-parent", action="store_true", help="stop if the process that started this one ends, e.g. Snakemake"),
)
def run(a: argparse.Namespace) -> None:
    """Execute one job: a notebook with papermill, checked parameters, and a record at the end."""
    from nppkit.jobs import launch
    from nppkit.machine.guard import die_with_parent

    if a.with_parent:
        die_with_parent()
    warnings.filterwarnings("ignore", module="papermill|jupyter_client|zmq")
    logging.getLogger("papermill").setLevel(logging.CRITICAL)  # the launcher says why a job ends
    job, started = launch.find_job(a.notebook, a.preset, a.run, a.large), time.monotonic()
    print(f"{time.strftime('%H:%M:%S')}  {job.name}: started", flush=True)
    launch.execute(job, dict(a.p))
    print(f"{time.strftime('%H:%M:%S')}  {job.name}: done in {time.monotonic() - started:.0f} s", flush=True)


@command("train", "demo GPT-B_ntp_seed0", PRESET, RUN, OPTIONS)
def train(a: argparse.Namespace) -> None:
    """Train one run without its notebook, or as one of torchrun's processes: checkpoints and history, no record of a result."""
    from nppkit.jobs import workers

    workers.train(a.preset, a.run, a.options)


@command(
    "draw",
    "mine.yaml GPT-B_npp_p2_lambda1-2_seed0 cats 12 drawn",
    PRESET,
    RUN,
    argument("class_name", metavar="CLASS", help="a class of the pictures: the name of its folder"),
    argument("count", metavar="COUNT", type=int, help="how many pictures"),
    argument("folder", metavar="FOLDER", type=Path, help="where they are written, as CLASS_0000.png and so on"),
    argument("--guidance", type=float, default=None, help="more keeps closer to the class; default: the preset's common scale"),
    argument("--seed", type=int, default=0, help="another one draws other pictures (default %(default)s)"),
    DEVICE,
)
def draw(a: argparse.Namespace) -> None:
    """Draw new pictures of a class with a trained run, as PNG files."""
    from nppkit.study.models import draw_pictures
    from nppkit.study.runs import find_run

    paths = draw_pictures(a.preset, find_run(a.preset, a.run), a.class_name, a.count, a.folder, a.guidance, a.seed, a.device)
    print(f"{len(paths)} pictures: {paths[0]} to {paths[-1]}")


@command("sample", "demo GPT-B_ntp_seed0", PRESET, RUN, OPTIONS)
def sample(a: argparse.Namespace) -> None:
    """Draw the codes that a run's evaluation needs, alone or as one of torchrun's processes."""
    from nppkit.jobs import workers

    workers.sample(a.preset, a.run, a.options)


@command(
    "evaluate",
    "imagenet256-eval samples.npz",
    PRESET,
    argument("file", metavar="FILE", help="arr_0: uint8 images, NHWC, as ADM's scripts write them"),
    DEVICE,
)
def evaluate(a: argparse.Namespace) -> None:
    """Metrics and contract of an npz file of images, anyone's, as JSON."""
    from nppkit.study.models import evaluate_file

    with contextlib.redirect_stdout(sys.stderr):  # what is said of the images on the way is not JSON
        found = evaluate_file(a.preset, a.file, a.device)
    print(json.dumps(found, indent=1))


@command(
    "codes extract",
    "imagenet256 --rank 0 --world-size 8",
    PRESET,
    argument("--large", action="store_true", help="at 1.5 times the image side"),
    argument("--rank", type=int, default=os.environ.get("RANK") or "0", help="torchrun sets it"),
    argument("--world-size", type=int, default=os.environ.get("WORLD_SIZE") or "1", help="torchrun sets it"),
    DEVICE,
    argument("--batch-size", type=int, default=64, help="images (default %(default)s)"),
)
def extract(a: argparse.Namespace) -> None:
    """Extract a preset's codes, alone or as one of several processes."""
    from nppkit.jobs import workers

    workers.extract(a.preset, a.large, a.rank, a.world_size, a.device, a.batch_size)


@command(
    "codes import",
    "imagenet256_codes imagenet256_labels results/imagenet256/tokenizer/train",
    argument("codes", type=Path, help="LlamaGen's folder of .npy files, e.g. imagenet256_codes"),
    argument("labels", type=Path, help="e.g. imagenet256_labels"),
    argument("out", type=Path, help="the store's folder"),
    argument("--second-set", type=Path, action="append", default=[], help="codes of more crops, e.g. those at 1.05"),
    argument("--vocab-size", type=int, default=TOKENIZERS["VQ-16"].codebook_size, help="codes (default %(default)s, VQ-16's)"),
    argument("--image-size", type=int, default=0, help="pixels; 0: 16 a code"),
    argument("--class-names", type=Path, help="a text file, a name a line"),
    argument("--tokenizer", type=Path, help="the tokenizer.safetensors whose codes these are"),
)
def import_codes(a: argparse.Namespace) -> None:
    """LlamaGen's folders of .npy files to a code store."""
    from nppkit.data.codes import UNKNOWN
    from nppkit.data.llamagen import import_llamagen
    from nppkit.files import sha256
    from nppkit.machine.progress import progress

    names = a.class_names.read_text(errors="surrogateescape").splitlines() if a.class_names else None
    digest = sha256(a.tokenizer) if a.tokenizer else UNKNOWN
    folders = [a.codes, *a.second_set]
    store = import_llamagen(folders, a.labels, a.out, a.vocab_size, names, digest, a.image_size, progress)
    print(f"{a.out}: codes {store.codes.shape}, {store.num_classes} classes")


@command("weights fetch", "LlamaGen-B-256", argument("name", metavar="NAME", help="a release; an unknown name lists them"))
def fetch(a: argparse.Namespace) -> None:
    """Download a release, or find it in weights/."""
    from nppkit import releases
    from nppkit.files import sha256

    path = releases.fetch(a.name)
    print(path, sha256(path))


@command(
    "weights convert",
    "weights/c2i_B_256.pt c2i_B_256.safetensors",
    argument("file", type=Path),
    argument("out", type=Path),
    argument("--grid-size", type=int, default=0, help="side of the code grid, for a file of another name"),
    argument("--n-head", type=int, default=0, help="attention heads, for a size of another family"),
)
def convert(a: argparse.Namespace) -> None:
    """A release to safetensors and JSON."""
    from nppkit import releases

    config = releases.release_config(a.file, a.grid_size, a.n_head)
    print(json.dumps(releases.convert(a.file, a.out, config), indent=1))


@command(
    "weights export",
    "checkpoints/mine/GPT-B_ntp_seed0/0123456789ab/step_00001800 mine.pt",
    argument("checkpoint", type=Path),
    argument("out", type=Path),
)
def export(a: argparse.Namespace) -> None:
    """A checkpoint to LlamaGen's container, as its own scripts read it."""
    from nppkit import releases

    releases.export(a.checkpoint, a.out)


@command(
    "where",
    "demo table1",
    PRESET,
    argument("reports", nargs="*", metavar="REPORT", help="e.g. table1; default: all"),
    argument("--notebooks", action="store_true", help="name the notebooks alone"),
)
def where(a: argparse.Namespace) -> None:
    """Where a preset's pictures, tables and figures are."""
    from nppkit.files import home
    from nppkit.jobs.targets import rule_name
    from nppkit.study.graph import report_job, reports, results_dir

    jobs = [report_job(a.preset, report) for report in reports(a.preset)]
    if unknown := set(a.reports) - {name for job in jobs for name in (rule_name(job), job.name)}:
        raise NppkitError(f"preset {a.preset.name} has no report {min(unknown)!r}: use one of {', '.join(map(rule_name, jobs))}")
    pictures = {"pictures and what their codes keep": "tokenizer/reconstructions.png", "samples": "runs/*/samples.png"}
    for name, pattern in () if a.notebooks or a.reports else pictures.items():
        if any(results_dir(a.preset).glob(pattern)):
            print(f"{name}: {(results_dir(a.preset) / pattern).relative_to(home())}")
    for job in jobs:
        if a.reports and not {rule_name(job), job.name} & set(a.reports):
            continue
        if a.notebooks:
            print(job.notebook)
        else:
            missing = "" if all(job.path(name).exists() for name in job.outputs) else " (not made yet)"
            print(f"{job.name}{missing}:", *(job.path(name).relative_to(home()) for name in job.outputs))


@command("verdicts", "study README.md", PRESET, argument("file", type=Path, help="whose part between two marks is replaced"))
def verdicts(a: argparse.Namespace) -> None:
    """Write the verdicts on the paper's claims into a file."""
    from nppkit.study.claims import write_verdicts

    write_verdicts(a.preset, a.file)


@command("pair", "")
def pair(a: argparse.Namespace) -> None:
    """Train the two small digit models again that the notebooks show (docs/model_card.md), unless that is done, and keep them."""
    from nppkit.jobs.launch import ensure
    from nppkit.show import pretrained

    for job in pretrained.pair_jobs():
        ensure(job)
    pretrained.keep()


@command("warm", "snakemake --cores 2 --config preset=demo", argument("words", nargs="+"))
def warm(a: argparse.Namespace) -> NoReturn:
    """Run a command whose jobs start without importing again what this process has imported."""
    from nppkit.jobs import leases
    from nppkit.jobs.warm import serve

    if leases.visible_gpus():  # a GPU cannot be used after a fork, and its jobs take hours
        os.execvp(a.words[0], a.words)
    sys.exit(serve(a.words))


@command("torchrun", "--nproc-per-node=8 -m nppkit train demo GPT-B_ntp_seed0", argument("words", nargs=argparse.REMAINDER))
def torchrun(a: argparse.Namespace) -> None:
    """torchrun, but it ends with its parent, and its workers find each other after a restart."""
    from nppkit.jobs.torchrun import start

    start(a.words)


@contextlib.contextmanager
def written() -> Iterator[None]:
    """What a block prints is written at its end, where an error of that can still be answered, and not when Python ends."""
    sys.stdout = sys.stdout or io.StringIO()  # closed by whoever calls
    if sys.stdout.errors == "strict":  # a file's name need not be of the terminal's letters
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        yield
    finally:
        try:
            sys.stdout.flush()
        except OSError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python tries again when it ends
            raise


def call(words: list[str]) -> int:
    """Run a command and return its exit status; an error that a user can mend becomes one line on standard error."""
    try:
        with written():
            if words[:1] in (["torchrun"], ["warm"]) and words[1:] not in ([], ["-h"], ["--help"]):  # whose options are their own
                {"torchrun": torchrun, "warm": warm}[words[0]](argparse.Namespace(words=words[1:]))
            else:
                a = parser.parse_args(words)
                if "preset" in a:
                    from nppkit.study.presets import load_preset

                    a.preset = load_preset(a.preset)
                a.function(a)
    except NppkitError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.status
    except (MemoryError, RuntimeError) as error:  # torch's kinds of them
        if not isinstance(error, MemoryError) and not re.search("(allocate|enough|out of) memory", str(error)):
            raise
        said = " ".join(str(error).split())[:200]
        print(f"error: {words[0]}: out of memory ({said}): take a smaller micro_batch, batch or model", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("error: stopped; what is finished stays, and the same command does the rest", file=sys.stderr)
        return 128 + signal.SIGINT
    except BrokenPipeError:  # whoever read the output has read enough, e.g. head
        return 128 + signal.SIGPIPE
    except OSError as error:  # a folder of somebody else's, a file that is none, a full disk
        from nppkit.files import remedy

        print(f"error: {error.filename or words[0]}: {error.strerror or error}: {remedy(error)}", file=sys.stderr)
        return 1
    return 0


def main() -> NoReturn:
    """Run the command of this process; without one, say which there are."""
    if locale.getencoding().lower() != "utf-8" and not sys.flags.utf8_mode:  # files of the project are UTF-8 in any locale
        os.execve(sys.executable, [sys.executable, "-m", "nppkit", *sys.argv[1:]], {**os.environ, "PYTHONUTF8": "1"})
    words = sys.argv[1:] or ["--help"]
    status = command_of_a_warm_server(words) if words[0] == "run" else None
    sys.exit(call(words) if status is None else status)
