"""Execute notebooks in place, as they are committed: with outputs, in order, without widgets.

python tests/record_notebooks.py start_here explore_runs
"""

import base64
import io
import sys
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from PIL import Image

from nppkit.show.plots import with_palette
from nppkit.show.widgets import WITHOUT_KERNEL

NOTEBOOKS = Path(__file__).parents[1] / "notebooks"
VIEW = "application/vnd.jupyter.widget-view+json"


def strip_widgets(cell: nbformat.NotebookNode) -> None:
    """Drop progress bars and widget views; a live section keeps the line that stands for it."""
    outputs = []
    for output in cell.outputs:
        if "data" in output and output.data.pop(VIEW, None) and output.data.get("text/plain") != WITHOUT_KERNEL:
            continue
        outputs.append(output)
    cell.outputs = outputs


def shrink_figures(cell: nbformat.NotebookNode) -> None:
    """Store figures as `save_figure` does."""
    for output in cell.outputs:
        if "image/png" in output.get("data", {}):
            figure, small = Image.open(io.BytesIO(base64.b64decode(output.data["image/png"]))), io.BytesIO()
            with_palette(figure).save(small, format="png", optimize=True)
            output.data["image/png"] = base64.b64encode(small.getvalue()).decode()


def record(name: str) -> None:
    path = NOTEBOOKS / f"{name}.ipynb"
    notebook = nbformat.read(path, as_version=4)
    client = NotebookClient(notebook, timeout=1200, store_widget_state=False, resources={"metadata": {"path": str(NOTEBOOKS)}})
    client.record_timing = False
    client.execute()
    for cell in notebook.cells:
        if cell.cell_type == "code":
            strip_widgets(cell)
            shrink_figures(cell)
    nbformat.write(notebook, path)


if __name__ == "__main__":
    for name in sys.argv[1:]:
        record(name)
