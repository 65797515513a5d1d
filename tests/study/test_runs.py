"""Run ids, the graph, and completion records."""

import dataclasses
import json
import os
from fractions import Fraction

import pytest

from nppkit import files
from nppkit.errors import NppkitError
from nppkit.jobs import plan, targets
from nppkit.study import graph, records, runs
from nppkit.study.presets import FOLDER, load_preset, preset_names
from nppkit.study.published import published, row_run, table_runs
from nppkit.study.runs import Run

IDS = {
    "GPT-L_npp_p2_lambda2-3_seed0": Run("L", patch_size=2, lam=Fraction(2, 3)),
    "GPT-B_ntp_seed4": Run("B", seed=4),
    "GPT-XXL-384_ntp_seed0": Run("XXL", large=True),
    "GPT-B_npp_L3_lambda1-2_seed1": Run("B", levels=3, lam=Fraction(1, 2), seed=1),
    "GPT-B_ntp_epochs188_seed0": Run("B", epochs=188),
    "GPT-B_ntp_constant_seed0": Run("B", constant=True),
    "GPT-B_ntp_epochs9_restart_seed0": Run("B", epochs=9, restart=True),
    "GPT-B_ntp_lr15e-4_constant_seed0": Run("B", lr="15e-4", constant=True),
    "GPT-B_npp_p2_lambda1-2_attention_seed0": Run("B", patch_size=2, lam="1/2", patch="attention"),
    "GPT-B_npp_L3_lambda1-2_epochs9_heads_seed1": Run("B", levels=3, lam="1/2", epochs=9, patch="heads", seed=1),
    "GPT-B_npp_p4_lambda2-3_linear_drawn_seed0": Run("B", patch_size=4, lam="2/3", patch="linear", drawn=True),
    "GPT-L_npp_p2_lambda1-2_epochs480_reset_seed2": Run("L", patch_size=2, lam="1/2", seed=2, epochs=480, reset=True),
}


@pytest.mark.parametrize("run_id", IDS)
def test_run_id_round_trip(run_id):
    """A run and its id determine each other."""
    assert Run.parse(run_id) == IDS[run_id] and IDS[run_id].id == run_id


def test_two_levels_and_patch_size_two_are_one_run():
    """p = 2 with lambda 1/2 and #L = 2 are trained once."""
    assert Run("B", levels=2, lam="1/2") == Run("B", patch_size=2, lam="1/2")
    assert Run("B", levels=2, lam="1/2").id == "GPT-B_npp_p2_lambda1-2_seed0"


@pytest.mark.parametrize(
    "bad",
    [
        "",
        "GPT-B",
        "GPT-B_ntp",
        "../x",
        "GPT-B_npp_q2_lambda1-2_seed0",
        "GPT-../B_ntp_seed0",
        "GPT-B_ntp_seed0\n",
        "GPT-B_ntp_lr60e-4_seed0",
        "GPT-B_npp_p2_lambda1-2_mean_seed0",
        "GPT-B_npp_p2_lambda1-2_drawn_attention_seed0",
        "GPT-B_npp_p2_lambda1-2_sum_seed0",
    ],
)
def test_bad_run_ids_are_refused(bad):
    """What is not a run id is named, and never becomes a path."""
    with pytest.raises(NppkitError, match="run id"):
        Run.parse(bad)


def test_variants_change_the_training_alone(smoke, home):
    """A variant has its own epochs, learning rate or optimiser reset; the rest is the preset's."""
    assert Run("B").training(smoke) == smoke.training
    assert Run("B", constant=True).training(smoke) == dataclasses.replace(smoke.training, lr_schedule="constant")
    assert Run("B", lr="6e-3").training(smoke) == dataclasses.replace(smoke.training, lr=6e-3)
    changed = Run("B", patch_size=2, lam="1/2", epochs=480, reset=True)
    assert changed.training(smoke) == dataclasses.replace(smoke.training, epochs=480, reset_optimizer=True)
    assert [(s.patch_size, s.start, s.end) for s in Run("B", restart=True).segments(300)] == [(1, 0, 150), (1, 150, 300)]
    assert Run("B", restart=True).training(smoke) == smoke.training
    assert graph.train_job(smoke, Run("B", restart=True)).digest != graph.train_job(smoke, Run("B")).digest
    assert [s.end for s in changed.segments(300)] == [240, 480] and [s.end for s in Run("B").segments(300)] == [300]


@pytest.mark.parametrize(
    ("recipe", "said"),
    [
        ("ntp_attention", "next-token prediction has no patches: take _attention away"),
        ("ntp_constant_heads_drawn", "next-token prediction has no patches: take _heads_drawn away"),
        ("npp_p1_lambda1-2_heads", "a patch has a side of 2 or more: write ntp for single tokens"),
        ("npp_p2_lambda1-2_restart", "with patches the rate begins again anyway: take _restart away"),
        ("ntp_constant_restart", "a constant rate has nothing to begin again: take _restart away"),
        ("npp_p0_lambda1-2", "a patch has a side of 2 or more"),
        ("npp_L3_lambda1-2_drawn", "levels are drawn from one patch side and 1: write p in place of L"),
    ],
)
def test_better_patches_need_patches(recipe, said):
    """A variant that would change nothing, or that there is not, is one line with the run's name."""
    with pytest.raises(NppkitError, match=f"run GPT-B_{recipe}_seed2: {said}"):
        Run.parse(f"GPT-B_{recipe}_seed2")


def test_better_patches_change_patches_alone(smoke, home):
    """Patches reach the training's settings, a drawn schedule has one segment of the same expected cost, digests differ."""
    mean = Run("B", patch_size=2, lam="1/2")
    attention, drawn = mean.of("B", patch="attention"), mean.of("B", drawn=True)
    assert attention.training(smoke) == dataclasses.replace(smoke.training, patch="attention")
    assert drawn.training(smoke) == smoke.training and attention.segments(300) == mean.segments(300)
    assert [(s.patch_size, s.start, s.end, s.coarse) for s in drawn.segments(300)] == [(2, 0, 300, 0.5)]
    assert len({graph.train_job(smoke, run).digest for run in (mean, attention, drawn)}) == 3
    assert plan.patch_steps(smoke, drawn) == plan.patch_steps(smoke, mean) == {2: 150, 1: 150}
    assert targets.priority(smoke, graph.train_job(smoke, drawn)) == targets.priority(smoke, graph.train_job(smoke, mean))


@pytest.mark.parametrize("name", ["patches", "solar_patches"])
def test_shorter_runs_cost_what_the_mean_costs(name):
    """The runs of fewer epochs have the mean's FLOPs within half a percent."""
    preset = load_preset(name)
    shorter = [run for run in runs.preset_runs(preset) if run.epochs]
    for run in shorter:
        mean = plan.train_flops(preset, dataclasses.replace(run, epochs=0, patch="mean"))
        assert plan.train_flops(preset, run) == pytest.approx(mean, rel=0.005)
    assert {run.patch for run in shorter} == {"heads"}


def test_seeds_begin_where_the_preset_says(smoke):
    """A confirmatory preset has seeds of its own."""
    later = dataclasses.replace(smoke, runs={"B": ["ntp"]}, seeds={"B": 3}, first_seed=100)
    assert [run.seed for run in runs.preset_runs(later)] == [100, 101, 102]
    assert list(runs.seeds(later, Run("L"))) == []


def test_a_tokenizer_of_another_preset(smoke, home):
    """Two presets on the same data share a tokenizer; where anything else makes the files of either, they cannot."""
    shared = dataclasses.replace(smoke, name="mine", tokenizer_of="smoke")
    assert graph.tokenize_job(shared) == graph.tokenize_job(smoke)
    assert graph.train_job(shared, Run("B")).folder.parts[-3] == "mine"
    for setting, value in {
        "data": dataclasses.replace(smoke.data, heldout=7),
        "tokenizer": dataclasses.replace(smoke.tokenizer, steps=7),
        "extractor": dataclasses.replace(smoke.extractor, steps=7),
    }.items():
        with pytest.raises(NppkitError, match=f"{setting} differs from that of smoke: make it equal, or own a tokenizer"):
            graph.tokenize_job(dataclasses.replace(shared, **{setting: value}))


def test_models_of_another_preset(smoke, home):
    """A preset that scores another's models trains none; its evaluations say what is other in them."""
    again = dataclasses.replace(smoke, name="mine", models_of="smoke")
    run = runs.preset_runs(smoke)[0]
    train, evaluate = graph.train_job(again, run), graph.evaluate_job(again, run)
    assert train == graph.train_job(smoke, run) and train.folder.parts[-3] == "smoke"
    assert evaluate.upstream == (train,) and evaluate.folder.parts[-3] == "mine"
    assert graph.checkpoint_dir(again, run) == graph.checkpoint_dir(smoke, run)
    assert graph.samples_dir(smoke, run) == graph.checkpoint_dir(smoke, run)  # as before there were presets that borrow
    assert graph.samples_dir(again, run).parts[-3:] == ("mine", run.id, graph.samples_dir(smoke, run).name)
    weights = dataclasses.replace(smoke.extractor, name="inception-v3-compat", weights="weights/inception.pth")
    other = graph.evaluate_job(dataclasses.replace(again, extractor=weights), run)
    assert other.digest != evaluate.digest and "weights/inception.pth" in other.inputs
    assert other.upstream == (train,)
    for setting, value in {
        "training": dataclasses.replace(smoke.training, lr=0.5),
        "models": {size: {**shape, "n_layer": 7} for size, shape in smoke.models.items()},
        "precision": "bf16",
        "data": dataclasses.replace(smoke.data, heldout=7),
        "tokenizer": dataclasses.replace(smoke.tokenizer, steps=7),
        "extractor": dataclasses.replace(smoke.extractor, steps=7),  # trained by the other one's tokenize job
    }.items():
        with pytest.raises(NppkitError, match=f"{setting} differs from that of smoke: make it equal, or take models_of away"):
            graph.train_job(dataclasses.replace(again, **{setting: value}), run)


def test_releases_are_not_lent(home):
    """Who scores released models in another way names them, too: nothing would be trained in place of them."""
    preset = load_preset("imagenet256-eval")
    with pytest.raises(NppkitError, match="imagenet256-eval trains nothing: name one that does, or copy its weights"):
        graph.graph(dataclasses.replace(preset, name="mine", models_of="imagenet256-eval", weights={}))


def test_reports_wait_for_all_that_they_show(smoke, home):
    """Table 1's page and Figure 1's show a size of one's own, and Figure 1's page what is compared at equal FLOPs."""
    small, b = {**smoke.models["B"], "n_layer": 1}, ["ntp", "npp_p2_lambda1-2", "npp_p2_lambda1-2_epochs9"]
    preset = dataclasses.replace(smoke, models={"B": smoke.models["B"], "small": small}, runs={"B": b, "small": ["ntp"]})
    preset = dataclasses.replace(preset, seeds={}, equal_flops={"B": [5, 9]})
    wanted = {name: [run.id for run in graph.report_runs(preset, name)] for name in ("table1_main", "table2_patch_size")}
    assert "GPT-small_ntp_seed0" in wanted["table1_main"] and "GPT-B_npp_p2_lambda1-2_epochs9_seed0" not in wanted["table1_main"]
    assert "GPT-small_ntp_seed0" not in wanted["table2_patch_size"]
    assert len(graph.report_runs(preset, "figure1_cost_vs_fid")) == len(runs.preset_runs(preset)) == 4


@pytest.mark.parametrize(
    "changes",
    [{"equal_flops": {"B": [5, 9]}}, {"questions": {"schedule": "B"}}, {"metric": "kid"}, {"rates": {"ntp": "lr6e-3"}}],
)
def test_a_page_is_made_again_when_other_things_are_asked(smoke, home, changes):
    """What a preset asks of its results decides no run, but the pages that answer."""
    other = dataclasses.replace(smoke, **changes)
    assert graph.report_job(smoke, "equal_compute").digest != graph.report_job(other, "equal_compute").digest
    assert graph.train_job(smoke, Run("B")).digest == graph.train_job(other, Run("B")).digest


def test_a_page_is_made_again_when_another_preset_is_asked_other_things(smoke, home):
    """What the presets that it reads ask of their results stands on it too."""
    study, digests = dataclasses.replace(smoke, coarse=str(home / "other.yaml")), set()
    for line in ("", "metric: kid\n"):
        (home / "other.yaml").write_text(f"base: smoke\ndescription: other\nruns: {{B: [ntp]}}\n{line}")
        digests.add(graph.report_job(study, "when_it_pays").digest)
    assert len(digests) == 2


def test_a_table_of_ones_own_writes_what_all_pages_do(smoke, home):
    """The three files of a table are for the paper's; the short names of those are nobody else's."""
    assert "table6_mine.csv" in graph.report_job(smoke, "table6_mine").outputs
    assert "table6_mine.tex" not in graph.report_job(smoke, "table6_mine").outputs


def test_jobs_of_an_own_file_find_it_again(tmp_path, home):
    """The notebooks of a preset that is a file are given the file, from whatever folder they run in."""
    path = tmp_path / "mine.yaml"
    path.write_text((FOLDER / "smoke.yaml").read_text())
    preset = load_preset(str(path))
    for job in graph.graph(preset):
        assert load_preset(job.parameters["preset"]) == preset


def test_settings_at_their_default_do_not_decide(smoke, home):
    """A setting that a later version adds leaves earlier results valid; one that is set does not."""
    job = graph.train_job(smoke, Run("B"))
    assert "grad_clip" not in job.config["training"] and job.config["training"]["lr"] == smoke.training.lr
    other = dataclasses.replace(smoke, training=dataclasses.replace(smoke.training, grad_clip=0.5))
    assert graph.train_job(other, Run("B")).digest != job.digest


def test_unknown_model_is_refused(smoke):
    """A run of a model that the preset lacks is named."""
    with pytest.raises(NppkitError, match="no model XXL"):
        runs.find_run(smoke, "GPT-XXL_ntp_seed0")


def test_levels_beyond_the_grid_are_refused(smoke):
    """A coarsest patch larger than the code grid, or one that does not divide it, is an error before any work."""
    with pytest.raises(NppkitError, match="patch_size 16 does not divide the 8 x 8 grid"):
        runs.find_run(smoke, "GPT-B_npp_L5_lambda1-2_seed0")
    with pytest.raises(NppkitError, match="patch_size 3 does not divide"):
        runs.preset_runs(dataclasses.replace(smoke, runs={"B": ["npp_p3_lambda1-2"]}))


def test_larger_images_have_their_own_grid(smoke):
    """Patches of a "384" run are those of its 12 x 12 codes, whatever divides the 8 x 8 of the others."""
    assert runs.find_run(smoke, "GPT-L-384_npp_p3_lambda1-2_seed0").large
    with pytest.raises(NppkitError, match="patch_size 8 does not divide the 12 x 12 grid"):
        runs.find_run(smoke, "GPT-L-384_npp_p8_lambda1-2_seed0")


def test_lambda_outside_the_interval_is_refused(smoke):
    """A run id with lambda 3/2 is one line that names lambda."""
    with pytest.raises(NppkitError, match="lambda 3/2 is outside"):
        runs.find_run(smoke, "GPT-B_npp_p2_lambda3-2_seed0")


def test_demo_trains_every_row():
    """Demo holds the 17 runs that the tables need, and no table cell but the "384" rows is left out."""
    demo = load_preset("demo")
    ids = {run.id for run in runs.preset_runs(demo)}
    needed = {run.id for n in range(1, 6) for _, row in published(n).iterrows() if (run := row_run(row)) and not run.large}
    assert len(ids) == 17 and needed == ids


@pytest.mark.parametrize("name", preset_names())
@pytest.mark.parametrize("number", [1, 2, 3, 4, 5])
def test_rows_of_a_table_differ(name, number):
    """No two rows of one table resolve to the same model and segments, in optimiser steps."""
    t = load_preset(name).training
    found = [run for _, row in published(number).iterrows() if (run := row_run(row))]
    keys = [(r.size, r.large, *((s.patch_size, s.end * t.steps_per_epoch) for s in r.segments(t.epochs))) for r in found]
    assert len(keys) == len(set(keys))


@pytest.mark.parametrize("name", preset_names())
def test_presets_keep_the_papers_schedule(name):
    """Every preset has 300 schedule epochs, one of warm-up, and decays over the last fifth."""
    t = load_preset(name).training
    assert (t.epochs, t.warmup_epochs, t.decay_fraction, t.end_lr) == (300, 1, 0.2, 1e-5)


def test_tables_need_their_rows_alone(home):
    """A table waits for its rows' runs, all seeds, each size's baseline among them; others for all.

    Figure 1 waits for Table 5's, and for those of NTP's FLOPs of which its page tells.
    """
    study = load_preset("study")
    needs = {
        job.name: {up.parameters["run"] for up in job.upstream} for job in graph.graph(study) if job.name in graph.reports(study)
    }
    sides = ["npp_p2_lambda1-2", "npp_p2_lambda2-3", "npp_p2_lambda3-4", "npp_p2_lambda4-5", "ntp"]
    assert needs["table3_lambda"] == {f"GPT-L_{recipe}_seed{seed}" for recipe in sides for seed in range(3)}
    longer = {r.id for r in runs.preset_runs(study) if (r.size, r.epochs) in {("B", 515), ("L", 509)}}
    assert needs["figure1_cost_vs_fid"] == needs["table5_cost"] | longer != needs["table5_cost"] != needs["table1_main"]
    assert needs["gain"] == {run.id for run in runs.preset_runs(study)}
    for number in range(1, 6):
        found = table_runs(number)
        assert {Run(run.size, large=run.large) for run in found} <= found


def test_demo_sizes_grow():
    """The four demo models strictly grow."""
    from nppkit.cost import linear_weights
    from nppkit.model import GPTConfig

    weights = [linear_weights(GPTConfig(**sizes, vocab_size=128)) for sizes in load_preset("demo").models.values()]
    assert weights == sorted(set(weights)) and len(weights) == 4


def complete(job, text="x"):
    """Pretend that the job ran."""
    for name in job.outputs:
        (job.folder / name).parent.mkdir(parents=True, exist_ok=True)
        (job.folder / name).write_text(text)
    records.write_record(job)


@pytest.fixture
def chain(home, smoke):
    """The complete jobs of one run."""
    run = runs.find_run(smoke, "GPT-B_ntp_seed0")
    jobs = [graph.tokenize_job(smoke), graph.train_job(smoke, run), graph.evaluate_job(smoke, run)]
    for job in jobs:
        complete(job)
    (graph.checkpoint_dir(smoke, run) / "step_00000300").mkdir(parents=True)
    return jobs


def reasons(preset):
    run = runs.find_run(preset, "GPT-B_ntp_seed0")
    return [
        bool(records.why_incomplete(job))
        for job in (graph.tokenize_job(preset), graph.train_job(preset, run), graph.evaluate_job(preset, run))
    ]


def test_valid_records_count(chain, smoke):
    """A finished chain is complete, whatever the file times say."""
    for job in chain:
        os.utime(job.record, (0, 0))
    assert reasons(smoke) == [False, False, False]


@pytest.mark.parametrize(
    ("path", "value", "stale"),
    [
        ("evaluation.guidance", [1.0, 1.5, 3.0], [False, False, True]),
        ("training.lr", 1.0, [False, True, True]),
        ("models.B", dict(dim=8, n_layer=1, n_head=2), [False, True, True]),
        ("models.L", dict(dim=8, n_layer=1, n_head=2), [False, False, False]),
        ("tokenizer.steps", 7, [True, True, True]),
        ("data.limit", 500, [True, True, True]),
    ],
)
def test_a_changed_value_makes_stale_what_depends_on_it(chain, smoke, changed, path, value, stale):
    """Changing one preset value reruns only what depends on it."""
    assert reasons(changed(smoke, path, value)) == stale


def test_altered_output_is_noticed(chain, smoke):
    """A result that changed on disk is named."""
    (chain[2].folder / "metrics.json").write_text("better")
    assert "metrics.json is missing or has changed" in records.why_incomplete(chain[2])


def test_retrained_tokenizer_is_noticed(chain, smoke):
    """New upstream results do not pass for the old ones, though the configuration is the same."""
    complete(chain[0], "retrained")
    assert "tokenize have changed" in records.why_incomplete(chain[1])


@pytest.mark.parametrize("content", ["", "{", "[]", '"x"', '{"config_digest": "x"}'])
def test_half_written_record(chain, content):
    """A damaged record is no record."""
    chain[1].record.write_text(content)
    assert "damaged" in records.why_incomplete(chain[1])


def test_a_missing_figure_is_drawn_again(home, smoke):
    """A report is incomplete, and says so, without one of its figures; tables without a figure declare none."""
    job = graph.report_job(smoke, "figure1_cost_vs_fid")
    complete(job)
    assert not records.why_incomplete(job)
    (home / "figures/smoke/figure1_cost_vs_fid.pdf").unlink()
    assert records.why_incomplete(job) == f"{home}/figures/smoke/figure1_cost_vs_fid.pdf is missing or has changed"
    assert [name for name in graph.report_job(smoke, "table5_cost").outputs if "figures" in name] == []


def test_the_other_grid_is_part_of_a_report(home):
    """when_it_pays is made again when a run of study_8x8 has changed; other reports are not."""
    study, coarse = load_preset("study"), load_preset("study_8x8")
    jobs = [graph.evaluate_job(coarse, run) for run in runs.preset_runs(coarse)]
    for job in jobs:
        complete(job)
    before = {report: graph.report_job(study, report).digest for report in ("when_it_pays", "gain")}
    complete(jobs[-1], "y")
    after = {report: graph.report_job(study, report).digest for report in ("when_it_pays", "gain")}
    assert before["when_it_pays"] != after["when_it_pays"] and before["gain"] == after["gain"]


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path, monkeypatch):
    """It is synced before the rename shows it; when the disk is full the old one stays, and nothing half written beside it."""
    path, events, replace = tmp_path / "file", [], os.replace
    monkeypatch.setattr(graph.os, "fsync", lambda descriptor: events.append(os.fstat(descriptor).st_ino))
    monkeypatch.setattr(graph.os, "replace", lambda old, new: events.append("shown") or replace(old, new))
    files.write_atomic(path, "old")
    assert events == [path.stat().st_ino, "shown"]
    for error in (OSError(28, "No space left on device"), RuntimeError("unexpected pos\n64")):
        with pytest.raises(NppkitError, match=r"file could not be written .*free some space"), files.replacing(path) as temporary:
            temporary.write_text("ne")
            raise error
    assert list(tmp_path.iterdir()) == [path] and path.read_text() == "old"


def test_stale_records_are_set_aside_not_lost(chain, smoke, changed):
    """A stale record is renamed with a line that says why; the results stay."""
    preset = changed(smoke, "evaluation.guidance", [1.0, 1.5, 3.0])
    lines = graph.set_aside_stale(preset)
    assert lines == ["evaluate GPT-B_ntp_seed0 will run again: its configuration has changed"]
    assert not chain[2].record.exists() and (chain[2].folder / "metrics.json").exists()


def test_a_checkpoint_that_is_needed_and_gone_is_trained_again(chain, smoke):
    """Without its checkpoint a training counts as done only as long as nothing needs the checkpoint."""
    run = runs.find_run(smoke, "GPT-B_ntp_seed0")
    (graph.checkpoint_dir(smoke, run) / "step_00000300").rmdir()
    assert graph.set_aside_stale(smoke) == []
    (chain[2].folder / "metrics.json").unlink()
    assert [line.split(" ")[0] for line in graph.set_aside_stale(smoke)] == ["train", "evaluate"]


def test_a_tokenizer_that_came_out_otherwise_makes_all_anew(chain, smoke):
    """Asked for one table or evaluation, Snakemake looks no further than a result that is there: it must not be an older one."""
    tokenize, train, evaluate = chain
    assert graph.set_aside_stale(smoke) == []
    complete(tokenize, "other codes")
    assert graph.set_aside_stale(smoke) == [
        f"{train.name} will run again: the results of tokenize have changed",
        f"{evaluate.name} will run again: {train.name} runs again",
    ]
    assert not train.record.exists() and not evaluate.record.exists()


@pytest.mark.parametrize("size", ["B", "B-384"])
def test_codes_may_be_gone_until_they_are_needed(home, smoke, size):
    """Without codes and tokenizer what was made of them counts; a run that needs them makes them. What is there must be right."""
    preset = dataclasses.replace(smoke, runs={"B": ["ntp"], "B-384": ["ntp"]}, reports=[])
    for job in (job for job in graph.graph(preset) if job.notebook in ("tokenize", "train", "evaluate")):
        complete(job)
    run = runs.find_run(preset, f"GPT-{size}_ntp_seed0")
    tokenize = graph.tokenize_job(preset, run.large)
    for path in (tokenize.folder / name for name in tokenize.spared):
        path.unlink()
    assert graph.set_aside_stale(preset) == [] and f"{tokenize.spared[0]} is missing" in records.why_incomplete(tokenize)
    (graph.run_dir(preset, run) / "history.csv").unlink()
    again = [tokenize.name, f"train {run.id}", f"evaluate {run.id}"]
    assert [line.split(" will")[0] for line in graph.set_aside_stale(preset)] == again
    complete(tokenize)
    (tokenize.folder / tokenize.spared[0]).write_text("other")
    assert graph.set_aside_stale(preset)[0].startswith(f"{tokenize.name} will run again")


def test_record_needs_every_output(home, smoke):
    """A job that did not write an output is not complete."""
    job = graph.tokenize_job(smoke)
    complete(job)
    (job.folder / "metrics.json").unlink()
    with pytest.raises(NppkitError, match=r"metrics\.json was not written"):
        records.write_record(job)


def test_checkpoints_are_never_an_output(smoke):
    """Snakemake deletes declared outputs before a rerun: checkpoints lie elsewhere."""
    run = runs.find_run(smoke, "GPT-B_ntp_seed0")
    folder = graph.checkpoint_dir(smoke, run)
    for job in graph.graph(smoke):
        assert not folder.is_relative_to(job.folder)
        assert not any("checkpoint" in name for name in job.outputs)


def test_checkpoints_of_other_codes_are_not_resumed(home, smoke):
    """A tokenizer that is trained again, with the same settings, makes other codes: its runs begin anew, in another folder."""
    manifest, found = graph.tokenizer_dir(smoke) / "train/manifest.json", []
    for content in ("one", "other"):
        files.write_atomic(manifest, content)
        found.append(graph.checkpoint_dir(smoke, Run("B")))
    assert found[0] != found[1]


def test_large_runs_have_their_own_codes(smoke):
    """The tables' "384" rows need codes at 1.5 times the image side, made by the same tokenizer."""
    preset = dataclasses.replace(smoke, runs={**smoke.runs, "L-384": ["ntp"]})
    jobs = {job.name: job for job in graph.graph(preset)}
    large = jobs["tokenize-384"]
    assert large.config["image_size"] == 48 and large.upstream == (jobs["tokenize"],)
    assert "tokenizer.safetensors" not in large.outputs
    assert large in jobs["train GPT-L-384_ntp_seed0"].upstream


def test_record_holds_the_configuration(chain):
    """A record can be read without the code."""
    record = json.loads(chain[1].record.read_text())
    assert record["config"]["training"]["lr"] == 2e-3 and set(record["outputs"]) == set(chain[1].outputs)


RELEASED = {"GPT-B_ntp_seed0": "LlamaGen-B-256"}


def test_released_weights_take_the_place_of_training(home, smoke):
    """A run that has weights is evaluated after tokenizing, has no training job, and its digest follows the weights."""
    preset, run = dataclasses.replace(smoke, weights=RELEASED), Run("B")
    job = graph.evaluate_job(preset, run)
    assert job.upstream == (graph.tokenize_job(preset),)
    trained = {job.parameters["run"] for job in graph.graph(preset) if job.notebook == "train"}
    assert trained == {run.id for run in runs.preset_runs(smoke)} - {run.id}
    other = dataclasses.replace(smoke, weights={run.id: "other.pt"})
    assert len({job.digest, graph.evaluate_job(other, run).digest, graph.evaluate_job(smoke, run).digest}) == 3
    assert graph.set_aside_stale(preset) == []


def test_weights_of_no_run_are_refused(smoke):
    """Weights for a run that the preset does not list would be forgotten silently."""
    with pytest.raises(NppkitError, match="weights of GPT-XL_ntp_seed0, which is not one of its runs"):
        runs.preset_runs(dataclasses.replace(smoke, weights={"GPT-XL_ntp_seed0": "x"}))


def test_precision_is_said_once(home, smoke):
    """It is the preset's and no parameter; it is in both digests, and fp32, the default, leaves them as they were."""
    bf16, run = dataclasses.replace(smoke, precision="bf16"), Run("B")
    for make in (graph.train_job, graph.evaluate_job):
        assert "precision" not in make(bf16, run).parameters
        assert make(bf16, run).config == {**make(smoke, run).config, "precision": "bf16"}


def test_relative_paths_start_at_home(home):
    """A preset's relative paths do not depend on the folder that a notebook runs in."""
    assert files.located("data/x") == home / "data/x" and files.located("/data/x") == graph.Path("/data/x")
    assert files.located("") == graph.Path()


def test_order_of_work():
    """An interrupted study has its evaluations and whole seeds first, large models before small ones, the "384" rows last."""
    preset = load_preset("study")
    jobs = [graph.evaluate_job(preset, Run("B")), *(graph.train_job(preset, run) for run in (Run("XXL"), Run("L"), Run("B")))]
    jobs += [
        graph.train_job(preset, run) for run in (Run("B", patch_size=2, lam="1/2"), Run("XXL", seed=1), Run("XXL", large=True))
    ]
    order = [targets.priority(preset, job) for job in jobs]
    assert order == sorted(order, reverse=True) and len(set(order)) == len(order)


def test_unusual_spellings_are_refused(smoke):
    """A recipe under another name, or seeds of no run, would be left out without a word."""
    with pytest.raises(NppkitError, match="runs: B_npp_L2_lambda1-2 is spelt npp_p2_lambda1-2 here"):
        runs.preset_runs(dataclasses.replace(smoke, runs={"B": ["ntp", "npp_L2_lambda1-2"]}))
    with pytest.raises(NppkitError, match="seeds: 'GPT-B' is none of its sizes"):
        runs.preset_runs(dataclasses.replace(smoke, seeds={"GPT-B": 5}))


@pytest.mark.parametrize("change", [{"outputs": None}, {"outputs": [1]}, {"upstream": None}, {"inputs": None}, {"inputs": [1]}])
def test_a_record_of_other_kinds_of_values_is_damaged(home, smoke, change):
    """Valid JSON that no nppkit wrote: the job runs again, and what reads all results goes on."""
    job = graph.tokenize_job(smoke)
    complete(job)
    job.record.write_text(json.dumps(files.read_json(job.record) | change))
    assert "tokenize.record.json is damaged" in records.why_incomplete(job)
    assert records.outputs_digest(job) == "" and records.recorded_inputs(job) == {} and "tokenize" in graph.stale(smoke)


def test_a_preset_that_scores_its_own_scores_is_refused():
    """models_of leads to trainings, not to itself or to another preset that has none."""
    seen = load_preset("digits_seen")
    with pytest.raises(NppkitError, match="digits_seen trains nothing: name one that does, or copy its weights"):
        graph.models_preset(dataclasses.replace(seen, name="mine", models_of="digits_seen"))


def test_what_no_grid_could_hold_is_refused():
    """Before a schedule of so many levels is made."""
    with pytest.raises(NppkitError, match=r"17 levels begin with patches of 2\^16 a side"):
        Run.parse("GPT-B_npp_L17_lambda1-2_seed0")
