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
    root = NOTEBOOKS.parent  # what a reader has; not what else lies in the folder, which may be large, or just being written
    listed = subprocess.run(["git", "ls-files", "-z", "results"], cwd=root, capture_output=True, text=True, check=True).stdout
    for name in filter(None, listed.split("\0")):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(root / name, tmp_path / name)
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
