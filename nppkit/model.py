"""LlamaGen's class-conditional transformer, trained on image tokens or on patch tokens.

Shapes: B images, N = G * G image tokens (or those of another grid), T positions, C = dim, H heads, D = C / H, V = vocab_size.
The sequence [class, token_0 ... token_{N-2}] predicts token_0 ... token_{N-1}; with patches likewise. In place of the class
token may stand the L bytes of the class's name: the last of them predicts token_0.
Parameter names and shapes are those of the released checkpoints (arXiv 2406.06525, Section 2.2).
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from nppkit.errors import NppkitError
from nppkit.grouping import group, group_embeddings, require_range
from nppkit.model_config import MODELS as MODELS
from nppkit.model_config import PADDING, GPTConfig, name_rows
from nppkit.window import Grid, Window, area, as_grid, patches


def name_bytes(names: Sequence[str]) -> Tensor:
    """Names as rows of UTF-8 bytes (n + 1, L) int64, padded in front as LlamaGen pads its texts; the last is padding alone.

    NppkitError as `name_rows`.

    >>> name_bytes(["two", "ten!"]).tolist()
    [[256, 116, 119, 111], [116, 101, 110, 33], [256, 256, 256, 256]]
    """
    rows = name_rows(names)
    longest = max(map(len, rows))
    return torch.tensor([[PADDING] * (longest - len(row)) + row for row in [*rows, []]])


def rotary_table(grid: int | Grid, head_dim: int, base: float = 10000.0, prefix: int = 1) -> Tensor:
    """Rotary factors (L + N, D / 2, 2) of cosines and sines on a grid: each axis turns an equal share of a head, rows first.

    The first L = prefix rows belong to the condition and are all zeros: its queries and keys vanish, as the releases expect.
    """
    grid = as_grid(grid)
    axis_dim = head_dim // len(grid)  # dimensions that an axis turns
    frequency = base ** (-torch.arange(0, axis_dim, 2).float() / axis_dim)
    places = torch.cartesian_prod(*(torch.arange(n).float() for n in grid)).view(-1, len(grid))  # (N, axes)
    angles = (places[..., None] * frequency).flatten(1)  # (N, D / 2)
    table = torch.stack([angles.cos(), angles.sin()], -1)
    return torch.cat([table.new_zeros(prefix, *table.shape[1:]), table])


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Eval mode, and afterwards each module's own again: a part that was frozen stays so."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def rotate(x: Tensor, rotary: Tensor) -> Tensor:
    """Rotate adjacent pairs: (a, b) -> (a cos - b sin, b cos + a sin). x: (B, T, H, D), rotary: (T, D / 2, 2)."""
    a, b = x.to(torch.promote_types(x.dtype, torch.float32)).unflatten(-1, (-1, 2)).unbind(-1)  # (B, T, H, D / 2)
    cos, sin = rotary[:, None].unbind(-1)
    return torch.stack([a * cos - b * sin, b * cos + a * sin], -1).flatten(-2).type_as(x)


class RMSNorm(nn.Module):
    """Root-mean-square norm, computed in fp32."""

    def __init__(self, dim: int, eps: float):
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x.float(), x.shape[-1:], eps=self.eps).type_as(x) * self.weight


class Attention(nn.Module):
    """Causal self-attention with fused qkv; each kv head serves consecutive query heads."""

    def __init__(self, c: GPTConfig):
        super().__init__()
        self.n_head, self.kv_heads, self.head_dim = c.n_head, c.kv_heads, c.head_dim
        self.wqkv = nn.Linear(c.dim, (c.n_head + 2 * c.kv_heads) * c.head_dim, bias=False)
        self.wo = nn.Linear(c.dim, c.dim, bias=False)
        self.resid_dropout = nn.Dropout(c.dropout)

    def forward(self, x: Tensor, rotary: Tensor, cache: "KVCache | StaticKVCache | None" = None) -> Tensor:
        B, T, C = x.shape
        heads = self.wqkv(x).view(B, T, -1, self.head_dim)
        qk, v = heads.split([self.n_head + self.kv_heads, self.kv_heads], dim=2)
        q, k = rotate(qk, rotary).split([self.n_head, self.kv_heads], dim=2)  # in one go: half as many operations
        q, k, v = (t.transpose(1, 2) for t in (q, k, v))  # (B, H, T, D)
        if cache is None:
            x = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=self.n_head != self.kv_heads)
        else:
            x = cache.attend(q, k, v)
        return self.resid_dropout(self.wo(x.transpose(1, 2).reshape(B, T, C)))


class FeedForward(nn.Module):
    """SwiGLU: w2(silu(w1 x) * w3 x)."""

    def __init__(self, c: GPTConfig):
        super().__init__()
        self.w1 = nn.Linear(c.dim, c.hidden_dim, bias=False)
        self.w3 = nn.Linear(c.dim, c.hidden_dim, bias=False)
        self.w2 = nn.Linear(c.hidden_dim, c.dim, bias=False)
        self.ffn_dropout = nn.Dropout(c.dropout)

    def forward(self, x: Tensor) -> Tensor:
        return self.ffn_dropout(self.w2(F.silu(self.w1(x)) * self.w3(x)))


class TransformerBlock(nn.Module):
    def __init__(self, c: GPTConfig):
        super().__init__()
        self.attention = Attention(c)
        self.feed_forward = FeedForward(c)
        self.attention_norm = RMSNorm(c.dim, c.norm_eps)
        self.ffn_norm = RMSNorm(c.dim, c.norm_eps)

    def forward(self, x: Tensor, rotary: Tensor, cache: "KVCache | StaticKVCache | None" = None) -> Tensor:
        x = x + self.attention(self.attention_norm(x), rotary, cache)
        return x + self.feed_forward(self.ffn_norm(x))


class ClassEmbedding(nn.Module):
    """Class table of num_classes + 1 rows; the last row is "unconditional". Of names a table of bytes; the last is padding."""

    def __init__(self, num_classes: int, dim: int):
        super().__init__()
        self.embedding_table = nn.Embedding(num_classes + 1, dim)

    def forward(self, labels: Tensor) -> Tensor:
        return self.embedding_table(labels)


class KVCache:
    """Keys and values of one layer for every position so far."""

    def __init__(self, c: GPTConfig, batch_size: int, device: torch.device, dtype: torch.dtype):
        self.kv = torch.empty((2, batch_size, c.kv_heads, c.positions, c.head_dim), device=device, dtype=dtype)
        self.length = 0

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Add one position's k and v (B, kv heads, 1, D), and attend to all of them from q (B, H, 1, D)."""
        for held, new in zip(self.kv, (k, v), strict=True):
            held[:, :, self.length] = new[:, :, 0]
        self.length += 1
        seen = self.kv[:, :, :, : self.length].unbind()
        return F.scaled_dot_product_attention(q, *seen, enable_gqa=q.shape[1] != k.shape[1])


class StaticKVCache(nn.Module):
    """The same with static shapes, for a step that is compiled: attention reads all positions, and masks."""

    def __init__(self, c: GPTConfig, batch_size: int, device: torch.device, dtype: torch.dtype):
        super().__init__()
        shape = (2, batch_size, c.kv_heads, c.positions, c.head_dim)
        self.register_buffer("kv", torch.zeros(shape, device=device, dtype=dtype))
        self.register_buffer("positions", torch.arange(c.positions, device=device))
        self.register_buffer("length", torch.zeros(1, dtype=torch.int64, device=device))

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """As in `KVCache`; what lies beyond the length, from an earlier batch, is masked."""
        self.kv.index_copy_(3, self.length, torch.stack([k, v]))
        mask = (self.positions <= self.length)[None]  # (1, positions)
        self.length += 1
        return F.scaled_dot_product_attention(q, *self.kv.unbind(), attn_mask=mask, enable_gqa=q.shape[1] != k.shape[1])


class GPT(nn.Module):
    """The transformer. NTP is patch_size = 1; NPP trains the same weights at larger patch sides first (Section 2).

    >>> model = GPT(GPTConfig(dim=16, n_layer=1, n_head=2, vocab_size=32, num_classes=10, grid_size=4))
    >>> codes, labels = torch.zeros(2, 16, dtype=torch.int64), torch.tensor([3, 10])  # 10 is "unconditional"
    >>> [tuple(model(codes, labels, p).shape) for p in (1, 2, 4)]
    [(2, 16, 32), (2, 4, 32), (2, 1, 32)]
    """

    def __init__(self, c: GPTConfig):
        super().__init__()
        self.config, self.recompute = c, False  # recompute: each block again in the backward pass, to save memory
        self.cls_embedding = ClassEmbedding(c.conditions, c.dim)
        self.tok_embeddings = nn.Embedding(c.vocab_size, c.dim)
        self.tok_dropout = nn.Dropout(c.dropout)
        self.layers = nn.ModuleList(TransformerBlock(c) for _ in range(c.n_layer))
        self.norm = RMSNorm(c.dim, c.norm_eps)
        self.output = nn.Linear(c.dim, c.vocab_size, bias=False)
        self.windows = nn.ModuleDict()  # while training on patches: what takes the mean's place, by K (nppkit/patches.py)
        self.register_buffer("rotary_tokens", rotary_table(c.grid, c.head_dim, c.rope_base, c.prefix), persistent=False)
        if c.names:
            self.register_buffer("names", name_bytes(c.names), persistent=False)
        self.apply(_init_weights)
        nn.init.zeros_(self.output.weight)

    def rotary(self, patch_size: Window) -> Tensor:
        """The rotary table (L + T, D / 2, 2) of the grid of patches: the corner of the tokens' own."""
        if area(patch_size) == 1:
            return self.rotary_tokens
        corner = tuple(slice(n) for n in patches(self.config.grid, patch_size))
        before, cells = self.rotary_tokens.split([self.config.prefix, self.config.block_size])
        return torch.cat([before, cells.unflatten(0, self.config.grid)[corner].flatten(0, len(corner) - 1)])

    def condition(self, labels: Tensor) -> Tensor:
        """What labels (B,) say, embedded (B, L, C): the class token, or the name's bytes, which stay single tokens at every p."""
        return self.cls_embedding(self.names[labels] if self.config.names else labels[:, None])

    def forward(self, codes: Tensor, labels: Tensor, patch_size: Window = 1) -> Tensor:
        """Logits (B, N / K, V) for codes (B, N) and labels (B,), where label num_classes is "unconditional".

        (B, N / K, K, V) where `windows` hold a prediction for each place.

        NppkitError for shapes that are not these, or codes or labels that are not integers or, on a CPU, out of range.
        """
        if codes.dim() != 2 or labels.shape != codes.shape[:1] or not len(codes):
            raise NppkitError(
                f"codes {[*codes.shape]} and labels {[*labels.shape]} are no batch: give (B, N) and (B,), B above 0"
            )
        codes = require_range(codes, self.config.vocab_size, "codes", wait=False)
        labels = require_range(labels, self.config.num_classes + 1, "labels", wait=False)
        embedded, K = self.tok_embeddings(codes), area(patch_size)
        window = self.windows[str(K)] if K > 1 and str(K) in self.windows else None
        if window:
            embedded = window.pool(group(embedded, patch_size, self.config.grid))  # (B, T, C)
        else:
            embedded = group_embeddings(embedded, patch_size, self.config.grid)
        x = self.tok_dropout(torch.cat([self.condition(labels), embedded[:, :-1]], 1))
        rotary = self.rotary(patch_size)[: x.shape[1]]
        for layer in self.layers:
            x = checkpoint(layer, x, rotary, use_reentrant=False) if self.recompute else layer(x, rotary)
        x = self.norm(x[:, self.config.prefix - 1 :])
        return self.output(window.spread(x) if window else x)

    def decode(self, x: Tensor, position: int | Tensor, caches: Iterable[KVCache | StaticKVCache]) -> Tensor:
        """Logits (B, V) after one more embedding x (B, C) at `position`; the condition has the first L."""
        x, rotary = x[:, None], self.rotary_tokens[position].view(1, -1, 2)
        for layer, cache in zip(self.layers, caches, strict=True):
            x = layer(x, rotary, cache)
        return self.output(self.norm(x))[:, 0]


def _init_weights(module: nn.Module) -> None:
    if isinstance(module, nn.Linear | nn.Embedding):
        nn.init.normal_(module.weight, std=0.02)


def count_parameters(model: nn.Module) -> int:
    """Number of parameters."""
    return sum(p.numel() for p in model.parameters())
