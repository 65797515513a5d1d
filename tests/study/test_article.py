"""What the report says in numbers: facts of made-up studies whose truth is known."""

import numpy as np
import pandas as pd
import pytest

from nppkit.study import article, protocol, tokens, verdicts
from nppkit.study.presets import load_preset
from nppkit.study.protocol import NPP, NTP
from nppkit.study.results import results
from nppkit.study.stats import interval


@pytest.fixture(scope="module")
def facts():
    return article.Article(load_preset("digits"))


@pytest.mark.parametrize(
    ("holds", "said"),
    [
        ({"1": True}, "question 1"),
        ({"1": True, "2": False, "3": True}, "questions 1 and 3, not in question 2"),
        ({"1": False, "2": False, "4": False}, "none, not in questions 1, 2 and 4"),
    ],
)
def test_questions_in_words(holds, said):
    """Those of which something holds, and after a comma those of which it does not."""
    assert article.where(holds) == said


def test_a_verdict_that_waits_shows_nothing(facts):
    """Of a question whose seeds are not all in the table tells how many are, and no number; without any the columns go."""
    rows = facts.summary.copy()
    rows.loc[0, ["seeds", "mean", "low", "high", "p", "adjusted"]] = [3, *[float("nan")] * 5]
    rows.loc[0, "verdict"] = "planned 20, done 3"
    table = article.verdict_table(rows, "fid")
    header, _, first, second, *_ = table.splitlines()
    assert "corrected p (can only fall)" in header and "3 of 20" in first and "-1.36" not in first
    assert "supported" in second and "-3.0 [-4.2, -1.9]" in second
    rows[["mean", "low", "high"]] = float("nan")
    assert "| FID difference |" not in article.verdict_table(rows, "fid")
    assert article.verdict_table(facts.summary, "fid").count("supported") == 6


def test_why_questions_wait(facts, monkeypatch):
    """Missing seeds, and a correction that waits for others' seeds; nothing where all are decided."""
    assert facts.missing == "" and facts.verdicts.count("\n") == 6
    waiting = facts.summary.assign(verdict=["planned 20, done 3", "planned 25, done 25", *facts.summary["verdict"][2:]])
    waiting.loc[0, "seeds"] = 3
    later = article.Article(load_preset("digits"))
    later.summary = waiting
    assert later.missing == (
        "Of the 6 questions about image quality 1 have no verdict yet because planned seeds are missing, and 1 because it is "
        "corrected for those. "
    )
    assert later.verdicts.count("\n") == 4


def test_facts_of_the_first_question(facts):
    """They are those of its pairs: the mean difference, its correction, and the same without a seed."""
    x = facts.apart("fid")
    assert interval(x).mean == pytest.approx(facts.decision.mean) and len(x) == facts.decision.n == len(facts.without)
    assert facts.mean_of("fid", 0) - facts.mean_of("fid", 1) == pytest.approx(facts.decision.mean)
    assert facts.factor * facts.decision.p == pytest.approx(facts.decision.adjusted)
    assert facts.unpaired().mean == pytest.approx(x.mean() - facts.beside.mean) and len(facts.controlled) == facts.beside.n
    theirs = results(facts.study, NTP)
    ours = [row["fid"] for preset in (facts.study, facts.control) for row in results(preset, NPP)]
    assert len(ours) == 40 and facts.all_of_npp().mean == pytest.approx(np.mean(ours) - np.mean([row["fid"] for row in theirs]))
    assert str(facts.restart_alone()) == "-0.21 [-1.16, 0.73]" and str(facts.at_half_the_rate()) == "1.2 [-0.2, 2.6]"
    assert facts.by_the_rule(facts.study, "L") == pytest.approx(509 / 300 * 0.625, rel=2e-3)
    assert facts.by_the_rule(facts.photographs, "B") == pytest.approx(300 / 181 * 0.625, rel=2e-3)
    rates, others, smallest = facts.rates()
    assert smallest and list(rates["chosen"]) == ["0.0015"] * 4 and "B's NTP" in others


def test_questions_that_wait(facts, monkeypatch):
    """How many of the planned seeds are in, and no number of what they show; seeds that diverged are told by their domain."""
    asked = protocol.questions(facts.converged)
    made = {}
    for question, n, lost in zip(asked, (3, 8, 0, 1, 7, 2), (0, 0, 0, 0, 1, 2), strict=True):
        made[verdicts.Contrast(question.text, question.sign, 8, lost)] = [-7.5 - 0.1 * seed for seed in range(n)]
    decided = dict(zip(asked, verdicts.decide(made, 1.0), strict=True))
    others = protocol.decisions(facts.study)
    monkeypatch.setattr(protocol, "decisions", lambda preset: decided if preset is facts.converged else others)
    assert facts.told_of_waiting() == "planned 8 seeds a question, done 3, 8, 0, 1, 7, 2"
    told = facts.waiting()
    assert list(told["verdict"][[0, 2, 5]]) == ["planned 8, done 3", "planned 8, done 0", "planned 8, done 2"]
    assert not told.map(lambda text: "-7." in text).any(axis=None) and set(told["size"]) == {"XXL"}
    assert facts.diverged() == "Trainings that diverged: 3 of `converged`."
    monkeypatch.setattr(protocol, "decisions", lambda preset: others)
    assert facts.diverged() == "Trainings that diverged: none."


def test_kinds_of_codes_in_words():
    """Which are decided, by name, and how many are open."""
    named = {"a": [-3.0, -3.1, -2.9], "b": [2.0, 2.1, 1.9], "c": [1.0, -1.0, 0.0], "d": [0.1, -0.1, 0.3]}
    known = pd.DataFrame({"kind": list(named), "fid": [interval(values) for values in named.values()]})
    assert tokens.on_which(known) == "lower than NTP's on 1 (a) of 4 kinds of codes, higher on 1 (b), open on 2"
    assert tokens.on_which(known[2:]) == "lower than NTP's on 0 of 2 kinds of codes, higher on 0, open on 2"
    kinds = tokens.kinds(load_preset("study"))
    by_kid = tokens.on_which(kinds[kinds["images"] == "photographs"], "kid")
    assert "on 2 (photographs as 16 x 16 codes of 8; photographs as 16 x 16 codes of 256) of 4" in by_kid
    (row,) = (row for _, row in kinds.iterrows() if row["kind"] == "digits as 16 x 16 codes of 32")
    q = protocol.equal_flops(load_preset("tokens_16x16_32"), "B")
    assert row["seeds"] == 3 and 1.2 < row["bits"] < 1.4 and q.run.lam and row["fid"].low < row["fid"].mean < row["fid"].high


def test_how_good_the_samples_are(facts, monkeypatch):
    """Of next-token prediction first, then of NPP; where nothing has run there is a dash, and a zero is a number."""
    told = facts.sample_quality()
    assert told["B, NTP and NPP, inception score"] == "2.37 and 2.57" and told["L, NTP and NPP, recall"] == "0.75 and 0.74"
    rows = {"ntp": [], "npp_p2_lambda1-2": [{"precision": 0.0, "recall": 0.0, "inception_score": 0.0}]}
    monkeypatch.setattr(article, "results", lambda preset, run: rows[run.recipe.removesuffix("_lr15e-4")])
    assert set(facts.sample_quality().values()) == {"- and 0.00"}


def test_how_firm_photographs_are(facts, monkeypatch):
    """A seed that carries an interval past the margin is counted, and so are the signs of the second question."""
    made = {"equal epochs": [0.2, 0.1, 0.0, -0.1, -0.2, 2.0], "equal FLOPs": [-1.0, -2.0, 0.5, -1.0, -1.0, -1.0]}
    said = {(q.run, q.baseline): made[q.text.rpartition(", ")[2]] for q in protocol.questions(facts.photographs)}

    def differences(preset, run, baseline, key):
        values = said[run, baseline] if preset.name == "photographs" else [0.5, 0.5]
        return {seed: x / 1000 for seed, x in enumerate(values)}

    monkeypatch.setattr(article, "differences", differences)
    told = facts.how_firm()
    assert "any one of 5 of 6 seeds" in told and "below zero in 5 of 6 seeds" in told and "(`photographs_pilot`)" in told
