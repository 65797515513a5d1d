# The graph: tokenize -> train -> evaluate -> tables and figure. Each job is one papermill execution.
#
#   snakemake --cores 2 --config preset=demo
#   snakemake --workflow-profile profiles/slurm --config preset=imagenet256 nodes=2
#
# A job is complete when its record is valid for today's configuration and results (nppkit/study/records.py). Records
# are the only declared outputs, because Snakemake deletes declared outputs before it runs a job again. A missing
# record is the only reason to run one: file times say nothing in a fresh clone, hence ancient().

import shlex
import sys

sys.path.insert(0, workflow.basedir)  # this clone's package, also in an environment that has installed another's

from snakemake.logging import logger

from nppkit import errors, files, settings
from nppkit.jobs import slurm, targets
from nppkit.machine.options import Options
from nppkit.study import graph, presets, protocol

# The launcher says what begins, what is done, and in one line why a job failed; Snakemake's words for the same go.
SAID = ("Select jobs to execute", "Execute ", "RuleException:\nCalledProcessError", "WorkflowError:\nAt least one job")
logger.addFilter(lambda record: not record.getMessage().startswith(SAID))

ASKED = {name: value for name, value in config.items() if name != "preset"}  # the RUN of make
try:
    if unknown := ASKED.keys() - {"devices", "nodes", "shard", "tensorboard"}:
        raise errors.NppkitError(f"RUN: {min(unknown)!r} is unknown: use devices, nodes, shard or tensorboard")
    RUN = settings.build(Options, ASKED, "RUN")
    if not isinstance(config.get("preset", "demo"), str):
        raise errors.NppkitError(f"preset {config['preset']!r} is no text to Snakemake, which reads YAML: name a file without ': '")
    if set("{}") & set(str(files.home())):
        raise errors.NppkitError(f"NPPKIT_HOME {files.home()} has braces, which Snakemake takes for wildcards: name another")
    PRESET = presets.load_preset(config.get("preset", "demo"))
    JOBS = graph.graph(PRESET)
    protocol.questions(PRESET)  # refuses one that no run will answer
    PLACES = RUN.devices if "devices" in ASKED else 0, RUN.nodes  # a training's; 0: the preset's GPUs
    WORDS = {job.name: slurm.parameters(PRESET, job, *PLACES, RUN.shard) for job in JOBS}
    ASKS_FOR = {job.name: slurm.request(PRESET, job, *PLACES) for job in JOBS}
except errors.NppkitError as error:
    sys.exit(f"error: {error}")  # one line, before any work; Snakemake would add a traceback
LAUNCH = f"{shlex.quote(sys.executable)} -m nppkit run --with-parent {shlex.quote(config.get('preset', 'demo'))} "
EVENTS = " -p tensorboard true" * RUN.tensorboard

# Looking changes nothing: only a run that is to do something sets records aside that are no longer valid.
ASKS = {"--dag", "--rulegraph", "--filegraph", "--d3dag", "--summary", "--detailed-summary", "--list", "--lint", "--report"}
LOOKING = workflow.output_settings.dryrun or bool(ASKS & {word.partition("=")[0] for word in sys.argv})
try:
    AGAIN = graph.stale(PRESET) if LOOKING else {}
    for line in graph.outlook(PRESET, AGAIN) if LOOKING else graph.set_aside_stale(PRESET) if workflow.is_main_process else []:
        print(line, file=sys.stderr)
except errors.NppkitError as error:
    sys.exit(f"error: {error}")


def as_it_is(text):
    return lambda wildcards: text  # a function's text may have braces, as a preset's path may


def record(job):
    return targets.expected_record(job, job.name in AGAIN) if LOOKING else job.record


rule all:
    input:
        [record(job) for job in JOBS],


for job in JOBS:

    rule:
        name:
            targets.rule_name(job)
        input:
            [ancient(record(upstream)) for upstream in job.upstream],
        output:
            record(job),
        threads: graph.options(job).threads
        priority: targets.priority(PRESET, job)
        message:
            job.name
        params:
            command=as_it_is(LAUNCH + targets.launch_arguments(job) + WORDS[job.name] + EVENTS * (job.notebook == "train")),
        resources:
            **ASKS_FOR[job.name],
            attempt=lambda wildcards, attempt: attempt,
        shell:
            "NPPKIT_ATTEMPT={resources.attempt} exec {params.command}"  # exec so that SIGTERM reaches the launcher, and is waited for
