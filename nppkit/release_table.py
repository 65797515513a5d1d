"""LlamaGen's and NPP's releases by name, and where a release lies here. No torch: the graph reads this."""

from typing import NamedTuple

from nppkit.errors import NppkitError
from nppkit.files import located
from nppkit.model_config import MODELS


class Release(NamedTuple):
    """A row of the tables and its file. repo is on the Hugging Face hub, empty where nothing was published."""

    file: str
    size: str
    image_size: int  # 0: any
    repo: str


LLAMAGEN, NPP = "FoundationVision/LlamaGen", "pytttttt/LlamaGen-NPP"
UNPUBLISHED = ("LlamaGen-XL-256", "LlamaGen-XXL-256")
RELEASES = {"VQ-16": Release("vq_ds16_c2i.pt", "VQ-16", 0, LLAMAGEN)}
for family, side, repo in (("LlamaGen", 256, LLAMAGEN), ("LlamaGen", 384, LLAMAGEN), ("NPP", 256, NPP)):
    for size in MODELS:
        name = f"{family}-{size}-{side}"
        RELEASES[name] = Release(f"c2i_{size}_{side}.pt", size, side, "" if name in UNPUBLISHED else repo)


def local(name: str) -> str:
    """Where the weights that a preset means lie: a release's file in weights/<repository>, or the path itself.

    NppkitError for a path that is a folder, such as that of a checkpoint.
    """
    if release := RELEASES.get(name):
        return f"weights/{release.repo.partition('/')[2]}/{release.file}" if release.repo else ""
    if name and located(name).is_dir():
        raise NppkitError(f"weights {located(name)} is a folder: name the file in it, of a checkpoint model.safetensors")
    return name
