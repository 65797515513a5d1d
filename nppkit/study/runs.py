"""Runs: their ids, the recipes that a preset lists, and what each recipe changes."""

import re
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import get_args

from nppkit.errors import NppkitError, refuse
from nppkit.schedule import Segment, drawn_segments, multi_scale_segments, ntp_segments, parse_lambda, single_scale_segments
from nppkit.study.presets import Preset
from nppkit.training.config import Patch, TrainingConfig
from nppkit.window import patches

LARGE = "-384"  # suffix of a size trained at 1.5 times the image side: the tables' "384" rows
RUN_ID = re.compile(
    r"GPT-(?P<size>[A-Za-z0-9]+)(?P<large>-384)?_(?:ntp|npp_(?P<kind>[pL])(?P<value>\d+)_lambda(?P<lam>\d+-\d+))"
    r"(?:_epochs(?P<epochs>[1-9]\d*))?(?:_lr(?P<lr>(?:[1-9]\d*)?[1-9]e-[1-9]))?(?P<constant>_constant)?(?P<reset>_reset)?"
    r"(?P<restart>_restart)?"
    rf"(?:_(?P<patch>{'|'.join(get_args(Patch)[1:])}))?(?P<drawn>_drawn)?_seed(?P<seed>\d+)"
)


@dataclass(frozen=True)
class Run:
    """One training run. levels 1 means a single patch side: patch_size until lambda * T, then 1. Of a text a side is K.

    Variants: `epochs` other than the preset's (0), a learning rate `lr` other than the preset's (as text: 15e-4), the rate
    `constant` as LlamaGen trained, the optimiser's state `reset` at each segment, `restart` of the rate's warm-up and decay
    after half of the epochs without any patches, another `patch` than the mean (nppkit/patches.py), each step's level `drawn`
    in place of two hard ones (`schedule.drawn_segments`). NppkitError for a variant of patches without patches, a restart
    with them, and for levels that are drawn from more than two.

    >>> [(s.patch_size, s.end) for s in Run.parse("GPT-B_npp_p2_lambda2-3_seed0").segments(epochs=300)]
    [(2, 200), (1, 300)]
    """

    size: str
    patch_size: int = 1
    levels: int = 1
    lam: Fraction | None = None
    large: bool = False
    seed: int = 0
    epochs: int = 0
    lr: str = ""
    constant: bool = False
    reset: bool = False
    restart: bool = False
    patch: str = "mean"
    drawn: bool = False

    def __post_init__(self):
        if self.levels == 2:  # #L = 2 is p = 2: one run
            object.__setattr__(self, "levels", 1)
            object.__setattr__(self, "patch_size", 2)
        if self.lam is not None:
            object.__setattr__(self, "lam", parse_lambda(self.lam))
        npp = self.lam is not None
        wrong = {
            f"next-token prediction has no patches: take {self._better} away": not npp and self._better,
            "a patch has a side of 2 or more: write ntp for single tokens": npp and self.levels == 1 and self.patch_size < 2,
            "with patches the rate begins again anyway: take _restart away": npp and self.restart,
            "a constant rate has nothing to begin again: take _restart away": self.constant and self.restart,
            f"{self.levels} levels begin with patches of 2^{self.levels - 1} a side: use fewer": self.levels > 16,
            "levels are drawn from one patch side and 1: write p in place of L": self.drawn and self.levels > 1,
        }
        refuse(f"run {self.id}", wrong)

    @property
    def recipe(self) -> str:
        variant = f"_epochs{self.epochs}" * bool(self.epochs) + f"_lr{self.lr}" * bool(self.lr)
        variant += "_constant" * self.constant + "_reset" * self.reset + "_restart" * self.restart + self._better
        if self.lam is None:
            return f"ntp{variant}"
        scale = f"L{self.levels}" if self.levels > 1 else f"p{self.patch_size}"
        return f"npp_{scale}_lambda{self.lam.numerator}-{self.lam.denominator}{variant}"

    @property
    def _better(self) -> str:
        return f"_{self.patch}" * (self.patch != "mean") + "_drawn" * self.drawn

    @property
    def id(self) -> str:
        """Readable and unique, e.g. GPT-L_npp_p2_lambda2-3_seed0."""
        return f"GPT-{self.size}{LARGE if self.large else ''}_{self.recipe}_seed{self.seed}"

    def of(self, size: str, **changes: object) -> "Run":
        """The same run at another size, or with other changes."""
        return replace(self, size=size, **changes)

    @classmethod
    def parse(cls, run_id: str) -> "Run":
        """The run of that id. NppkitError if it is not one."""
        if not (match := RUN_ID.fullmatch(run_id)):
            raise NppkitError(f"run {run_id!r} is not a run id: expected e.g. GPT-B_npp_p2_lambda1-2_seed0")
        run = {key: bool(match[key]) for key in ("large", "constant", "reset", "restart", "drawn")}
        run |= dict(size=match["size"], seed=int(match["seed"]), epochs=int(match["epochs"] or 0), lr=match["lr"] or "")
        run["patch"] = match["patch"] or "mean"
        if match["kind"]:
            run["lam"] = match["lam"].replace("-", "/")
            run["levels" if match["kind"] == "L" else "patch_size"] = int(match["value"])
        return cls(**run)

    def training(self, preset: Preset) -> TrainingConfig:
        """The preset's training with what this variant changes."""
        schedule = "constant" if self.constant else preset.training.lr_schedule
        epochs, reset = self.epochs or preset.training.epochs, self.reset or preset.training.reset_optimizer
        lr = float(self.lr or preset.training.lr)
        return replace(preset.training, epochs=epochs, lr=lr, lr_schedule=schedule, reset_optimizer=reset, patch=self.patch)

    def segments(self, epochs: int) -> tuple[Segment, ...]:
        """The run's segments in schedule epochs, of which there are `epochs` unless the run has its own number."""
        epochs = self.epochs or epochs
        if self.restart:
            return single_scale_segments(epochs, 1, "1/2")
        if self.lam is None:
            return ntp_segments(epochs)
        if self.drawn:
            return drawn_segments(epochs, self.patch_size, self.lam)
        if self.levels > 1:
            return multi_scale_segments(epochs, self.levels, self.lam)
        return single_scale_segments(epochs, self.patch_size, self.lam)


def preset_runs(preset: Preset) -> list[Run]:
    """Every run of the preset, in its order; NppkitError names a recipe that is not one, and a number of seeds of no run.

    >>> from nppkit import load_preset
    >>> len(preset_runs(load_preset("study")))
    105
    """
    names = [f"{size}_{recipe}" for size, recipes in preset.runs.items() for recipe in recipes]
    try:
        first = [Run.parse(f"GPT-{name}_seed0") for name in names]
    except NppkitError as error:
        raise NppkitError(f"preset {preset.name}: runs: {error}") from None
    for name, run in zip(names, first, strict=True):
        if run.id != f"GPT-{name}_seed0":
            raise NppkitError(f"preset {preset.name}: runs: {name} is spelt {run.recipe} here: change it")
    if unknown := set(preset.seeds) - {*preset.runs, *names}:
        raise NppkitError(f"preset {preset.name}: seeds: {min(unknown)!r} is none of its sizes or size_recipe: see runs")
    runs = list(dict.fromkeys(replace(run, seed=seed) for run in first for seed in seeds(preset, run)))
    if unknown := set(preset.weights) - {run.id for run in runs}:
        raise NppkitError(f"preset {preset.name}: weights of {min(unknown)}, which is not one of its runs: add it to runs")
    for run in runs:
        check_patches(preset, run)
    return runs


def seeds(preset: Preset, run: Run) -> range:
    """The seeds of a run: as many as the preset has of its recipe, else of its size; none if it does not list the run."""
    size = f"{run.size}{LARGE * run.large}"
    listed = run.recipe in preset.runs.get(size, [])
    count = preset.seeds.get(f"{size}_{run.recipe}", preset.seeds.get(size, 1)) if listed else 0
    return range(preset.first_seed, preset.first_seed + count)


def check_patches(preset: Preset, run: Run) -> None:
    """NppkitError if the tokenizer does not divide the run's image side, or a patch side its grid of codes."""
    d, segments = preset.data, run.segments(preset.training.epochs)
    if d.text and run.large:
        raise NppkitError(f"preset {preset.name}: run {run.id}: a text has no larger images: take {LARGE} away")
    try:
        side = 0 if d.text else preset.tokenizer.network.grid_size(image_size(preset, run.large))
        grid = (d.window,) if d.text else (d.frames,) * (d.frames > 1) + (side, side)
        for segment in segments:
            patches(grid, (segment.patch_size,) * len(grid))
    except NppkitError as error:
        what = "data.window" if d.text else "data.image_size, or tokenizer.vq.ch_mult"
        raise NppkitError(f"preset {preset.name}: run {run.id}: {error}; change the run's patches, or {what}") from None


def find_run(preset: Preset, run_id: str) -> Run:
    """The preset's run of that id. NppkitError if its model is not in the preset."""
    run = Run.parse(run_id)
    if run.size not in preset.models:
        raise NppkitError(f"run {run_id}: preset {preset.name} has no model {run.size}: use {', '.join(preset.models)}")
    check_patches(preset, run)
    return run


def image_size(preset: Preset, large: bool = False) -> int:
    return preset.data.image_size * 3 // 2 if large else preset.data.image_size
