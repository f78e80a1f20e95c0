"""Tables as text: the parts of what is printed of a compilation that several printings share."""

from __future__ import annotations

from collections import Counter
from collections.abc import Container, Iterable, Sequence
from typing import Any, TypeVar

from fxprune.results.alike import folded

T = TypeVar("T")

#: The reasons that are printed; of more the ones that hold least are left out.
REASONS = 8

_NUMERIC = {"before", "after", "kept", "smaller", "coordinates", "axes", "units", "groups"}


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

    Many reasons that differ in numbers alone are one.

    Args:
        frozen: (reason, tensor and axis, coordinates).
    """
    found = by_reason(frozen)
    alike = [(name, [found[place] for place in places]) for name, places in folded([one[0] for one in found], REASONS)]
    rows = [
        (
            name,
            sum(one[1] for one in same),
            sum(len(one[2]) for one in same),
            few([x for one in same for x in one[2]], 2),
        )
        for name, same in alike
    ]
    rows.sort(key=lambda row: -row[1])
    if len(rows) > REASONS:
        rows[REASONS:] = [(f"... {counted(len(rows) - REASONS, 'more reason')} ...", *_sums(rows[REASONS:]), "")]
    return table("frozen, and why", rows, ("reason", "coordinates", "axes", "such as")) if rows else ""


def _sums(rows: Sequence[tuple[str, int, int, str]]) -> tuple[int, int]:
    return sum(row[1] for row in rows), sum(row[2] for row in rows)


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


def spanned(numbers: Sequence[int]) -> str:
    """Returns the number that all are, or the least and the most."""
    least, most = min(numbers), max(numbers)
    return f"{least}" if least == most else f"{least} .. {most}"


def in_ms(value: float) -> str:
    """Returns milliseconds with their unit, of three figures or all that are whole."""
    return f"{value:.0f} ms" if value >= 100 else f"{value:.3g} ms"


def speedup_text(dense_ms: float | None, pruned_ms: float | None) -> str:
    """Returns the speed-up, dense time by pruned time, such as ``2.01 x``; empty where either is not known."""
    return f"{dense_ms / pruned_ms:.2f} x" if dense_ms and pruned_ms else ""


def counted(number: int, one: str, many: str = "") -> str:
    """Returns a number of things in words, such as ``1 layer`` or ``1,200 layers``."""
    return f"{number:,} {one if number == 1 else many or one + 's'}"
