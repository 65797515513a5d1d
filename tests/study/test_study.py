"""The committed study: every record is valid today, and every number of a table comes from a metrics file."""

import io
import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from nppkit.cost import step_flops
from nppkit.model import GPT, GPTConfig
from nppkit.study import claims, graph, protocol, results, runs, tables
from nppkit.study.article import Article
from nppkit.study.presets import load_preset, preset_names
from nppkit.study.records import why_incomplete
from nppkit.study.runs import Run

ROOT = Path(__file__).parents[2]
STUDIES = ("study", "study_8x8")
TOKENS = tuple(load_preset("study").tokens)
MADE = ("tokenize", "tokenize_text", "train", "evaluate")
UNFINISHED = ("converged", "solar")
RESULTS = (
    *STUDIES,
    "digits_rates",
    "converged",
    "converged_rates",
    "digits",
    "digits_seen",
    "digits_restart",
    "text",
    "video",
    "patches",
    "names",
    "photographs",
    "solar",
    "photographs_pilot",
    "photographs_rates",
    "solar_patches",
    *TOKENS,
)


@pytest.fixture(autouse=True)
def repository(monkeypatch):
    """The results that are committed."""
    monkeypatch.setenv("NPPKIT_HOME", str(ROOT))


def invalid_records(preset):
    """Why a committed record is not valid, for every tokenize, train and evaluate job that has one."""
    jobs = [job for job in graph.graph(preset) if job.notebook in MADE]
    reasons = {job.name: why_incomplete(job, needed=False) for job in jobs if job.record.exists()}
    return {name: reason for name, reason in reasons.items() if reason}


@pytest.mark.parametrize("name", RESULTS)
def test_committed_records_are_valid(name):
    """Configuration, upstream and files of every committed record are today's; what is not is named."""
    assert invalid_records(load_preset(name)) == {} and any((ROOT / "results" / name / "runs").glob("*/*.record.json"))


@pytest.mark.parametrize("name", [name for name in RESULTS if name not in UNFINISHED])
def test_a_clone_has_nothing_to_train(name):
    """Where all runs are committed only pages are drawn, also where the tokenizer is not kept: 28 s and not seven hours."""
    preset = load_preset(name)
    jobs, again = [job for job in graph.graph(preset) if job.notebook in MADE], graph.stale(preset)
    assert [job.name for job in jobs if job.name in again or not job.record.exists()] == []


@pytest.mark.parametrize("name", RESULTS)
def test_committed_results_can_be_put_into_one_table(name):
    """Whatever terms of a contract are younger than some of the results."""
    assert len(results.all_results(load_preset(name)))


@pytest.mark.parametrize("name", (*STUDIES, "text", "video", "names", "patches", *TOKENS))
def test_committed_digests_are_todays(name):
    """Each job's configuration still has the digest that its record was written with: no refactoring invalidates a run."""
    pinned = json.loads((ROOT / "tests/golden/config_digests.json").read_text())[name]
    jobs = {job.name: job.digest for job in graph.graph(load_preset(name))}
    assert {job: jobs.get(job) for job in pinned} == pinned


@pytest.mark.parametrize("name", RESULTS)
def test_no_result_without_a_record(name):
    """A run's committed files belong to a complete job: a metrics file without its record would be read by nobody."""
    preset = load_preset(name)
    folders = {graph.run_dir(preset, run).name for run in runs.preset_runs(preset)}
    for path in (ROOT / "results" / name / "runs").glob("*/metrics.json"):
        assert path.parent.name in folders and (path.parent / "evaluate.record.json").exists(), path


def test_a_clone_trains_no_complete_run(tmp_path):
    """Snakemake takes committed records as done, also where a clone made the tokenizer's the newest file."""
    shutil.copytree(ROOT / "results/study_8x8", tmp_path / "results/study_8x8")
    os.utime(tmp_path / "results/study_8x8/tokenizer/tokenize.record.json")
    command = [sys.executable, "-m", "snakemake", "--dry-run", "--cores", "1", "--workflow-profile", "profiles/default"]
    env = {**os.environ, "NPPKIT_HOME": str(tmp_path)}
    result = subprocess.run(
        [*command, "--config", "preset=study_8x8"], cwd=ROOT, env=env, capture_output=True, text=True, check=True
    )
    planned = result.stdout.split("Reasons:")[1].split("missing provenance")[0]
    assert "table1" in planned and "evaluate_" not in planned and "train_" not in planned


@pytest.mark.parametrize("change", ["delete", "alter"])
def test_a_changed_metrics_file_is_named(tmp_path, monkeypatch, change):
    """Deleting or altering one metrics file is found, by its name."""
    found = sorted((ROOT / "results/study/runs").glob("*/metrics.json"))
    if not found:
        pytest.skip("no run of the study is complete yet")
    shutil.copytree(ROOT / "results/study", tmp_path / "results/study")
    victim = tmp_path / found[0].relative_to(ROOT)
    if change == "delete":
        victim.unlink()
    else:
        victim.write_text(victim.read_text().replace('"fid": ', '"fid": 1'))
    monkeypatch.setenv("NPPKIT_HOME", str(tmp_path))
    (reason,) = invalid_records(load_preset("study")).values()
    assert str(victim) in reason


@pytest.mark.parametrize("number", [1, 2, 3, 4, 5])
def test_table_numbers_come_from_metrics_files(number):
    """The committed table is what the metrics files give today, to the last digit."""
    preset = load_preset("study")
    if results.all_results(preset).empty:
        pytest.skip("no run of the study is complete yet")
    (path,) = (ROOT / "results/study").glob(f"table{number}_*.csv")
    made = tables.make_table(preset, number)
    pd.testing.assert_frame_equal(pd.read_csv(path), pd.read_csv(io.StringIO(made.to_csv(index=False))))
    for result in (
        r for _, row in tables.published(number).iterrows() if (run := tables.row_run(row)) for r in results.results(preset, run)
    ):
        record = json.loads((graph.run_dir(preset, Run.parse(result["run"])) / "evaluate.record.json").read_text())
        assert record["config_digest"] == graph.evaluate_job(preset, Run.parse(result["run"])).digest


def test_readme_shows_todays_verdicts():
    """README's table is what the committed results say: `make study-report` writes it."""
    between = (ROOT / "README.md").read_text().split(claims.MARK)[1]
    assert between.strip() == claims.for_readme(load_preset("study"))


def test_readme_says_todays_numbers():
    """The FIDs, differences and corrected p that it tells of the decided questions are the study's."""
    study = load_preset("digits")
    told = " ".join((ROOT / "README.md").read_text().split("## What was found")[1].split("\n## ")[0].split())
    decided = {question.claim: (question, d) for question, d in protocol.decisions(study).items() if d.complete}
    gain, decision = decided.pop("FID improves")
    ours, theirs = (np.mean([row["fid"] for row in results.results(study, run)]) for run in (gain.run, gain.baseline))
    assert f"is {ours:.1f} with NPP and {theirs:.1f} without, over {decision.n} repeats" in told
    assert f"({decision.mean:.2f}, from {decision.low:.2f} to {decision.high:.2f}: the interval just holds zero, the" in told
    assert decision.low < 0 < decision.high < 0.1 and decision.adjusted < 0.05
    cheap, larger = decided.pop("patches are worth their FLOPs")
    ours, theirs = (np.mean([row["fid"] for row in results.results(study, run)]) for run in (cheap.run, cheap.baseline))
    assert f"has {ours:.1f} with it and {theirs:.1f} without, over {larger.n} repeats" in told
    assert f"({larger.mean:.1f}, from {larger.low:.1f} to {larger.high:.1f}), though" in told
    assert f"(recall {-results.paired(study, cheap.run, cheap.baseline, 'recall').mean:.2f} lower)" in told
    assert {question.claim: f"{d.mean:.1f}" for question, d in decided.values()} == {
        "larger patches transfer less well": re.search(r"4 x 4 in place of 2 x 2 by ([\d.]+),", told)[1],
        "more levels trade quality for cost": re.search(r"four sizes in place of two by ([\d.]+), patches", told)[1],
        "a larger lambda is slightly worse": re.search(r"4/5 of the training in place of 1/2 by ([\d.]+) ", told)[1],
        "the schedule alone improves FID": "-"
        + re.search(r"decay alone: better FID, by ([\d.]+).\*\* Digits, supported,", told)[1],
    }

    seen, arms = load_preset(study.second_look), (gain.run, gain.baseline)
    look = results.paired(seen, *arms, "fid")
    assert (
        f"looked at the first question's digits, sees no gain ({look.mean:.1f}, from {look.low:.1f} to {look.high:.1f})" in told
        and look.low < 0 < look.high
    )
    few = [results.paired(load_preset(name), protocol.NPP, protocol.NTP, "fid") for name in (study.same_rate, study.pilot)]
    assert "five other repeats could not tell." in told
    assert all(i.n == 5 and i.low < 0 < i.high for i in few)
    again = protocol.control(study)
    said = f"{again.mean:.2f} (95 %: {again.low:.2f} to {again.high:.2f})"
    assert (
        f"on {again.n} repeats more of the smaller model, the difference is {said}." in told and -1 < again.low < 0 < again.high
    )
    beside = load_preset(study.control)
    facts = Article(study)
    direct, through = (f"{i.mean:.1f}, from {i.low:.1f} to {i.high:.1f}," for i in (facts.restart_alone(), facts.unpaired()))
    assert f"is open ({direct} between other repeats without patches; {through} as the two differences differ)." in told
    favoured = {key: results.paired(beside, protocol.NPP, protocol.RESTARTED, key) for key in ("kid", "heldout_nll", "agreement")}
    assert favoured["kid"].high < 0 and favoured["heldout_nll"].high < 0 and favoured["agreement"].low > 0

    photographs = load_preset(study.domains[-1])
    same, cheaper = protocol.decisions(photographs).values()
    assert same.verdict == "no difference that matters" and cheaper.verdict == "supported" and same.n == cheaper.n == 8
    assert f"KID (like FID; x 1,000) is {same.mean:.1f} higher ({same.low:.1f} to {same.high:.1f}; 8 repeats" in told
    assert f"KID is {-cheaper.mean:.1f} lower ({-cheaper.high:.1f} to {-cheaper.low:.1f}): supported" in told
    assert results.paired(photographs, *protocol.questions(photographs)[0][2:4], "heldout_nll").low > 0  # "a little worse"
    half = facts.at_half_the_rate()
    assert f"its KID is {half.mean:.1f} higher ({half.low:.1f} to {half.high:.1f}); a higher rate was not tried." in told
    costly = (protocol.PATCHES.run, protocol.LEVELS.run, protocol.LAMBDA.run.of("L"))
    shares = [results.paired(study, run, protocol.NTP.of(run.size), "flops", lambda a, b: a / b).mean for run in costly]
    assert "({:.2f}, {:.2f} and {:.2f} of training without patches)".format(*shares) in told
    unseen = [results.paired(facts.seen, q.run, q.baseline, "fid") for q in (protocol.PATCHES, protocol.LEVELS)]
    assert "EfficientNet sees no loss by the first two" in told and all(i.mean < 0 < i.high < 1 for i in unseen)
    assert results.paired(study, protocol.NPP.of("L"), protocol.NTP.of("L"), "heldout_nll").low > 0  # "a little worse"

    text = [Run.parse(f"GPT-B_{name}_seed0") for name in ("npp_p4_lambda2-3_lr3e-3", "ntp_epochs142_lr15e-4")]
    worse = results.paired(load_preset("text"), *text, "heldout_nll")
    assert f"({worse.mean:.2f} nats a byte, {worse.low:.2f} to {worse.high:.2f}; five repeats)" in told and worse.n == 5
    first = load_preset(study.pilot)
    large = [results.paired(first, protocol.NPP.of(size), protocol.NTP.of(size), "fid") for size in ("XL", "XXL")]
    assert "the two largest were worse with NPP on average; two repeats each" in told and all(
        i.n == 2 and i.mean > 0 for i in large
    )


EQUAL = [(name, size) for name in preset_names() for size in load_preset(name).equal_flops]


@pytest.mark.parametrize(("name", "size"), EQUAL)
def test_equal_compute_runs_cost_the_same(name, size):
    """The runs that are called equal in FLOPs are so within 1 %, as counted on the real step; one is there, or both are."""
    preset = load_preset(name)
    if preset.beyond:
        pytest.skip("tests/data and tests/test_names.py have these")
    npp, ntp = Run(size, patch_size=2, lam="1/2"), Run(size)
    theirs, ours = (replace(run, epochs=n) for run, n in zip((ntp, npp), preset.equal_flops[size], strict=True))
    listed = {ours, theirs} & {replace(run, seed=0, lr="") for run in runs.preset_runs(preset)}
    assert len(listed) == (2 if "equal_compute" in preset.reports else 1)
    side = preset.data.image_size // preset.tokenizer.network.downsampling
    codebook = preset.tokenizer.network.codebook_size
    model = GPT(GPTConfig(**preset.models[size], vocab_size=codebook, num_classes=10, grid_size=side))
    codes, labels = torch.zeros(2, side * side, dtype=torch.long), torch.zeros(2, dtype=torch.long)
    counted = {p: step_flops(model, codes, labels, p) for p in (1, 2)}

    def flops(run):
        return sum((s.end - s.start) * counted[s.patch_size] for s in run.segments(300))

    assert flops(ours) == pytest.approx(flops(ntp), rel=0.01) and flops(theirs) == pytest.approx(flops(npp), rel=0.01)
