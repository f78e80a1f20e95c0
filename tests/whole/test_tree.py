"""The tree of the tests: the rooms of the package again, and no test that leans on another."""

from __future__ import annotations

import ast
import shutil
import subprocess
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]
PACKAGE = TESTS.parent / "fxprune"

#: What stands for no room: small networks, what tests share, what tests the whole, data, the benchmarks' own tools, and
#: other libraries that take what comes out.
EXTRA = {"models", "support", "whole", "results_of_0_1", "benchmarks", "ecosystem"}

#: Nothing in them is quick, and what they are about is tested in other files as well.
SLOW_FILES = {
    "deployment/test_generation.py",
    "training/test_digits.py",
    "training/test_killed.py",
    "whole/test_newcomer.py",
}


def imported(path: Path) -> Iterator[str]:
    """Yields the dotted names of all that a file imports, wherever it does so."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def is_of_a_test(name: str) -> bool:
    """Returns whether a dotted name leads into a module that pytest collects."""
    return name.startswith("tests.") and any(part.startswith("test_") or part == "conftest" for part in name.split("."))


def folders(root: Path) -> set[str]:
    """Returns the folders below one that hold Python files, relative to it."""
    return {path.parent.relative_to(root).as_posix() for path in root.rglob("*.py")} - {"."}


def test_every_folder_is_a_room_and_every_room_has_one() -> None:
    rooms = {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
    mirrored = {folder for folder in folders(TESTS) if folder.partition("/")[0] not in EXTRA}
    assert mirrored <= folders(PACKAGE), "a folder of tests has the name of a room, or is one of the known others"
    assert {folder.partition("/")[0] for folder in mirrored} == rooms


def test_no_test_imports_another() -> None:
    files = [*TESTS.rglob("*.py"), *(TESTS.parent / "benchmarks").rglob("*.py")]
    found = [
        f"{path.relative_to(TESTS.parent)}: {name}" for path in files for name in imported(path) if is_of_a_test(name)
    ]
    assert len(files) > 150 and found == [], "what tests share goes to tests/support, and networks to tests/models"


def test_an_import_of_a_test_would_be_noticed(tmp_path: Path) -> None:
    lines = ["from tests.twin.test_certificate import network", "def f():\n  from tests.ops import test_registry"]
    (tmp_path / "one.py").write_text(
        "\n".join([*lines, "import tests.cli.conftest, torch", "from tests.models import small"])
    )
    assert [is_of_a_test(name) for name in imported(tmp_path / "one.py")] == [True, True, False, False, True]


def test_what_is_shared_holds_no_tests() -> None:
    files = [path for folder in ("models", "support") for path in (TESTS / folder).rglob("*.py")]
    assert files and not [
        path for path in files if path.name.startswith("test_") or "\ndef test_" in path.read_text("utf-8")
    ]


def test_the_quick_run_covers_every_file(request: pytest.FixtureRequest) -> None:
    items = request.session.items
    quick = {item.path for item in items if not item.get_closest_marker("slow")}
    slow = {item.path.relative_to(TESTS).as_posix() for item in items if item.path not in quick}
    assert slow <= SLOW_FILES, "each file keeps a test that is not marked slow"


#: What lies at the top, beside files whose names begin with a dot.
TOP = {"fxprune", "tests", "benchmarks", "docs", "pyproject.toml", "README.md", "CHANGELOG.md", "CITATION.cff"}
TOP |= {"CONTRIBUTING.md", "LICENSE"}


def test_nothing_else_lies_at_the_top() -> None:
    """Of what is kept; a copy without its history holds nothing else, but for what is ignored."""
    root = TESTS.parent
    if (root / ".git").exists() and shutil.which("git"):
        listed = subprocess.run(["git", "ls-files"], cwd=root, capture_output=True, text=True, check=True)
        names = {line.partition("/")[0] for line in listed.stdout.splitlines()}
    else:
        ignored = [line.strip("/") for line in (root / ".gitignore").read_text("utf-8").split()]
        names = {path.name for path in root.iterdir() if not any(fnmatch(path.name, pattern) for pattern in ignored)}
    assert names >= TOP
    assert {name for name in names if not name.startswith(".")} <= TOP
