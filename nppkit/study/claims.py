"""The paper's claims, one by one: what stands behind each here, and a verdict.

Verdicts are derived from results and from the published tables; the one claim without an experiment has none. A claim
about ImageNet numbers can only be reproduced "at this scale"; where the interval over seeds spans zero there is no verdict.
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from nppkit.files import write_atomic
from nppkit.model import MODELS
from nppkit.study.presets import Preset
from nppkit.study.published import published, row_run
from nppkit.study.results import all_results, paired, results
from nppkit.study.runs import Run, preset_runs
from nppkit.study.stats import Interval
from nppkit.study.tables import markdown

REPRODUCED, NOT_HERE, CONTRADICTED = "reproduced at this scale", "not at this scale", "contradicted by the paper's own table"


OPEN, ONE_SEED, NOT_RUN = "no verdict: the interval spans zero", "no verdict: one seed", "not run yet"


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


def npp(size: str, patch_size: int = 2, lam: str = "1/2", levels: int = 1) -> Run:
    """NPP of a size: one patch side, or `levels` of them."""
    return Run(size, patch_size=patch_size, levels=levels, lam=lam)


def _over_sizes(preset: Preset, key: str, run: Callable, baseline: Callable, **kw: Callable) -> dict[str, Interval]:
    found = {size: paired(preset, run(size), baseline(size), key, **kw) for size in preset.models}
    return {size: interval for size, interval in found.items() if interval.n}


def _say(name: str, found: dict[str, Interval]) -> str:
    return f"{name}: " + ", ".join(f"{size} {interval}" for size, interval in found.items()) if found else ""


def _judge(found: dict[str, Interval], wanted: str, refuted: str) -> str:
    """The claim holds if some size shows it and none the opposite; intervals of one seed count for nothing."""
    verdicts = {interval.verdict(wanted, refuted) for interval in found.values()}
    if not found:
        return NOT_RUN
    if refuted in verdicts:
        return NOT_HERE
    return REPRODUCED if wanted in verdicts else _open(found)


def _open(found: dict[str, Interval]) -> str:
    return OPEN if any(interval.n > 1 for interval in found.values()) else ONE_SEED


def cost(preset: Preset) -> Finding:
    """Claim 1: measured FLOPs of NPP over those of next-token prediction, at equal epochs."""
    found = _over_sizes(preset, "flops", npp, Run, combine=lambda a, b: a / b)
    if not found:
        return Finding(NOT_RUN, "")
    return Finding(REPRODUCED if all(0.5 < i.mean < 0.65 for i in found.values()) else NOT_HERE, _say_ratios(found))


def _say_ratios(found: dict[str, Interval]) -> str:
    return "FLOPs ratio: " + ", ".join(f"{size} {interval.mean:.3f}" for size, interval in found.items())


def fid(preset: Preset) -> Finding:
    """Claim 2: FID of NPP minus next-token prediction's, at the common guidance scale."""
    found = _over_sizes(preset, "fid", npp, Run)
    return Finding(_judge(found, "better", "worse"), _say("FID minus NTP's", found))


def other_metrics(preset: Preset) -> Finding:
    """Claim 3: Inception score, precision and recall of NPP minus next-token prediction's; none may fall."""
    metrics = {"inception_score": "IS", "precision": "precision", "recall": "recall"}
    found = {f"{size} {name}": i for key, name in metrics.items() for size, i in _over_sizes(preset, key, npp, Run).items()}
    fallen = [name for name, i in found.items() if i.verdict("worse", "better") == "worse"]
    risen = [name for name, i in found.items() if i.verdict("worse", "better") == "better"]
    numbers = f"of {len(found)} intervals below zero: {', '.join(fallen) or 'none'}; above: {', '.join(risen) or 'none'}"
    if not found:
        return Finding(NOT_RUN, "")
    return Finding(NOT_HERE if fallen else REPRODUCED if risen else _open(found), numbers)


def parameters(preset: Preset) -> Finding:
    """Claim 4: parameter counts of both."""
    pairs = {size: [r["parameters"] for run in (Run(size), npp(size)) for r in results(preset, run)] for size in preset.models}
    pairs = {size: counts for size, counts in pairs.items() if counts}
    if not pairs:
        return Finding(NOT_RUN, "")
    same = all(len(set(counts)) == 1 for counts in pairs.values())
    return Finding(REPRODUCED if same else NOT_HERE, ", ".join(f"{size} {counts[0]:,}" for size, counts in pairs.items()))


def _published_fid() -> dict[Run | str, float]:
    return {row_run(row) or row["model"]: row["fid"] for _, row in published(1).iterrows()}


def against_384(preset: Preset) -> Finding:
    """Claim 5: XL and XXL with NPP against the 384 models, in the paper's own Table 1."""
    fids = _published_fid()
    pairs = {size: (fids[npp(size)], fids[Run(size, large=True)]) for size in ("XL", "XXL")}
    numbers = "published FID: " + ", ".join(f"{size} {ours} against {large}" for size, (ours, large) in pairs.items())
    return Finding(CONTRADICTED if any(ours > large for ours, large in pairs.values()) else REPRODUCED, numbers)


def state_of_the_art(preset: Preset) -> Finding:
    """Claim 6: the best published NPP row against every other system in Table 1."""
    fids = _published_fid()
    best = min(value for run, value in fids.items() if isinstance(run, Run) and run.lam)
    ahead = {name: value for name, value in fids.items() if isinstance(name, str) and value < best}
    numbers = f"published FID {best} against " + ", ".join(f"{name} {value}" for name, value in ahead.items())
    return Finding(CONTRADICTED if ahead else REPRODUCED, numbers)


def model_range(preset: Preset) -> Finding:
    """Claim 7: the largest model in the paper's tables."""
    trained = [row["parameters"] for _, row in published(1).iterrows() if row_run(row)]
    largest = max(trained, key=lambda text: float(text[:-1]) * {"M": 1, "B": 1000}[text[-1]])
    return Finding(CONTRADICTED if largest != "3B" else REPRODUCED, f"largest model in Table 1: {largest}")


def larger_patches(preset: Preset) -> Finding:
    """Claim 8 (Table 2): p = 4 minus p = 2 for half of the epochs."""
    return _higher(_over_sizes(preset, "fid", lambda size: npp(size, 4), npp), "FID of p = 4 minus p = 2")


def _higher(found: dict[str, Interval], name: str) -> Finding:
    """The claim is that the difference is above zero."""
    mirrored = {size: Interval(i.n, -i.mean, -i.high, -i.low) for size, i in found.items()}
    return Finding(_judge(mirrored, "higher", "lower"), _say(name, found))


def _cheaper_and_higher(preset: Preset, run: Callable, name: str) -> Finding:
    """The claim is that FID lies above that of p = 2, lambda = 1/2, and that fewer FLOPs are measured."""
    quality = _higher(_over_sizes(preset, "fid", run, npp), f"FID of {name}")
    ratios = _over_sizes(preset, "flops", run, npp, combine=lambda a, b: a / b)
    if not ratios:
        return quality
    dearer = any(interval.mean >= 1 for interval in ratios.values())
    return Finding(NOT_HERE if dearer else quality.verdict, f"{quality.numbers}; {_say_ratios(ratios)}")


def larger_lambda(preset: Preset) -> Finding:
    """Claim 9 (Table 3): lambda 4/5 against lambda 1/2."""
    return _cheaper_and_higher(preset, lambda size: npp(size, lam="4/5"), "lambda 4/5 minus 1/2")


def more_levels(preset: Preset) -> Finding:
    """Claim 10 (Table 4): four levels against two."""
    return _cheaper_and_higher(preset, lambda size: npp(size, levels=4), "4 levels minus 2")


def caption(preset: Preset) -> Finding:
    """Claim 11: a slip of the pen, which its own Table 5 corrects."""
    fids = {row_run(row): row["fid"] for _, row in published(5).iterrows() if row_run(row)}
    lower = all(fids[npp(size)] < fids[Run(size)] for size in MODELS)
    return Finding(CONTRADICTED if lower else REPRODUCED, "Table 5: FID with NPP is lower for every size")


def other_models(preset: Preset) -> Finding:
    """Claim 12: the paper has no experiment; a plain GPT takes the method in a few lines."""
    return Finding("no experiment in the paper", "a plain GPT trains with it in the linked notebook")


CLAIMS = [
    Claim("Training costs about 0.6 times as much", cost, "table5_cost"),
    Claim("FID improves, by up to 1.0", fid, "table1_main"),
    Claim("IS, precision and recall improve or hold", other_metrics, "table1_main"),
    Claim("No new parameters, no change of architecture or tokenizer", parameters, "table1_main"),
    Claim("XL and XXL outperform the models at 384 pixels", against_384, "table1_main"),
    Claim("State of the art", state_of_the_art, "table1_main"),
    Claim("Models of 100M to 3B parameters", model_range, "table1_main"),
    Claim("Larger patches transfer less well", larger_patches, "table2_patch_size"),
    Claim("A larger lambda is cheaper and slightly worse", larger_lambda, "table3_lambda"),
    Claim("More levels trade quality for cost", more_levels, "table4_levels"),
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


def answers(preset: Preset, notebook: str) -> str:
    """In Markdown what is found of the claims that a notebook is the evidence for."""
    found = [(claim.text, claim.judge(preset)) for claim in CLAIMS if claim.notebook == notebook]
    return "\n\n".join(f"**{text}: {finding.verdict}.** {finding.numbers}" for text, finding in found)


def as_markdown(table: pd.DataFrame) -> str:
    """The verdicts as a Markdown table, its evidence as links between notebooks."""
    return markdown(table.astype(str))


def for_readme(preset: Preset) -> str:
    """Claims, verdicts and evidence, linked from the repository's root, and how much of the study they rest on."""
    table = verdicts(preset)[["claim", "verdict", "evidence"]]
    text = as_markdown(table.assign(evidence=table["evidence"].str.replace("](", "](notebooks/", regex=False)))
    done, runs = len(all_results(preset)), len(preset_runs(preset))
    missing = f"{done} of the study's {runs} runs are complete."
    return f"{text}\n\n{at_equal_flops(preset)}{missing if done < runs else f'The study is complete: {runs} runs.'}"


def at_equal_flops(preset: Preset) -> str:
    """What the paper does not compare: NPP given next-token prediction's FLOPs in place of its epochs. Empty without runs."""
    longer = {size: replace(npp(size), epochs=epochs) for size, (_, epochs) in preset.equal_flops.items()}
    found = {size: paired(preset, run, Run(size), "fid") for size, run in longer.items()}
    found = {size: interval for size, interval in found.items() if interval.n}
    said = _say("Beyond the claims, at equal training FLOPs, FID of NPP minus NTP's", found)
    return f"{said} ([equal_compute](notebooks/equal_compute.ipynb)). " if said else ""


def write_verdicts(preset: Preset, path: Path) -> None:
    """Write the verdicts between the marks in a file."""
    before, _, after = path.read_text().partition(MARK)
    after = after.partition(MARK)[2]
    write_atomic(path, f"{before}{MARK}\n{for_readme(preset)}\n{MARK}{after}")
