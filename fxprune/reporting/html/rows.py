"""Tables, numbers and the tree of groups, as the templates take them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from fxprune.results.record import GroupRow
from fxprune.results.scores import GroupScores, ScoreSummary
from fxprune.results.tables import percent

#: Up to so many groups stand in one list.
FLAT = 12

#: More parts than any model's names have; the tree is no deeper.
_DEPTH = 32


@dataclass(frozen=True, slots=True)
class Table:
    """A table: its caption, its heads, which columns are numbers, and its rows as text."""

    caption: str
    heads: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]

    @property
    def numeric(self) -> frozenset[int]:
        """The columns that hold nothing but numbers."""
        columns = range(1, len(self.heads))
        return frozenset(c for c in columns if self.rows and all(_is_number(row[c]) for row in self.rows))


@dataclass(slots=True)
class Branch:
    """A part of the model's tree: groups, and parts of their own, in the model's order."""

    label: str
    parts: list[Any] = field(default_factory=list)
    count: int = 0
    group: None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupView:
    """One group as the page shows it."""

    id: str
    name: str
    kind: str
    before: int
    after: int
    share: float
    percent: str
    known: bool
    producers: tuple[str, ...]
    consumers: tuple[tuple[str, tuple[tuple[str, str], ...]], ...]
    search: str
    bins: tuple[tuple[float, float], ...]
    spark: str


@dataclass(frozen=True, slots=True)
class Leaf:
    """A group in the tree."""

    group: GroupView


def table(caption: str, heads: Sequence[str], rows: Iterable[Sequence[Any]]) -> Table:
    """Returns a table; whole numbers get separators."""
    text = tuple(tuple(f"{c:,}" if isinstance(c, int) else str(c) for c in row) for row in rows)
    return Table(caption, tuple(heads), text)


def group_views(groups: Sequence[GroupRow], scores: ScoreSummary | None) -> list[GroupView]:
    """Returns the groups with links to the groups that their readers make."""
    ids = {row.name: f"group-{index}" for index, row in enumerate(groups)}
    made_by: dict[str, list[str]] = {}
    for row in groups:
        for layer in row.producers if row.makers is not None else ():
            made_by.setdefault(layer, []).append(row.name)
    ranked = {} if scores is None else {group.name: group for group in scores.groups}
    views = []
    for row in groups:
        consumers = tuple(
            (layer, tuple((ids[name], name) for name in made_by.get(layer, ()) if name != row.name))
            for layer in row.consumers
        )
        bins, spark = _spark(ranked.get(row.name), scores)
        views.append(
            GroupView(
                id=ids[row.name],
                name=row.name,
                kind=row.kind,
                before=row.before,
                after=row.after,
                share=100 * row.after / max(row.before, 1),
                percent=percent(row.before, row.after),
                known=row.makers is not None,
                producers=row.producers,
                consumers=consumers,
                search=" ".join((row.name, row.kind, *row.layers)).lower(),
                bins=bins,
                spark=spark,
            )
        )
    return views


def tree(views: Sequence[GroupView]) -> Branch:
    """Returns the groups by the modules that they lie in; few groups stay in one list."""
    root = Branch("")
    for view in views:
        node = root
        path = view.name.partition(":")[0].split(".")[:-1][:_DEPTH] if len(views) > FLAT else []
        for depth in range(len(path)):
            label = ".".join(path[: depth + 1])
            inner = next((p for p in node.parts if isinstance(p, Branch) and p.label == label), None)
            if inner is None:
                inner = Branch(label)
                node.parts.append(inner)
            node = inner
        node.parts.append(Leaf(view))
    _count(root)
    return _simplified(root)


def _count(node: Branch) -> int:
    node.count = sum(_count(part) if isinstance(part, Branch) else 1 for part in node.parts)
    return node.count


def _simplified(node: Branch) -> Branch:
    """Returns a tree without parts that hold a single thing."""
    parts: list[Any] = []
    for part in node.parts:
        inner = _simplified(part) if isinstance(part, Branch) else part
        parts += inner.parts if isinstance(inner, Branch) and len(inner.parts) == 1 else [inner]
    return Branch(node.label, parts, node.count)


def _spark(group: GroupScores | None, scores: ScoreSummary | None) -> tuple[tuple[tuple[float, float], ...], str]:
    if group is None or scores is None:
        return (), ""
    total = [a + b for a, b in zip(group.kept, group.removed, strict=True)]
    if not any(total):
        return (), ""
    scale = 23 / max(total)
    bins = tuple((t * scale, r * scale) for t, r in zip(total, group.removed, strict=True))
    filled = [i for i, count in enumerate(total) if count]
    low, high = scores.edges[filled[0]], scores.edges[filled[-1] + 1]
    text = f"{scores.unit} from {low:.3g} to {high:.3g}: {sum(group.kept)} stay, {sum(group.removed)} go"
    return bins, text + (f"; cut at {group.cut:.3g}" if group.cut is not None else "")


def _is_number(text: str) -> bool:
    return (
        text in ("-", "")
        or text.replace(",", "")
        .replace(" %", "")
        .replace(".", "")
        .replace("e", "")
        .replace("-", "")
        .replace("+", "")
        .replace(" x", "")
        .isdigit()
    )
