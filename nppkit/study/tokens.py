"""Tokens that say less or more: what NPP gains on each kind of codes that a study has (Section 1 of the paper; exploratory)."""

import math

import numpy as np
import pandas as pd

from nppkit.files import read_json
from nppkit.study.graph import tokenizer_dir
from nppkit.study.presets import Preset, load_preset
from nppkit.study.protocol import SCALE, equal_flops
from nppkit.study.results import paired, results

BITS = 1 / math.log(2)  # in a nat


def kinds(study: Preset) -> pd.DataFrame:
    """A row a kind of codes, a preset of the study's `tokens`: NPP minus next-token prediction (NTP) at equal FLOPs, size B.

    kind, images, grid, codes (how many there are), seeds; bits: what a held-out token costs NTP; fid, kid (x 1,000) and less
    (held-out bits a token), each an Interval; floor: FID of the tokenizer's reconstructions. Without runs numbers are NaN.
    """
    lines = []
    for p in map(load_preset, study.tokens):
        q, side = equal_flops(p, "B"), p.data.image_size // p.tokenizer.network.downsampling
        images, codes = "digits" if p.data.source == "mnist" else "photographs", p.tokenizer.network.codebook_size
        found = {"fid": paired(p, q.run, q.baseline, "fid")}
        found["kid"] = paired(p, q.run, q.baseline, "kid", lambda a, b: (a - b) * SCALE["kid"])
        found["less"] = paired(p, q.run, q.baseline, "heldout_nll", lambda a, b: (a - b) * BITS)
        bits, metrics = [row["heldout_nll"] * BITS for row in results(p, q.baseline)], tokenizer_dir(p) / "metrics.json"
        line = {"kind": f"{images} as {side} x {side} codes of {codes}", "images": images, "grid": f"{side} x {side}"}
        line |= {"codes": codes, "seeds": found["fid"].n, "bits": np.mean(bits) if bits else math.nan, **found}
        lines.append(line | {"floor": read_json(metrics)["reconstruction_fid"] if metrics.is_file() else math.nan})
    return pd.DataFrame(lines)


def on_which(known: pd.DataFrame, measure: str = "fid") -> str:
    """On how many kinds NPP's FID, or its `measure`, is lower than NTP's, higher, and open, and which the decided ones are."""
    sides = known[measure].map(lambda found: found.side("lower", "higher"))
    named = {side: known["kind"][sides == side].tolist() for side in ("lower", "higher")}
    told = {side: f"{len(names)}{' (' * bool(names)}{'; '.join(names)}{')' * bool(names)}" for side, names in named.items()}
    still = len(known) - sum(map(len, named.values()))
    return f"lower than NTP's on {told['lower']} of {len(known)} kinds of codes, higher on {told['higher']}, open on {still}"
