"""Notebooks as plain data: their cells, and their code as one script."""

from __future__ import annotations

import ast
import json
from pathlib import Path
from typing import Any

Cells = list[dict[str, Any]]


def cells_of(path: Path) -> Cells:
    """Returns the cells of a notebook of nbformat 4.5, in order."""
    book = json.loads(path.read_text("utf-8"))
    assert (book["nbformat"], book["nbformat_minor"]) == (4, 5), "a notebook of nbformat 4.5"
    return book["cells"]


def script_of(cells: Cells) -> str:
    """Returns the source of all cells of code, one after another."""
    return "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")


def imported(script: str) -> set[str]:
    """Returns the packages that a script imports, by the first part of their names."""
    names = set[str]()
    for node in ast.walk(ast.parse(script)):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module.partition(".")[0])
    return names
