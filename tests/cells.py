"""Cells of notebooks as functions: run by themselves, on data that a test has made."""

import ast
from pathlib import Path

import nbformat

NOTEBOOKS = Path(__file__).parents[1] / "notebooks"


def run_cells(name: str, *identities: str, **given: object) -> dict:
    """What a notebook's imports and these cells of it make of the names that they are given."""
    cells = {cell.id: cell.source for cell in nbformat.read(NOTEBOOKS / f"{name}.ipynb", 4).cells if cell.cell_type == "code"}
    for source in cells.values():
        imports = [node for node in ast.parse(source).body if isinstance(node, ast.Import | ast.ImportFrom)]
        exec(compile(ast.Module(imports, []), name, "exec"), given)
    for identity in identities:
        exec(compile(cells[identity], f"{name}, cell {identity}", "exec"), given)
    return given
