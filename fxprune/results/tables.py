"""Tables as text: the parts of what is printed of a compilation that several printings share."""

from __future__ import annotations

from collections import Counter
from collections.abc import Container, Iterable, Sequence
from typing import Any, TypeVar

T = TypeVar("T")

#: The rows of a table that are printed; the middle of a longer one is left out.
ROWS = 24

_NUMERIC = {"before", "after", "kept", "smaller", "coordinates", "axes", "units"}


def table(
    title: str,
    rows: Iterable[Sequence[Any]],
    headers: Sequence[str],
    *,
    width: int | None = None,
    words: Container[str] | None = None,
) -> str:
    """Returns a table under its title; columns of numbers are known by their headers.

    Args:
        title: the line above.
        rows: the cells.
        headers: of the columns.
        width: characters after which a column of words is broken; None never breaks one.
        words: the headers of the columns that hold no numbers; None knows those of reports.
    """
    from tabulate import tabulate

    numeric = [header in _NUMERIC if words is None else header not in words for header in headers]
    return f"{title}\n" + tabulate(
        rows,
        headers,
        tablefmt="simple",
        disable_numparse=True,
        colalign=["right" if one else "left" for one in numeric],
        maxcolwidths=None if width is None else [None if one else width for one in numeric],
    )


def by_reason(frozen: Iterable[tuple[str, T, int]]) -> list[tuple[str, int, list[T]]]:
    """Returns (reason, coordinates, what it holds) of what is frozen, most coordinates first.

    Args:
        frozen: (reason, what, coordinates).
    """
    coordinates: Counter[str] = Counter()
    held: dict[str, list[T]] = {}
    for reason, what, count in frozen:
        coordinates[reason] += count
        held.setdefault(reason, []).append(what)
    return [(reason, count, held[reason]) for reason, count in coordinates.most_common()]


def frozen_table(frozen: Iterable[tuple[str, str, int]]) -> str:
    """Returns what is frozen by reason, most coordinates first; nothing if nothing is.

    Args:
        frozen: (reason, tensor and axis, coordinates).
    """
    rows = [(reason, count, len(axes), few(axes, 2)) for reason, count, axes in by_reason(frozen)]
    return table("frozen, and why", elided(rows), ("reason", "coordinates", "axes", "such as")) if rows else ""


def elided(rows: Sequence[tuple[Any, ...]]) -> list[tuple[Any, ...]]:
    """Leaves out the middle of a long table, saying how much."""
    if len(rows) <= ROWS:
        return list(rows)
    half = ROWS // 2
    gap = (f"... {len(rows) - 2 * half} more ...", *[""] * (len(rows[0]) - 1))
    return [*rows[:half], gap, *rows[-half:]]


def few(names: Sequence[str], count: int | None = None) -> str:
    """Returns the first names of layers, or all, and how many more there are; the model itself has an empty one."""
    more = f" +{len(names) - count}" if count is not None and len(names) > count else ""
    return ", ".join(name or "the model itself" for name in names[:count]) + more


def percent(before: float, after: float) -> str:
    """Returns the share that is left, as text."""
    return f"{100 * after / before:.1f} %" if before else "-"


def share(before: float, after: float) -> float:
    """Returns the percentage that is left; 0 of nothing."""
    return 100 * after / before if before else 0.0


def in_ms(value: float) -> str:
    """Returns milliseconds with their unit, of three figures or all that are whole."""
    return f"{value:.0f} ms" if value >= 100 else f"{value:.3g} ms"


def counted(number: int, one: str, many: str = "") -> str:
    """Returns a number of things in words, such as ``1 layer`` or ``1,200 layers``."""
    return f"{number:,} {one if number == 1 else many or one + 's'}"
