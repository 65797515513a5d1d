"""The schedule designer: a training schedule in pictures and numbers, and saved as a preset."""

import dataclasses
import html
import shlex
from pathlib import Path

import ipywidgets as w
import numpy as np

from nppkit.cost import gpu_hours
from nppkit.errors import NppkitError
from nppkit.files import home
from nppkit.gpus import GPUS, UTILISATION
from nppkit.schedule import Segment, cost_ratio, ideal_cost_ratio, learning_rate, ntp_segments
from nppkit.show import plots
from nppkit.show.explorers.method import PAPER_SIZES
from nppkit.show.widgets import Form, control, explanation, in_turn, picture
from nppkit.study.presets import INHERITED, Preset, load_preset, preset_names, save_preset
from nppkit.study.runs import Run, preset_runs
from nppkit.study.tables import printed_cost

# Of a base: not what its own runs, questions and pages are of
KEPT = (*INHERITED, "tokenizer_of", "graphs", "gpu", "gpus", "threads", "tokenizer_threads")
KINDS = ("next token (NTP)", "one patch side, then tokens", "coarse to fine")


class ScheduleDesigner:
    """A training schedule in pictures and numbers, and as a preset."""

    def __init__(self):
        self.form = Form(
            kind=control(w.Dropdown, "Schedule", options=KINDS, value=KINDS[2]),
            epochs=control(w.IntSlider, "Epochs T", min=2, max=600, value=300),
            levels=control(w.IntSlider, "Levels #L", min=2, max=4, value=4),
            patch_size=control(w.SelectionSlider, "Patch side p", options=[2, 4, 8], value=2),
            lam=control(w.Text, "Lambda", value="1/2", placeholder="a fraction such as 2/3"),
            warmup_epochs=control(w.FloatSlider, "Warm-up epochs", min=0, max=10, step=0.5, value=1),
            decay_fraction=control(w.FloatSlider, "Decay share", min=0, max=1, step=0.05, value=0.2),
            lr=control(w.FloatLogSlider, "Learning rate", base=10, min=-5, max=-2, step=0.1, value=1e-4),
            size=control(w.Dropdown, "Model", options=list(PAPER_SIZES), value=next(iter(PAPER_SIZES))),
            gpu=control(w.Dropdown, "GPU", options=list(GPUS)),
            utilisation=control(w.FloatSlider, "Share of its peak", min=0.05, max=0.7, step=0.05, value=UTILISATION),
            images=control(w.BoundedIntText, "Images an epoch", min=1, max=10**9, value=1_281_167),
        )
        controls, own = self.form.controls, {"levels": KINDS[2:], "patch_size": KINDS[1:2], "lam": KINDS[1:]}
        for name, kinds in own.items():  # a control of other kinds of schedule is grey
            w.dlink((controls["kind"], "value"), (controls[name], "disabled"), lambda kind, kinds=kinds: kind not in kinds)
        self.base = control(w.Dropdown, "Based on preset", options=preset_names(), value="demo")
        self.file = control(w.Text, "Preset file", value="my_schedule.yaml")
        self.replace = control(w.Checkbox, "Replace the file if it exists", value=False)
        self.button = w.Button(description="Save as preset", icon="save", button_style="primary")
        self.button.on_click(lambda _: self.save())
        # a design begins with the learning rate of the preset that it is based on
        w.dlink((self.base, "value"), (controls["lr"], "value"), lambda name: load_preset(name).training.lr)
        self.view, self.saved = self.form.view(draw_design), w.HTML()
        save = w.VBox([self.base, self.file, self.replace, w.HBox([self.button, self.saved])])
        self.box = w.VBox([self.form.box, self.view, save])

    @in_turn
    def save(self) -> None:
        """Write the preset; what prevents it is explained beside the button."""
        try:
            path = home() / Path(self.file.value).expanduser()
            if path.stem in preset_names():
                raise NppkitError(f"{path.stem} is a packaged preset: choose another name")
            if path.exists() and not self.replace.value:
                raise NppkitError(f"{path} exists: choose another name, or tick the box")
            save_preset(designed_preset(load_preset(self.base.value), path.stem, **self.form.values), path)
            self.saved.value = f"saved; run it with <code>make reproduce PRESET={html.escape(shlex.quote(str(path)))}</code>"
        except NppkitError as error:
            self.saved.value = explanation(str(error))


def designed_run(kind: str, levels: int, patch_size: int, lam: str) -> Run:
    """The run that the designer's controls describe."""
    if kind == KINDS[0]:
        return Run("B")
    return Run("B", levels=levels, lam=lam) if kind == KINDS[2] else Run("B", patch_size=patch_size, lam=lam)


def draw_design(kind, epochs, levels, patch_size, lam, warmup_epochs, decay_fraction, lr, size, gpu, utilisation, images) -> str:
    """The designed schedule as HTML: relative cost, GPU-hours, figure."""
    run, config = designed_run(kind, levels, patch_size, lam), PAPER_SIZES[size]
    segments, resolution = run.segments(epochs), 40  # points an epoch
    steps = range(epochs * resolution)
    rates = np.array([learning_rate(s, segments, resolution, lr, 1e-5, warmup_epochs, decay_fraction) for s in steps])
    words = "; ".join(f"p = {s.patch_size} in epochs {s.start} to {s.end}" for s in segments)
    hours = [gpu_hours(config, part, images, GPUS[gpu], utilisation) for part in (segments, ntp_segments(epochs))]
    figure = picture(plots.design(segments, rates, config.block_size), f"schedule: {words}")
    cost = f"{say_relative_cost(run, segments)} About {hours[0]:,.0f} GPU-hours, NTP {hours[1]:,.0f}."
    return f"<p>{cost}</p>{figure}<p>{words}.</p>"  # the cost is in sight while a control is moved


def say_relative_cost(run: Run, segments: tuple[Segment, ...]) -> str:
    """Training cost relative to NTP: with integer boundaries, ideal, and as the paper prints it where it does."""
    ideal = 1.0 if run.lam is None else ideal_cost_ratio([s.patch_size for s in segments], run.lam)
    printed = printed_cost(run)
    paper = f"the paper prints {printed:g}" if printed else "not in the paper's tables"
    return f"Relative cost <b>{cost_ratio(segments):.4f}</b> with these epochs, {ideal:.4f} without rounding them; {paper}."


def designed_preset(base: Preset, name: str, **values) -> Preset:
    """The base preset's images, models and machine, and the designed schedule: NTP and the designed run for every size, one seed.

    NppkitError if a patch side does not divide the base's code grid.
    """
    run = designed_run(values["kind"], values["levels"], values["patch_size"], values["lam"])
    keys = ("epochs", "warmup_epochs", "decay_fraction", "lr")
    training = dataclasses.replace(base.training, **{key: values[key] for key in keys})
    recipes = list(dict.fromkeys(["ntp", run.recipe]))
    words = f"{run.recipe} over {values['epochs']} epochs, from {base.name}"
    kept = {key: getattr(base, key) for key in KEPT} | {"training": training}
    preset = Preset(name=name, description=words, runs={size: recipes for size in base.models}, **kept)
    preset_runs(preset)
    return preset
