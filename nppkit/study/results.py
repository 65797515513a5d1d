"""What was measured: the results of complete runs, one by one, over seeds, and against their baselines."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pandas as pd

from nppkit.files import read_json
from nppkit.scoring.contract import check_one_contract
from nppkit.study.graph import evaluate_job, report_runs, result_job, run_dir, tokenizer_dir, tokenizer_preset, train_job
from nppkit.study.presets import Preset
from nppkit.study.provenance import said
from nppkit.study.published import guidance
from nppkit.study.records import origin, processor, why_incomplete
from nppkit.study.runs import Run, preset_runs, seeds
from nppkit.study.stats import Interval, interval, pooled_deviation

COUNTED = ("flops", "parameters")  # the same on every processor
COST = ("seconds", "cpu_seconds", "flops", "parameters")
SCORES = ("cfg_scale", "select_fid", "repeat_fid", "fid", "inception_score", "kid", "precision", "recall", "agreement")
COLUMNS = ["run", "size", "large", "recipe", "seed", *SCORES, *(f"best_{k}" for k in SCORES), "best_scale", "heldout_nll", *COST]


def run_result(preset: Preset, run: Run) -> dict | None:
    """One seed of a run: metrics at the common and at the best guidance scale, likelihood, cost. None if not run.

    Released weights have no cost of ours.
    """
    if why_incomplete(result_job(preset, run), needed=False):
        return None
    folder = run_dir(preset, run)
    identity = {"run": run.id, "size": run.size, "large": run.large, "recipe": run.recipe, "seed": run.seed}
    if preset.data.text:
        return {**identity, **_text_result(preset, folder)}
    metrics = read_json(folder / "metrics.json")
    train = metrics["weights"] if run.id in preset.weights else read_json(train_job(preset, run).folder / "train_metrics.json")
    scales = {row["cfg_scale"]: row for row in metrics["guidance"]}
    best = best_guidance(metrics["guidance"])
    at_best = {f"best_{key}": value for key, value in scales[best].items()} | paper_metrics(preset, run, scales)
    once = {"best_scale": best, "heldout_nll": metrics["heldout_nll"], **_cost(train), "contract": metrics["contract"]}
    return identity | scales[preset.evaluation.common_guidance] | at_best | once


def _cost(train: dict) -> dict:
    return {key: train.get(key) for key in COST}


def _text_result(preset: Preset, folder: Path) -> dict:
    """What the training of a text ends with; its contract names the held-out windows."""
    last = pd.read_csv(folder / "history.csv").iloc[-1]
    heldout = read_json(tokenizer_dir(preset) / "heldout/manifest.json")
    terms = {"heldout_sha256": heldout["source_digest"], "windows": heldout["images"], "window": heldout["grid_size"]}
    return {"heldout_nll": last["heldout_nll"], **_cost(read_json(folder / "train_metrics.json")), "contract": terms}


def paper_metrics(preset: Preset, run: Run, scales: dict[float, dict]) -> dict:
    """The metrics at the scale that the paper gives for a model of this name; empty unless the preset has all of those."""
    paper = guidance()
    if run.size not in paper.index or not set(paper.to_numpy().ravel()) <= set(preset.evaluation.guidance):
        return {}
    return {f"paper_{key}": value for key, value in scales[paper.loc[run.size, run.recipe[:3]]].items()}


def results(preset: Preset, run: Run) -> list[dict]:
    """The results of every seed of a run that the preset lists and that is complete. NppkitError if evaluated unlike."""
    found = [result for seed in seeds(preset, run) if (result := run_result(preset, replace(run, seed=seed)))]
    check_one_contract({result["run"]: result["contract"] for result in found})
    return found


def all_results(preset: Preset) -> pd.DataFrame:
    """A row for every complete run of the preset, in its order. NppkitError if they were evaluated unlike each other.

    Columns: run, size, recipe, seed; fid, kid, precision ... at the common guidance scale, best_fid ... at the run's best;
    heldout_nll in nats a token; flops and seconds of its training; parameters. They are read from results/ of the home folder
    (NPPKIT_HOME, else the clone); without any there the table is empty.

    >>> from nppkit import load_preset
    >>> frame = all_results(load_preset("study"))
    >>> float(round(frame[frame["recipe"] == "ntp"].groupby("size")["fid"].mean()["B"], 1))
    13.6
    """
    found = [result for run in preset_runs(preset) if (result := run_result(preset, run))]
    check_one_contract({result["run"]: result.pop("contract") for result in found})
    return pd.DataFrame(found, columns=None if found else COLUMNS)


def best_guidance(rows: list[dict[str, float]]) -> float:
    """The scale of lowest FID on the selecting seed, which is not the one that is reported."""
    return min(rows, key=lambda row: row["select_fid"])["cfg_scale"]


def mean(rows: list[dict], key: str) -> float | None:
    """Mean over the seeds that have a value, or None."""
    values = [row[key] for row in rows if row[key] is not None]
    return sum(values) / len(values) if values else None


def differences(preset: Preset, run: Run, baseline: Run, key: str, combine: Callable = lambda a, b: a - b) -> dict[int, float]:
    """The difference of a metric between two runs (or what else `combine` makes of it), by the seeds that both have.

    Not of a seed whose records name two kinds of processor, which move a metric as much as another seed does, but for what is
    counted and not measured. NppkitError if they were evaluated unlike each other.
    """
    found = [results(preset, r) for r in (run, baseline)]
    check_one_contract({row["run"]: row["contract"] for rows in found for row in rows})
    ours, theirs = ({row["seed"]: row[key] for row in rows} for rows in found)
    shared = [seed for seed in ours if seed in theirs and None not in (ours[seed], theirs[seed])]
    alike = [seed for seed in shared if key in COUNTED or len(processors(preset, seed, run, baseline) - {""}) < 2]
    return {seed: combine(ours[seed], theirs[seed]) for seed in alike}


def processors(preset: Preset, seed: int, *runs: Run) -> set[str]:
    """The kinds of processor that a seed's runs were trained and scored on; an empty one where a record names none."""
    return {processor(job(preset, replace(run, seed=seed))) for run in runs for job in (train_job, result_job)}


def paired(preset: Preset, run: Run, baseline: Run, key: str, combine: Callable = lambda a, b: a - b) -> Interval:
    """The mean of those differences with its interval."""
    return interval(list(differences(preset, run, baseline, key, combine).values()))


QUALITIES = {"fid": "FID", "best_fid": "FID at each run's best scale", "heldout_nll": "held-out NLL"}


def contrasts(preset: Preset, pairs: dict[str, tuple[Run, Run]], keys: dict[str, str] = QUALITIES) -> pd.DataFrame:
    """What stands behind each name: a run minus another, paired by seed, with 95 % intervals.

    Lower is better for all `keys`. Intervals are not corrected for their number: this explores, and decides nothing.
    """
    lines = []
    for name, (run, baseline) in pairs.items():
        found = {label: paired(preset, run, baseline, key) for key, label in keys.items()}
        line = {"difference": name, "seeds": max(difference.n for difference in found.values())}
        for label, difference in found.items():
            line |= {label: str(difference), f"{label}: side": difference.side("lower", "higher") if difference.n > 1 else ""}
        lines.append(line)
    return pd.DataFrame(lines)


def histories(preset: Preset, run: Run) -> pd.DataFrame:
    """The training histories of a run's complete seeds, one below the other, with `seed`, and FLOPs and CPU time so far.

    `point` says which rows belong together over seeds, here and below.
    """
    frames = []
    for seed in (result["seed"] for result in results(preset, run) if result["run"] not in preset.weights):
        folder = train_job(preset, replace(run, seed=seed)).folder
        frame, counted = pd.read_csv(folder / "history.csv"), read_json(folder / "train_metrics.json")["flops_per_step"]
        steps = frame["step"].diff().fillna(frame["step"])
        flops, coarse = frame["patch_size"].astype(str).map(counted), frame.get("coarse", 1.0)
        flops = (steps * (coarse * flops + (1 - coarse) * counted["1"])).cumsum()
        frames.append(frame.assign(seed=seed, point=frame["step"], flops=flops, cpu=frame["cpu_seconds"].cumsum()))
    return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame()


def guidance_curves(preset: Preset, run: Run) -> pd.DataFrame:
    """Metrics at every guidance scale, a row for each seed of a run and scale."""
    files = [(r["seed"], run_dir(preset, replace(run, seed=r["seed"])) / "metrics.json") for r in results(preset, run)]
    rows = [{"seed": seed, **row} for seed, path in files for row in read_json(path)["guidance"]]
    return pd.DataFrame([{**row, "point": row["cfg_scale"]} for row in rows])


def ends(preset: Preset, run: Run) -> pd.DataFrame:
    """Where a run ends, a row a seed: epochs, cost, FID and likelihood."""
    epochs = run.training(preset).epochs
    keys = ("seed", "flops", "seconds", "cpu_seconds", "fid", "best_fid", "heldout_nll")
    found = results(preset, run)
    return pd.DataFrame([{"epochs": epochs, "point": epochs, **{key: row.get(key) for key in keys}} for row in found])


def segment_ends(preset: Preset, named: dict[str, Run]) -> pd.DataFrame:
    """Held-out likelihood of single tokens at the end of every segment, mean over a run's seeds, a row a run."""
    lines = []
    for name, run in named.items():
        frame = histories(preset, run)
        if not frame.empty:
            last = frame.sort_values("step").groupby(["seed", "segment"]).last()
            nll = last.groupby("segment")["heldout_nll"].mean()
            sides = last.groupby("segment")["patch_size"].first()
            lines.append({"run": name, **{f"after p = {sides[i]}": round(nll[i], 3) for i in nll.index}})
    return pd.DataFrame(lines)


def sampling_noise(preset: Preset) -> tuple[float, list[float]]:
    """Standard deviation of FID over sampling seeds, and how much too high an FID of all samples is, by each seed; NaN: unknown.

    Both pool all complete runs and guidance scales. Every checkpoint is sampled with two seeds at each scale, and equal numbers
    of images are compared, because FID is biased by that number: its excess falls with one over it (Chong and Forsyth, 2020,
    arXiv 1911.07023), so that the fall from `select_samples` to all of the samples tells what is left. The two seeds are those
    of every run, so pooling does not average out what they have in common: how far the two biases differ tells how much that is.
    """
    complete = [run for run in preset_runs(preset) if not why_incomplete(evaluate_job(preset, run), needed=False)]
    found = [read_json(run_dir(preset, run) / "metrics.json") for run in complete]
    rows = pd.DataFrame([{**metrics["contract"], **row} for metrics in found for row in metrics["guidance"]])
    if rows.empty:
        return float("nan"), [float("nan")] * 2
    more = rows[rows["select_samples"] < rows["samples"]]
    left = more["select_samples"] / (more["samples"] - more["select_samples"])
    biases = sorted(((more[few] - more["fid"]) * left).mean() for few in ("select_fid", "repeat_fid"))
    return pooled_deviation(rows[["select_fid", "repeat_fid"]]), biases


def sampling_error(preset: Preset) -> str:
    """How far sampling alone moves an FID: at random, and always upwards."""
    deviation, (low, high) = sampling_noise(preset)
    return (
        f"FID deviation over sampling seeds: {deviation:.2g} of {preset.evaluation.select_samples} samples, less of more; bias "
        f"of {preset.evaluation.samples} samples: {low:+.1g} by one sampling seed, {high:+.1g} by the other (KID has none)"
    )


def floors(preset: Preset) -> str:
    """What every FID of the preset is read against: the tokenizer's reconstructions, and real images against real."""
    path, lender = tokenizer_dir(preset) / "metrics.json", tokenizer_preset(preset)
    if not path.is_file():
        return "floors: not run"
    m = read_json(path)
    if (preset.extractor, preset.evaluation.reference) != (lender.extractor, m.get("reference", lender.evaluation.reference)):
        return f"floors: not measured with this extractor and reference (those of {lender.name}'s tokenizer are by others)"
    return (
        f"floors: FID {m['reconstruction_fid']:.3g} of {m['reconstruction_images']} reconstructed training images, "
        f"{m['real_fid']:.3g} of {m['real_images'][0]} training images against the other {m['real_images'][1]}"
    )


def origins(preset: Preset, report: str = "") -> str:
    """By which commits, with which versions, on which machines the runs that a report shows were made; all runs by default."""
    found = [result_job(preset, run) for run in report_runs(preset, report)]
    complete = [job for job in found if not why_incomplete(job, needed=False)]
    return said([origin(part) for job in complete for part in (*(up for up in job.upstream if up.folder == job.folder), job)])
