"""For whoever hosts a copy: badges that open start_here on Binder and on Colab. `make badges REPOSITORY=owner/name`

Binder installs the package by .binder/, and without it would start the Dockerfile. Colab installs nothing: its copy of the
notebook begins with a cell that does.
"""

import re
import sys
from pathlib import Path

import nbformat

from nppkit.errors import NppkitError

ROOT = Path(__file__).parents[1]
COPY = Path("docs/colab/start_here.ipynb")
TITLE = "# nppkit\n"


def badges(repository: str) -> str:
    """The two badges, in Markdown."""
    binder = f"https://mybinder.org/v2/gh/{repository}/HEAD?labpath=notebooks%2Fstart_here.ipynb"
    colab = f"https://colab.research.google.com/github/{repository}/blob/HEAD/{COPY}"
    return (
        f"[![Open start_here on Binder](https://mybinder.org/badge_logo.svg)]({binder})\n"
        f"[![Open start_here on Colab](https://colab.research.google.com/assets/colab-badge.svg)]({colab})\n"
    )


def write(root: Path, repository: str) -> None:
    """Put the badges under README's title, in the place of older ones, and the notebook for Colab where they lead.

    NppkitError unless the repository is owner/name.
    """
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", repository):
        raise NppkitError(f"REPOSITORY {repository!r} is not owner/name: write e.g. REPOSITORY=someone/nppkit")
    readme = root / "README.md"
    rest = re.sub(r"\n\[!\[Open start_here on Binder.*\n.*\n", "", readme.read_text().removeprefix(TITLE))
    readme.write_text(f"{TITLE}\n{badges(repository)}{rest}")
    notebook = nbformat.read(root / "notebooks/start_here.ipynb", as_version=4)
    install = nbformat.v4.new_code_cell(f"%pip install --quiet git+https://github.com/{repository}", id="install")
    notebook.cells.insert(1, install)
    for cell in (cell for cell in notebook.cells if cell.cell_type == "code"):
        cell.outputs, cell.execution_count = [], None
    (root / COPY).parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(notebook, root / COPY)


if __name__ == "__main__":
    try:
        write(ROOT, (sys.argv[1:] or [""])[0])
    except NppkitError as error:
        sys.exit(f"error: {error}")
