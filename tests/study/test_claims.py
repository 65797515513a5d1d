"""Claims: verdicts follow the numbers and the protocol, and without numbers there is none."""

import dataclasses
import json

import pytest
from test_tables import finish

from nppkit import cli
from nppkit.errors import NppkitError
from nppkit.study import claims, graph, protocol, provenance, records, results, tables
from nppkit.study.claims import CONTRADICTED, EXPLORATORY, FAILS, HOLDS, NOT_RUN, SLIP
from nppkit.study.presets import load_preset
from nppkit.study.protocol import NPP, NTP
from nppkit.study.runs import Run

RUNS = {"B": ["ntp", "npp_p2_lambda1-2", "npp_p4_lambda1-2", "npp_L4_lambda1-2"]}


def seeded(preset, differences, run, baseline, **values):
    """Results of as many seeds of both runs, the run's FID above the baseline's by these differences."""
    for seed, difference in enumerate(differences, preset.first_seed):
        finish(preset, dataclasses.replace(baseline, seed=seed), fid=10.0 + seed, flops=1e12)
        finish(preset, dataclasses.replace(run, seed=seed), fid=10.0 + seed + difference, **{"flops": 0.58e12, **values})


@pytest.fixture
def studies(home, smoke, monkeypatch):
    """A first study, and one of three seeds a run that is to confirm it."""
    asked = dict.fromkeys(("equal_epochs", "patches", "levels"), "B")
    confirmatory = dataclasses.replace(smoke, name="later", runs=RUNS, seeds={"B": 3}, first_seed=100, questions=asked)
    control = dataclasses.replace(smoke, name="beside", runs={"B": ["ntp_restart", NPP.recipe]}, seeds={"B": 3}, first_seed=200)
    for module in (claims, protocol):
        monkeypatch.setattr(module, "load_preset", {"later": confirmatory, "beside": control}.get)
    return dataclasses.replace(smoke, runs=RUNS, seeds={"B": 3}, confirmatory="later"), confirmatory


def test_nothing_is_claimed_without_results(home, smoke):
    """Without runs only what the paper's own tables say is judged."""
    found = claims.verdicts(smoke)["verdict"].tolist()
    assert [found[i] for i in (0, 1, 2, 3, 7, 8, 9)] == [NOT_RUN] * 7
    assert [found[i] for i in (4, 5, 6, 10)] == [f"{CONTRADICTED}, except in IS", *[CONTRADICTED] * 2, SLIP]


def test_a_first_study_decides_nothing(studies):
    """However clear it looks: it is exploratory, and where another is to confirm it, that one's progress stands there."""
    first, _ = studies
    seeded(first, [-5.0, -5.1, -4.9], NPP, NTP)
    finding = claims.fid(first)
    assert (
        finding.verdict == "no verdict yet: planned 3, done 0 seeds (NPP - NTP, equal epochs, B)"
        and "first study, exploratory: FID minus NTP's: B -5.00" in finding.numbers
    )
    alone = dataclasses.replace(first, confirmatory="")
    assert claims.fid(alone).verdict == claims.other_metrics(alone).verdict == EXPLORATORY


def test_what_one_seed_shows_is_not_counted_as_open(studies):
    """It has no interval, which is not one that spans zero."""
    first, _ = studies
    for differences, n in (([1.0], 0), ([1.0, -1.0, 0.0], 3)):
        seeded(first, differences, NPP, NTP)
        assert claims.other_metrics(first).numbers.endswith(
            f"of {n} intervals NPP is better in none, worse in none; {n} leave it open"
        )


def test_the_runs_behind_a_verdict_show_the_other_metrics_once_complete(studies):
    """Claim 3 names the study of more seeds beside the first, with its intervals, and nothing of it before all are in."""
    first, confirmatory = studies
    seeded(first, [1.0, -1.0, 0.0], NPP, NTP)
    seeded(confirmatory, [1.0, -1.0], NPP, NTP, recall=0.9)
    assert claims.other_metrics(first).numbers.endswith("leave it open")
    seeded(confirmatory, [1.0, -1.0, 0.0], NPP, NTP, recall=0.9)
    assert "leave it open; second study, B, equal epochs: IS 0" in (numbers := claims.other_metrics(first).numbers)
    assert numbers.endswith("recall 0.50 [0.50, 0.50]")


@pytest.mark.parametrize(
    ("differences", "verdict"),
    [
        ([-5.0, -5.1, -4.9], "supported: FID -5.00 [-5.44, -4.56] (NPP - NTP, equal epochs, B)"),
        ([5.0, 5.1, 4.9], "refuted: FID 5.00 [4.56, 5.44] (NPP - NTP, equal epochs, B)"),
        ([0.1, 0.11, 0.12], "no difference that matters: FID 0.110 [0.066, 0.154] (NPP - NTP, equal epochs, B)"),
        ([9.0, -9.0, 1.0], "not decided before the others (1 of 3 complete): FID 0 [-39, 40] (NPP - NTP, equal epochs, B)"),
        ([-5.0, -5.1], "no verdict yet: planned 3, done 2 seeds (NPP - NTP, equal epochs, B)"),
    ],
)
def test_the_confirmatory_study_decides(studies, differences, verdict):
    """Its seeds alone, by the protocol's rule, against what the first study shows if need be."""
    first, confirmatory = studies
    seeded(first, [5.0, 5.1, 4.9], NPP, NTP)
    seeded(confirmatory, differences, NPP, NTP)
    finding = claims.fid(first)
    assert (
        finding.verdict == verdict and finding.numbers == "first study, exploratory: FID minus NTP's: B 5.00 [4.75, 5.25] (n = 3)"
    )


@pytest.mark.parametrize(
    ("differences", "said"),
    [
        ([0.1, 0.11, 0.12], "0.110 [0.085, 0.135] (95 % by itself, no verdict: within 1 of zero)"),
        ([-3.0, -3.1, -2.9], "-3.00 [-3.25, -2.75] (95 % by itself, no verdict: below zero)"),
        ([0.1, 3.0, -3.0], "0.0 [-7.4, 7.5] (95 % by itself, no verdict: open)"),
        ([0.1, 0.11], ""),
    ],
)
def test_first_findings_name_the_verdict_and_its_control(studies, differences, said):
    """A page of the first study begins with the verdict where the confirmatory study has decided the same contrast; the
    control stands beside the verdict once all of its seeds are in."""
    first, confirmatory = studies
    confirmatory = dataclasses.replace(confirmatory, control="beside")
    protocol.load_preset.__self__["later"] = confirmatory
    seeded(first, [1.0, 1.1, 0.9], NPP, NTP)
    seeded(confirmatory, [-5.0, -5.1, -4.9], NPP, NTP)
    seeded(protocol.load_preset("beside"), differences, NPP, protocol.RESTARTED)
    told = protocol.finding(first, "NPP minus NTP", {"B": (NPP, NTP)})
    beside = f"; beside NTP whose learning rate warms up twice, as NPP's does, {said}" if said else ""
    verdict = f"supported: FID -5.00 [-5.44, -4.56] (NPP - NTP, equal epochs, B){beside}"
    assert told.startswith(f"**{verdict}.** So says [the report](report.ipynb), with more seeds.") and "higher for B" in told
    seeded(first, [1.0], protocol.LEVELS.run, NTP)
    asked = protocol.finding(first, "#L = 4 minus NTP", {"B": (protocol.LEVELS.run, NTP)})
    assert "one seed for B.** [The report](report.ipynb), with more seeds, does not ask this. " in asked
    assert "report" not in protocol.finding(dataclasses.replace(first, confirmatory=""), "NPP minus NTP", {"B": (NPP, NTP)})


def test_first_findings_say_whose_learning_rate_was_another(studies, changed):
    """That of both methods, or of one of them."""
    first, confirmatory = studies
    other = dict(rates={"ntp": "4e-3"}, questions={"equal_epochs": "B"}, runs={"B": ["ntp_lr4e-3", NPP.recipe]})
    seeded(first, [1.0], protocol.LEVELS.run, NTP)
    for preset, words in (
        (changed(confirmatory, "training.lr", 0.5), "more seeds and at another learning rate, does"),
        (dataclasses.replace(confirmatory, **other), "more seeds and at another learning rate for NTP, does"),
    ):
        protocol.load_preset.__self__["later"] = preset
        assert words in protocol.finding(first, "#L = 4 minus NTP", {"B": (protocol.LEVELS.run, NTP)})


def test_a_diverged_run_is_an_outcome(studies):
    """A seed whose training diverged is left out of its contrast, which does not wait for it, and is said."""
    first, confirmatory = studies
    seeded(confirmatory, [-5.0, -5.1], NPP, NTP)
    lost = graph.train_job(confirmatory, dataclasses.replace(NPP, seed=102))
    lost.folder.mkdir(parents=True)
    records.write_diverged(lost, "step 3: loss nan")
    assert claims.fid(first).verdict == "supported (1 diverged): FID -5.0 [-7.0, -3.1] (NPP - NTP, equal epochs, B)"
    other = dataclasses.replace(confirmatory, training=dataclasses.replace(confirmatory.training, lr=1e-4))
    assert not records.divergence(graph.train_job(other, dataclasses.replace(NPP, seed=102)))  # at another rate it may not


def test_another_domain_stands_beside_the_verdict(studies):
    """As soon as all of its seeds are in, and not before; it does not change how the claims are counted."""
    first, confirmatory = studies
    pictures = dataclasses.replace(confirmatory, name="pictures", questions={"equal_epochs": "B"}, first_seed=300)
    for module in (claims, protocol):
        more = {"pictures": pictures, "later": dataclasses.replace(confirmatory, domains=["pictures"])}
        module.load_preset.__self__.update(more)
    seeded(confirmatory, [-5.0, -5.1, -4.9], NPP, NTP)
    seeded(pictures, [5.0, 5.1], NPP, NTP)
    alone = "supported: FID -5.00 [-5.44, -4.56] (NPP - NTP, equal epochs, B)"
    assert claims.fid(first).verdict == alone
    seeded(pictures, [5.0, 5.1, 4.9], NPP, NTP)
    assert claims.fid(first).verdict == f"{alone}; preset pictures: refuted: FID 5.00 [4.75, 5.25] (NPP - NTP, equal epochs, B)"
    assert "1 supported on digits" in claims.counted(claims.verdicts(first))
    assert "refuted on" not in claims.counted(claims.verdicts(first))


@pytest.mark.parametrize("job", [graph.train_job, graph.evaluate_job], ids=["trained", "scored"])
@pytest.mark.parametrize(
    ("machine", "seeds"),
    [
        ({"processor": ["another"]}, 2),
        ({"processor": [*provenance.machine()["processor"][:1], "another generation"]}, 2),
        ({"gpus": ["another"]}, 2),
        ({"processor": []}, 3),
    ],
    ids=["another processor", "another of its name", "a GPU", "none named"],
)
def test_a_pair_counts_on_one_processor(studies, job, machine, seeds):
    """A seed whose two runs come from two kinds of processor is none anywhere; for a verdict all records have to name it."""
    first, confirmatory = studies
    seeded(confirmatory, [-5.0, -5.1, -4.9], NPP, NTP)
    path = job(confirmatory, dataclasses.replace(NPP, seed=101)).record
    record = json.loads(path.read_text())
    record["made"]["machine"] |= machine
    path.write_text(json.dumps(record))
    assert claims.fid(first).verdict == "no verdict yet: planned 3, done 2 seeds (NPP - NTP, equal epochs, B)"
    assert results.paired(confirmatory, NPP, NTP, "fid").n == seeds
    assert results.paired(confirmatory, NPP, NTP, "flops").n == 3  # counted, and alike on every processor


def test_no_pair_on_one_processor_is_not_called_not_run(studies):
    """Whoever reads it would run again what is done."""
    _, confirmatory = studies
    pairs = {"B": (NPP, NTP)}
    assert protocol.finding(confirmatory, "NPP", pairs) == "**NPP: not run yet.**"
    seeded(confirmatory, [-5.0], NPP, NTP)
    path = graph.evaluate_job(confirmatory, dataclasses.replace(NPP, seed=100)).record
    record = json.loads(path.read_text())
    record["made"]["machine"] |= {"processor": ["another"]}
    path.write_text(json.dumps(record))
    assert protocol.finding(confirmatory, "NPP", pairs) == "**NPP: no two runs of a seed name one processor.**"


def test_planned_seeds_are_those_of_both_runs(studies):
    """Where the baseline has fewer seeds than the run, a verdict waits for no seed that could never be paired."""
    _, confirmatory = studies
    for few in (NTP, NPP):
        preset = dataclasses.replace(confirmatory, seeds={"B": 3, f"B_{few.recipe}": 2}, questions={"equal_epochs": "B"})
        (decision,) = protocol.decisions(preset).values()
        assert decision.contrast.planned == 2


@pytest.mark.parametrize(("parameters", "verdict"), [(5, HOLDS), (6, FAILS)])
def test_equal_parameters_are_counted(studies, parameters, verdict):
    """Claim 4 fails where a run with patches has another number of weights than one without."""
    first, _ = studies
    finish(first, NTP)
    assert claims.parameters(first).verdict == NOT_RUN  # one alone is compared with nothing
    finish(first, NPP, parameters=parameters)
    assert claims.parameters(first).verdict.startswith(f"{verdict}, for the weights")


def test_cost_is_arithmetic(studies):
    """The cost claim fails when the measured FLOPs do; three of the costs that the paper prints do not follow its own rule."""
    first, _ = studies
    for flops, verdict in ((0.58e12, HOLDS), (0.9e12, FAILS)):
        seeded(first, [0.0], NPP, NTP, flops=flops)
        assert claims.cost(first).verdict == f"{verdict}; 3 costs printed in Table 5 are not what the paper's own rule gives"


@pytest.mark.parametrize(
    ("flops", "verdict"), [(0.5e12, "supported: FID 5.00 [4.56, 5.44] (#L = 4 - #L = 2, B)"), (0.7e12, FAILS)]
)
def test_more_levels(studies, flops, verdict):
    """Claim 10 needs four levels to be worse than two, and cheaper: it fails when they cost more."""
    first, confirmatory = studies
    run = Run("B", levels=4, lam="1/2")
    seeded(confirmatory, [5.0, 5.1, 4.9], run, NPP)
    seeded(first, [1.0], run, NPP, flops=flops)
    for seed in range(3):
        finish(first, dataclasses.replace(NPP, seed=seed), fid=10.0, flops=0.6e12)
    found = claims.more_levels(first)
    assert found.verdict == verdict and f"FLOPs over those of 2 levels: B {flops / 0.6e12:.3f}" in found.numbers


def test_photographs_are_decided_by_kid(studies):
    """Two questions, a family of their own, in KID x 1,000; equal FLOPs are those of a shorter next-token training."""
    first, digits = studies
    asked = {"equal_epochs": "B", "equal_flops": "B"}
    shorter = dataclasses.replace(NTP, epochs=181)
    kept = {"equal_flops": {"B": (181, 498)}, "runs": {"B": [*RUNS["B"], shorter.recipe]}}
    photographs = dataclasses.replace(digits, name="photographs", questions=asked, metric="kid", **kept)
    assert [q.baseline for q in protocol.questions(photographs)] == [NTP, shorter]
    for seed, better in enumerate((0.005, 0.0051, 0.0049), photographs.first_seed):
        for run, kid in ((NTP, 0.02), (shorter, 0.02), (NPP, 0.02 - better)):
            finish(photographs, dataclasses.replace(run, seed=seed), fid=10.0, kid=kid, flops=1e12)
    shown = protocol.summary(photographs, first)
    assert shown["mean"].tolist() == pytest.approx([-5.0, -5.0]) and shown["verdict"].tolist() == ["supported"] * 2
    alone = protocol.decisions(dataclasses.replace(photographs, questions={"equal_epochs": "B"}))
    assert shown["low"][0] < next(iter(alone.values())).low  # two intervals that hold together are wider than one


def test_each_method_at_its_rate(studies):
    """Where the trial chose two rates, a question compares NPP at NPP's with NTP at NTP's; runs that are not there are named."""
    _, confirmatory = studies
    slow, fast = dataclasses.replace(NPP, lr="1e-3"), dataclasses.replace(NTP, lr="4e-3", epochs=181)
    runs = {"B": [NTP.recipe, NPP.recipe, slow.recipe, fast.recipe]}
    preset = dataclasses.replace(confirmatory, runs=runs, equal_flops={"B": (181, 498)}, questions={"equal_flops": "B"})
    with pytest.raises(NppkitError, match="question equal_flops needs run ntp_epochs181 of B: add it"):
        protocol.questions(preset)
    (question,) = protocol.questions(dataclasses.replace(preset, rates={"npp": "1e-3", "ntp": "4e-3"}))
    assert (question.run, question.baseline) == (slow, fast)
    for asked, missing in (({"equal_flops": "L"}, "needs equal_flops: {L: "), ({"levels": "Z"}, "npp_L4_lambda1-2 of Z")):
        with pytest.raises(NppkitError, match=missing):
            protocol.decisions(dataclasses.replace(preset, questions=asked))


def test_a_part_of_the_seeds_shows_no_numbers(studies):
    """The report's table has a question's numbers when all of its planned seeds are complete, and not before."""
    first, confirmatory = studies
    seeded(confirmatory, [-5.0, -5.1], NPP, NTP)
    seeded(confirmatory, [5.0, 5.1, 4.9], Run("B", patch_size=4, lam="1/2"), NPP)
    summary = protocol.summary(confirmatory, first).set_index("contrast")
    assert summary.loc["p = 4 - p = 2", "verdict"] == "supported" and summary.loc["p = 4 - p = 2", "mean"] == pytest.approx(5.0)
    assert summary.loc["NPP - NTP, equal epochs", ["mean", "low", "p"]].isna().all()
    assert summary.loc["NPP - NTP, equal epochs", "verdict"] == "planned 3, done 2"
    assert "lambda 4/5 - 1/2" not in summary.index


def test_published_tables_decide_alone():
    """The numbers named are the paper's: VAR, DiT and StyleGAN-XL are ahead, XL and XXL are behind the 384 models."""
    ahead = claims.state_of_the_art(None).numbers
    assert all(name in ahead for name in ("VAR-d24", "DiT-XL/2", "StyleGAN-XL")) and "ADM" not in ahead
    fid, score = claims.against_384(None).numbers.split("; ")
    assert fid == "published FID: XL 2.65 against 2.62, XXL 2.55 against 2.34"
    assert score == "published IS: XL 281.03 against 244.08, XXL 282.01 against 253.9"
    assert claims.against_384(None).verdict == f"{CONTRADICTED}, except in IS"
    assert claims.model_range(None).numbers.endswith("1.4B")


def test_markdown_links_the_evidence(home, smoke):
    """Every claim links a notebook of the repository."""
    table = claims.verdicts(smoke)
    text = tables.markdown(table)
    assert len(table) == 12 and text.count("\n") == 13 and "(table1_main.ipynb)" in text


def test_readme_says_what_equal_flops_give(home, smoke):
    """The interval of NPP's longer runs against next-token prediction; nothing where there are none."""
    preset = dataclasses.replace(smoke, seeds={"B": 2}, runs={"B": ["ntp", "npp_p2_lambda1-2_epochs515"]})
    preset = dataclasses.replace(preset, equal_flops={"B": (175, 515)})
    assert "equal" not in claims.at_equal_flops(preset)
    for seed in range(2):
        finish(preset, Run("B", seed=seed), fid=10.0)
        finish(preset, dataclasses.replace(NPP, epochs=515, seed=seed), fid=8.0 + seed)
    text = claims.for_readme(preset)
    assert "at equal training FLOPs, exploratory, FID of NPP minus NTP's" in text
    assert "intervals: B -1.5 [-7.9, 4.9] (n = 2) ([equal" in text


def test_readme_table_is_rewritten_in_place(home, smoke, tmp_path):
    """The command replaces what stands between the marks, and nothing else; a second time changes nothing."""
    path = tmp_path / "README.md"
    path.write_text(f"before\n{claims.MARK}\nold\n{claims.MARK}\nafter\n")
    assert cli.call(["verdicts", "smoke", str(path)]) == 0
    text = path.read_text()
    assert text == f"before\n{claims.MARK}\n{claims.for_readme(smoke)}\n{claims.MARK}\nafter\n"
    assert "(notebooks/table1_main.ipynb)" in text
    assert cli.call(["verdicts", "smoke", str(path)]) == 0
    assert path.read_text() == text


@pytest.mark.parametrize("marks", [0, 1, 3])
def test_a_file_without_two_marks_is_left_alone(home, smoke, tmp_path, marks):
    """Without a place for the verdicts nothing is written, and what stands behind a single mark is not lost."""
    path = tmp_path / "README.md"
    path.write_text(f"text\n{claims.MARK}\n" * marks + "after\n")
    before = path.read_text()
    with pytest.raises(NppkitError, match=f"has {marks} lines"):
        claims.write_verdicts(smoke, path)
    assert path.read_text() == before


def test_a_question_that_the_confirmatory_preset_does_not_ask(home, smoke):
    """The claim is then exploratory, not an error; where it decides by KID its verdict says so."""
    solar = dataclasses.replace(load_preset("solar"), confirmatory="photographs")
    assert claims.larger_patches(solar).verdict == claims.NOT_RUN
    assert claims.fid(solar).verdict == "no verdict yet: planned 8, done 0 seeds (NPP - NTP, equal epochs, B)"
