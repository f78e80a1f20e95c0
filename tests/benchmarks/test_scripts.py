"""Every benchmark starts, and ends at its smallest setting; what is recorded stays as it is."""

from __future__ import annotations

import json
import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.common import ROOT, counting
from benchmarks.common.cli import SKIPPED, guarded, needs
from benchmarks.common.data import shared_file
from tests.support.forked import run_script
from tests.support.marks import ALL, only_with_all

FOLDER = ROOT / "benchmarks"
SCRIPTS = sorted(FOLDER.glob("*.py"))
#: Those whose smallest setting takes some seconds of a core alone.
QUICK = {"home", "scaling", "size", "spvr_engine", "spvr_tau"}


def script(name: str, monkeypatch: pytest.MonkeyPatch, main: str = "__main__") -> dict[str, object]:
    """Runs a script in this process, or, under another name, returns what it defines."""
    monkeypatch.syspath_prepend(str(FOLDER))
    return runpy.run_path(str(FOLDER / f"{name}.py"), run_name=main)


def run(path: Path, results: Path, *arguments: str) -> dict[str, list[dict[str, object]]]:
    """Runs a script on one core, and returns the rows that it records, by the name of the record."""
    given = ["--quick", "--threads", "1", *arguments]
    done = run_script(path, given, {"FXPRUNE_RESULTS": str(results)}, results, timeout=600)
    if done.returncode == SKIPPED:
        pytest.skip(done.stdout.strip().splitlines()[-1])
    assert done.returncode == 0, done.stdout[-1000:] + done.stderr[-3000:]
    return {file.stem: json.loads(file.read_text())["rows"] for file in results.glob("*.json")}


def without_history() -> bool:
    return bool(
        subprocess.run(["git", "-C", str(ROOT), "rev-parse", "HEAD"], capture_output=True, check=False).returncode
    )


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda p: p.stem)
def test_help(path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", [path.name, "--help"])
    with pytest.raises(SystemExit) as ended:
        script(path.stem, monkeypatch)
    assert ended.value.code == 0
    assert "--quick" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize("path", SCRIPTS, ids=lambda p: p.stem)
def test_smallest_setting(path: Path, tmp_path: Path) -> None:
    if path.stem not in QUICK and ALL not in os.environ:
        pytest.skip(f"takes long: {ALL}=1 runs it")
    found = run(path, tmp_path)
    assert found and all(rows for rows in found.values())
    assert all(name.endswith("-quick") for name in found)  # under its own name: the record of a full run stays


@pytest.mark.slow
@only_with_all
@pytest.mark.skipif(without_history(), reason="no repository to take a revision from")
def test_compile_time_against_itself(tmp_path: Path) -> None:
    (rows,) = run(FOLDER / "compile_time.py", tmp_path, "--against", "HEAD").values()
    assert {"capture", "whole"} <= {row["stage"] for row in rows}
    assert all(row[key] > 0 for row in rows for key in ("then", "now", "now / then", "then again / then"))


def test_every_benchmark_is_in_the_list() -> None:
    text = (FOLDER / "README.md").read_text("utf-8")
    assert [path.name for path in SCRIPTS if f"`{path.name}`" not in text] == []


# -- what is absent -----------------------------------------------------------------------------------------------


def test_absent_data_and_packages_are_said_in_a_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FXPRUNE_SHARED", str(tmp_path))
    for main, what in (
        (lambda: shared_file("data/x.npz"), "data/x.npz"),
        (lambda: needs("torch", "no_such"), "no_such"),
    ):
        with pytest.raises(SystemExit) as ended:
            guarded(main)
        assert ended.value.code == SKIPPED
        (line,) = capsys.readouterr().out.splitlines()
        assert line.startswith("skipped: ") and what in line


def test_a_module_of_ours_that_is_absent_is_an_error() -> None:
    def main() -> None:
        import fxprune.no_such_module  # noqa: F401

    with pytest.raises(ModuleNotFoundError):
        guarded(main)


def test_quick_rows_are_not_kept(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["criteria.py", "--quick", "--rows", "rows.jsonl"])
    with pytest.raises(SystemExit) as ended:
        script("criteria", monkeypatch)
    assert ended.value.code == 2 and "--rows" in capsys.readouterr().err


# -- size ---------------------------------------------------------------------------------------------------------

TEXT = '''"""A module,
of two lines."""

import os  # why


class A:
    """Of a class."""

    # alone
    def method(self, a, *, b=1, **more):
        """Of a method."""
        def inner():
            return """two
            lines"""

        return inner, a


VALUES = (1, 2)  # fmt: skip
'''


def test_lines_of_code() -> None:
    file = counting.count("a.py", TEXT)
    assert file.lines == 20
    assert file.code == 8  # import, class, def, def, two of the text, return, VALUES
    assert file.statements == 7
    assert file.skips == 1
    assert file.functions == (counting.Function("a.py:method", 5, 3), counting.Function("a.py:inner", 3, 0))


@pytest.mark.slow
def test_every_room_of_the_core_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    size = script("size", monkeypatch, "size")
    rooms = size["rooms_of"](size["files_of"](ROOT))
    assert set(size["CORE"]) <= set(rooms)
    parts = size["parts_of"](rooms)
    assert sum(len(files) for files in rooms.values()) == len(parts["core"]) + len(parts["rim"]) == len(parts["all"])
    assert parts["core"] and parts["rim"]


def test_where_the_old_layout_went(monkeypatch: pytest.MonkeyPatch) -> None:
    size = script("size", monkeypatch, "size")
    expected = {
        "capture/normalize/fold.py": "capturing",
        "rewrite/slice.py": "rewriting",
        "rewrite/span.py": "bridging",
        "latency/setting.py": "budget",
        "latency/table.py": "latency",
        "coupling.py": "coupling",
        "__init__.py": "",
    }
    assert {path: size["former_room"](path) for path in expected} == expected
    with pytest.raises(SystemExit, match=r"fxprune/unheard\.py: add it"):
        size["former_room"]("unheard.py")


@pytest.mark.slow
@pytest.mark.skipif(without_history(), reason="no repository to take a revision from")
def test_size_against_a_revision(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FXPRUNE_RESULTS", str(tmp_path))
    monkeypatch.setattr(sys, "argv", ["size.py", "--quick", "--against", "HEAD"])
    script("size", monkeypatch)
    rows = {(row["part"], row["room"]): row for row in json.loads((tmp_path / "size-quick.json").read_text())["rows"]}
    for part in ("core", "rim", "all"):
        now, then, difference = (rows[part, room] for room in ("total", "HEAD", "difference"))
        assert all(now[key] - then[key] == difference[key] for key in ("files", "lines", "code", "statements"))
        assert now["code"] > 1000
    assert rows["all", "total"]["code"] == rows["core", "total"]["code"] + rows["rim", "total"]["code"]
    monkeypatch.setattr(sys, "argv", ["size.py", "--quick", "--against", "no-such-revision"])
    with pytest.raises(SystemExit, match="expected a revision that git knows, got 'no-such-revision'"):
        script("size", monkeypatch)
