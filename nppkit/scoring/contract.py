"""The evaluation contract: what was sampled, how, against which reference, seen by which extractor.

Every result carries it, and numbers of unlike contracts are never put into one table.
"""

from dataclasses import asdict
from importlib.metadata import version
from typing import TYPE_CHECKING

from nppkit.errors import NppkitError
from nppkit.scoring.config import NEIGHBOURS, EvaluationConfig

if TYPE_CHECKING:
    from nppkit.scoring.reference import Reference


IS_SPLIT = 5000  # images in one split of the Inception score, as ADM counts
UNIFORM = "uniform over classes"


def measurement(reference: "Reference", image_size: int) -> dict:
    """The half of a contract that says how images were looked at."""
    fidelity = version("torch-fidelity")  # 0.4.0 exchanged precision and recall
    return {
        "image_size": image_size,
        "extractor": reference.extractor,
        "extractor_sha256": reference.extractor_sha256,
        "reference": reference.source,
        "reference_sha256": reference.digest,
        "reference_images": len(reference.features),
        "metrics": f"torch-fidelity {fidelity}; IS in shuffled splits of {IS_SPLIT}; precision and recall with k = {NEIGHBOURS}",
    }


def contract(config: EvaluationConfig, reference: "Reference", image_size: int, shares: tuple[float, ...] = ()) -> dict:
    """All that two numbers must share to be compared: how images were sampled and how they were looked at."""
    unseen = ("reference", "save_npz")  # the reference is named by its digest, not by where it lies
    return {
        **{key: value for key, value in asdict(config).items() if key not in unseen},
        "labels": f"{'in the shares of the training images' if shares else UNIFORM}, a function of (seed, sample index)",
        **({"label_shares": [round(share, 6) for share in shares]} if shares else {}),
        "noise": "inverse distribution at a hash of (seed, sample index, position)",
        "rounding": "clamp(127.5 x + 128, 0, 255), truncated",
        **measurement(reference, image_size),
    }


def contract_line(terms: dict) -> str:
    """The contract in one line, to be printed under a table."""
    line = "{samples} samples, labels {labels}, at side {image_size} (temperature {temperature}, top-k {top_k}, top-p {top_p}, "
    line += "seed {report_seed}) against {reference} (sha256 {reference_sha256:.12}), "
    line += "seen by {extractor} (sha256 {extractor_sha256:.12}); {metrics}"
    return line.format(**{**terms, "labels": terms.get("labels", UNIFORM).partition(",")[0]})


def check_one_contract(contracts: dict[str, dict]) -> None:
    """NppkitError if the runs (name -> contract) of one table were not evaluated alike."""
    names, default = list(contracts), asdict(EvaluationConfig())  # of terms that are younger than a result
    for name in names[1:]:
        first, other = (default | contracts[n] for n in (names[0], name))
        if unlike := next((key for key in first | other if first.get(key) != other.get(key)), ""):
            raise NppkitError(f"{name} and {names[0]} were evaluated with another {unlike}: evaluate both again with one preset")
