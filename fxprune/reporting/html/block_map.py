"""The map of what went where: a block for every group, front to back, in a lane for each kind of unit and pattern of names."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from fxprune.reporting.html.rows import GroupView
from fxprune.results.alike import folded
from fxprune.results.tables import counted, percent, spanned

#: How kinds of unit are called on the page.
KINDS = {
    "channel": "Channels",
    "expert": "Experts",
    "head": "Heads",
    "kv_group": "Key and value heads",
    "head_dim": "Dimensions of heads",
    "block": "Blocks",
}

#: What the colours of the blocks stand for: nothing lost, then a fifth of the units a step.
LEVELS = ("all kept", "80 % kept or more", "60 % or more", "40 % or more", "20 % or more", "less")

#: Lanes of one kind; blocks that one lane takes whatever their names are.
_LANES, _SHORT = 6, 12


@dataclass(frozen=True, slots=True)
class Block:
    """One group on the map.

    Attributes:
        target: the id of the group's element.
        label: its full name, and what is left, in words.
        kept: the percentage that is left, whole; 100 of nothing but all, 0 of nothing but none.
        level: of its colour, a place in `LEVELS`.
    """

    target: str
    label: str
    kept: int
    level: int


@dataclass(frozen=True, slots=True)
class Lane:
    """Blocks side by side, front to back: what they are, how wide in all, and whose they are."""

    kind: str
    name: str
    text: str
    blocks: tuple[Block, ...]


def lanes(views: Sequence[GroupView]) -> list[Lane]:
    """Returns the lanes of every kind of unit, in the order in which the kinds come up."""
    kinds: dict[str, list[GroupView]] = {}
    for view in views:
        kinds.setdefault(view.row.kind, []).append(view)
    return [
        _lane(KINDS.get(kind, kind), name, same) for kind, found in kinds.items() for name, same in _by_pattern(found)
    ]


def _by_pattern(views: Sequence[GroupView]) -> Iterator[tuple[str, list[GroupView]]]:
    """Yields (pattern, groups); the patterns of few groups are one lane, without a name."""
    found = folded([view.row.name for view in views], _LANES) if len(views) > _SHORT else []
    large = sorted(found, key=lambda one: -len(one[1]))[:_LANES]
    named = [(name, places) for name, places in found if (name, places) in large and len(places) > 1]
    taken = {place for _, places in named for place in places}
    rest = [view for place, view in enumerate(views) if place not in taken]
    for name, places in named:
        yield name, [views[place] for place in places]
    if rest:
        yield "others" if named else "", rest


def _lane(kind: str, name: str, views: Sequence[GroupView]) -> Lane:
    rows = [view.row for view in views]
    before, after = sum(row.before for row in rows), sum(row.after for row in rows)
    text = (
        f"{counted(len(rows), 'group')}, {spanned([r.before for r in rows])} → {spanned([r.after for r in rows])} units"
    )
    return Lane(kind, name, f"{text}, {percent(before, after)} kept in all", tuple(map(_block, views)))


def _block(view: GroupView) -> Block:
    row = view.row
    kept = row.after / row.before if row.before else 1.0
    whole = 100 if kept >= 1 else min(max(round(100 * kept), int(kept > 0)), 99)
    level = next((i for i, least in enumerate((1.0, 0.8, 0.6, 0.4, 0.2)) if kept >= least), 5)
    return Block(view.id, f"{row.name}: {row.before} → {row.after} ({whole} %)", whole, level)
