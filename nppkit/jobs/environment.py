"""What a job's processes find in their environment, whatever the user's own Jupyter, IPython and matplotlib are set to."""

import os
from pathlib import Path

from nppkit.files import home

PACKAGE = Path(__file__).parents[1]
LEFT_OUT = ("MPLBACKEND", "PYTHONSTARTUP", "PYTHONHOME", "PYTHONSAFEPATH")


def set_environment(threads: int) -> None:
    """What the processes that this one starts find in their environment.

    The package is that of this process's clone, also where another clone is the installed one; text is UTF-8 in any
    locale; matplotlib's settings are the house's style; IPython's profile and Jupyter's connection files lie below home().
    """
    for name in LEFT_OUT:
        os.environ.pop(name, None)
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "10000")  # threads that wait soon give their core away (docs/speed.md)
    cache, paths = home() / ".cache", [str(PACKAGE.parent), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
    (cache / "ipython").mkdir(parents=True, exist_ok=True)
    os.environ.update(
        NPPKIT_HOME=str(home()),  # absolute: the kernel works in another folder
        OMP_NUM_THREADS=str(threads),
        PYTHONPATH=os.pathsep.join(dict.fromkeys(path for path in paths if path)),
        PYTHONUTF8="1",
        MATPLOTLIBRC=str(PACKAGE / "show/style.mplstyle"),
        IPYTHONDIR=str(cache / "ipython"),
        JUPYTER_RUNTIME_DIR=str(cache / "jupyter"),
    )
