"""Next patch prediction for a causal language model of `transformers`: its own weights, its own loss, its own Trainer.

    model = next_patch(AutoModelForCausalLM.from_pretrained(...))
    segments = single_scale_segments(3, (4,), "2/3")  # K = 4 for two thirds of the training, then single tokens
    Trainer(model, ..., callbacks=[PatchSchedule(segments)]).train()

At patch size 1, and in eval mode at any, the model is what it was: evaluation, generation and saved files are its own.
"""

from collections.abc import Callable
from functools import wraps
from inspect import signature

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from nppkit.errors import NppkitError
from nppkit.grouping import group, group_embeddings, group_targets
from nppkit.schedule import Segment, is_coarse, segment_at
from nppkit.window import Grid, Window, area

try:
    from transformers import PreTrainedModel, TrainerCallback
except ImportError:
    remedy = "make env EXTRAS=dev,transformers in a clone of this repository, or pip install transformers"
    raise NppkitError(f"transformers is not installed: {remedy}") from None

IGNORED = -100  # a label that is not scored
GROUPED = ("input_ids", "attention_mask", "labels", "num_items_in_batch")
UNGROUPED = ("inputs_embeds", "position_ids", "token_type_ids", "shift_labels", "logits_to_keep")  # of single tokens


class NextPatch:
    """What `next_patch` mixes into a model's class: a patch size, and the grid of the tokens behind a prefix."""

    patch_size: Window = 1
    grid: Grid = ()
    prefix: int = 0

    def forward(self, *args: object, **inputs: object) -> object:
        """The model's own output; in training at a patch size above 1 of patches, whose positions are counted as tokens' are.

        The patch at a place predicts all K tokens of the next (Shao et al., arXiv 2407.12665); the loss is the mean of the
        model's own over the K. A patch is attended to if all of its tokens are. NppkitError for inputs that have no patches.
        """
        if area(self.patch_size) == 1 or not self.training:
            return super().forward(*args, **inputs)
        inputs |= zip(self.by_place, args, strict=False)
        ids, mask, labels, items = (inputs.pop(name, None) for name in GROUPED)
        if ids is None or any(isinstance(inputs.get(name), Tensor) or inputs.get(name) for name in UNGROUPED):
            raise NppkitError(f"patches are made of input_ids alone: give them, without {', '.join(UNGROUPED)}")
        if mask is not None and mask.shape != ids.shape:
            raise NppkitError(
                f"attention_mask {[*mask.shape]} is not that of input_ids {[*ids.shape]}: a patch has one by token alone"
            )
        as_asked = inputs.pop("return_dict", None)
        inputs["inputs_embeds"] = self.patched(self.get_input_embeddings()(ids), group_embeddings)
        if mask is not None:
            inputs["attention_mask"] = self.patched(mask, lambda *of: group(*of).amin(-1))
        output = super().forward(**inputs, return_dict=True)
        if labels is not None:
            loss = self.patch_loss(output.logits, labels, items)
            if output.get("aux_loss") is not None:  # what a mixture of experts adds, to balance them
                loss = loss + self.balance() * output.aux_loss
            output = type(output)(loss=loss, **output)
        return output if (self.config.return_dict if as_asked is None else as_asked) else output.to_tuple()

    def balance(self) -> float:
        """The factor of a mixture's balancing loss. NppkitError where the configuration names it otherwise than most do."""
        if (factor := getattr(self.config, "router_aux_loss_coef", None)) is None:
            raise NppkitError(
                f"{type(self).__name__}: no router_aux_loss_coef for its aux_loss: set output_router_logits to False"
            )
        return factor

    def __reduce__(self) -> tuple:
        """Pickled as the model's own class, which can be imported, and what `next_patch` makes of it."""
        own = type(self).__bases__[1]
        return next_patch, (own.__new__(own),), self.__dict__

    def patched(self, x: Tensor, of_tokens: Callable, of_prefix: Callable = lambda x: x) -> Tensor:
        """A sequence (B, N, ...) with patches in place of its tokens, but for the prefix."""
        prefix, tokens = of_prefix(x[:, : self.prefix]), x[:, self.prefix :]
        if not self.grid and not tokens.shape[1]:  # a text that is no longer than its prefix
            return prefix
        return torch.cat([prefix, of_tokens(tokens, self.patch_size, self.grid or (tokens.shape[1],))], 1)

    def patch_loss(self, logits: Tensor, labels: Tensor, items: Tensor | int | None = None) -> Tensor:
        """The model's own loss of logits (B, T, V), averaged over all labels (B, N) but those of the first place; 0 without any.

        items: how many tokens the Trainer divides by, over all devices and pieces of the batch.
        """
        K = area(self.patch_size)
        once = (0, K - 1)  # a label of the prefix stands first, and K - 1 that are not scored behind it
        targets = self.patched(labels, group_targets, lambda prefix: pad(prefix[..., None], once, value=IGNORED))  # (B, T, K)
        scored = (targets[:, 1:] != IGNORED).sum().clamp(min=1)
        if items is not None:  # the same share of it as of this batch's tokens
            scored = items * scored / (labels[:, 1:] != IGNORED).sum()
        of = dict(logits=logits, vocab_size=logits.shape[-1], num_items_in_batch=scored)
        return sum(self.loss_function(labels=t, **of) for t in targets.unbind(-1))


def next_patch(model: PreTrainedModel, grid: Grid = (), prefix: int = 0) -> PreTrainedModel:
    """The same model, now able to train on patches; its `patch_size` is 1 until it is set.

    grid: that of the tokens behind `prefix` single ones, e.g. (16, 16) behind a text; without it they are a text themselves.
    """
    own = type(model)
    if not isinstance(model, NextPatch):  # a notebook's cell may run twice
        forward = wraps(own.forward)(lambda self, *args, **inputs: NextPatch.forward(self, *args, **inputs))
        of = {"__module__": own.__module__, "forward": forward, "by_place": tuple(signature(own.forward).parameters)[1:]}
        model.__class__ = type(own.__name__, (NextPatch, own), of)
    model.grid, model.prefix = grid, prefix
    return model


class PatchSchedule(TrainerCallback):
    """Sets the patch size of each step: the segments, stretched over the whole training. Resumed trainings go on in theirs.

    Levels that are drawn (`drawn_segments`) are drawn by the Trainer's seed. NppkitError for label smoothing, which the Trainer
    does by itself, of single tokens.
    """

    def __init__(self, segments: tuple[Segment, ...]):
        self.segments = segments

    def on_train_begin(self, args: object, state: object, control: object, **kwargs: object) -> None:
        if args.label_smoothing_factor:
            raise NppkitError(f"label_smoothing_factor {args.label_smoothing_factor} is of single tokens: patches need 0")

    def on_step_begin(self, args: object, state: object, control: object, model: nn.Module, **kwargs: object) -> None:
        step, epochs = state.global_step, self.segments[-1].end
        segment = self.segments[segment_at(step * epochs // state.max_steps, self.segments, 1)]
        single = segment.coarse < 1 and not is_coarse(step, segment, state.max_steps / epochs, args.seed)
        found = [module for module in model.modules() if isinstance(module, NextPatch)]
        if not found:
            raise NppkitError("PatchSchedule: the model does not know of patches: give it to next_patch first")
        for module in found:
            module.patch_size = 1 if single else segment.patch_size
