"""Rows of a long benchmark survive an interruption."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.common.kept import Kept


def test_rows_are_made_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "rows.jsonl"
    first = Kept(path)
    assert not first.notes and not first.has({"a": 1})
    first.add({"a": 1}, lambda: {"x": 0.5})
    with path.open("a") as file:
        file.write('\n{"a": 2, "x"')  # killed while it wrote

    again = Kept(path)
    assert again.has({"a": 1}) and not again.has({"a": 2}) and again.rows == []
    assert again.add({"a": 1}, lambda: pytest.fail("made twice")) == {"a": 1, "x": 0.5}
    again.add({"a": 2}, lambda: {"x": 1.5})
    assert again.rows == [{"a": 1, "x": 0.5}, {"a": 2, "x": 1.5}]
    assert again.notes == ["1 rows are of an earlier, interrupted run."]
    assert len(capsys.readouterr().out.splitlines()) == 3

    assert [Kept(path).has({"a": n}) for n in (1, 2, 3)] == [True, True, False]


def test_without_a_file_nothing_is_kept() -> None:
    kept = Kept(None)
    kept.add({"a": 1}, lambda: {"x": 2})
    assert kept.rows == [{"a": 1, "x": 2}] and not kept.has({"a": 1})


def test_a_long_row_is_printed_in_short(capsys: pytest.CaptureFixture[str]) -> None:
    Kept(None, shown=("a",)).add({"a": 1}, lambda: {"x": [2] * 100})
    assert capsys.readouterr().out == "{'a': 1}\n"
