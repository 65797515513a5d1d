"""The parts that the notebooks of Tables 2-4 share: each shows what one setting of the schedule does."""

import pandas as pd

from nppkit.show import figures, plots
from nppkit.study import results, tables
from nppkit.study.presets import Preset
from nppkit.study.protocol import NPP, finding
from nppkit.study.published import REPORTS
from nppkit.study.runs import Run

SETTINGS = {  # report -> the setting, and the contrast that is read first: a run minus another, in words
    "table2_patch_size": ("patch_size", NPP.of("B", patch_size=4), "p = 4 minus p = 2"),
    "table3_lambda": ("lambda", NPP.of("B", lam="4/5"), "lambda 4/5 minus 1/2"),
    "table4_levels": ("levels", Run("B", levels=4, lam="1/2"), "four levels minus two"),
}


class Ablation:
    """One of Tables 2-4 for a preset: `report` is its name in SETTINGS."""

    def __init__(self, preset: Preset, report: str):
        self.preset, self.report = preset, report
        self.number, (self.by, self.run, self.what) = REPORTS[report], SETTINGS[report]
        self.table = tables.make_table(preset, self.number)
        self.paths = tables.write_table(preset, report, self.table)

    def finding(self) -> str:
        """The setting's furthest value against the paper's choice, for every size that has both, in Markdown."""
        sizes = {row.split("-")[1].split()[0] for row in self.table["model"]}
        pairs = {size: (self.run.of(size), NPP.of(size)) for size in self.preset.models if size in sizes}
        return f"{finding(self.preset, self.what, pairs)}\n\n{tables.sizes(self.preset)}."

    def figure(self) -> None:
        """FID against the setting, the paper's and ours, saved and shown."""
        ours = f"our FID{tables.suffix(self.preset)}"
        figure = figures.ablation(self.table, tables.seed_values(self.preset, self.number), self.by, ours)
        plots.save_figure(figure, self.preset, self.report)
        plots.show(figure)

    def columns(self, names: list[str]) -> pd.DataFrame:
        """The setting, and those columns of the table, rounded to what is known."""
        return tables.shown(self.table, [self.by, *names])

    def seeds(self) -> pd.DataFrame:
        """Every seed of every row; next-token prediction has no setting."""
        seeds = tables.seed_values(self.preset, self.number).drop(columns=["model", "size"])
        return seeds.assign(**{self.by: figures.settings(seeds[self.by])}).round(3)

    def sureness(self) -> str:
        """How far sampling noise alone moves an FID, the floors, how all was evaluated, and what made it."""
        lines = results.sampling_error(self.preset), results.floors(self.preset), self.table.attrs["contract"]
        return "\n".join((*lines, results.origins(self.preset, self.report)))
