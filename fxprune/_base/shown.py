"""Summaries: a few lines for a terminal, and a small table for a notebook."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from typing import Any

#: Lines that a summary has at most, so that it can be the last thing in a cell.
LINES = 25


def text_summary(title: str, lines: Iterable[str]) -> str:
    """Returns a title and lines below it; the middle of what is too long is left out, and how much it is."""
    found = list(lines)
    if len(found) > LINES - 1:
        half = (LINES - 2) // 2
        found = [*found[:half], f"... {len(found) - 2 * half} more ...", *found[-half:]]
    return "\n".join([title, *(f"  {line:.160}" for line in found)])


def html_summary(
    title: str, facts: Iterable[tuple[str, Any]], heads: Sequence[str] = (), rows: Iterable[Any] = ()
) -> str:
    """Returns a title, facts and a table as HTML, whatever is in them as text; of a long table both ends.

    Args:
        title: in bold.
        facts: (name, value) pairs, a line each.
        heads: of the table's columns.
        rows: of its cells.
    """
    found = [tuple(row) for row in rows]
    if len(found) > LINES:
        gap = (f"{len(found) - LINES + 1} more", *[""] * (len(heads) - 1))
        found = [*found[: LINES // 2], gap, *found[-(LINES // 2) :]]
    lines = "".join(f"<div>{escape(name)}: {escape(str(value))}</div>" for name, value in facts)
    cells = "".join(f"<tr>{''.join(f'<td>{escape(str(cell))}</td>' for cell in row)}</tr>" for row in found)
    head = "".join(f"<th>{escape(name)}</th>" for name in heads)
    table = f"<table><thead><tr>{head}</tr></thead><tbody>{cells}</tbody></table>" if found else ""
    return f"<div><b>{escape(title)}</b>{lines}{table}</div>"
