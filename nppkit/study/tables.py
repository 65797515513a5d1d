"""Tables 1-5: the paper's rows and columns, its values and ours side by side.

The published values are the paper's, in nppkit/study/published; ours are read from results/<preset>/. Rows of
systems that are not trained here are quoted, rows that a preset does not train say "not run".
"""

import re
from pathlib import Path

import pandas as pd

from nppkit.cost import parameters, rule_gflops
from nppkit.files import write_atomic
from nppkit.model import MODELS, GPTConfig
from nppkit.schedule import cost_ratio, ideal_cost_ratio
from nppkit.scoring.contract import check_one_contract, contract_line
from nppkit.study.graph import results_dir
from nppkit.study.presets import Preset
from nppkit.study.published import published, row_run
from nppkit.study.results import contrasts, floors, mean, origins, paired, results
from nppkit.study.runs import Run, preset_runs, seeds
from nppkit.study.stats import Interval, deviation, plus_minus

NAMES = {"fid": "FID", "inception_score": "IS", "kid": "KID", "precision": "precision", "recall": "recall"}
EPOCHS = 300


def printed_cost(run: Run) -> float | None:
    """The relative training cost that the paper prints for a schedule in Tables 2-4, whatever the model; None elsewhere."""
    rows = [(row_run(row), row["training_cost"]) for number in (2, 3, 4) for _, row in published(number).iterrows()]
    return next((float(cost) for other, cost in rows if other and other.recipe == run.recipe), None)


def suffix(preset: Preset) -> str:
    """The extractor in brackets, to follow a metric's name; nothing for Inception against ADM's reference file."""
    inception = "" if preset.evaluation.reference else " (Inception, own reference)"
    labels = {"digits": " (digit features)", "efficientnet-lite0": " (EfficientNet-Lite0 features)"}
    return labels.get(preset.extractor.name, inception)


def quality_columns(preset: Preset, row: pd.Series, run: Run | None, rows: list[dict]) -> dict:
    """The paper's metrics and ours at the common guidance scale and at each run's best, with deviations over seeds."""
    columns, seen_by = {}, suffix(preset)
    for key, name in {**NAMES, "best_fid": "best FID"}.items():
        columns |= {f"paper {name}": row[key]} if key in row else {}
        columns |= measured_columns(f"our {name}{seen_by}", rows, key)
    if rows and "paper_fid" in rows[0]:
        for key, name in NAMES.items():
            columns |= measured_columns(f"our {name} at the paper's scale{seen_by}", rows, f"paper_{key}")
    columns |= {"at scale": mean(rows, "best_scale")}
    columns |= measured_columns("held-out NLL", [] if run and run.large else rows, "heldout_nll")
    return columns | {"agreement": mean(rows, "agreement")} | difference_columns(preset, run)


def measured_columns(name: str, rows: list[dict], key: str) -> dict:
    """Mean over seeds under that name, and the standard deviation of two or more."""
    known = [row[key] for row in rows if row[key] is not None]
    sd = deviation(known) if len(known) > 1 else None
    return {name: mean(rows, key), f"{name} deviation": sd}


def difference_columns(preset: Preset, run: Run | None) -> dict:
    """FID at the common scale minus that of next-token prediction, paired by seed, with its interval and its side of zero."""
    columns = {f"FID minus NTP's{part}": None for part in ("", ", low", ", high")} | {"side of zero": None}
    if run is None or run.lam is None:
        return columns
    found = paired(preset, run, Run(run.size, large=run.large), "fid")
    side = found.side("lower", "higher") if found.n > 1 else "one seed" if found.n else None
    return dict(zip(columns, (found.mean, found.low, found.high, side), strict=True))


def cost_columns(preset: Preset, run: Run, printed: float) -> dict:
    """Relative training cost: printed, by formula (ideal, and with integer boundaries), and measured on the step and clock.

    Measured ratios are paired by seed, since seeds may have run on different machines; None if no seed has both runs.
    """
    segments = run.segments(EPOCHS)
    ideal = 1.0 if run.lam is None else ideal_cost_ratio([s.patch_size for s in segments], run.lam)
    keys, baseline = {"FLOPs": "flops", "time": "seconds", "CPU time": "cpu_seconds"}, Run(run.size, large=run.large)
    measured = {name: paired(preset, run, baseline, key, lambda a, b: a / b) for name, key in keys.items()}
    return {
        "cost printed": printed,
        "cost ideal": ideal,
        "cost integer boundaries": cost_ratio(segments),
        **{f"cost measured {name}": ratio.mean if ratio.n else None for name, ratio in measured.items()},
    }


def make_table(preset: Preset, number: int) -> pd.DataFrame:
    """Table `number` (1-5) with the paper's rows and ours; NppkitError if its rows were evaluated unlike each other.

    >>> from nppkit import load_preset
    >>> table = make_table(load_preset("study"), 2)
    >>> table["paper FID"].tolist()
    [5.46, 4.47, 4.92, 3.8, 2.76, 2.89]
    """
    lines, contracts = [], {}
    for _, row in published(number).iterrows():
        run = row_run(row)
        rows = results(preset, run) if run else []
        contracts |= {r["run"]: r["contract"] for r in rows}
        settings = {key: row[key] for key in ("type", "model", "patch_size", "lambda", "levels") if key in row}
        if "parameters" in row:
            settings |= {"paper's parameters": row["parameters"], "our parameters": mean(rows, "parameters")}
        columns = table5_columns if number == 5 else quality_columns
        line = {**settings, "ours": _status(preset, run, rows), **columns(preset, row, run, rows)}
        if "training_cost" in row:
            line |= cost_columns(preset, run, row["training_cost"])
        lines.append(line)
    check_one_contract(contracts)
    table = pd.DataFrame(lines)
    table.attrs["contract"] = next(map(contract_line, contracts.values()), "no run of this preset is complete")
    return table


def _status(preset: Preset, run: Run | None, rows: list[dict]) -> str:
    """Where a row's numbers come from, or why there are none."""
    if run is None:
        return "quoted"
    if not rows:  # a preset that names weights and no such run evaluates releases
        runs = preset_runs(preset)
        released = run not in runs and {r.id for r in runs} <= set(preset.weights)
        return "weights not released" if released else "not run"
    return "released weights" if any(row["run"] in preset.weights for row in rows) else f"{len(rows)} seed{'s' * (len(rows) > 1)}"


def table5_columns(preset: Preset, row: pd.Series, run: Run | None, rows: list[dict]) -> dict:
    """Training cost of an image in GFLOPs: printed, by the paper's rule for its own models, and ours measured."""
    rule = None
    if run:
        grid = 24 if run.large else 16
        rule = rule_gflops(GPTConfig(**MODELS[run.size], grid_size=grid), run.segments(EPOCHS))
    images, flops = preset.training.batch_size * preset.training.steps_per_epoch * preset.training.epochs, mean(rows, "flops")
    return {
        "paper FID": row["fid"],
        **measured_columns(f"our FID{suffix(preset)}", rows, "fid"),
        "paper GFLOPs printed": row["cost_gflops"],
        "paper GFLOPs by its rule": rule,
        "our GFLOPs measured": flops and flops / (images * 1e9),
        "our training seconds": mean(rows, "seconds"),
        "our training CPU seconds": mean(rows, "cpu_seconds"),
    }


def write_table(preset: Preset, name: str, table: pd.DataFrame) -> list[Path]:
    """Write results/<preset>/<name>.csv with every number, and .md and .tex with the numbers that a reader wants."""
    folder = results_dir(preset)
    text = compact(table)
    caption = f"{name.replace('_', ' ')}, preset {preset.name}: {preset.description}"
    below = f"Ours: mean and standard deviation over seeds; {table.attrs['contract']}; {floors(preset)}."
    sized, runs = f"{sizes(preset)}.", f"Runs: {origins(preset, name)}."
    texts = {
        "csv": table.to_csv(index=False),
        "md": f"{caption}\n\n{markdown(text)}\n\n{below}\n\n{sized}\n\n{runs}\n",
        "tex": f"% {sized}\n% {runs}\n"
        + text.to_latex(index=False, escape=True, caption=re.sub(r"([&%$#_{}])", r"\\\1", caption)),
    }
    for kind, content in texts.items():
        write_atomic(folder / f"{name}.{kind}", content)
    return [folder / f"{name}.{kind}" for kind in texts]


def sizes(preset: Preset) -> str:
    """The parameters of our models, beside those of the paper's of the same name; sizes without a complete run are left out."""
    known = {size: mean(results(preset, Run(size)), "parameters") for size in preset.models if size in MODELS}
    theirs = {size: f"{parameters(GPTConfig(**MODELS[size])) / 1e6:,.0f}M" for size in MODELS}
    words = [f"{size} {ours:,.0f} ({theirs[size]})" for size, ours in known.items() if ours]
    return f"Our models' parameters, in brackets those of LlamaGen's models of the same name: {', '.join(words) or 'not run'}"


def markdown(table: pd.DataFrame) -> str:
    """A table in Markdown, its cells as they print."""
    lines = [table.columns, ["---"] * len(table.columns), *table.values.tolist()]
    return "\n".join(f"| {' | '.join(map(str, cells))} |" for cells in lines)


def compact(table: pd.DataFrame) -> pd.DataFrame:
    """The table as text: deviations join their means, an interval its difference, and columns without any value go."""
    text = table.map(_cell)
    for name in [c for c in table.columns if c.endswith(" deviation")]:
        of = name.removesuffix(" deviation")
        both = zip(text[of], table[of], table[name], strict=True)
        text[of] = [m if pd.isna(sd) else plus_minus(mean, sd) for m, mean, sd in both]
        text = text.drop(columns=name)
    if "FID minus NTP's" in text:
        names = ["FID minus NTP's", *(f"FID minus NTP's, {end}" for end in ("low", "high"))]
        known = zip(text[names[0]], *(table[name] for name in names), strict=True)
        text[names[0]] = [m if pd.isna(low) else str(Interval(2, mean, low, high)) for m, mean, low, high in known]
        text = text.drop(columns=names[1:])
    return text


def _cell(value: object) -> str:
    if value is None or value != value:
        return ""
    if isinstance(value, float):
        return f"{value:.10g}" if value == round(value, 3) else f"{value:.4g}"
    return str(value)


def shown(table: pd.DataFrame, names: list[str]) -> pd.DataFrame:
    """Some columns of the compact table, named without their extractor in brackets; absent ones are left out."""
    text = compact(table)
    return text[[c for name in names for c in text.columns if c == name or c.startswith(f"{name} (")]]


QUALITY = ["model", "ours", "paper FID", "our FID", "our KID", "our FID at the paper's scale", "paper IS", "our IS"]
QUALITY += ["our best FID", "at scale", "held-out NLL"]


def differences(preset: Preset, number: int) -> pd.DataFrame:
    """Each NPP row of a table minus next-token prediction of its size: the paper's FID, and ours paired by seed."""
    paper = {run: row["fid"] for _, row in published(number).iterrows() if (run := row_run(row))}
    pairs = {f"{run.size} {run.recipe}": (run, Run(run.size, large=run.large)) for run in paper if run.lam is not None}
    printed = [round(paper[run] - paper[baseline], 3) for run, baseline in pairs.values()]
    frame = contrasts(preset, pairs)
    frame.insert(1, "paper FID", printed)
    return frame


def method_table(preset: Preset, named: dict[str, Run]) -> pd.DataFrame:
    """Runs by name, of those that the preset lists: seeds, FID, likelihood and cost as mean ± standard deviation, as text.

    NppkitError if they were evaluated unlike each other.
    """
    shown = {"fid": f"FID{suffix(preset)}", "best_fid": "best FID", "best_scale": "at scale", "heldout_nll": "held-out NLL"}
    shown |= {"agreement": "agreement", "flops": "TFLOPs", "cpu_seconds": "CPU seconds"}
    lines, contracts = [], {}
    for name, run in named.items():
        if not seeds(preset, run):
            continue
        rows = [{**row, "flops": row["flops"] and row["flops"] / 1e12} for row in results(preset, run)]
        contracts |= {row["run"]: row["contract"] for row in rows}
        line = {"run": name, "seeds": _status(preset, run, rows)}
        for key, label in shown.items():
            line |= measured_columns(label, rows, key)
        lines.append(line)
    check_one_contract(contracts)
    return compact(pd.DataFrame(lines))


def seed_values(preset: Preset, number: int) -> pd.DataFrame:
    """Every seed of every trained row of a table: its setting and its metrics."""
    lines = []
    for _, row in published(number).iterrows():
        settings = {key: row[key] for key in ("model", "patch_size", "lambda", "levels") if key in row}
        run = row_run(row)
        lines += [{**settings, **result} for result in (results(preset, run) if run else [])]
    shown = ["run", "fid", "best_fid", "best_scale", "inception_score", "precision", "recall", "heldout_nll", "agreement"]
    return pd.DataFrame(lines, columns=[*settings, "size", "seed", *shown])


KINDS = ("printed", "ideal", "integer boundaries", "measured FLOPs", "measured time", "measured CPU time")
COST = ["model", *(f"cost {kind}" for kind in KINDS)]


def cost_audit(table: pd.DataFrame) -> pd.DataFrame:
    """Rows of Table 5 whose printed cost is not what its rule gives, to the printed digits."""
    known = table.dropna(subset=["paper GFLOPs by its rule"])
    wrong = known[(known["paper GFLOPs printed"] - known["paper GFLOPs by its rule"]).abs() > 0.0051]
    return wrong[["model", "paper GFLOPs printed", "paper GFLOPs by its rule"]].round(2)
