"""The README's promises: its snippets run, its commands are what CI runs, its links lead somewhere."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")
SNIPPETS = re.findall(r"^```python\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)


def test_there_are_snippets_and_the_first_has_ten_lines() -> None:
    assert SNIPPETS
    assert len([line for line in SNIPPETS[0].splitlines() if line.strip()]) <= 10


@pytest.mark.slow
def test_the_snippets_run_one_after_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names = {"__name__": "snippet"}
    for number, snippet in enumerate(SNIPPETS):
        exec(compile(snippet, f"README snippet {number}", "exec"), names)


@pytest.mark.skipif(sys.platform == "win32", reason="CI's script is bash")
@pytest.mark.parametrize(
    ("name", "end"), [("demo", ".venv/bin/fxprune demo"), ("test", ".venv/bin/python -m pytest -n 2 --dist worksteal")]
)
def test_ci_reads_the_commands_from_here(name: str, end: str) -> None:
    found = subprocess.run(
        ["bash", ROOT / ".ci" / "run", "--show", name], capture_output=True, text=True, check=True, cwd=ROOT
    ).stdout.strip()
    assert found in TEXT and found.endswith(end) and found.startswith("python3 -m venv .venv && ")


def test_links_lead_to_files() -> None:
    links = re.findall(r"\]\((?!https?://|#)([^)]+)\)", TEXT) + re.findall(r'src="(?!https?://)([^"]+)"', TEXT)
    assert links
    assert [link for link in links if not (ROOT / link.partition("#")[0]).exists()] == []
