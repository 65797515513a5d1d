"""The VQ tokenizer: images to codes and back. VQ-16, VQ-8 and the small ones are configurations of one class.

Module names and shapes are those of the released `vq_ds16_c2i.pt` (arXiv 2406.06525, Section 2.1).
Images are (B, 3, S, S) in [-1, 1]; codes are (B, N) int64 in raster order of the G x G grid, G = S / downsampling.
"""

from collections import OrderedDict
from collections.abc import Callable
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nppkit.errors import NppkitError
from nppkit.grouping import require_range
from nppkit.tokenizer_config import VQConfig
from nppkit.window import square

UNUSED = "quantize.codebook_used"  # of the released state dict; a kept tokenizer may lack it: it is a quarter of the file
UNUSED_LENGTH = 65536


class ResnetBlock(nn.Module):
    def __init__(self, in_channels: int, out_channels: int, groups: int):
        super().__init__()
        self.norm1 = nn.GroupNorm(groups, in_channels, eps=1e-6)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.norm2 = nn.GroupNorm(groups, out_channels, eps=1e-6)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        if in_channels != out_channels:
            self.nin_shortcut = nn.Conv2d(in_channels, out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        h = self.conv2(F.silu(self.norm2(h)))
        return h + (self.nin_shortcut(x) if hasattr(self, "nin_shortcut") else x)


class AttnBlock(nn.Module):
    """Single-head self-attention over all positions."""

    def __init__(self, channels: int, groups: int):
        super().__init__()
        self.norm = nn.GroupNorm(groups, channels, eps=1e-6)
        self.q = nn.Conv2d(channels, channels, 1)
        self.k = nn.Conv2d(channels, channels, 1)
        self.v = nn.Conv2d(channels, channels, 1)
        self.proj_out = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(x)
        q, k, v = (f(h).flatten(2).transpose(1, 2) for f in (self.q, self.k, self.v))  # (B, H * W, C)
        h = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(x.shape)
        return x + self.proj_out(h)


def downsample(channels: int) -> nn.Sequential:
    return nn.Sequential(OrderedDict(pad=nn.ZeroPad2d((0, 1, 0, 1)), conv=nn.Conv2d(channels, channels, 3, stride=2)))


def upsample(channels: int) -> nn.Sequential:
    return nn.Sequential(OrderedDict(larger=nn.Upsample(scale_factor=2.0), conv=nn.Conv2d(channels, channels, 3, padding=1)))


class Level(nn.Module):
    """The blocks of one resolution: residual, attention after each at the lowest, then the change of resolution."""

    def __init__(self, channels: list[int], attention: bool, groups: int, resample: tuple[str, Callable] | None):
        super().__init__()
        pairs = list(pairwise(channels))
        self.res = nn.ModuleList(ResnetBlock(i, o, groups) for i, o in pairs)
        self.attn = nn.ModuleList(AttnBlock(o, groups) for _, o in pairs if attention)
        self.resample = resample[0] if resample else None
        if resample:
            self.add_module(resample[0], resample[1](channels[-1]))

    def forward(self, x: Tensor) -> Tensor:
        for i, block in enumerate(self.res):
            x = block(x)
            x = self.attn[i](x) if self.attn else x
        return getattr(self, self.resample)(x) if self.resample else x


def _levels(c: VQConfig, widths: list[int], blocks: int, lowest: int, resample: tuple[str, Callable]) -> nn.Sequential:
    levels = nn.Sequential()
    for i in range(last := len(c.ch_mult) - 1):
        levels.append(Level([widths[i]] + [widths[i + 1]] * blocks, i == lowest, c.norm_groups, resample))
    return levels.append(Level([widths[last]] + [widths[-1]] * blocks, last == lowest, c.norm_groups, None))


def _middle(channels: int, groups: int) -> nn.Sequential:
    block, attention = ResnetBlock(channels, channels, groups), AttnBlock(channels, groups)
    return nn.Sequential(block, attention, ResnetBlock(channels, channels, groups))


class Encoder(nn.Module):
    def __init__(self, c: VQConfig):
        super().__init__()
        widths = [c.ch * m for m in (1, *c.ch_mult)]
        self.conv_in = nn.Conv2d(3, c.ch, 3, padding=1)
        self.conv_blocks = _levels(c, widths, c.num_res_blocks, len(c.ch_mult) - 1, ("downsample", downsample))
        self.mid = _middle(widths[-1], c.norm_groups)
        self.norm_out = nn.GroupNorm(c.norm_groups, widths[-1], eps=1e-6)
        self.conv_out = nn.Conv2d(widths[-1], c.z_channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.mid(self.conv_blocks(self.conv_in(x)))
        return self.conv_out(F.silu(self.norm_out(x)))


class Decoder(nn.Module):
    def __init__(self, c: VQConfig):
        super().__init__()
        widths = [c.ch * m for m in reversed((*c.ch_mult, c.ch_mult[-1]))]
        self.conv_in = nn.Conv2d(c.z_channels, widths[0], 3, padding=1)
        self.mid = _middle(widths[0], c.norm_groups)
        self.conv_blocks = _levels(c, widths, c.num_res_blocks + 1, 0, ("upsample", upsample))
        self.norm_out = nn.GroupNorm(c.norm_groups, widths[-1], eps=1e-6)
        self.conv_out = nn.Conv2d(widths[-1], 3, 3, padding=1)
        self.gray = c.gray

    def forward(self, z: Tensor) -> Tensor:
        x = self.conv_blocks(self.mid(self.conv_in(z)))
        x = self.conv_out(F.silu(self.norm_out(x)))
        return x.mean(1, keepdim=True).expand(x.shape) if self.gray else x


class Codebook(nn.Module):
    """L2-normalised vector quantisation: the code of a latent is its nearest codebook row on the unit sphere."""

    def __init__(self, c: VQConfig):
        super().__init__()
        self.embedding = nn.Embedding(c.codebook_size, c.codebook_embed_dim)
        nn.init.uniform_(self.embedding.weight, -1 / c.codebook_size, 1 / c.codebook_size)
        self.register_buffer("codebook_used", torch.zeros(UNUSED_LENGTH))  # part of the released state dict, unused

    def rows(self) -> Tensor:
        """The normalised codebook (V, D)."""
        return F.normalize(self.embedding.weight, dim=-1)

    def nearest(self, latent: Tensor) -> Tensor:
        """Codes (B, G, G) of normalised latents (B, D, G, G)."""
        return torch.einsum("bdhw,vd->bhwv", latent, self.rows()).argmax(-1)

    def lookup(self, codes: Tensor) -> Tensor:
        """Normalised rows (B, D, G, G) of codes (B, G, G)."""
        return F.normalize(self.embedding(codes), dim=-1).permute(0, 3, 1, 2)


class VQModel(nn.Module):
    """Encoder, codebook and decoder of a VQGAN; images (B, 3, S, S) in [-1, 1] to codes (B, N) int64 and back.

    The code of a position is the codebook row nearest to its normalised latent. NppkitError for an image side that the
    downsampling does not divide.

    >>> model = VQModel(VQConfig(ch=8, ch_mult=(1, 2), num_res_blocks=1, z_channels=8, codebook_size=16, norm_groups=4))
    >>> codes = model.encode(torch.zeros(2, 3, 32, 32))
    >>> tuple(codes.shape), tuple(model.decode(codes).shape)
    ((2, 256), (2, 3, 32, 32))
    """

    def __init__(self, c: VQConfig):
        super().__init__()
        self.config = c
        self.encoder = Encoder(c)
        self.decoder = Decoder(c)
        self.quantize = Codebook(c)
        self.quant_conv = nn.Conv2d(c.z_channels, c.codebook_embed_dim, 1)
        self.post_quant_conv = nn.Conv2d(c.codebook_embed_dim, c.z_channels, 1)

    def latent(self, images: Tensor) -> Tensor:
        """Normalised latents (B, D, G, G) before quantisation."""
        return F.normalize(self.quant_conv(self.encoder(images)), dim=1)

    def encode(self, images: Tensor) -> Tensor:
        """Codes (B, N) of images (B, 3, S, S) in [-1, 1]. NppkitError for a side that makes no grid."""
        if not isinstance(images, Tensor) or images.dim() != 4 or not images.is_floating_point():
            raise NppkitError("images must be floating-point (B, 3, S, S) in [-1, 1]: nppkit.tokenizer.to_model_range makes them")
        height, width = map(self.config.grid_size, images.shape[-2:])
        if height != width:
            raise NppkitError(f"images of {images.shape[-2]} x {images.shape[-1]} pixels: cut squares of them")
        return self.quantize.nearest(self.latent(images)).flatten(1)

    def decode(self, codes: Tensor) -> Tensor:
        """Images (B, 3, S, S), about [-1, 1], of codes (B, N). NppkitError for codes beyond the codebook, or of no square."""
        codes = require_range(codes, self.config.codebook_size, "codes")
        if codes.dim() != 2:
            raise NppkitError(f"codes {[*codes.shape]}: give (images, tokens)")
        return self.decoder(self.post_quant_conv(self.quantize.lookup(codes.unflatten(1, square(codes.shape[1])))))

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Training pass: reconstructions, codebook loss with commitment weight 0.25, and the codes (B, G, G)."""
        z = self.latent(images)
        codes = self.quantize.nearest(z.detach())
        rows = self.quantize.lookup(codes)
        loss = (rows - z.detach()).square().sum(1).mean() + 0.25 * (rows.detach() - z).square().sum(1).mean()
        straight_through = z + (rows - z).detach()
        return self.decoder(self.post_quant_conv(straight_through)), loss, codes


def images_at_once(side: int, device: torch.device) -> int:
    """How many images of that side are encoded or decoded together: on a CPU as many as its caches hold."""
    return max(1, (2**16 if device.type == "cpu" else 2**22) // side**2)


def to_model_range(pixels: Tensor) -> Tensor:
    """uint8 images to float in [-1, 1]."""
    return pixels.float() / 127.5 - 1


def to_pixels(images: Tensor) -> Tensor:
    """Decoded images to uint8: clamp(127.5 x + 128, 0, 255), truncated, as ADM and LlamaGen do."""
    return (127.5 * images + 128).clamp(0, 255).to(torch.uint8)


@torch.inference_mode()
def reconstruct(model: VQModel, pixels: Tensor) -> Tensor:
    """uint8 images (n, 3, S, S) after encoding and decoding."""
    device = next(model.parameters()).device
    parts = (part.to(device) for part in pixels.split(images_at_once(pixels.shape[-1], device)))
    return torch.cat([to_pixels(model.decode(model.encode(to_model_range(part)))).cpu() for part in parts])
