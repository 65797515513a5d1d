"""The rows of the paper's tables: what is printed in them, and which run each describes."""

import functools
import re
from fractions import Fraction
from pathlib import Path

import pandas as pd

from nppkit.errors import NppkitError
from nppkit.study.runs import Run

# notebook -> the table whose rows it shows
REPORTS = dict(table1_main=1, table2_patch_size=2, table3_lambda=3, table4_levels=4, table5_cost=5, figure1_cost_vs_fid=5)
PUBLISHED = Path(__file__).parent / "published"
MODEL = re.compile(r"LlamaGen-(?P<size>B|L|XL|XXL)(?P<large> \(384\))?(?P<npp> \+ NPP.*)?")


def published(number: int) -> pd.DataFrame:
    """Table `number` as the paper prints it; text columns stay text. NppkitError for another than 1 to 5."""
    if number not in range(1, 6):
        raise NppkitError(f"table {number!r}: the paper has Tables 1 to 5")
    text = {"model": str, "type": str, "parameters": str, "lambda": str}
    return pd.read_csv(PUBLISHED / f"table{number}.csv", dtype=text, keep_default_na=True)


@functools.cache
def guidance() -> pd.DataFrame:
    """The guidance scale of each model, by size, of NTP and NPP (columns ntp, npp), as the paper gives them."""
    return pd.read_csv(PUBLISHED / "guidance.csv", index_col="size")


def row_run(row: pd.Series) -> Run | None:
    """The run that a published row describes, or None for a system that is not trained here."""
    if not (match := MODEL.fullmatch(row["model"])):
        return None
    run = {"size": match["size"], "large": bool(match["large"])}
    if match["npp"]:
        run["lam"] = row["lambda"] if pd.notna(row.get("lambda")) else Fraction(1, 2)
        levels = row.get("levels", 2)
        run |= {"patch_size": int(row["patch_size"])} if pd.notna(row.get("patch_size")) else {"levels": int(levels)}
    return Run(**run)


def table_runs(number: int) -> set[Run]:
    """The runs, seed 0, that stand behind the rows of table `number`."""
    return {run for _, row in published(number).iterrows() if (run := row_run(row))}
