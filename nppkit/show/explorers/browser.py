"""The run browser: a sortable table of all runs, their curves and samples, and runs that are training, followed."""

import contextlib
import html
from collections.abc import Iterator
from pathlib import Path

import ipywidgets as w

from nppkit.show import monitor, plots
from nppkit.show.widgets import Form, Task, control, in_turn, picture

WIDTHS = {"run": "330px", "state": "76px", "preset": "76px"}  # of the table's columns
WIDTH = "58px"  # of a column of numbers
MOST = 100  # rows at a time: a row is seven widgets, and of thousands at once a kernel's messages are lost on the way
NO_RUN = ("none", "")  # None as a value would leave the menu blank
WHOLE = w.Layout(width="max-content", overflow="visible", flex="0 0 auto")  # the table scrolls as one


class RunBrowser:
    """A sortable table of all runs, curves of the ticked ones, one run's samples, and runs that are training, followed."""

    COLUMNS = ("state", "epoch", "loss", "NLL", "FID", "IS", "recall", "at scale", "minutes", "preset")

    def __init__(self, homes: list[Path]):
        self.homes, self.sort_by, self.descending, self.shown = homes, "run", False, []
        self.form = Form(
            others=control(w.Textarea, "Other homes", placeholder="one folder a line, e.g. on a shared disk", rows=2),
            named=control(w.Text, "Runs named", placeholder="part of a preset/run, e.g. digits/GPT-B_ntp"),
            state=control(w.Dropdown, "Show", options=["all", "running", "stopped", "trained", "evaluated"]),
            against=control(w.Dropdown, "Curves over", options=["epoch", "minutes"]),
            samples=control(w.Dropdown, "Samples of", options=[NO_RUN]),
            seconds=control(w.IntSlider, "Follow every (s)", min=1, max=60, value=5),
        )
        self.header, self.rows, self.ticks, self.lines = w.HBox(layout=WHOLE), w.VBox(layout=WHOLE), {}, {}
        self.curves, self.grid, self.running, self.left_out = w.HTML(), w.HTML(), w.HTML(), w.HTML()
        self.task = Task("Follow", lambda: (0, self.follow()), icon="refresh")
        for name in ("others", "named", "state"):
            self.form.controls[name].observe(lambda _: self.refresh(), "value")
        for name in ("against", "samples"):
            self.form.controls[name].observe(lambda _: self.redraw(), "value")
        self.header.children = [self._sorter(name) for name in ("run", *self.COLUMNS)]
        table = w.VBox([self.header, self.rows], layout=w.Layout(overflow="auto", max_height="230px"))  # curves stay in sight
        self.box = w.VBox([self.form.box, table, self.left_out, self.task.box, self.running, self.curves, self.grid])
        self.refresh()

    def _sorter(self, name: str) -> w.Button:
        button = w.Button(description=name, tooltip=f"sort by {name}", layout=column(name))
        button.on_click(lambda _: self.sort(name))
        return button

    def sort(self, name: str) -> None:
        """Sort by a column; a second time the other way round."""
        self.descending = name == self.sort_by and not self.descending
        self.sort_by = name
        self.refresh()

    def find(self, others: str, named: str, state: str, **_) -> list[Path]:
        """The runs of all homes that have the name and are in the chosen state, in the table's order."""
        runs = monitor.find_runs([*self.homes, *monitor.parse_homes(others)])
        runs = [run for run in runs if named.strip() in f"{run.parents[1].name}/{run.name}"]
        table = monitor.run_table(runs)
        shown = table if state == "all" else table[table["state"] == state]
        self.table = shown.sort_values(self.sort_by, ascending=not self.descending, kind="stable", na_position="last")
        return [runs[i] for i in self.table.index]

    @in_turn
    def refresh(self) -> None:
        """Read everything again. Ticks stay; a home that is none is explained beside its field."""
        if (found := self.form.evaluate(self.find)) is None:
            return
        rows = dict(zip(found, self.table[list(self.COLUMNS)].to_dict("records"), strict=True))
        self.shown = [run for i, run in enumerate(found) if i < MOST or (run in self.ticks and self.ticks[run].value)]
        for run in self.shown:
            if run not in self.lines:
                self._add_row(run)
            self.lines[run].children[1].value = row_html(rows[run])
        self.rows.children = [self.lines[run] for run in self.shown]
        more = f"{len(self.shown)} of {len(found)} runs: sort, or name some, to see others."
        self.left_out.value = more * (len(self.shown) < len(found))
        for button, name in zip(self.header.children, ("run", *self.COLUMNS), strict=True):
            button.description = name + (" \u25bc" if self.descending else " \u25b2") * (name == self.sort_by)
        samples, drawn = self.form.controls["samples"], [run for run in found if (run / "samples.png").is_file()]
        options = [NO_RUN, *((f"{run.name} ({run.parents[1].name}, {run.parents[3].name})", run) for run in drawn)]
        if tuple(options) != samples.options:
            chosen = samples.value
            samples.options = options
            samples.value = chosen if chosen in drawn else ""
        self.redraw()

    def _add_row(self, run: Path) -> None:
        """Its widgets stay when the table is read again: the focus does not jump, and nothing piles up."""
        self.ticks[run] = w.Checkbox(description=run.name, tooltip=str(run), indent=False, layout=column("run"))
        self.ticks[run].observe(lambda _: self.redraw(), "value")
        self.lines[run] = w.HBox([self.ticks[run], w.HTML()], layout=WHOLE)

    @in_turn
    def redraw(self) -> None:
        """Draw the curves of the ticked runs, where each is, and the chosen sample grid."""
        ticked = [run for run in self.shown if self.ticks[run].value]
        lines = [f"<b>{html.escape(curve_name(run, ticked))}</b>: {monitor.say(monitor.progress_of(run))}" for run in ticked]
        self.running.value = "<br>".join(lines) or "Tick runs to see their curves."
        histories = {curve_name(run, ticked): monitor.read_history(run) for run in ticked}
        histories = {name: rows.assign(minutes=rows["seconds"].cumsum() / 60) for name, rows in histories.items()}
        against = self.form.controls["against"].value
        alt = f"curves of {', '.join(histories)} over {against}"
        self.curves.value = picture(plots.run_curves(histories, against), alt) if ticked else ""
        run = self.form.controls["samples"].value
        with contextlib.suppress(OSError):  # a picture that is just being copied
            self.grid.value = picture(run / "samples.png", f"samples of {run.name}") if run else ""

    def follow(self) -> Iterator[None]:
        """Read everything again every few seconds until stopped."""
        while not self.task.stopping.wait(self.form.controls["seconds"].value):
            self.refresh()
            yield


def column(name: str) -> w.Layout:
    """The exact width of a column, in the header and in every row."""
    width = WIDTHS.get(name, WIDTH)
    return w.Layout(width=width, min_width=width, max_width=width, margin="0", padding="0")


def row_html(row: dict[str, object]) -> str:
    """The cells of one run as HTML, as wide as the header's buttons; a long word is broken."""
    style = "display:inline-block;vertical-align:middle;text-align:center;overflow-wrap:anywhere;white-space:normal"
    cells = (f'<span style="{style};width:{WIDTHS.get(name, WIDTH)}">{cell(value)}</span>' for name, value in row.items())
    return f'<div style="white-space:nowrap;line-height:1.2">{"".join(cells)}</div>'


def cell(value: object) -> str:
    """A table cell; a dash where nothing is known."""
    if value is None or value != value:
        return "-"
    return f"{value:.4g}" if isinstance(value, float) else html.escape(str(value))


def curve_name(run: Path, among: list[Path]) -> str:
    """The run's id; with its preset where another has the same id, and its home where that one's preset is the same too."""
    twins = [other.parents[1].name for other in among if other.name == run.name and other != run]
    preset, home = run.parents[1].name, run.parents[3]
    return f"{run.name} ({preset}{f', {home}' if preset in twins else ''})" if twins else run.name
