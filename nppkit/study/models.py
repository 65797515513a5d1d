"""What a preset's run is made of: its trainer, its trained or released transformer, its extractor and reference."""

import glob
import warnings
from pathlib import Path

from nppkit.checkpoint import load_newest, set_aside
from nppkit.data.codes import CodeStore, prompts
from nppkit.data.images import ImageSet
from nppkit.data.prepare_tokenizer import load_tokenizer
from nppkit.data.sources import study_images
from nppkit.data.video import save_picture
from nppkit.errors import NppkitError
from nppkit.files import home, located, npz_keys
from nppkit.machine.devices import autocast, pick_device, rounded
from nppkit.machine.options import Options
from nppkit.machine.processes import ALONE, Processes
from nppkit.model import GPT, GPTConfig, name_bytes
from nppkit.releases import find, known_grid, load_weights, release_config
from nppkit.sample import SamplingConfig
from nppkit.scoring.config import NEIGHBOURS
from nppkit.scoring.evaluate import evaluate_npz, generate
from nppkit.scoring.features import load_extractor
from nppkit.scoring.reference import prepare_reference
from nppkit.study.graph import check_codes, checkpoint_dir, last_checkpoint, tokenize_job, tokenizer_dir, train_job
from nppkit.study.presets import Preset
from nppkit.study.runs import Run
from nppkit.training.trainer import Trainer, make_model


def check_inputs(preset: Preset, side: int, training: ImageSet) -> None:
    """NppkitError for what would stop a job only after trainings: grid, names, extractor's weights, reference, too few images."""
    preset.tokenizer.network.grid_size(side)
    if preset.training.condition == "names":
        name_bytes(prompts(training.class_names))
    e = preset.extractor
    if e.name != "digits":
        load_extractor(e.name, located(e.weights), e.sha256)
    if preset.evaluation.reference:
        npz_keys(located(preset.evaluation.reference))
    elif len(training) < (fewest := 2 * (NEIGHBOURS + 1)):
        raise NppkitError(f"data: {len(training)} training images are too few to be scored: give at least {fewest}")


def run_trainer(
    preset: Preset, run: Run, model: GPT, store: CodeStore, heldout: CodeStore, options: Options, processes: Processes = ALONE
) -> Trainer:
    """The trainer of a preset's run, with its files in their places.

    Precision is the preset's alone, since it is in the digest that the checkpoints carry.
    """
    job, segments = train_job(preset, run), run.segments(preset.training.epochs)
    places = job.folder / "history.csv", checkpoint_dir(preset, run), job.digest
    t = run.training(preset)
    return Trainer(model, store, heldout, segments, t, run.seed, *places, options, preset.precision, processes)


def load_trained(preset: Preset, run: Run, store: CodeStore) -> GPT:
    """The transformer of a run, in eval mode: as trained here, or the released one that the preset names.

    NppkitError if the weights are not of this run's size and grid, or if there is no finished checkpoint; a damaged one is then
    hidden, so that whoever asks for the run again trains its last part again, from the checkpoint before.
    """
    if run.id in preset.weights:
        return load_released(preset, run, store).eval().requires_grad_(False)
    last = last_checkpoint(preset, run)
    found = load_newest(last.parent, train_job(preset, run).digest)
    step = found[1]["step"] if found else 0
    if last.name != f"step_{step:08d}":
        if last.is_dir():
            set_aside(last.parent, step)
        raise NppkitError(f"no finished checkpoint of {run.id} in {last.parent}: run the train notebook, or make again")
    model = make_model(store, preset.models[run.size], preset.training, run.seed)
    model.load_state_dict(found[0]["model"])
    return model.eval().requires_grad_(False)


def draw_pictures(
    preset: Preset, run: Run, class_name: str, count: int, folder: Path, scale: float | None, seed: int, device: str = "auto"
) -> list[Path]:
    """PNG files of new pictures of a class, or GIFs; picture i depends on (seed, i) alone.

    NppkitError for an unknown class, and for a folder that holds pictures of it.
    """
    check_codes(train_job(preset, run))
    store, e, place = CodeStore(tokenizer_dir(preset.of_images(), run.large) / "train"), preset.evaluation, pick_device(device)
    names, paths = store.manifest.class_names, []
    if class_name not in names or count < 1:
        known = ", ".join(names[:20]) + ", ..." * (len(names) > 20)
        raise NppkitError(f"{count} pictures of class {class_name!r}: draw one or more of one of {known}")
    name = class_name.replace("/", "-")  # a class of solar cells is called "mono, defect 1/3"
    ending = "png" if preset.data.frames == 1 else "gif"
    if there := sorted(folder.glob(f"{glob.escape(name)}_[0-9][0-9][0-9][0-9].{ending}")):
        raise NppkitError(f"{there[0]} is there: name another folder, or remove it")
    folder.mkdir(parents=True, exist_ok=True)  # before the work that would be lost
    model = rounded(load_trained(preset, run, store), preset.precision).to(place)
    if len(names) != model.config.num_classes:
        raise NppkitError(
            f"{run.id} knows {model.config.num_classes} classes, the codes {len(names)}: give it codes of its classes"
        )
    decoder, shares = load_tokenizer(tokenizer_dir(preset)).to(place), tuple(float(name == class_name) for name in names)
    scale = e.common_guidance if scale is None else scale
    config = SamplingConfig(scale, e.temperature, e.top_k, e.top_p, seed=seed, shares=shares)
    with autocast(place, preset.precision):
        pixels, _ = generate(model, decoder, config, count, e.batch_size)
    for i, frames in enumerate(pixels.split(preset.data.frames)):
        paths.append(folder / f"{name}_{i:04d}.{ending}")
        save_picture(frames, paths[-1])
    return paths


def load_released(preset: Preset, run: Run, store: CodeStore) -> GPT:
    """The transformer of the weights that the preset names for a run: of its size, on the grid of the codes.

    NppkitError where its classes are not those of the codes, unless these have one alone.
    """
    path, sizes, grid = find(preset.weights[run.id]), preset.models[run.size], store.grid_size
    classes = release_config(path, grid, GPTConfig(**sizes).n_head).num_classes
    if store.num_classes not in (1, classes):
        raise NppkitError(f"{path} knows {classes} classes, the codes {store.num_classes}: take weights of the same classes")
    model = GPT(GPTConfig(vocab_size=store.vocab_size, num_classes=classes, grid_size=grid, **sizes))
    if not known_grid(path):
        said = f"{path} does not say for which grid it was trained: taken as {grid} x {grid}, that of the codes"
        warnings.warn(said, stacklevel=2)
    load_weights(model, path)
    return model


def extractor_weights(preset: Preset) -> Path:
    """The feature extractor's weights file: the trained digit classifier's, or the one the preset names."""
    if preset.extractor.name == "digits":
        return tokenizer_dir(preset) / "extractor.safetensors"
    return located(preset.extractor.weights)


def evaluate_file(preset: Preset, file: str, device: str = "auto") -> dict:
    """Metrics and contract of the images in an npz file, seen as a preset's samples are."""
    e, size, cache = preset.of_images().evaluation, preset.data.image_size, home() / "checkpoints" / preset.name
    npz_keys(file)  # refuses what is none, before the reference is made
    if preset.extractor.name == "digits":
        check_codes(tokenize_job(preset))  # it trains the extractor
    extractor = load_extractor(preset.extractor.name, extractor_weights(preset), preset.extractor.sha256).to(pick_device(device))
    training = None if e.reference else study_images(preset.data)[0]  # the reference is of these, or a file
    reference = prepare_reference(e.reference, training, size, extractor, cache)
    return evaluate_npz(file, extractor, reference, size, e.kid_subsets)
