"""Tables 1-5: the paper's rows and columns, its values and ours side by side.

The published values are the paper's, in nppkit/published; ours are read from results/<preset>/. Rows of
systems that are not trained here are quoted, rows that a preset does not train say "not run".
"""

import json
import re
from fractions import Fraction
from pathlib import Path

import pandas as pd

from nppkit.contract import check_one_contract, contract_line
from nppkit.cost import rule_gflops
from nppkit.errors import NppkitError
from nppkit.model import MODELS, GPTConfig
from nppkit.presets import Preset
from nppkit.runs import Run, evaluate_job, results_dir, run_dir, tokenizer_dir, why_incomplete, write_atomic
from nppkit.schedule import cost_ratio, ideal_cost_ratio

PUBLISHED = Path(__file__).parent / "published"
MODEL = re.compile(r"LlamaGen-(?P<size>B|L|XL|XXL)(?P<large> \(384\))?(?P<npp> \+ NPP.*)?")
METRICS = ("fid", "inception_score", "precision", "recall")
NAMES = {"fid": "FID", "inception_score": "IS", "kid": "KID", "precision": "precision", "recall": "recall"}
EPOCHS = 300


def published(number: int) -> pd.DataFrame:
    """Table `number` as the paper prints it; text columns stay text."""
    text = {"model": str, "type": str, "parameters": str, "lambda": str}
    return pd.read_csv(PUBLISHED / f"table{number}.csv", dtype=text, keep_default_na=True)


def row_run(row: pd.Series) -> Run | None:
    """The run that a published row describes, or None for a system that is not trained here."""
    match = MODEL.fullmatch(row["model"])
    if not match:
        return None
    run = {"size": match["size"], "large": bool(match["large"])}
    if match["npp"]:
        run["lam"] = row["lambda"] if pd.notna(row.get("lambda")) else Fraction(1, 2)
        levels = row.get("levels", 2)
        run |= {"patch_size": int(row["patch_size"])} if pd.notna(row.get("patch_size")) else {"levels": int(levels)}
    return Run(**run)


def read_json(path: Path) -> dict:
    """A JSON file. NppkitError names it when it is missing or damaged."""
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise NppkitError(f"{path} cannot be read ({error}): run its job again") from None


def run_result(preset: Preset, run: Run) -> dict | None:
    """One seed of a run: metrics at the common and at the best guidance scale, likelihood, cost. None if not run."""
    if why_incomplete(evaluate_job(preset, run)):
        return None
    folder = run_dir(preset, run)
    metrics, train = read_json(folder / "metrics.json"), read_json(folder / "train_metrics.json")
    scales = {row["cfg_scale"]: row for row in metrics["guidance"]}
    best = best_guidance(metrics["guidance"])
    at_best = {f"best_{key}": value for key, value in scales[best].items()}
    return {
        "run": run.id,
        **scales[preset.evaluation.common_guidance],
        **at_best,
        "best_scale": best,
        "heldout_nll": metrics["heldout_nll"],
        "seconds": train["seconds"],
        "flops": train["flops"],
        "parameters": train["parameters"],
        "contract": metrics["contract"],
    }


def results(preset: Preset, run: Run) -> list[dict]:
    """The results of every seed of a run that the preset lists and that is complete."""
    size = f"{run.size}-384" if run.large else run.size
    seeds = int(preset.seeds.get(size, 1)) if run.recipe in preset.runs.get(size, []) else 0
    found = [run_result(preset, Run(**{**vars(run), "seed": seed})) for seed in range(seeds)]
    return [result for result in found if result]


def best_guidance(rows: list[dict[str, float]]) -> float:
    """The scale of lowest FID on the selecting seed, which is not the one that is reported."""
    return min(rows, key=lambda row: row["select_fid"])["cfg_scale"]


def mean(rows: list[dict], key: str) -> float | None:
    """Mean over the seeds that have a value, or None."""
    values = [row[key] for row in rows if row[key] is not None]
    return sum(values) / len(values) if values else None


def extractor_label(preset: Preset) -> str:
    """What the metric columns say in brackets; plain only for Inception against ADM's reference file."""
    inception = "" if preset.evaluation.reference else "Inception, own reference"
    labels = {"digits": "digit features", "efficientnet-lite0": "EfficientNet-Lite0 features", "inception-v3-compat": inception}
    return labels.get(preset.extractor.name, preset.extractor.name)


def quality_columns(preset: Preset, row: pd.Series, rows: list[dict]) -> dict:
    """The paper's metrics and ours, at the common and at each model's best guidance scale."""
    label = extractor_label(preset)
    suffix = f" ({label})" if label else ""
    columns = {}
    for key in METRICS:
        columns[f"paper {NAMES[key]}"] = row[key]
        columns[f"our {NAMES[key]}{suffix}"] = mean(rows, key)
    columns[f"our KID{suffix}"] = mean(rows, "kid")
    columns[f"our best FID{suffix}"] = mean(rows, "best_fid")
    columns["at scale"] = mean(rows, "best_scale")
    columns["held-out NLL"] = mean(rows, "heldout_nll")
    columns["agreement"] = mean(rows, "agreement")
    return columns


def cost_columns(preset: Preset, row: pd.Series, run: Run, rows: list[dict]) -> dict:
    """Relative training cost four ways: printed, formula (ideal and with integer boundaries), FLOPs and clock."""
    segments = run.segments(EPOCHS)
    ideal = 1.0 if run.lam is None else ideal_cost_ratio([s.patch_size for s in segments], run.lam)
    baseline = results(preset, Run(run.size, large=run.large))
    both = rows and baseline
    return {
        "cost printed": row["training_cost"],
        "cost ideal": ideal,
        "cost integer boundaries": cost_ratio(segments),
        "cost measured FLOPs": mean(rows, "flops") / mean(baseline, "flops") if both else None,
        "cost measured time": mean(rows, "seconds") / mean(baseline, "seconds") if both else None,
    }


def make_table(preset: Preset, number: int) -> pd.DataFrame:
    """Table `number` with the paper's rows and ours; NppkitError if its rows were evaluated unlike each other."""
    lines, contracts = [], {}
    for _, row in published(number).iterrows():
        run = row_run(row)
        rows = results(preset, run) if run else []
        contracts |= {r["run"]: r["contract"] for r in rows}
        settings = {key: row[key] for key in ("type", "model", "parameters", "patch_size", "lambda", "levels") if key in row}
        line = {**settings, "ours": _status(run, rows)}
        if number == 5:
            line |= table5_columns(preset, row, run, rows)
        else:
            line |= quality_columns(preset, row, rows)
        if "training_cost" in row:
            line |= cost_columns(preset, row, run, rows)
        lines.append(line)
    check_one_contract(contracts)
    table = pd.DataFrame(lines)
    table.attrs["contract"] = next(map(contract_line, contracts.values()), "no run of this preset is complete")
    return table


def _status(run: Run | None, rows: list[dict]) -> str:
    if run is None:
        return "quoted"
    return f"{len(rows)} seed{'s' * (len(rows) > 1)}" if rows else "not run"


def table5_columns(preset: Preset, row: pd.Series, run: Run | None, rows: list[dict]) -> dict:
    """Training cost of an image in GFLOPs: printed, by the paper's rule for its own models, and ours measured."""
    suffix = f" ({extractor_label(preset)})" if extractor_label(preset) else ""
    rule = None
    if run:
        grid = 24 if run.large else 16
        rule = rule_gflops(GPTConfig(**MODELS[run.size], grid_size=grid), run.segments(EPOCHS))
    images = preset.training.batch_size * preset.training.steps_per_epoch * preset.training.epochs
    return {
        "paper FID": row["fid"],
        f"our FID{suffix}": mean(rows, "fid"),
        "paper GFLOPs printed": row["cost_gflops"],
        "paper GFLOPs by its rule": rule,
        "our GFLOPs measured": mean(rows, "flops") / images / 1e9 if rows else None,
        "our training seconds": mean(rows, "seconds"),
    }


def write_table(preset: Preset, name: str, table: pd.DataFrame) -> list[Path]:
    """Write results/<preset>/<name>.csv, .md and .tex."""
    folder = results_dir(preset)
    folder.mkdir(parents=True, exist_ok=True)
    shown = table.map(_cell)
    caption = f"{name.replace('_', ' ')}, preset {preset.name}: {preset.description}"
    header = [f"| {' | '.join(cells)} |" for cells in (shown.columns, ["---"] * len(shown.columns), *shown.values.tolist())]
    texts = {
        "csv": table.to_csv(index=False),
        "md": f"{caption}\n\n" + "\n".join(header) + f"\n\nOurs: {table.attrs['contract']}; {floors(preset)}.\n",
        "tex": shown.to_latex(index=False, escape=True, caption=caption),
    }
    for suffix, text in texts.items():
        write_atomic(folder / f"{name}.{suffix}", text)
    return [folder / f"{name}.{suffix}" for suffix in texts]


def _cell(value: object) -> str:
    if value is None or value != value:
        return ""
    if isinstance(value, float):
        return f"{value:g}" if value == round(value, 3) else f"{value:.4g}"
    return str(value)


COST = ["model", "cost printed", "cost ideal", "cost integer boundaries", "cost measured FLOPs", "cost measured time"]
QUALITY = ["model", "ours", "paper FID", "our FID", "paper IS", "our IS", "our best FID", "at scale", "held-out NLL"]


def column(table: pd.DataFrame, name: str) -> str:
    """The table's column of that name, with or without an extractor in brackets."""
    return next(c for c in table.columns if c == name or c.startswith(f"{name} ("))


def shown(table: pd.DataFrame, names: list[str]) -> pd.DataFrame:
    """Some columns as text, as the written tables have them."""
    return table[[column(table, name) for name in names]].map(_cell)


def differences(table: pd.DataFrame) -> pd.DataFrame:
    """Each trained row's metrics minus those of next-token prediction of its size and grid, the paper's and ours."""
    lines = []
    baselines = {}
    for _, row in table.iterrows():
        run = row_run(row)
        if run is None:
            continue
        key = (run.size, run.large)
        baseline = baselines.setdefault(key, row)
        if run.lam is None:
            continue
        settings = {k: row[k] for k in ("model", "patch_size", "lambda", "levels") if k in row}
        numbers = [
            c for c in table.columns if c.startswith(("paper FID", "our FID", "our best FID", "paper IS", "our IS", "held-out"))
        ]
        lines.append({**settings, **{c: _minus(row[c], baseline[c]) for c in numbers}})
    return pd.DataFrame(lines)


def _minus(a: float | None, b: float | None) -> float:
    return float("nan") if a is None or b is None else float(a) - float(b)


def cost_audit(table: pd.DataFrame) -> pd.DataFrame:
    """Rows of Table 5 whose printed cost is not what its rule gives, to the printed digits."""
    known = table.dropna(subset=["paper GFLOPs by its rule"])
    wrong = known[(known["paper GFLOPs printed"] - known["paper GFLOPs by its rule"]).abs() > 0.0051]
    return wrong[["model", "paper GFLOPs printed", "paper GFLOPs by its rule"]].round(2)


def rule_ratios(table: pd.DataFrame) -> pd.Series:
    """Cost of NPP over that of next-token prediction by the paper's rule, a value for each size."""
    ours = {
        (run.size, run.lam is None): row["paper GFLOPs by its rule"]
        for _, row in table.iterrows()
        if (run := row_run(row)) and not run.large
    }
    return pd.Series({size: ours[size, False] / ours[size, True] for size in MODELS}, name="NPP / NTP by the rule")


def figure1_data(preset: Preset) -> pd.DataFrame:
    """Table 5 with parameter counts, the paper's and ours, for Figure 1."""
    table = make_table(preset, 5)
    sizes, own = [], []
    for _, row in table.iterrows():
        run = row_run(row)
        unit = {"M": 1e6, "B": 1e9}[row["parameters"][-1]]
        sizes.append(float(row["parameters"][:-1]) * unit)
        own.append(mean(results(preset, run), "parameters") if run else None)
    return table.assign(size=sizes, own_size=own)


def floors(preset: Preset) -> str:
    """What every FID of the preset is read against: the tokenizer's reconstructions, and real images against real."""
    path = tokenizer_dir(preset) / "metrics.json"
    if not path.is_file():
        return "floors: not run"
    m = read_json(path)
    return (
        f"floors: FID {m['reconstruction_fid']:.3g} of {m['reconstruction_images']} reconstructed training images, "
        f"{m['real_fid']:.3g} of {m['real_images'][0]} training images against the other {m['real_images'][1]}"
    )
