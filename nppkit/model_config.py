"""The sizes of the transformer, and the names that it may be told. No torch: presets and the graph read this."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

from nppkit.errors import NppkitError, require_kinds
from nppkit.window import Grid, as_grid

MODELS = {  # Table 1 of LlamaGen; the sizes of a preset may be others under the same names
    "B": dict(n_layer=12, n_head=12, dim=768),
    "L": dict(n_layer=24, n_head=16, dim=1024),
    "XL": dict(n_layer=36, n_head=20, dim=1280),
    "XXL": dict(n_layer=48, n_head=24, dim=1536),
}
LONGEST, PADDING = 64, 256  # bytes of a name; what stands before shorter ones


@dataclass(frozen=True)
class GPTConfig:
    """Everything that decides the transformer's weights and its output. NppkitError for sizes that make no model.

    The defaults are GPT-B on 256-pixel ImageNet. n_kv_head below n_head is grouped-query attention.

    >>> GPTConfig(dim=1280, n_layer=36, n_head=20, grid_size=24).block_size  # XL
    576
    """

    dim: int = 768
    n_layer: int = 12
    n_head: int = 12
    n_kv_head: int = 0  # 0: as many as n_head
    vocab_size: int = 16384
    num_classes: int = 1000
    grid_size: int | Grid = 16  # G of a G x G grid, or the lengths of one, two or three axes
    dropout: float = 0.1
    rope_base: float = 10000.0
    multiple_of: int = 256
    norm_eps: float = 1e-5
    names: tuple[str, ...] = ()  # of the classes: read byte by byte in place of a class token

    def __post_init__(self):
        require_kinds(self)
        if not (0 <= self.dropout < 1 and self.rope_base > 0):
            raise NppkitError(f"dropout {self.dropout} is not in [0, 1), or rope_base {self.rope_base} is not above 0")
        pairs = 2 * len(self.grid)
        if self.dim % self.n_head or self.head_dim % pairs:
            raise NppkitError(f"dim {self.dim} / n_head {self.n_head}: a head needs a multiple of {pairs} dimensions")
        if self.n_head % self.kv_heads:
            raise NppkitError(f"n_kv_head {self.n_kv_head} does not divide n_head {self.n_head}")
        if self.names and len(name_rows(self.names)) != self.num_classes:
            raise NppkitError(f"{len(self.names)} names are not those of {self.num_classes} classes: give one a class")

    @property
    def head_dim(self) -> int:
        return self.dim // self.n_head

    @property
    def kv_heads(self) -> int:
        return self.n_kv_head or self.n_head

    @property
    def hidden_dim(self) -> int:
        """SwiGLU's hidden size: 2/3 * 4 * dim, rounded up to a multiple of `multiple_of`."""
        return -(-int(2 / 3 * 4 * self.dim) // self.multiple_of) * self.multiple_of

    @property
    def block_size(self) -> int:
        """Image tokens per image, N = G * G."""
        return prod(self.grid)

    @property
    def prefix(self) -> int:
        """L, positions of the condition: one of a class token, as many as the longest name has bytes."""
        return max((len(name.encode()) for name in self.names), default=1)

    @property
    def positions(self) -> int:
        """Positions of an image at p = 1: the condition, and all tokens but the last."""
        return self.prefix + self.block_size - 1

    @property
    def conditions(self) -> int:
        """Classes or bytes that the condition's table has rows for, besides "unconditional" or padding."""
        return PADDING if self.names else self.num_classes

    @property
    def grid(self) -> Grid:
        """The lengths of the grid's axes."""
        return as_grid(self.grid_size, "grid_size")


def name_rows(names: Sequence[str]) -> list[list[int]]:
    """The UTF-8 bytes of each name.

    NppkitError for a name that is empty, longer than LONGEST bytes, another's too, or no text (a folder's in another encoding).
    """
    try:
        rows = [list(name.encode()) for name in names]
    except UnicodeEncodeError as error:
        raise NppkitError(f"class name {error.object!r} is not in UTF-8: rename it") from None
    for name, row in zip(names, rows, strict=True):
        if not 0 < len(row) <= LONGEST or rows.count(row) > 1:
            raise NppkitError(f"class name {name!r}: a prefix needs names of 1 to {LONGEST} bytes, no two alike: rename it")
    return rows
