"""What the report says in numbers: facts of a confirmatory preset and of those beside it, which the notebook puts in words."""

from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property

import numpy as np
import pandas as pd
from scipy import stats

from nppkit.schedule import cost_ratio
from nppkit.study import protocol, tables, verdicts
from nppkit.study.presets import Preset, load_preset
from nppkit.study.protocol import NPP, NTP, RESTARTED, Question
from nppkit.study.results import all_results, differences, mean, paired, results
from nppkit.study.runs import Run, preset_runs, seeds
from nppkit.study.stats import SPANS_ZERO, Interval, deviation, interval, plus_minus, welch

MEASURES = {
    "heldout_nll": "held-out NLL",
    "inception_score": "inception score",
    "precision": "precision",
    "recall": "recall",
    "kid": "KID",
    "agreement": "share that shows its class",
}


def sided(found: Interval) -> str:
    """A difference of FID, and whether the first-named is better."""
    return f"{found} ({found.side('better', 'worse').replace(SPANS_ZERO, 'open')})"


def where(holds: dict[str, bool]) -> str:
    """Of questions by their number: those of which it holds, and after a comma those of which it does not."""
    named = [[number for number in holds if holds[number] == side] for side in (True, False)]
    yes, no = (f"question{'s' * bool(x[1:])} {' and '.join(filter(None, [', '.join(x[:-1]), *x[-1:]]))}" for x in named)
    return (yes if named[0] else "none") + f", not in {no}" * bool(named[1])


def verdict_table(summary: pd.DataFrame, metric: str, before: str = "first study") -> str:
    """A line a question in Markdown, without columns that are still empty."""
    counts = summary[["seeds", "planned", "diverged"]].itertuples(index=False)
    done = [f"{n} of {m}{f', {k} diverged' * bool(k)}" for n, m, k in counts]
    shown = summary[["", "contrast", "size", "claim"]].assign(seeds=done)
    label = protocol.LABEL[metric]
    for name, prefix in ((f"{label} difference", ""), (f"{before}, {label} (exploratory)", "first_")):
        ends = (summary[f"{prefix}{end}"] for end in ("mean", "low", "high"))
        rows = zip(summary["first_n" if prefix else "seeds"], *ends, strict=True)
        shown[name] = [str(Interval(*row)) if row[1] == row[1] else "" for row in rows]
    complete = (summary["seeds"] + summary["diverged"] >= summary["planned"]).all()
    decided = ~summary["verdict"].str.startswith("planned")
    corrected = summary["adjusted"].map("{:.2g}".format).where(decided, "")
    shown["corrected p" if complete else "corrected p (can only fall)"] = corrected
    shown.insert(2, "verdict", summary["verdict"])  # what a narrow screen shows
    texts = shown.astype(str)
    return tables.markdown(texts.loc[:, (texts != "").any()])


class Article:
    """The facts of a report, each computed when it is first asked for."""

    def __init__(self, study: Preset):
        self.study = study
        beside = (study.pilot, study.rate_trial, study.second_look, study.control, study.same_rate)
        self.first, self.trial, self.seen, self.control, self.same = map(load_preset, beside)
        self.converged, self.photographs = self.domains = [load_preset(name) for name in study.domains]
        self.summary, self.decided = protocol.summary(study, self.first), protocol.decisions(study)
        self.pictures = protocol.summary(self.photographs, load_preset(self.photographs.pilot))
        self.asked = [q for q, d in self.decided.items() if d.verdict in verdicts.WORDS]
        self.question, self.decision = next(iter(self.decided.items()))
        self.beside = protocol.control(study)

    def progress(self, preset: Preset) -> str:
        """How many of a preset's runs are done."""
        return f"{len(all_results(preset))} of {len(preset_runs(preset))}"

    @cached_property
    def left(self) -> pd.DataFrame:
        """The questions that have no verdict yet."""
        return self.summary[~self.summary["verdict"].isin(verdicts.WORDS)]

    @property
    def missing(self) -> str:
        """Why questions have no verdict; empty where all have one."""
        full = (self.left["seeds"] + self.left["diverged"] >= self.left["planned"]).sum()
        said = f"Of the {len(self.summary)} questions about image quality {len(self.left) - full} have no verdict yet because "
        said += f"planned seeds are missing{f', and {full} because it is corrected for those' * bool(full)}. "
        return said * bool(len(self.left))

    @property
    def verdicts(self) -> str:
        """A line for each question that has a verdict, in Markdown."""
        rows = self.summary[self.summary["verdict"].isin(verdicts.WORDS)].iterrows()
        ends = ("seeds", "mean", "low", "high")
        return "".join(
            f"- {row['claim']} ({row['contrast']}, size {row['size']}): **{row['verdict']}**, "
            f"FID difference {Interval(*(row[end] for end in ends))}\n"
            for _, row in rows
        )

    def saved(self, key: str) -> str:
        """NPP's FLOPs, or its processor time, over next-token prediction's, in the first study."""
        ratios = {size: paired(self.first, NPP.of(size), NTP.of(size), key, lambda a, b: a / b).mean for size in self.study.runs}
        return ", ".join(f"{ratio:.2f} ({size})" for size, ratio in ratios.items())

    def seen_by_another(self, question: Question, key: str = "fid") -> Interval:
        """What the second network sees of a question."""
        return paired(self.seen, question.run, question.baseline, key)

    def elsewhere(self) -> str:
        """The verdicts on photographs."""
        return "; ".join(protocol.answer(self.photographs, *pair) for pair in protocol.decisions(self.photographs).items())

    def fids(self, preset: Preset, run: Run) -> list[float]:
        """FID of each seed of a run."""
        return [row["fid"] for row in results(preset, run)]

    def spread_of(self, values: Sequence[float]) -> str:
        """Their mean and standard deviation."""
        return plus_minus(np.mean(values), deviation(values)) if len(values) else "none"

    @cached_property
    def behind(self) -> dict[Run, list[float]]:
        """The runs behind the verdicts, and the FIDs of their seeds."""
        return {run: self.fids(self.study, run) for run in dict.fromkeys(run for q in self.asked for run in (q.baseline, q.run))}

    def means(self) -> str:
        """Mean FID of each of these runs, in brackets their FLOPs relative to next-token prediction of their size."""
        told = {size: [] for size in self.study.runs}
        for run, fids in self.behind.items():
            flops = paired(self.study, run, NTP.of(run.size), "flops", lambda a, b: a / b).mean
            told[run.size].append(f"`{run.recipe}` {self.spread_of(fids)} ({flops:.2f})")
        return ". ".join(f"{size}: {'; '.join(said)}" for size, said in told.items() if said)

    def beside_ntp(self, runs: dict[str, Run], baseline: Run) -> str:
        """FID of named runs minus that of a next-token prediction, where both are there."""
        found = {name: paired(self.study, run, baseline, "fid") for name, run in runs.items()}
        return ", ".join(f"{name} {sided(difference)}" for name, difference in found.items() if difference.n)

    @cached_property
    def pairs(self) -> list[tuple[dict, dict]]:
        """The results of question 1's two runs, seed by seed."""
        runs = self.question.run, self.question.baseline
        ours, theirs = ({row["seed"]: row for row in results(self.study, run)} for run in runs)
        return [(ours[seed], theirs[seed]) for seed in ours if seed in theirs]

    def apart(self, key: str) -> np.ndarray:
        """Question 1's differences in any of their numbers."""
        return np.array([a[key] - b[key] for a, b in self.pairs])

    def mean_of(self, key: str, side: int) -> float:
        """The mean of one side of question 1: 0 is NPP, 1 next-token prediction."""
        return np.mean([pair[side][key] for pair in self.pairs])

    @property
    def factor(self) -> float:
        """By how much Holm's correction multiplies question 1's p, as it stands."""
        return self.decision.adjusted / self.decision.p

    @cached_property
    def tests(self) -> dict[str, float]:
        """p of other tests of question 1, not corrected."""
        x, (a, b) = self.apart("fid"), zip(*((a["fid"], b["fid"]) for a, b in self.pairs), strict=True)
        every = dict(permutation_type="samples", n_resamples=2**20, batch=10**5)  # all signs of 20 seeds
        return {
            "Welch's test (no pairs)": stats.ttest_ind(a, b, equal_var=False).pvalue,
            "exact sign changes": stats.permutation_test((x,), np.mean, **every).pvalue,
            "Wilcoxon's test": stats.wilcoxon(x).pvalue,
        }

    @cached_property
    def without(self) -> list[float]:
        """Question 1's corrected p without each of its seeds."""
        x = self.apart("fid")
        return [self.factor * stats.ttest_1samp(np.delete(x, i), 0).pvalue for i in range(len(x))]

    @cached_property
    def other_seeds(self) -> list[float]:
        """Question 1's differences of the other seeds at the same rate."""
        return list(differences(self.same, self.question.run, self.question.baseline, "fid").values())

    @cached_property
    def controlled(self) -> list[float]:
        """NPP minus next-token prediction with its restart, seed by seed."""
        return list(differences(self.control, NPP, RESTARTED, "fid").values())

    def over_the_restart(self, **measures: str) -> str:
        """NPP minus next-token prediction with its restart, in other measures: their columns, and what they are called."""
        return ", ".join(f"{name} {paired(self.control, NPP, RESTARTED, key)}" for key, name in measures.items())

    def measures(self) -> dict[str, str]:
        """What each comparison with next-token prediction shows in each measure."""
        at = {q.text.rpartition(", ")[2]: q for q in protocol.against_ntp(self.study, "L")}
        sides = {"NPP minus NTP": (self.study, NPP, NTP), "NPP minus NTP with the restart": (self.control, NPP, RESTARTED)}
        sides |= {f"L, NPP minus NTP at {cost}": (self.study, q.run, q.baseline) for cost, q in reversed(at.items())}
        found = {f"{name}, {label}": paired(*side, key) for name, side in sides.items() for key, label in MEASURES.items()}
        longer = paired(self.study, at["equal FLOPs"].run, at["equal epochs"].run, "fid")
        found["L, what the added epochs bring NPP, FID"] = longer
        alone = "NTP with the restart minus NTP without (other seeds, another processor)"
        found |= {f"{alone}, {MEASURES[key]}": self.restart_alone(key) for key in ("kid", "heldout_nll")}
        return self.sample_quality() | {name: str(difference) for name, difference in found.items()}

    def sample_quality(self) -> dict[str, str]:
        """Means over seeds, of next-token prediction and of NPP: how good the samples are, and not only how far apart."""
        found = {}
        for size in self.study.seeds:
            sides = [results(self.study, run.of(size)) for run in (NTP, NPP)]
            for key in ("inception_score", "precision", "recall"):
                means = (mean(rows, key) for rows in sides)
                found[f"{size}, NTP and NPP, {MEASURES[key]}"] = " and ".join("-" if x is None else f"{x:.2f}" for x in means)
        return found

    def restart_alone(self, key: str = "fid") -> Interval:
        """What the restart alone brings next-token prediction in any of its numbers: other seeds."""
        sides = results(self.control, RESTARTED), results(self.study, self.question.baseline)
        return welch(*([row[key] for row in rows] for rows in sides))

    def unpaired(self) -> Interval:
        """Question 1's difference minus its control's: other seeds."""
        return welch(self.apart("fid"), self.controlled)

    def all_of_npp(self) -> Interval:
        """FID of NPP's runs of question 1 and of its control minus that of question 1's next-token prediction, not paired."""
        ours = self.fids(self.study, self.question.run) + self.fids(self.control, NPP)
        return welch(ours, self.fids(self.study, self.question.baseline))

    def waiting(self) -> pd.DataFrame:
        """How far each question of the converged regime is; what its seeds show is not told before all are in."""
        asked = enumerate(protocol.decisions(self.converged).items(), 1)
        lines = [{"": str(n), "contrast": q.text, "size": q.run.size, "verdict": d.verdict} for n, (q, d) in asked]
        return pd.DataFrame(lines)

    def told_of_waiting(self) -> str:
        """How many seeds each of these questions has, in a line."""
        found = protocol.decisions(self.converged).values()
        planned = " or ".join(dict.fromkeys(str(d.contrast.planned) for d in found))
        return f"planned {planned} seeds a question, done {', '.join(str(d.n) for d in found)}"

    def diverged(self) -> str:
        """How many seeds of the questions of each domain diverged."""
        lost = {p.name: sum(d.contrast.diverged for d in protocol.decisions(p).values()) for p in (self.study, *self.domains)}
        some = ", ".join(f"{n} of `{name}`" for name, n in lost.items() if n)
        return f"Trainings that diverged: {some or 'none'}."

    def set_up(self, images: int) -> str:
        """How photographs' models were trained on that many of them and scored, where the report says it of digits alone."""
        model, t, e = self.photographs.models["B"], self.photographs.training, self.photographs.evaluation
        passes = t.epochs * t.steps_per_epoch * t.batch_size / images
        return (
            f"{model['n_layer']} layers of {model['dim']}; {t.steps_per_epoch} steps of {t.batch_size} images an epoch, "
            f"so {t.epochs} epochs are {passes:.0f} passes; KID is the mean of {e.kid_subsets} subsets of 1,000, "
            f"and no guidance but {e.common_guidance:g} was sampled"
        )

    def how_firm(self) -> str:
        """Whether photographs' two verdicts hang on single seeds, and the first difference through other tokenizers."""
        scale, level = protocol.SCALE["kid"], 1 - verdicts.LEVEL / len(self.pictures)
        epochs, flops = (
            [scale * x for x in differences(self.photographs, q.run, q.baseline, "kid").values()]
            for q in protocol.questions(self.photographs)
        )
        without = [interval(np.delete(epochs, i), level) for i in range(len(epochs))]
        past = sum(max(-each.low, each.high) > protocol.MARGIN for each in without)
        others = {name: differences(load_preset(name), NPP, NTP, "kid") for name in (self.photographs.pilot, "solar")}
        told = ", ".join(f"{interval([scale * x for x in found.values()])} (`{name}`)" for name, found in others.items())
        return (
            f"Leaving out any one of {past} of {len(epochs)} seeds takes question 1's interval past the margin; question 2's "
            f"difference is below zero in {sum(x < 0 for x in flops)} of {len(flops)} seeds. Through other trainings "
            f"of the tokenizer, with NTP at NPP's rate, question 1's difference is {told}, 95 %; "
            "through one more it is in the study log."
        )

    def at_half_the_rate(self) -> Interval:
        """KID x 1,000 of photographs' next-token prediction with NPP's FLOPs at half its rate, minus that at its rate."""
        named = (load_preset(name) for name in self.first.tokens)
        other = next(p for p in named if p.tokenizer_of == self.photographs.name)
        asked = next(q for q in protocol.questions(self.photographs) if q.text == protocol.EQUAL_FLOPS).baseline
        sides = [results(other, replace(asked, lr="")), results(self.photographs, asked)]
        return welch(*([protocol.SCALE["kid"] * row["kid"] for row in rows] for rows in sides))

    def by_the_rule(self, preset: Preset, size: str) -> float:
        """What "equal FLOPs" comes to by the paper's rule (Section 3.6), which counts no attention: NPP's cost over NTP's."""
        q = protocol.equal_flops(preset, size)
        plans = [run.segments(preset.training.epochs) for run in (q.run, q.baseline)]
        costs = [cost_ratio(segments) * segments[-1].end for segments in plans]
        return costs[0] / costs[1]

    @property
    def power(self) -> float:
        """The difference that question 1's seeds find with 80 % power, at the deviation that they have."""
        n, level = len(self.pairs), verdicts.LEVEL / 2 / len(self.summary)
        return (stats.t.ppf(1 - level, n - 1) + stats.t.ppf(0.8, n - 1)) * deviation(self.apart("fid")) / n**0.5

    def tuned(self) -> Interval:
        """Next-token prediction at the rate that was chosen minus that at the first study's, the seeds that both have."""
        at_its, at_next = ({row["seed"]: row["fid"] for row in results(p, NTP)} for p in (self.same, self.first))
        return interval([at_its[seed] - at_next[seed] for seed in at_its if seed in at_next])

    def rates(self) -> tuple[pd.DataFrame, dict[str, str], bool]:
        """The trial of rates, a row a size and method; whose best by likelihood is another; whether all chose the smallest."""
        lines, others, smallest = [], {}, True
        for size in ("B", "L"):
            for method, run in (("NTP", NTP), ("NPP", NPP)):
                tried = [r for r in preset_runs(self.trial) if r == run.of(size, lr=r.lr, seed=r.seed)]
                known = {float(r.lr): results(self.trial, r) for r in tried}
                planned = seeds(self.trial, tried[0])
                known[self.first.training.lr] = [row for row in results(self.first, run.of(size)) if row["seed"] in planned]
                known = {rate: pd.DataFrame(rows) for rate, rows in sorted(known.items())}
                means = pd.DataFrame({rate: rows[["fid", "heldout_nll"]].mean() for rate, rows in known.items()})
                chosen, likeliest = means.idxmin(axis=1)
                line = {"size": size, "method": method, "seeds": len(planned)}
                for rate, rows in known.items():
                    fid, nll = rows["fid"], rows["heldout_nll"]
                    line[f"lr {rate:g}"] = f"{fid.mean():.1f} ± {fid.std():.1f} ({nll.mean():.3f})"
                lines.append({**line, "chosen": f"{chosen:g}"})
                others |= {f"{size}'s {method}": f"{likeliest:g}"} if likeliest != chosen else {}
                smallest &= chosen == min(known)
        return pd.DataFrame(lines).astype(str), others, smallest

    def spread(self, question: Question, of: Preset | None = None) -> float:
        """The paired deviation of FID: in the first study, which the number of seeds was planned from, or in another."""
        return deviation([*differences(of or self.first, question.run, question.baseline, "fid").values()])
