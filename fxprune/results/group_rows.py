"""The rows of a table of groups: those that lost the largest share of their units first, alike ones together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from fxprune.results.alike import folded
from fxprune.results.tables import counted, few, percent, spanned

if TYPE_CHECKING:
    from fxprune.results.record import GroupRow

#: Up to so many groups have a row each.
FEW = 16

#: Rows that groups which are alike take at most, and names in the line about those that lose nothing.
_ROWS, _NAMES = 18, 4


def group_rows(groups: Sequence[GroupRow]) -> tuple[tuple[str, ...], list[tuple[object, ...]], str]:
    """Returns heads, rows of cells, and a line about the groups that lose nothing; few groups have a row each."""
    if len(groups) <= FEW:
        cells = [
            (g.name, g.kind, few(g.layers, 2), g.before, g.after, percent(g.before, g.after))
            for g in _most_lost_first(groups)
        ]
        return ("group", "kind", "layers", "before", "after", "kept"), list(cells), ""
    losing = [row for row in groups if row.after < row.before]
    alike = [(name, [losing[place] for place in places]) for name, places in _patterns(losing, _ROWS)]
    alike.sort(key=lambda one: sum(g.after for g in one[1]) / sum(g.before for g in one[1]))
    rows = [_row(name, same) for name, same in alike[:_ROWS]]
    if len(alike) > _ROWS:
        left = sum(len(same) for _, same in alike[_ROWS:])
        rows.append((f"... {left} more, which lose less ...", *[""] * 5))
    keep = [row for row in groups if row.after >= row.before]
    names = [f"{name} ({len(places)})" if len(places) > 1 else name for name, places in _patterns(keep, _NAMES)]
    whole = (
        f"{counted(len(keep), 'group')} keep{'s' if len(keep) == 1 else ''} all: {few(names, _NAMES)}" if keep else ""
    )
    return ("group", "kind", "groups", "before", "after", "kept"), rows, whole


def _patterns(groups: Sequence[GroupRow], most: int) -> list[tuple[str, list[int]]]:
    return folded([row.name for row in groups], most)


def _row(name: str, groups: Sequence[GroupRow]) -> tuple[object, ...]:
    """Returns the cells of groups that are alike: widths and shares from the least to the most."""
    kinds = ", ".join(dict.fromkeys(row.kind for row in groups))
    kept = sorted((row.after / row.before, percent(row.before, row.after)) for row in groups)
    shares = kept[0][1] if kept[0][1] == kept[-1][1] else f"{kept[0][1].removesuffix(' %')} .. {kept[-1][1]}"
    before, after = (spanned([getattr(row, key) for row in groups]) for key in ("before", "after"))
    return name, kinds, len(groups), before, after, shares


def _most_lost_first(groups: Sequence[GroupRow]) -> list[GroupRow]:
    """Returns the groups by the share of their units that goes, largest first; of equal shares the front one first."""
    return sorted(groups, key=lambda row: row.after / row.before if row.before else 1.0)
