"""Next patch prediction in a checkout of LlamaGen (arXiv 2406.06525): three lines of its autoregressive/train/train_c2i.py.

Its model stays as it is; docs/other_models.md shows the lines.
"""

import torch
from torch import Tensor, nn

from nppkit.grouping import group_embeddings, group_targets
from nppkit.loss import patch_loss
from nppkit.model import rotary_table
from nppkit.schedule import multi_scale_segments, segment_at
from nppkit.window import patches, square


def transformer(model: nn.Module) -> nn.Module:
    """LlamaGen's transformer itself, out of DDP and torch.compile."""
    while isinstance(own := getattr(model, "module", getattr(model, "_orig_mod", None)), nn.Module):
        model = own
    return model


def set_patch_size(model: nn.Module, patch_size: int) -> None:
    """Train LlamaGen's transformer at this patch side from now on. NppkitError if it does not divide the grid.

    In training mode its token embeddings become those of all patches but the last, and its layers are given the rotary table of
    the patch grid. Its own table stays: in eval mode, and where LlamaGen samples, it is what it was.
    """
    own = transformer(model)
    if getattr(own, "patch_size", 0) == patch_size:
        return
    c, side = own.config, patches(square(own.config.block_size), patch_size)[0]
    table = rotary_table(side, c.dim // c.n_head, c.rope_base)
    table = torch.cat([table[:1].expand(c.cls_token_num, -1, -1), table[1:]]).to(own.output.weight.device)

    def regroup(embedding: nn.Module, inputs: tuple, x: Tensor) -> Tensor | None:
        return group_embeddings(x, patch_size)[:, :-1] if embedding.training else None

    def turn(layer: nn.Module, inputs: tuple) -> tuple | None:
        return (inputs[0], table[: inputs[0].shape[1]], *inputs[2:]) if layer.training else None

    for hook in getattr(own, "patch_hooks", ()):
        hook.remove()
    own.patch_size, own.patch_hooks = patch_size, [own.tok_embeddings.register_forward_hook(regroup)]
    own.patch_hooks += [layer.register_forward_pre_hook(turn) for layer in own.layers]
    torch.compiler.reset()  # because hooks are not among a compiled model's guards


def set_level(model: nn.Module, epoch: int, epochs: int, levels: int = 2, lam: str = "1/2") -> None:
    """The patch side that the schedule has for an epoch (Section 2 of the paper)."""
    segments = multi_scale_segments(epochs, levels, lam)
    set_patch_size(model, segments[segment_at(epoch, segments, 1)].patch_size)


def npp_loss(model: nn.Module, codes: Tensor, labels: Tensor) -> Tensor:
    """The patch loss (Eq. 2) of codes (B, N) and labels (B,), at the patch side that was set."""
    logits, _ = model(cond_idx=labels, idx=codes)
    return patch_loss(logits, group_targets(codes, transformer(model).patch_size))
