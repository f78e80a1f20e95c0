"""How the units of a model rank, by group, and where the cut fell: histograms, counts only."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any

from fxprune._base import untrusted
from fxprune._base.errors import PlanError

#: Bins of every histogram.
BINS = 32


Counts = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class GroupScores:
    """How the units of one group rank.

    Attributes:
        name: the group's name.
        kept: units that stay, for each bin.
        removed: units that go, for each bin.
        cut: what separates the two, where each group has its own share to lose; None under a global ranking.
    """

    name: str
    kept: Counts
    removed: Counts
    cut: float | None = None

    @property
    def total(self) -> Counts:
        """Units, for each bin."""
        return tuple(map(sum, zip(self.kept, self.removed, strict=True)))


@dataclass(frozen=True, slots=True)
class ScoreSummary:
    """The values by which units were ranked, as histograms over the same bins.

    Attributes:
        unit: what was ranked: ``"score"``, or ``"score per parameter"``, ``"... MAC"`` or ``"... millisecond"``.
        edges: the borders of the bins, ascending; values beyond them count in the first and the last bin.
        log: whether the bins are even in the logarithm.
        cut: the value that separates best what stays from what goes; None where each group has its own, or
            nothing goes.
        astray: units (that stay below the cut, that go above it): minimum widths, multiples and exact budgets
            do that.
        groups: the groups that could lose units; what was held back is not among them.
    """

    unit: str
    edges: tuple[float, ...]
    log: bool
    cut: float | None
    astray: tuple[int, int]
    groups: tuple[GroupScores, ...]

    @property
    def kept(self) -> Counts:
        """Units that stay, for each bin."""
        return self._added("kept")

    @property
    def removed(self) -> Counts:
        """Units that go, for each bin."""
        return self._added("removed")

    @property
    def total(self) -> Counts:
        """Units, for each bin."""
        return self._added("total")

    def _added(self, which: str) -> Counts:
        return tuple(map(sum, zip(*(getattr(group, which) for group in self.groups), strict=True)))

    def span(self, group: GroupScores) -> tuple[float, float]:
        """Returns the borders of the bins that a group fills; no numbers where it has no units."""
        filled = [index for index, count in enumerate(group.total) if count]
        return (self.edges[filled[0]], self.edges[filled[-1] + 1]) if filled else (math.nan, math.nan)

    def to_dict(self) -> dict[str, Any]:
        """Returns the summary as JSON data; counts are one line of text each."""
        return {
            "unit": self.unit,
            "edges": list(self.edges),
            "log": self.log,
            "cut": self.cut,
            "astray": list(self.astray),
            "groups": [[g.name, g.cut, _packed(g.kept), _packed(g.removed)] for g in self.groups],
        }

    @classmethod
    def from_dict(cls, data: Any, where: str) -> ScoreSummary:
        """Returns the summary that ``to_dict`` gave.

        Raises:
            PlanError: the data are damaged; says where.
        """
        found = untrusted.fields_of(data, where, _READERS)
        edges, groups = found["edges"], found["groups"]
        if len(edges) < 2 or any(low >= high for low, high in pairwise(edges)):
            raise PlanError(f"{where}: edges: expected at least 2 ascending numbers, got {len(edges)}")
        if found["log"] and edges[0] <= 0:
            raise PlanError(f"{where}: edges: expected positive numbers, got {edges[0]}")
        rows = untrusted.sequence_of(groups, f"{where}: groups", partial(_read_group, bins=len(edges) - 1))
        return cls(**{**found, "groups": rows})


def _packed(counts: Counts) -> str:
    """Returns counts as text, without the zeros at the end."""
    filled = max((i for i, count in enumerate(counts) if count), default=-1) + 1
    return " ".join(map(str, counts[:filled]))


def _read_group(value: Any, where: str, bins: int) -> GroupScores:
    counts = partial(_read_counts, bins=bins)
    name, cut, kept, removed = untrusted.row_of(value, where, untrusted.string, _read_cut, counts, counts)
    return GroupScores(name, kept, removed, cut)


def read_pair(value: Any, where: str) -> tuple[int, int]:
    """Returns two integers."""
    first, second = untrusted.row_of(value, where, untrusted.integer, untrusted.integer)
    return first, second


def _read_counts(value: Any, where: str, bins: int) -> Counts:
    parts = untrusted.string(value, where).split()
    if len(parts) > bins or not all(part.isascii() and part.isdigit() and len(part) < 19 for part in parts):
        raise untrusted.refusal(value, where, f"at most {bins} counts")
    return tuple(map(int, parts)) + (0,) * (bins - len(parts))


_read_cut = untrusted.maybe(untrusted.real)

_READERS: dict[str, untrusted.Reader[Any]] = {
    "unit": untrusted.string,
    "edges": partial(untrusted.sequence_of, read=untrusted.real),
    "log": untrusted.boolean,
    "cut": _read_cut,
    "astray": read_pair,
    "groups": untrusted.sequence,
}
