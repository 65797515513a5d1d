"""Reading notebooks, executed again on the committed results. A file of its own, so that it runs beside the other notebooks'."""

import os
import shutil
import subprocess
import sys

from test_notebooks import NOTEBOOKS, READING, TRAINING

from nppkit.study import presets


def test_committed_outputs_are_reproduced(tmp_path):
    """nbval re-executes the reading notebooks on the committed results and compares what they show; it writes elsewhere."""
    kept = ("study", "study_8x8", "digits", "digits_rates", "solar", "text", "video", "names", "patches")
    for name in (*kept, *presets.load_preset("study").tokens):
        if (folder := NOTEBOOKS.parent / "results" / name).is_dir():  # not all of them have runs yet
            shutil.copytree(folder, tmp_path / "results" / name)
    command = [
        sys.executable,
        "-m",
        "pytest",
        "--nbval",
        "-q",
        "-p",
        "no:cacheprovider",
        *(f"{NOTEBOOKS / name}.ipynb" for name in READING if name not in TRAINING),
    ]
    result = subprocess.run(command, env={**os.environ, "NPPKIT_HOME": str(tmp_path)}, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout[-3000:]
