"""ELPV: photographs of solar cells by their electroluminescence, from a wheel. A data set of real pictures without a hub.

2,624 cells of 44 modules, each 300 x 300 pixels in 8-bit gray, with the probability of a defect that an expert gave it.
Images and labels are by C. Buerhop-Lutz, S. Deitsch, A. Maier, F. Gallwitz, S. Berger, B. Doll, J. Hauch, C. Camus and
C. J. Brabec, "A Benchmark for Visual Identification of Defective Solar Cells in Electroluminescence Imagery", EU PVSEC
2018, doi:10.4229/35thEUPVSEC20182018-5CV.3.15, https://github.com/zae-bayern/elpv-dataset, under CC BY-NC-SA 4.0: name
them, earn nothing with it, and share what you make of the images alike.
"""

import functools
import hashlib
import importlib.util
from pathlib import Path

import numpy as np

from nppkit.data.images import ImageSet, read_image
from nppkit.errors import NppkitError

KINDS = ("mono", "poly")  # one crystal, or many
DEFECTS = ("0", "1/3", "2/3", "1")  # probability of a defect
CLASS_NAMES = tuple(f"{kind}, defect {defect}" for kind in KINDS for defect in DEFECTS)
INSTALL = "pip install elpv-dataset==1.0.0.post1"  # also `pip install .[photos]`


@functools.cache
def elpv_images() -> ImageSet:
    """All 2,624 photographs; 8 classes: kind of cell times probability of a defect, in the order of CLASS_NAMES.

    The digest covers every file's bytes. NppkitError without the wheel, with the command that installs it.
    """
    spec = importlib.util.find_spec("elpv_dataset")  # found, not imported: its reader loads all at once
    folder = Path(spec.origin).parent / "data" if spec and spec.origin else Path()
    if not (folder / "labels.csv").is_file():
        raise NppkitError(f"data.source elpv needs the photographs of the elpv-dataset wheel: {INSTALL}")
    rows = [line.split() for line in (folder / "labels.csv").read_text().splitlines() if line.strip()]
    files = [folder / name for name, _, _ in rows]
    labels = np.array([KINDS.index(kind) * len(DEFECTS) + round(3 * float(defect)) for _, defect, kind in rows], np.int64)
    digest = hashlib.sha256(labels.tobytes())
    for file in files:
        digest.update(file.read_bytes())
    return ImageSet(labels, CLASS_NAMES, digest.hexdigest(), lambda i: read_image(files[i]))
