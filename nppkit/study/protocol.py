"""The confirmatory studies as data: the questions of docs/protocol.md, and what a preset's runs say to them.

What these do not ask is exploratory: it has intervals, and no verdict.
"""

from dataclasses import asdict, replace
from typing import NamedTuple

import pandas as pd

from nppkit.errors import NppkitError
from nppkit.study.graph import train_job
from nppkit.study.presets import Preset, load_preset
from nppkit.study.records import divergence
from nppkit.study.results import differences, paired, processors, results
from nppkit.study.runs import Run, seeds
from nppkit.study.stats import ONE_SEED, SPANS_ZERO, Interval, interval
from nppkit.study.verdicts import Contrast, Decision, decide

MARGIN = 1.0  # the smallest difference worth knowing, in FID (the gain that the paper reports) or in KID x 1,000
SCALE = {"fid": 1, "kid": 1000}
NUMBERS = ("mean", "low", "high", "p", "adjusted")
LABEL = {"fid": "FID", "kid": "KID x 1,000"}


class Question(NamedTuple):
    """A contrast, `run` minus `baseline` of one size; the claim lies below zero (sign -1) or above (1)."""

    text: str
    claim: str
    run: Run
    baseline: Run
    sign: int

    def of(self, size: str) -> "Question":
        """The same, asked of another model size."""
        return self._replace(run=self.run.of(size), baseline=self.baseline.of(size))


NTP, NPP = Run("B"), Run("B", patch_size=2, lam="1/2")
EQUAL_EPOCHS = Question("NPP - NTP, equal epochs", "FID improves", NPP, NTP, -1)
PATCHES = Question("p = 4 - p = 2", "larger patches transfer less well", NPP.of("B", patch_size=4), NPP, 1)
LEVELS = Question("#L = 4 - #L = 2", "more levels trade quality for cost", Run("B", levels=4, lam="1/2"), NPP, 1)
LAMBDA = Question("lambda 4/5 - 1/2", "a larger lambda is slightly worse", NPP.of("L", lam="4/5"), NPP.of("L"), 1)
SCHEDULE = Question("NTP, schedule - constant rate", "the schedule alone improves FID", NTP, NTP.of("B", constant=True), -1)
ASKED = {"equal_epochs": EQUAL_EPOCHS, "patches": PATCHES, "levels": LEVELS, "lambda": LAMBDA, "schedule": SCHEDULE}


EQUAL_FLOPS = "NPP - NTP, equal FLOPs"
RESTARTED = NTP.of("B", restart=True)  # next-token prediction with the restart that NPP's learning rate has at its switch
HINT = "a hint and no verdict, because even where there is no difference one such interval in twenty misses zero"
OPEN = "too few seeds to tell; that there is no difference is not shown either"


def equal_flops(preset: Preset, size: str) -> Question:
    """NPP against next-token prediction at one cost: NPP for more epochs, or where the preset has no such run, NTP for fewer."""
    fewer, more = preset.equal_flops[size]
    longer, listed = NPP.of(size, epochs=more), preset.runs.get(size, [])
    is_there = _at_its_rate(preset, longer).recipe in listed
    run, baseline = (longer, NTP.of(size)) if is_there else (NPP.of(size), NTP.of(size, epochs=fewer))
    return Question(EQUAL_FLOPS, "patches are worth their FLOPs", run, baseline, -1)


def against_ntp(preset: Preset, size: str) -> list[Question]:
    """NPP against next-token prediction at equal epochs and at equal FLOPs, each at its rate; the protocol need not ask."""
    pairs = [EQUAL_EPOCHS.of(size), *([equal_flops(preset, size)] if size in preset.equal_flops else [])]
    return [q._replace(run=_at_its_rate(preset, q.run), baseline=_at_its_rate(preset, q.baseline)) for q in pairs]


def questions(preset: Preset) -> tuple[Question, ...]:
    """What the preset asks, one family, in the order of docs/protocol.md. NppkitError for one that its runs cannot answer."""
    return tuple(_question(preset, name, size) for name, size in preset.questions.items())


def _question(preset: Preset, name: str, size: str) -> Question:
    """A question of a model size, each method at its rate."""
    if name == "equal_flops" and size not in preset.equal_flops:
        raise NppkitError(f"preset {preset.name}: question equal_flops of {size} needs equal_flops: {{{size}: [epochs, epochs]}}")
    asked = equal_flops(preset, size) if name == "equal_flops" else ASKED[name].of(size)
    run, baseline = (_at_its_rate(preset, r) for r in (asked.run, asked.baseline))
    if missing := [r.recipe for r in (run, baseline) if r.recipe not in preset.runs.get(size, [])]:
        raise NppkitError(f"preset {preset.name}: question {name} needs run {missing[0]} of {size}: add it, or do not ask")
    return asked._replace(run=run, baseline=baseline, claim=asked.claim.replace("FID", preset.metric.upper()))


def _at_its_rate(preset: Preset, run: Run) -> Run:
    return replace(run, lr=preset.rates.get("npp" if run.lam else "ntp", ""))


def decisions(preset: Preset) -> dict[Question, Decision]:
    """The protocol's decision on each question, from the preset's complete seeds; one family, whatever is complete.

    A seed counts where both of its runs were trained and scored on one kind of processor, which their records name.
    """
    asked, found = questions(preset), {}
    scale = SCALE[preset.metric]
    for q in asked:
        planned = [seed for seed in seeds(preset, q.run) if seed in seeds(preset, q.baseline)]
        lost = sum(any(divergence(train_job(preset, replace(r, seed=s))) for r in (q.run, q.baseline)) for s in planned)
        by_seed = differences(preset, q.run, q.baseline, preset.metric)
        counted = [scale * x for seed, x in by_seed.items() if "" not in processors(preset, seed, q.run, q.baseline)]
        found[Contrast(q.text, q.sign, len(planned), lost)] = counted
    return dict(zip(asked, decide(found, MARGIN), strict=True))


def control(preset: Preset) -> Interval:
    """NPP minus next-token prediction with NPP's restart, FID, from the preset's control; of no seed until all are complete."""
    if not preset.control:
        return interval([])
    beside = load_preset(preset.control)
    found = paired(beside, NPP, RESTARTED, "fid")
    return found if found.n == len(seeds(beside, RESTARTED)) else interval([])


def in_words(difference: Interval) -> str:
    """A difference of FID that has no verdict, and where its 95 % interval lies."""
    small = difference.low > -MARGIN and difference.high < MARGIN
    side = f"within {MARGIN:g} of zero" if small else difference.side("below zero", "above zero").replace(SPANS_ZERO, "open")
    return f"{difference} (95 % by itself, no verdict: {side})"


def answer(preset: Preset, question: Question, decision: Decision) -> str:
    """The decision in words: of one size, on the preset's pictures, which says nothing of others."""
    asked = f"({question.text}, {question.run.size})"
    if not decision.complete:
        return f"no verdict yet: {decision.verdict} seeds {asked}"
    found = f"{decision.said}: {LABEL[preset.metric]} {decision} {asked}"
    if question.text == EQUAL_EPOCHS.text and (beside := control(preset)).n:
        found += f"; beside NTP whose learning rate warms up twice, as NPP's does, {in_words(beside)}"
    return found


def finding(
    preset: Preset, what: str, pairs: dict[str, tuple[Run, Run]], key: str = "fid", label: str = "FID", sure: str = ""
) -> str:
    """What a contrast says, in Markdown, for each of `pairs`: the metric's interval lies below zero, above, or spans it.

    sure: how sure that is, where the contrasts were fixed before the runs; without it a hint, or open. What the confirmatory
    study says to the same contrasts comes first.
    """
    found = {name: paired(preset, run, baseline, key) for name, (run, baseline) in pairs.items()}
    found = {name: interval for name, interval in found.items() if interval.n}
    if not found:
        both = any(results(preset, run) and results(preset, baseline) for run, baseline in pairs.values())
        return f"**{what}: {'no two runs of a seed name one processor' if both else 'not run yet'}.**"
    sides = {"lower": [], "higher": [], SPANS_ZERO: [], ONE_SEED: []}
    for name, difference in found.items():
        sides[difference.side("lower", "higher")].append(name)
    sure = sure or (HINT if sides["lower"] or sides["higher"] else OPEN)
    words = [f"{side.replace(SPANS_ZERO, 'open')} for {', '.join(names)}" for side, names in sides.items() if names]
    numbers = "; ".join(f"{name} {i} ({i.n} seeds)" if i.n > 1 else f"{name} {i}" for name, i in found.items())
    said = f"{what}, {label}: {'; '.join(words)}."
    decided = _confirmed(preset, pairs) if preset.confirmatory else ""
    first = f"{decided} This study: {said}" if decided.startswith("**") else f"**{said}**{decided}"
    return (
        f"{first} Mean differences over seeds, in brackets their 95 % intervals: {numbers}. "
        f"Lower is better; an interval that holds zero leaves open which is better. How sure: {sure}."
    )


def _confirmed(preset: Preset, pairs: dict[str, tuple[Run, Run]]) -> str:
    """What the confirmatory study says to these pairs, at its own learning rate, in bold; or that it does not ask."""
    asked, found = load_preset(preset.confirmatory), []
    for question, decision in decisions(asked).items():
        if tuple(replace(run, lr="") for run in (question.run, question.baseline)) in pairs.values():
            found.append(answer(asked, question, decision))
    rates = {"NPP": NPP, "NTP": NTP}
    other = [name for name, r in rates.items() if _at_its_rate(asked, r).training(asked).lr != r.training(preset).lr]
    rate = f" and at another learning rate{' for NTP' * (other == ['NTP'])}" if other else ""
    more = f"(report.ipynb), with more seeds{rate}"
    return f"**{'; '.join(found)}.** So says [the report]{more}." if found else f" [The report]{more}, does not ask this."


def summary(preset: Preset, first: Preset) -> pd.DataFrame:
    """A row a question: the decision's numbers with simultaneous intervals, and those of the first study, uncorrected at 95 %.

    What a part of the planned seeds shows is left out: it is no result, and would be read as one.
    """
    lines = []
    for number, (question, decision) in enumerate(decisions(preset).items(), 1):
        at_its_rate = (replace(run, lr="") for run in (question.run, question.baseline))
        seen = differences(first, *at_its_rate, preset.metric).values()
        before = interval([SCALE[preset.metric] * x for x in seen])
        line = {"": number, "contrast": question.text, "size": question.run.size, "claim": question.claim}
        line |= {"seeds": decision.n, "planned": decision.contrast.planned, "diverged": decision.contrast.diverged}
        line |= {key: getattr(decision, key) if decision.complete else None for key in NUMBERS}
        line["verdict"] = decision.verdict
        lines.append({**line, **{f"first_{key}": value for key, value in asdict(before).items()}})
    return pd.DataFrame(lines).astype(dict.fromkeys(NUMBERS, float))
