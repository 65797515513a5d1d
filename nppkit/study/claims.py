"""The paper's claims, one by one: what stands behind each here, and a verdict.

What seeds decide has a verdict by the protocol's rule, from the preset that `confirmatory` names, and none before all of its
planned seeds are complete. Costs and parameters are arithmetic. Other claims are judged by the paper's own tables.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from nppkit.errors import NppkitError
from nppkit.files import write_atomic
from nppkit.model import MODELS
from nppkit.study import protocol
from nppkit.study.presets import Preset, load_preset
from nppkit.study.protocol import NPP, NTP, Question, answer, decisions
from nppkit.study.published import published, row_run
from nppkit.study.results import all_results, paired, results
from nppkit.study.runs import Run, preset_runs, seeds
from nppkit.study.stats import Interval
from nppkit.study.tables import cost_audit, make_table, markdown

HOLDS, FAILS = "holds, by arithmetic", "does not hold, by arithmetic"
CONTRADICTED, AGREES = "contradicted by the paper's own table", "as the paper's own table says"
EXPLORATORY, NOT_RUN, SLIP = "exploratory: no verdict", "not run yet", "a slip of wording: lower is meant"
KINDS = {  # in a sentence that counts, and how the verdict begins
    "hold by arithmetic": "^holds",
    "do not": "^does not hold",
    "supported on digits": "^supported",
    "refuted on digits": "^refuted",
    "with no difference that matters": "^no difference",
    "undecided": "^undecided",
    "contradicted by the paper's own tables": "^contradicted",
    "as those tables say": "^as the paper",
    "a slip of wording": "^a slip",
    "without a verdict yet": "^no verdict yet|^not decided|^not run",
    "only explored": "^exploratory",
    "without an experiment in the paper": "^no experiment",
}
METRICS = {"inception_score": "IS", "precision": "precision", "recall": "recall"}
MARK = "<!-- verdicts -->"  # around the table in README.md


class Finding(NamedTuple):
    """A verdict and the numbers that it rests on."""

    verdict: str
    numbers: str


class Claim(NamedTuple):
    """A claim of the paper, how it is judged, and the notebook that shows the evidence."""

    text: str
    judge: Callable[[Preset], Finding]
    notebook: str


def _over_sizes(preset: Preset, key: str, run: Callable, baseline: Callable, **kw: Callable) -> dict[str, Interval]:
    found = {size: paired(preset, run(size), baseline(size), key, **kw) for size in preset.models}
    return {size: interval for size, interval in found.items() if interval.n}


def _say(name: str, found: dict[str, Interval]) -> str:
    return f"{name}: " + ", ".join(f"{size} {interval} (n = {interval.n})" for size, interval in found.items()) if found else ""


def _by_protocol(preset: Preset, question: Question, name: str) -> Finding:
    """The protocol's verdict on its question; before it, and beside it, what the first study's sizes show."""
    found = _over_sizes(preset, "fid", question.run.of, question.baseline.of)
    verdict = decided(load_preset(preset.confirmatory), question.text) if preset.confirmatory else ""
    return Finding(verdict or (EXPLORATORY if found else NOT_RUN), _say(f"first study, exploratory: {name}", found))


def decided(asked: Preset, text: str) -> str:
    """The protocol's answer to the contrast of that text, and those of other domains that have one; empty if it is not asked."""
    found = [answer(asked, q, decision) for q, decision in decisions(asked).items() if q.text == text]
    for domain in map(load_preset, asked.domains):
        decided = {q: decision for q, decision in decisions(domain).items() if q.text == text and decision.complete}
        found += [f"preset {domain.name}: {answer(domain, *pair)}" for pair in decided.items()]
    return "; ".join(found)


def cost(preset: Preset) -> Finding:
    """Claim 1: measured FLOPs of NPP over those of next-token prediction, at equal epochs."""
    found = _over_sizes(preset, "flops", NPP.of, NTP.of, combine=lambda a, b: a / b)
    if not found:
        return Finding(NOT_RUN, "")
    low = cost_audit(make_table(preset, 5))
    printed = f"; {len(low)} costs printed in Table 5 are not what the paper's own rule gives" if len(low) else ""
    return Finding((HOLDS if all(0.5 < i.mean < 0.65 for i in found.values()) else FAILS) + printed, _say_ratios(found))


def _say_ratios(found: dict[str, Interval], to: str = "NTP's") -> str:
    return f"FLOPs over {to}: " + ", ".join(f"{size} {interval.mean:.3f}" for size, interval in found.items())


def other_metrics(preset: Preset) -> Finding:
    """Claim 3: Inception score, precision and recall of NPP minus next-token prediction's; the protocol does not ask."""
    found = {f"{size} {name}": i for key, name in METRICS.items() for size, i in _over_sizes(preset, key, NPP.of, NTP.of).items()}
    sides = {name: i.side("below", "above") for name, i in found.items() if i.n > 1}
    below, above = ([name for name, side in sides.items() if side == which] for which in ("below", "above"))
    better, worse, rest = ", ".join(above) or "none", ", ".join(below) or "none", len(sides) - len(above) - len(below)
    numbers = f"first study: of {len(sides)} intervals NPP is better in {better}, worse in {worse}; {rest} leave it open"
    return Finding(EXPLORATORY, numbers + _other_metrics_beside_the_verdict(preset)) if found else Finding(NOT_RUN, "")


def _other_metrics_beside_the_verdict(preset: Preset) -> str:
    """The same of the second study, at equal epochs and at equal FLOPs, where all seeds are complete: 95 % each, no verdict."""
    if not preset.confirmatory:
        return ""
    asked, told = load_preset(preset.confirmatory), ""
    for q in (pair for size in asked.runs for pair in protocol.against_ntp(asked, size)):
        found = {name: paired(asked, q.run, q.baseline, key) for key, name in METRICS.items()}
        if all(0 < i.n == len(seeds(asked, q.run)) for i in found.values()):
            cost = q.text.rpartition(", ")[2]
            told += f"; second study, {q.run.size}, {cost}: {', '.join(f'{name} {i}' for name, i in found.items())}"
    return told


def parameters(preset: Preset) -> Finding:
    """Claim 4: parameter counts of both."""
    found = {size: [[r["parameters"] for r in results(preset, run.of(size))] for run in (NTP, NPP)] for size in preset.models}
    counted = {size: plain + patched for size, (plain, patched) in found.items() if plain and patched}
    if not counted:
        return Finding(NOT_RUN, "")
    verdict = HOLDS if all(len(set(counts)) == 1 for counts in counted.values()) else FAILS
    numbers = "weights, with and without NPP: " + ", ".join(f"{size} {counts[0]:,}" for size, counts in counted.items())
    return Finding(f"{verdict}, for the weights; on patches, positions are counted on their smaller grid", numbers)


def _published(metric: str = "fid") -> dict[Run | str, float]:
    return {row_run(row) or row["model"]: row[metric] for _, row in published(1).iterrows()}


def against_384(preset: Preset) -> Finding:
    """Claim 5: XL and XXL with NPP against the 384 models, in the paper's own Table 1, in FID and in inception score."""
    numbers, ahead = [], []
    for metric, name, sign in (("fid", "FID", -1), ("inception_score", "IS", 1)):
        values = _published(metric)
        pairs = {size: (values[NPP.of(size)], values[NTP.of(size, large=True)]) for size in ("XL", "XXL")}
        numbers += [f"published {name}: " + ", ".join(f"{size} {ours} against {large}" for size, (ours, large) in pairs.items())]
        ahead += [name] if all(sign * ours > sign * large for ours, large in pairs.values()) else []
    verdict = AGREES if len(ahead) == len(numbers) else f"{CONTRADICTED}, except in {ahead[0]}" if ahead else CONTRADICTED
    return Finding(verdict, "; ".join(numbers))


def state_of_the_art(preset: Preset) -> Finding:
    """Claim 6: the best published NPP row against every other system in Table 1."""
    fids = _published()
    best = min(value for run, value in fids.items() if isinstance(run, Run) and run.lam)
    ahead = {name: value for name, value in fids.items() if isinstance(name, str) and value < best}
    numbers = f"published FID {best} against " + ", ".join(f"{name} {value}" for name, value in ahead.items())
    return Finding(CONTRADICTED if ahead else AGREES, numbers)


def model_range(preset: Preset) -> Finding:
    """Claim 7: the largest model in the paper's tables."""
    trained = [row["parameters"] for _, row in published(1).iterrows() if row_run(row)]
    largest = max(trained, key=lambda text: float(text[:-1]) * {"M": 1, "B": 1000}[text[-1]])
    return Finding(CONTRADICTED if largest != "3B" else AGREES, f"largest model in Table 1: {largest}")


def _cheaper(preset: Preset, question: Question, name: str, to: str) -> Finding:
    """The claim is also that fewer FLOPs are measured: arithmetic, which can only fail."""
    quality = _by_protocol(preset, question, name)
    ratios = _over_sizes(preset, "flops", question.run.of, NPP.of, combine=lambda a, b: a / b)
    dearer = any(interval.mean >= 1 for interval in ratios.values())
    numbers = "; ".join(filter(None, (quality.numbers, _say_ratios(ratios, to) if ratios else "")))
    return Finding(FAILS if dearer else quality.verdict, numbers)


def caption(preset: Preset) -> Finding:
    """Claim 11: a slip of the pen, which its own Table 5 corrects."""
    fids = {row_run(row): row["fid"] for _, row in published(5).iterrows() if row_run(row)}
    lower = all(fids[NPP.of(size)] < fids[NTP.of(size)] for size in MODELS)
    return Finding(SLIP if lower else AGREES, "Table 5: FID with NPP is lower for every size")


def other_models(preset: Preset) -> Finding:
    """Claim 12: the paper has no experiment; a plain GPT takes the method in a few lines."""
    return Finding("no experiment in the paper", "a plain GPT trains with it in the linked notebook")


fid = partial(_by_protocol, question=protocol.EQUAL_EPOCHS, name="FID minus NTP's")  # at the common guidance scale
larger_patches = partial(_by_protocol, question=protocol.PATCHES, name="FID of p = 4 minus p = 2")
larger_lambda = partial(_cheaper, question=protocol.LAMBDA, name="FID of lambda 4/5 minus 1/2", to="those of lambda 1/2")
more_levels = partial(_cheaper, question=protocol.LEVELS, name="FID of 4 levels minus 2", to="those of 2 levels")
CLAIMS = [
    Claim("Training costs about 0.6 times as much", cost, "table5_cost"),
    Claim("FID improves, by up to 1.0 (the amount is not tested here)", fid, "report"),
    Claim("IS, precision and recall improve or hold", other_metrics, "table1_main"),
    Claim("No new parameters, no change of architecture or tokenizer", parameters, "table1_main"),
    Claim("XL and XXL outperform the models at 384 pixels", against_384, "table1_main"),
    Claim("State of the art", state_of_the_art, "table1_main"),
    Claim("Models of 100M to 3B parameters", model_range, "table1_main"),
    Claim("Larger patches transfer less well", larger_patches, "report"),
    Claim("A larger lambda is cheaper and slightly worse", larger_lambda, "report"),
    Claim("More levels trade quality for cost", more_levels, "report"),
    Claim('Figure 1: "higher FID" at lower cost', caption, "figure1_cost_vs_fid"),
    Claim("Fits other autoregressive models seamlessly", other_models, "npp_in_your_model"),
]


def verdicts(preset: Preset) -> pd.DataFrame:
    """Every claim with its verdict, the numbers behind it and the notebook that shows them."""
    lines = []
    for number, claim in enumerate(CLAIMS, 1):
        finding = claim.judge(preset)
        line = {"": number, "claim": claim.text, "verdict": finding.verdict, "numbers": finding.numbers}
        lines.append({**line, "evidence": f"[{claim.notebook}]({claim.notebook}.ipynb)"})
    return pd.DataFrame(lines)


def counted(table: pd.DataFrame) -> str:
    """How many claims have which verdict, in a sentence."""
    found = {said: int(table["verdict"].str.contains(word).sum()) for said, word in KINDS.items()}
    return f"{len(table)} claims: {', '.join(f'{n} {said}' for said, n in found.items() if n)}."


def answers(preset: Preset, notebook: str) -> str:
    """In Markdown what is found of the claims that a notebook is the evidence for."""
    found = [(claim.text, claim.judge(preset)) for claim in CLAIMS if claim.notebook == notebook]
    return "\n\n".join(f"**{text}: {finding.verdict}.** {finding.numbers}" for text, finding in found)


def for_readme(preset: Preset) -> str:
    """Claims, verdicts and evidence, linked from the repository's root, and how much of the study they rest on."""
    table = verdicts(preset)
    told = table["verdict"].str.startswith(CONTRADICTED)  # by numbers that are not ours, and so stand here
    table["verdict"] += (" (" + table["numbers"] + ")").where(told, "")
    table = table[["claim", "verdict", "evidence"]]
    text = markdown(table.assign(evidence=table["evidence"].str.replace("](", "](notebooks/", regex=False)))
    asked = [load_preset(preset.confirmatory)] if preset.confirmatory else []
    studies = [preset, *asked, *(load_preset(name) for study in asked for name in study.domains)]
    complete = ", ".join(f"{len(all_results(study))} of {len(preset_runs(study))} of preset {study.name}" for study in studies)
    return f"**{counted(table)}**\n\n{text}\n\n{at_equal_flops(preset)}{schedule_alone(preset)}Complete runs: {complete}."


def at_equal_flops(preset: Preset) -> str:
    """What the paper does not compare: NPP given next-token prediction's FLOPs in place of its epochs. Empty without runs."""
    longer = {size: NPP.of(size, epochs=epochs) for size, (_, epochs) in preset.equal_flops.items()}
    found = {size: i for size, run in longer.items() if (i := paired(preset, run, NTP.of(size), "fid")).n}
    if not found:
        return ""
    words = decided(load_preset(preset.confirmatory) if preset.confirmatory else preset, protocol.EQUAL_FLOPS)
    words = f"{words}; in the first study a hint" if words else _say("exploratory, FID of NPP minus NTP's, 95 % intervals", found)
    return f"Beyond the claims, at equal training FLOPs, {words} ([equal_compute](notebooks/equal_compute.ipynb)). "


def schedule_alone(preset: Preset) -> str:
    """What the paper's gain is mixed with: its NPP has warm-up and decay, its baseline a constant rate. Empty if nobody asks."""
    words = decided(load_preset(preset.confirmatory), protocol.SCHEDULE.text) if preset.confirmatory else ""
    return f"Warm-up and decay, which the paper's NPP has and its baseline lacks, {words}. " if words else ""


def write_verdicts(preset: Preset, path: Path) -> None:
    """Write the verdicts between the marks in a file. NppkitError if it does not have the two."""
    text = path.read_text()
    if text.count(MARK) != 2:
        raise NppkitError(f"{path} has {text.count(MARK)} lines {MARK}: write two, between which the verdicts go")
    before, _, after = text.split(MARK)
    write_atomic(path, f"{before}{MARK}\n{for_readme(preset)}\n{MARK}{after}")
