"""The `data` and `tokenizer` sections of a preset."""

from dataclasses import dataclass, field


@dataclass(frozen=True)
class DataConfig:
    """Where images come from. `heldout` images are never trained on; `limit` 0 takes all.

    Relative paths, here and elsewhere in a preset, start at the folder that holds results/.
    """

    source: str = "mnist"  # mnist | folder | torchvision | npz
    path: str = ""  # folder of class folders, torchvision's root, or an npz file with arr_0
    name: str = ""  # torchvision's class name
    image_size: int = 32
    crops: str = "shift"  # shift | ten_crop | center
    heldout: int = 500
    heldout_path: str = ""  # where they are; empty: a random part of `path`
    limit: int = 0
    packed: bool = False  # keep the codes compressed, for git


@dataclass(frozen=True)
class TokenizerConfig:
    """The VQ tokenizer: a named one, or its sizes in `vq`; trained for `steps` unless `weights` names a release or file."""

    name: str = ""
    vq: dict = field(default_factory=dict)
    weights: str = ""
    steps: int = 0
    batch_size: int = 64
    lr: float = 2e-3
    seed: int = 0

    @property
    def downsampling(self) -> int:
        """Image pixels to a code, along one side."""
        if self.name:
            return {"VQ-16": 16, "VQ-8": 8}.get(self.name, 1)
        return 2 ** (len(self.vq.get("ch_mult", (1, 1, 2, 2, 4))) - 1)  # without ch_mult it has VQ-16's
