"""Tables, numbers and the tree of groups, as the templates take them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import accumulate, groupby
from typing import Any

from fxprune.results.record import GroupRow
from fxprune.results.scores import ScoreSummary

#: Up to so many groups stand in one list.
FLAT = 12

#: Up to so many groups show how their scores are distributed.
SPARKS = 60

#: More parts than any model's names have; the tree is no deeper.
_DEPTH = 32

#: What stands in a number beside its digits.
_SIGNS = re.compile(r" %| x| \+- |[,.e+-]")


@dataclass(frozen=True, slots=True)
class Table:
    """A table: its caption, its heads, which columns are numbers, and its rows as text."""

    caption: str
    heads: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]

    @property
    def numeric(self) -> frozenset[int]:
        """The columns that hold nothing but numbers."""
        columns = list(zip(*self.rows, strict=True))
        return frozenset(c for c in range(1, len(columns)) if all(map(_is_number, columns[c])))


@dataclass(frozen=True, slots=True)
class Spark:
    """How the scores of a group are distributed: so many bins, the outlines of all units and of those that go, and in words."""

    bins: int
    total: str
    removed: str
    text: str


@dataclass(frozen=True, slots=True)
class GroupView:
    """One group as the page shows it.

    Attributes:
        id: of its element.
        row: of the report.
        consumers: the layers that read its units, each with the (id, name) of the groups whose units it makes.
        spark: how its scores are distributed.
    """

    id: str
    row: GroupRow
    consumers: tuple[tuple[str, tuple[tuple[str, str], ...]], ...]
    spark: Spark | None = None


@dataclass(slots=True)
class Branch:
    """A part of the model's tree: groups, and parts of their own, in the model's order."""

    label: str
    parts: list[Branch | GroupView] = field(default_factory=list)

    @property
    def count(self) -> int:
        """The groups in it."""
        return sum(part.count if isinstance(part, Branch) else 1 for part in self.parts)


def table(caption: str, heads: Sequence[str], rows: Iterable[Sequence[Any]]) -> Table:
    """Returns a table; whole numbers get separators."""
    text = tuple(tuple(f"{c:,}" if isinstance(c, int) else str(c) for c in row) for row in rows)
    return Table(caption, tuple(heads), text)


def group_views(groups: Sequence[GroupRow], scores: ScoreSummary | None) -> list[GroupView]:
    """Returns the groups with links to the groups that their readers make."""
    ids = {row.name: f"g{index}" for index, row in enumerate(groups)}
    made_by: dict[str, list[str]] = {}
    for row in groups:
        for layer in row.producers if row.makers is not None else ():
            made_by.setdefault(layer, []).append(row.name)
    sparks = {} if scores is None or len(groups) > SPARKS else _sparks(scores)
    views = []
    for row in groups:
        consumers = tuple(
            (layer, tuple((ids[name], name) for name in made_by.get(layer, ()) if name != row.name))
            for layer in row.consumers
        )
        views.append(GroupView(ids[row.name], row, consumers, sparks.get(row.name)))
    return views


def tree(views: Sequence[GroupView]) -> Branch:
    """Returns the groups by the modules that they lie in; few groups stay in one list."""
    root = Branch("")
    branches: dict[str, Branch] = {}
    for view in views:
        node = root
        path = view.row.name.partition(":")[0].split(".")[:-1][:_DEPTH] if len(views) > FLAT else []
        for label in accumulate(path, lambda outer, name: f"{outer}.{name}"):
            if label not in branches:
                branches[label] = Branch(label)
                node.parts.append(branches[label])
            node = branches[label]
        node.parts.append(view)
    return _simplified(root)


def _simplified(node: Branch) -> Branch:
    """Returns a tree without parts that hold a single thing."""
    parts: list[Branch | GroupView] = []
    for part in node.parts:
        inner = _simplified(part) if isinstance(part, Branch) else part
        parts += inner.parts if isinstance(inner, Branch) and len(inner.parts) == 1 else [inner]
    return Branch(node.label, parts)


def _sparks(scores: ScoreSummary) -> dict[str, Spark]:
    """Returns bins and words for each group that has any units."""
    found = {}
    for group in scores.groups:
        if any(group.total):
            low, high = scores.span(group)
            text = f"{scores.unit} from {low:.3g} to {high:.3g}: {sum(group.kept)} stay, {sum(group.removed)} go"
            text += f"; cut at {group.cut:.3g}" if group.cut is not None else ""
            total, removed = (_outline(counts, max(group.total)) for counts in (group.total, group.removed))
            found[group.name] = Spark(len(group.total), total, removed, text)
    return found


def _outline(counts: Sequence[int], top: int) -> str:
    """Returns the path around bins, 24 high where one is as full as ``top``; empty of empty ones."""
    runs = ((height, len(list(run))) for height, run in groupby(counts, key=lambda count: -(-24 * count // top)))
    return f"M0 24{''.join(f'V{24 - height}h{length}' for height, length in runs)}V24z" if any(counts) else ""


def _is_number(text: str) -> bool:
    return text in ("-", "") or _SIGNS.sub("", text).isdigit()
