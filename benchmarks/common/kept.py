"""Rows of a long benchmark, kept in a file as they come, so that an interrupted run goes on where it was."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

Row = dict[str, Any]


class Kept:
    """A table that grows by rows of a key (what was asked) and values (what came out).

    Args:
        path: a file of JSON lines; those that are there already are not made again. None keeps nothing.
        shown: what is printed of a row; all of it by default.
    """

    def __init__(self, path: Path | None, shown: Collection[str] | None = None) -> None:
        self._shown = shown
        self.rows: list[Row] = []
        self._path = path
        self._known: list[Row] = []
        if path is not None and path.exists():
            for line in path.read_text().splitlines():
                try:
                    self._known.append(json.loads(line))
                except json.JSONDecodeError:  # empty, or cut short
                    continue
        self.notes = [f"{len(self._known)} rows are of an earlier, interrupted run."] if self._known else []

    def has(self, key: Mapping[str, Any]) -> bool:
        """Returns whether a row is there already."""
        return self._find(key) is not None

    def add(self, key: Mapping[str, Any], make: Callable[[], Mapping[str, Any]]) -> Row:
        """Adds the row of a key, from the file if it is there, and prints it; ``make`` returns its values."""
        row = self._find(key)
        if row is None:
            row = {**key, **make()}
            if self._path is not None:
                with self._path.open("a") as file:
                    file.write("\n" + json.dumps(row))  # apart from a line that was cut short
        self.rows.append(row)
        print({k: v for k, v in row.items() if self._shown is None or k in self._shown}, flush=True)
        return row

    def _find(self, key: Mapping[str, Any]) -> Row | None:
        return next((r for r in self._known if all(r.get(k) == v for k, v in key.items())), None)
