"""The sizes of a VQ tokenizer, and the released ones by name. No torch: presets and the graph read this."""

from dataclasses import dataclass

from nppkit.errors import NppkitError, require_kinds


@dataclass(frozen=True)
class VQConfig:
    """Everything that decides the tokenizer's weights and its output. NppkitError for sizes that make none.

    ch_mult: width of each resolution in units of ch, the finest first; every further one halves the image's side.

    >>> VQConfig().grid_size(256), VQConfig(ch_mult=(1, 2)).downsampling
    (16, 2)
    """

    ch: int = 128
    ch_mult: tuple[int, ...] = (1, 1, 2, 2, 4)
    num_res_blocks: int = 2
    z_channels: int = 256
    codebook_size: int = 16384
    codebook_embed_dim: int = 8
    norm_groups: int = 32
    gray: bool = False  # decoded images have three equal channels, the mean of the decoder's

    def __post_init__(self):
        require_kinds(self)
        widths = self.ch_mult
        if not (isinstance(widths, list | tuple) and widths and all(type(n) is int and n > 0 for n in widths)):
            raise NppkitError(f"ch_mult {widths!r}: give a list of whole numbers above 0, one for each resolution")
        object.__setattr__(self, "ch_mult", tuple(widths))  # a list when read from YAML or JSON
        if self.ch % self.norm_groups:
            raise NppkitError(f"tokenizer ch {self.ch} is not a multiple of norm_groups {self.norm_groups}")

    @property
    def downsampling(self) -> int:
        return 2 ** (len(self.ch_mult) - 1)

    def grid_size(self, image_size: int) -> int:
        """Side of the code grid. NppkitError if the downsampling does not divide the image size."""
        if image_size % self.downsampling:
            raise NppkitError(f"image_size {image_size} is not a multiple of the tokenizer's {self.downsampling}")
        return image_size // self.downsampling


TOKENIZERS = {"VQ-16": VQConfig(), "VQ-8": VQConfig(ch_mult=(1, 2, 2, 4))}
