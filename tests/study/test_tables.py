"""Tables: the paper's rows, ours beside them, and nothing that looks like what it is not."""

import dataclasses
import json

import pandas as pd
import pytest

from nppkit.cost import linear_weights, rule_gflops
from nppkit.errors import NppkitError
from nppkit.model import MODELS, GPTConfig
from nppkit.schedule import multi_scale_segments
from nppkit.study import graph, records, results, tables
from nppkit.study.presets import load_preset
from nppkit.study.runs import Run

CONTRACT = dict.fromkeys(("image_size", "temperature", "top_k", "top_p", "report_seed", "reference", "extractor", "metrics"), "x")
CONTRACT |= {"samples": 200, "select_samples": 50, "extractor_sha256": "e" * 64, "reference_sha256": "r" * 64}


FLOORS = {"reconstruction_fid": 3.25, "reconstruction_images": 500, "real_fid": 0.5, "real_images": [250, 250]}


def finish(preset, run, fid=10.0, seconds=100.0, flops=1e12, kid=0.1, recall=0.4, parameters=5, **contract):
    """Pretend that a run was trained and evaluated."""
    metrics = {
        "fid": fid,
        "select_fid": fid,
        "repeat_fid": fid + 1,
        "inception_score": 2.0,
        "kid": kid,
        "precision": 0.5,
        "recall": recall,
        "agreement": 0.8,
    }
    rows = [{"cfg_scale": s, **metrics, "select_fid": s} for s in preset.evaluation.guidance]
    contents = {
        "metrics.json": {"heldout_nll": 1.5, "guidance": rows, "contract": {**CONTRACT, **contract}},
        "train_metrics.json": {"seconds": seconds, "cpu_seconds": seconds / 2, "flops": flops, "parameters": parameters},
    }
    for job in (graph.tokenize_job(preset), graph.train_job(preset, run), graph.evaluate_job(preset, run)):
        for name in job.outputs:
            (job.folder / name).parent.mkdir(parents=True, exist_ok=True)
            content = FLOORS if job.notebook == "tokenize" else contents.get(name, {})
            (job.folder / name).write_text(json.dumps(content))
        records.write_record(job)


@pytest.fixture
def partly_run(home, smoke):
    """A preset with two of its runs done: the baseline, and p = 2."""
    finish(smoke, Run("B"), fid=10.0, seconds=100.0, flops=1e12)
    finish(smoke, Run("B", patch_size=2, lam="1/2"), fid=8.0, seconds=70.0, flops=6e11)
    return smoke


@pytest.mark.parametrize("number", [1, 2, 3, 4, 5])
def test_rows_are_the_papers(home, smoke, number):
    """Each table has the paper's rows in the paper's order, with its values."""
    ours, paper = tables.make_table(smoke, number), tables.published(number)
    assert ours["model"].tolist() == paper["model"].tolist()
    pd.testing.assert_series_equal(ours["paper FID"], paper["fid"], check_names=False)


def test_status_of_every_row(partly_run):
    """Systems that are not trained here are quoted, cells not run say so, finished ones count seeds."""
    table = tables.make_table(partly_run, 1).set_index("model")["ours"]
    assert table["BigGAN"] == table["VAR-d16"] == "quoted"
    assert table["LlamaGen-B"] == "1 seed" and table["LlamaGen-XL"] == "not run"


def test_values_and_costs(partly_run):
    """Our values are those of the metrics files; measured cost is the ratio to the baseline, formulas stand beside it."""
    row = tables.make_table(partly_run, 2).iloc[1]
    assert row["our FID (digit features)"] == 8.0 and row["paper FID"] == 4.47
    assert row["cost measured time"] == pytest.approx(0.7) and row["cost measured FLOPs"] == pytest.approx(0.6)
    assert row["cost ideal"] == row["cost integer boundaries"] == row["cost printed"] == 0.625


def test_measured_cost_is_not_the_formula(home, smoke):
    """Other seconds and FLOPs in the files give other measured costs."""
    finish(smoke, Run("B"), seconds=50.0, flops=2e12)
    finish(smoke, Run("B", patch_size=2, lam="1/2"), seconds=49.0, flops=1.9e12)
    row = tables.make_table(smoke, 2).iloc[1]
    assert row["cost measured time"] == pytest.approx(0.98) and row["cost measured FLOPs"] == pytest.approx(0.95)


def test_measured_cost_is_of_common_seeds(home, smoke):
    """A seed that only the baseline has, on a machine three times as slow, does not enter the ratio."""
    preset = dataclasses.replace(smoke, seeds={"B": 2})
    finish(preset, Run("B"), seconds=50.0, flops=2e12)
    finish(preset, Run("B", seed=1), seconds=150.0, flops=2e12)
    finish(preset, Run("B", patch_size=2, lam="1/2"), seconds=30.0, flops=1e12)
    row = tables.make_table(preset, 2).iloc[1]
    assert row["ours"] == "1 seed" and row["cost measured time"] == pytest.approx(0.6)


def test_own_metrics_never_look_like_imagenet(partly_run):
    """With digit features no column of ours is called plain FID, IS, precision or recall."""
    for number in (1, 2, 3, 4, 5):
        names = [
            c
            for c in tables.make_table(partly_run, number).columns
            if c.startswith("our ") and not {"GFLOPs", "seconds", "parameters"} & set(c.split())
        ]
        assert names and all("(digit features)" in name for name in names)


def test_best_scale_is_chosen_on_other_seeds(partly_run):
    """The best guidance scale minimises the selecting seed's FID (here the smallest scale), not the reported one's."""
    assert tables.make_table(partly_run, 2).iloc[0]["at scale"] == min(partly_run.evaluation.guidance)


def test_method_table(partly_run):
    """Runs by name with means over seeds; a run that the preset does not list is left out, one not yet run says so."""
    named = {
        "NTP": Run("B"),
        "NPP": Run("B", patch_size=2, lam="1/2"),
        "p = 4": Run("B", patch_size=4, lam="1/2"),
        "no": Run("XL"),
    }
    table = tables.method_table(partly_run, named).set_index("run")
    assert table["FID (digit features)"].tolist() == ["10", "8", ""] and table["seeds"].tolist() == [
        "1 seed",
        "1 seed",
        "not run",
    ]
    assert table["TFLOPs"].tolist() == ["1", "0.6", ""]


def test_sampling_deviation(partly_run):
    """Two FIDs that are always 1 apart come from a deviation of 1 / sqrt(2)."""
    rows = [
        results.guidance_curves(partly_run, Run("B")),
        results.guidance_curves(partly_run, Run("B", patch_size=2, lam="1/2")),
    ]
    expected = (sum(((r["repeat_fid"] - r["select_fid"]) ** 2).sum() for r in rows) / sum(map(len, rows)) / 2) ** 0.5
    assert results.sampling_noise(partly_run)[0] == pytest.approx(expected) and expected > 1


def test_fid_bias(home, smoke):
    """FID = 6.75 + 50 / n is 8 of 40 samples and 7 of 200: 0.25 too high; other images say otherwise. Without a run: unknown."""
    assert "+nan by one sampling seed" in results.sampling_error(smoke)
    finish(smoke, Run("B"), fid=7.0, select_samples=40)  # the other seed's 40 samples have 1.0 and 1.5 at the two scales
    assert "bias of 200 samples: -1 by one sampling seed, +0.2 by the other (KID has none)" in results.sampling_error(smoke)
    assert results.sampling_noise(smoke)[1] == pytest.approx([-5.75 / 4, 0.25])


def test_unlike_contracts_are_refused(home, smoke):
    """Two runs evaluated with different sample counts do not share a table, nor the frame of all results."""
    finish(smoke, Run("B"))
    finish(smoke, Run("B", patch_size=2, lam="1/2"), samples=500)
    for read in (results.all_results, lambda preset: tables.make_table(preset, 2)):
        with pytest.raises(NppkitError, match="another samples"):
            read(smoke)


def test_written_files(partly_run):
    """CSV, Markdown and LaTeX name the preset and hold the same rows."""
    table = tables.make_table(partly_run, 2)
    csv, md, tex = tables.write_table(partly_run, "table2_patch_size", table)
    assert len(pd.read_csv(csv)) == len(table) == md.read_text().count("| LlamaGen-")
    assert "FID 3.25 of 500 reconstructed" in md.read_text() and "0.5 of 250" in md.read_text()
    assert "200 samples" in md.read_text() and "eeee" in md.read_text()
    assert "preset smoke" in md.read_text() and "preset smoke" in tex.read_text()
    assert tex.read_text().count("LlamaGen-") == len(table) and "our FID (digit features)" in tex.read_text()


def test_cost_audit_finds_the_three_rows():
    """Recomputed by its own rule, Table 5 differs from print for L, XL and XXL with NPP, and nowhere else."""
    audit = tables.cost_audit(tables.make_table(load_preset("demo"), 5))
    assert [name.split(" ")[0] for name in audit["model"]] == ["LlamaGen-L", "LlamaGen-XL", "LlamaGen-XXL"]
    assert audit["paper GFLOPs by its rule"].tolist() == [52.33, 121.13, 222.84]


def test_l_cost_belongs_to_four_levels():
    """The cost printed for L is exactly the rule's value for #L = 4."""
    config = GPTConfig(**MODELS["L"])
    assert round(rule_gflops(config, multi_scale_segments(300, 4, "1/2")), 2) == 47.95


@pytest.mark.parametrize(
    ("size", "weights"), [("B", 97_517_568), ("L", 325_058_560), ("XL", 752_353_280), ("XXL", 1_384_120_320)]
)
def test_linear_weights(size, weights):
    """Linear weights of the four models, as the paper's costs imply them."""
    assert linear_weights(GPTConfig(**MODELS[size])) == weights


def test_every_published_npp_row_has_a_run():
    """Each LlamaGen row of every table is a run, each other row is not."""
    for number in range(1, 6):
        for _, row in tables.published(number).iterrows():
            assert (tables.row_run(row) is not None) == row["model"].startswith("LlamaGen")


def test_differences_are_to_the_same_size(partly_run):
    """NPP's FID minus that of next-token prediction of its own size; one seed has no interval and no side."""
    differences = tables.differences(partly_run, 2)
    assert differences["paper FID"].tolist() == [-0.99, -0.54, -1.04, -0.91]
    assert differences["FID"].tolist() == ["-2 (one seed)", "not run", "not run", "not run"]
    assert differences["FID: side"].tolist() == [""] * 4


def test_a_run_counts_without_its_sample_grid(home, smoke):
    """A clone may lack the grids of later seeds; another file that is missing makes the run incomplete."""
    finish(smoke, Run("B"))
    folder = graph.run_dir(smoke, Run("B"))
    (folder / "samples.png").unlink()
    assert results.run_result(smoke, Run("B")) and not graph.set_aside_stale(smoke)
    (folder / "metrics.json").unlink()
    assert results.run_result(smoke, Run("B")) is None


def test_seeds_are_paired(home, smoke, changed):
    """Three seeds that differ much among themselves still show a small steady difference, in table and interval."""
    preset = dataclasses.replace(smoke, seeds={"B": 3})
    for seed, (ntp, npp) in enumerate([(10.0, 9.0), (20.0, 18.9), (30.0, 29.1)]):
        finish(preset, Run("B", seed=seed), fid=ntp)
        finish(preset, Run("B", patch_size=2, lam="1/2", seed=seed), fid=npp)
        assert seed or tables.make_table(preset, 2).iloc[1]["side of zero"] == "one seed"
    row = tables.make_table(preset, 2).iloc[1]
    assert row["ours"] == "3 seeds" and row["our FID (digit features)"] == pytest.approx(19.0)
    assert row["our FID (digit features) deviation"] == pytest.approx(10.05, abs=0.01)
    assert row["FID minus NTP's"] == pytest.approx(-1.0) and row["FID minus NTP's, high"] < 0
    assert row["side of zero"] == "lower"
    text = tables.compact(tables.make_table(preset, 2)).iloc[1]
    assert text["FID minus NTP's"] == "-1.00 [-1.25, -0.75]" and "±" in text["our FID (digit features)"]
    assert tables.seed_values(preset, 2)["fid"].tolist() == [10.0, 20.0, 30.0, 9.0, 18.9, 29.1]


def test_missing_metrics_file_is_not_run(partly_run):
    """A run whose metrics are gone is not run; nothing is guessed."""
    (graph.run_dir(partly_run, Run("B")) / "metrics.json").unlink()
    assert tables.make_table(partly_run, 2)["ours"].iloc[0] == "not run"


def test_rows_of_released_weights(home):
    """A preset of releases says which rows are released weights and which were not released; these have no cost of ours."""
    preset = load_preset("imagenet256-eval")
    run = Run("L")
    finish(preset, run, fid=3.8)
    weights = {"name": "LlamaGen-L-256", "sha256": "00", "parameters": 342910976}
    path = graph.run_dir(preset, run) / "metrics.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "weights": weights}))
    records.write_record(graph.evaluate_job(preset, run))
    status = tables.make_table(preset, 1).set_index("model")["ours"]
    assert status["LlamaGen-L"] == "released weights" and status["LlamaGen-L (384)"] == "not run"
    assert status["LlamaGen-XL"] == status["LlamaGen-XXL"] == "weights not released" and status["BigGAN"] == "quoted"
    row = tables.make_table(preset, 3).iloc[0]
    assert row["our FID"] == 3.8 and row["cost measured FLOPs"] is None
    data = tables.make_table(preset, 5).set_index("model").loc["LlamaGen-L"]
    assert data["our parameters"] == 342910976 and pd.isna(data["our GFLOPs measured"])


def test_released_weights_of_another_first_seed(home, smoke):
    """What is said of a row is asked of its own seeds."""
    name = "GPT-B_ntp_seed7"
    preset = dataclasses.replace(smoke, runs={"B": ["ntp"]}, seeds={"B": 1}, first_seed=7, weights={name: "LlamaGen-B-256"})
    finish(preset, Run("B", seed=7))
    path = graph.run_dir(preset, Run("B", seed=7)) / "metrics.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "weights": {"parameters": 5}}))
    records.write_record(graph.evaluate_job(preset, Run("B", seed=7)))
    assert tables.make_table(preset, 1).set_index("model")["ours"]["LlamaGen-B"] == "released weights"


def test_floors_are_those_of_the_tables_own_extractor(home, changed):
    """A preset that looks with another network at another's models has no floors of its own."""
    digits, seen = load_preset("digits"), load_preset("digits_seen")
    path = graph.tokenizer_dir(digits) / "metrics.json"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(FLOORS))
    assert results.floors(digits).startswith("floors: FID 3.25 of 500")
    unlike = "floors: not measured with this extractor and reference (those of {}'s tokenizer are by others)"
    assert results.floors(seen) == unlike.format("study")
    later = changed(load_preset("study"), "evaluation.reference", "real.npz")  # after the tokenizer had been looked at
    path.write_text(json.dumps({**FLOORS, "reference": ""}))
    assert results.floors(later) == unlike.format("study")


def test_a_caption_is_latex(partly_run):
    """What LaTeX takes for its own is escaped there too, as in the cells."""
    preset = dataclasses.replace(partly_run, name="study_8x8", description="50 % & more of_it")
    written = tables.write_table(preset, "table2_patch_size", tables.make_table(preset, 2))
    (caption,) = [line for line in written[2].read_text().splitlines() if line.startswith("\\caption")]
    assert caption == "\\caption{table2 patch size, preset study\\_8x8: 50 \\% \\& more of\\_it}"


def test_rows_that_nobody_asked_for_are_not_run(home, smoke):
    """One release among one's own runs says nothing of other rows."""
    preset = dataclasses.replace(smoke, runs={"B": ["ntp", "npp_p2_lambda1-2"]}, weights={"GPT-B_ntp_seed0": "LlamaGen-B-256"})
    assert set(tables.make_table(preset, 1)["ours"]) == {"quoted", "not run"}


def test_the_papers_guidance_scales(home, smoke, changed):
    """With all of the paper's scales among its own, a preset shows each model at the scale that the paper gives it."""
    preset = changed(smoke, "evaluation.guidance", [1.5, 1.65, 1.7, 1.75, 2.0])
    for run, scale in ((Run("L"), 2.0), (Run("L", patch_size=2, lam="3/4"), 1.75)):
        finish(dataclasses.replace(preset, runs={"L": ["ntp", "npp_p2_lambda3-4"]}), run)
        path = graph.run_dir(preset, run) / "metrics.json"
        content = json.loads(path.read_text())
        for row in content["guidance"]:
            row["fid"] = row["cfg_scale"]
        path.write_text(json.dumps(content))
        records.write_record(graph.evaluate_job(preset, run))
        preset_two = dataclasses.replace(preset, runs={"L": ["ntp", "npp_p2_lambda3-4"]})
        row = tables.make_table(preset_two, 3).iloc[0 if run.lam is None else 3]
        assert row["our FID at the paper's scale (digit features)"] == scale and row["our FID (digit features)"] == 1.5
    assert not any("paper's scale" in name for name in tables.make_table(smoke, 3).columns)


def test_printed_cost_of_a_schedule():
    """Whatever the model: Table 2 to 4's printed ratio, None for a schedule that the paper does not print."""
    assert tables.printed_cost(Run("XL", patch_size=2, lam="3/4")) == 0.43
    assert tables.printed_cost(Run("B", levels=4, lam="1/2")) == pytest.approx(0.572, abs=1e-3)
    assert tables.printed_cost(Run("B", patch_size=2, lam="1/7")) is None


def test_what_was_not_measured_is_left_empty(home, smoke):
    """Released weights have no FLOPs of ours, and no extractor but the digits' gives agreement: the columns stay empty."""
    preset = dataclasses.replace(smoke, seeds={"B": 2})
    for seed in (0, 1):
        finish(preset, Run("B", seed=seed), flops=None)
    path = graph.run_dir(preset, Run("B", seed=1)) / "metrics.json"
    metrics = json.loads(path.read_text())
    for row in metrics["guidance"]:
        row["agreement"] = None
    path.write_text(json.dumps(metrics))
    records.write_record(graph.evaluate_job(preset, Run("B", seed=1)))
    table = tables.method_table(preset, {"NTP": Run("B")})
    assert table["seeds"].tolist() == ["2 seeds"] and table["agreement"].tolist()[0].startswith("0.8")
    assert "TFLOPs" not in table or table["TFLOPs"].isin(["", None]).all() or table["TFLOPs"].isna().all()


def test_results_of_a_preset_without_runs_have_their_columns(home, smoke):
    """Before the first run is complete the frame has no rows, and the columns that the rows will have."""
    nothing = results.all_results(smoke)
    assert (
        nothing.empty and len(nothing["fid"]) == len(nothing[nothing["recipe"] == "ntp"].groupby("size")["best_fid"].mean()) == 0
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NPPKIT_HOME", str(graph.NOTEBOOKS.parent))
        found = results.all_results(load_preset("study"))
    assert [name for name in found.columns if not name.startswith("paper_")] == nothing.columns.tolist()


def test_numbers_of_unlike_contracts_are_nowhere_compared(home, smoke):
    """Seeds of one run, a run beside its baseline, and rows of one table: another torch-fidelity would look like a result."""
    preset = dataclasses.replace(smoke, runs={"B": ["ntp", "npp_p2_lambda1-2"]}, seeds={"B": 3})
    ntp, npp = Run("B"), Run("B", patch_size=2, lam="1/2")
    for seed in range(3):
        finish(preset, dataclasses.replace(ntp, seed=seed), metrics="torch-fidelity 0.3.0")
        finish(preset, dataclasses.replace(npp, seed=seed), fid=5.0)
    for compare in (lambda: results.paired(preset, npp, ntp, "fid"), lambda: tables.method_table(preset, {"a": ntp, "b": npp})):
        with pytest.raises(NppkitError, match="were evaluated with another metrics: evaluate both again with one preset"):
            compare()
    finish(preset, dataclasses.replace(ntp, seed=1))
    with pytest.raises(NppkitError, match="GPT-B_ntp_seed1 and GPT-B_ntp_seed0 were evaluated with another metrics"):
        results.results(preset, ntp)
