"""Reading notebooks, executed again on the committed results. A file of its own, so that it runs beside the other notebooks'."""

import os
import shutil
import subprocess
import sys

import pytest
from test_notebooks import NOTEBOOKS, READING, TRAINING

NBVAL = "import sys, pytest; from nppkit.jobs import kernels; kernels.use_forked_kernels(); sys.exit(pytest.main(sys.argv[1:]))"


@pytest.mark.usefixtures("warm_kernels")
def test_committed_outputs_are_reproduced(tmp_path):
    """nbval re-executes the reading notebooks on the committed results and compares what they show; it writes elsewhere."""
    for runs in (NOTEBOOKS.parent / "results").glob("*/runs"):
        shutil.copytree(runs.parent, tmp_path / "results" / runs.parent.name)
    command = [
        sys.executable,
        "-c",
        NBVAL,
        "--nbval",
        "-q",
        "-p",
        "no:cacheprovider",
        *(f"{NOTEBOOKS / name}.ipynb" for name in READING if name not in TRAINING),
    ]
    result = subprocess.run(command, env={**os.environ, "NPPKIT_HOME": str(tmp_path)}, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout[-3000:]
