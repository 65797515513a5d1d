"""The kernel of a job: nothing of the user's own Jupyter, IPython, matplotlib or locale reaches it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

import nppkit

LOOK = """
import json, os, sys
import matplotlib as mpl
import nppkit
from IPython import get_ipython
found = {"python": sys.executable, "package": nppkit.__file__, "tex": mpl.rcParams["text.usetex"], "utf8": sys.flags.utf8_mode}
found |= {"backend": os.environ["MPLBACKEND"], "startup": "startup" in globals(), "home": os.environ["NPPKIT_HOME"]}
json.dump(found, open("../found.json", "w"))
"""
RUN = """
from pathlib import Path
from nppkit.jobs import launch
from nppkit.study import records
launch.NOTEBOOKS = Path("notebooks").resolve()
launch.execute(records.Job("look", "look", {}, Path.cwd(), ("found.json",), (), {}), {})
"""


@pytest.fixture
def user(tmp_path):
    """A folder with a notebook, saved under the name of a kernel that is nowhere, and a home full of the user's own habits."""
    cells = [nbformat.v4.new_code_cell(source) for source in ("preset: str = ''", LOOK)]
    cells[0].metadata["tags"] = ["parameters"]
    metadata = {"kernelspec": {"name": "conda-env-thesis", "display_name": "Thesis", "language": "R"}}
    (tmp_path / "notebooks").mkdir()
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata=metadata), tmp_path / "notebooks/look.ipynb")
    own = {
        ".config/matplotlib/matplotlibrc": "text.usetex: True\n",
        ".ipython/profile_default/startup/mine.py": "startup = 1\n",
        "startup.py": "startup = 1\n",
        ".local/share/jupyter/kernels/python3/kernel.json": json.dumps(
            {"argv": ["/bin/false", "{connection_file}"], "display_name": "x", "language": "python"}
        ),
    }
    for name, content in own.items():
        (tmp_path / "user" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "user" / name).write_text(content)
    return tmp_path


@pytest.mark.parametrize("home", ["user", "/proc/none"], ids=["habits", "unwritable"])
def test_the_users_environment_stays_out(user, home):
    """The notebook runs in the interpreter and with the package that started it, also where HOME cannot be written."""
    env = {**os.environ, "HOME": str(user / home), "MPLBACKEND": "TkAgg", "PYTHONSTARTUP": str(user / "user/startup.py")}
    env |= {
        "JUPYTER_PREFER_ENV_PATH": "0",
        "PYTHONUTF8": "0",
        "NPPKIT_HOME": "mine",
        "PYTHONPATH": str(Path(nppkit.__file__).parents[1]),
    }
    subprocess.run([sys.executable, "-c", RUN], cwd=user, env=env, check=True)
    found = json.loads((user / "found.json").read_text())
    assert found == {
        "python": sys.executable,
        "package": nppkit.__file__,
        "tex": False,
        "utf8": 1,
        "backend": "module://matplotlib_inline.backend_inline",  # ipykernel's own
        "startup": False,
        "home": str(user / "mine"),
    }
