"""Reading notebooks, executed again on the committed results."""

import os
import shutil
import subprocess
import sys

import pytest
from test_notebooks import NOTEBOOKS, READING, TRAINING

PARTS = 4  # so that processes that test side by side share the work
NBVAL = """
import sys
import pytest
from nbval.plugin import IPyNbCell
from nppkit.jobs import kernels
IPyNbCell.output_timeout = property(lambda cell: 120, lambda cell, seconds: None)  # nbval's 5 are few on a busy machine
kernels.use_forked_kernels()
sys.exit(pytest.main(sys.argv[1:]))
"""


@pytest.mark.parametrize("part", range(PARTS))
@pytest.mark.usefixtures("warm_kernels")
def test_committed_outputs_are_reproduced(tmp_path, part):
    """nbval re-executes the reading notebooks on the committed results and compares what they show; it writes elsewhere."""
    results = NOTEBOOKS.parent / "results"
    for folder in {kept.parent for kept in (*results.glob("*/runs"), *results.glob("*/tokenizer"))}:
        shutil.copytree(folder, tmp_path / "results" / folder.name)
    read = [name for name in READING if name not in TRAINING]
    command = [
        sys.executable,
        "-c",
        NBVAL,
        "--nbval",
        "-q",
        "-p",
        "no:cacheprovider",
        *(f"{NOTEBOOKS / name}.ipynb" for name in read[part::PARTS]),
    ]
    result = subprocess.run(command, env={**os.environ, "NPPKIT_HOME": str(tmp_path)}, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout[-3000:]
