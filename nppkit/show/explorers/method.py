"""The method on one image: its patches and what each position is scored on, and what a trained model predicts for one."""

import math
from dataclasses import replace

import ipywidgets as w
import torch
from torch import Tensor

from nppkit.cost import train_flops
from nppkit.grouping import group_embeddings, group_targets, patch_grid
from nppkit.loss import patch_loss
from nppkit.model import GPT, MODELS, GPTConfig
from nppkit.show import plots
from nppkit.show.widgets import control, live, picture
from nppkit.tokenizer import VQModel

PAPER_SIZES = {f"GPT-{size}, 16 x 16 codes": GPTConfig(**sizes) for size, sizes in MODELS.items()}


def grouping_explorer(sets: dict[str, tuple[Tensor, Tensor, Tensor, Tensor]], config: GPTConfig) -> w.VBox:
    """Patches, what each position is scored on, embeddings, length and FLOPs, of sets of pictures by name.

    A set: images (n, 3, S, S), codes (n, N), embeddings (V, C), and the codebook's rows (V, D) for colours. config: a model.
    """
    grids = {name: patch_grid(codes.shape[1], 1) for name, (_, codes, *_) in sets.items()}
    colours = {name: plots.code_colours(rows) for name, (*_, rows) in sets.items()}
    first, allowed = next(iter(sets)), sides(*grids.values())
    side = allowed[:2][-1]
    last = (grids[first] // side) ** 2 - 1
    controls = {
        "pictures": control(w.Dropdown, "Pictures", options=list(sets)),
        "image": control(w.IntSlider, "Image", min=0, max=len(sets[first][0]) - 1, value=0),
        "patch_size": control(w.SelectionSlider, "Patch side p", options=allowed, value=side),
        "position": control(w.IntSlider, "Position", min=0, max=last, value=min(last, grids[first] ** 2 // 8 + 1)),
        "model": control(w.Dropdown, "Cost of", options=["the small model", *PAPER_SIZES]),
    }

    def bound() -> None:
        chosen = controls["pictures"].value
        controls["image"].max = len(sets[chosen][0]) - 1
        controls["position"].max = (grids[chosen] // controls["patch_size"].value) ** 2 - 1

    for name in ("pictures", "patch_size"):
        controls[name].observe(lambda _: bound(), "value")

    def draw(pictures: str, image: int, patch_size: int, position: int, model: str) -> str:
        (pixels, codes, vocabulary, _), colour = sets[pictures], colours[pictures]
        image = min(image, len(pixels) - 1)  # where several sliders move, each is drawn, also before the last one has
        position = min(position, codes.shape[1] // patch_size**2 - 1)
        patches = group_embeddings(vocabulary[codes[:100]], patch_size).flatten(0, 1)
        mine = group_embeddings(vocabulary[codes[image]][None], patch_size)[0]
        cut = plots.grouping(pixels[image], codes[image], colour, patch_size, position)
        cloud = plots.patch_embeddings(vocabulary, patches, mine, colour, position)
        words = say_grouping(codes[image], patch_size, position)
        cost = say_cost(PAPER_SIZES.get(model, replace(config, grid_size=grids[pictures])), patch_size)
        return picture(cut, words) + f"<p>{words} {cost}</p>" + picture(cloud, "patch embeddings")

    return live(controls, draw)


def sides(*grids: int) -> list[int]:
    """Patch sides that divide all grids of codes."""
    return [p for p in (1, 2, 4, 8) if not any(grid % p for grid in grids)]


def say_grouping(codes: Tensor, patch_size: int, position: int) -> str:
    """What one position sees and what it is scored on, in a sentence."""
    targets = group_targets(codes[None], patch_size)[0]
    sees = "the class alone" if position == 0 else f"the class and {position} patch{'es' * (position > 1)}"
    scored = ", ".join(str(int(code)) for code in targets[position][:16]) + (" ..." if targets.shape[1] > 16 else "")
    return f"Position {position} of {len(targets)} sees {sees}; one prediction is scored on K = {targets.shape[1]}: {scored}."


def say_cost(config: GPTConfig, patch_size: int) -> str:
    """Sequence length and FLOPs of a training step at a patch side, beside those at p = 1."""
    here, ntp = (train_flops(config, p) / 1e9 for p in (patch_size, 1))
    length = config.block_size // patch_size**2
    return (
        f"The sequence has {length} positions instead of {config.block_size}; forward and backward pass of an image take "
        f"{here:.3g} GFLOPs, {here / ntp:.3f} of the {ntp:.3g} at p = 1."
    )


def prediction_explorer(pixels: Tensor, codes: Tensor, labels: Tensor, tokenizer: VQModel, gpt: GPT) -> w.VBox:
    """What a transformer predicts for one patch of an image, and the loss against the patch's codes (Eq. 2)."""
    grid, colours = gpt.config.grid_size, plots.code_colours(tokenizer.quantize.rows())
    controls = {
        "image": control(w.IntSlider, "Image", min=0, max=len(pixels) - 1, value=3),
        "patch_size": control(w.SelectionSlider, "Patch side p", options=sides(grid), value=2),
        "position": control(w.IntSlider, "Position", min=0, max=(grid // 2) ** 2 - 1, value=5),
    }

    w.dlink((controls["patch_size"], "value"), (controls["position"], "max"), lambda p: (grid // p) ** 2 - 1)

    def draw(image: int, patch_size: int, position: int) -> str:
        with torch.inference_mode():
            logits = gpt(codes[image][None], labels[image][None], patch_size)[0, position]
        targets = group_targets(codes[image][None], patch_size)[0, position]
        loss = patch_loss(logits[None, None], targets[None, None])
        blind = f"guessing all {len(logits)} codes alike costs {math.log(len(logits)):.3f}"
        words = f"The loss of this patch is {loss:.3f} nats; {blind}."
        figure = plots.prediction(codes[image], logits.softmax(-1), colours, patch_size, position)
        return picture(figure, words) + f"<p>{words}</p>"

    return live(controls, draw)
