"""The notebooks' promises: each runs as it stands in a process of its own, nothing of a run is kept in it, and it is linked."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.marks import sampled
from tests.support.notebooks import Cells, cells_of, imported, script_of
from tests.support.settings import within

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "docs" / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))


def test_one_for_each_kind_of_model() -> None:
    assert [path.stem for path in NOTEBOOKS] == ["cnn", "detector", "language-model", "vit"]


def run_in(cells: Cells) -> list[int]:
    """Returns the numbers of the cells that hold something of a run, or no source."""
    return [
        number
        for number, cell in enumerate(cells)
        if not cell["source"] or cell.get("outputs") or cell.get("execution_count") is not None
    ]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_its_outputs_are_stripped(path: Path) -> None:
    cells = cells_of(path)
    assert run_in(cells) == []
    assert len({cell["id"] for cell in cells}) == len(cells)
    assert all(cell.keys() >= {"outputs", "execution_count"} for cell in cells if cell["cell_type"] == "code")


def test_a_run_would_be_noticed() -> None:
    clean = {"cell_type": "code", "source": ["1"], "outputs": [], "execution_count": None}
    assert run_in([clean, clean | {"outputs": ["1"]}, clean | {"execution_count": 1}, clean | {"source": []}]) == [
        1,
        2,
        3,
    ]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_its_links_lead_to_files_and_a_page_leads_to_it(path: Path) -> None:
    texts = "".join("".join(cell["source"]) for cell in cells_of(path) if cell["cell_type"] == "markdown")
    links = [link.partition("#")[0] for link in re.findall(r"\]\((?!https?://)([^)]+)\)", texts)]
    assert links and [link for link in links if not (path.parent / link).exists()] == []
    assert f"(notebooks/{path.name})" in (ROOT / "docs" / "choosing.md").read_text("utf-8")


@pytest.mark.slow
@pytest.mark.parametrize("path", sampled(NOTEBOOKS, 4), ids=lambda path: path.stem)
def test_it_runs_from_top_to_bottom(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = script_of(cells_of(path))
    if lacking := sorted(name for name in imported(script) if importlib.util.find_spec(name) is None):
        pytest.skip(f"{path.name} needs {', '.join(lacking)}")
    within(tmp_path, monkeypatch)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    done = subprocess.run(
        [sys.executable, "-W", "error:::fxprune", "-c", script], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "verified" in done.stdout
