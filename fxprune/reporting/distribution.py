"""The distribution of scores: how the units rank, by group, and where the cut fell. Counts only."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor

from fxprune._base import untrusted
from fxprune._base.errors import PlanError
from fxprune.algebra.channels import Mask
from fxprune.budget.budget import Budget
from fxprune.budget.constraints import Constraints, free_groups
from fxprune.budget.cost import cost_model
from fxprune.budget.solver import Bound, Solution, ranking
from fxprune.coupling.coupling import Coupling
from fxprune.coupling.unit_scores import STAYS
from fxprune.rewriting.planning import gone_with

#: Bins of every histogram.
BINS = 32

#: From this ratio of the largest to the median value on, the bins are even in the logarithm.
_WIDE = 20.0

#: Logarithmic bins reach down to this share of the largest value; the first holds all that lies below.
_REACH = 1e-8

#: Values as close together as this share of the largest are taken to be equal.
_ROUNDING = 1e-9

#: Below this numbers lose their digits.
_TINY = 1e-300

Floats = npt.NDArray[np.float64]
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
        return tuple(sum(column) for column in zip(*(group.kept for group in self.groups), strict=True))

    @property
    def removed(self) -> Counts:
        """Units that go, for each bin."""
        return tuple(sum(column) for column in zip(*(group.removed for group in self.groups), strict=True))

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
        read = partial(_read_group, bins=len(edges) - 1)
        return cls(**{**found, "groups": untrusted.sequence_of(groups, f"{where}: groups", read)})


def summarize(
    coupling: Coupling, scores: Mapping[str, Tensor], gone: Mask, budget: Budget | None, *,
    constraints: Constraints, per_cost: bool = True, bound: Bound | None = None,
) -> ScoreSummary | None:  # fmt: skip
    """Returns how the units rank, and where the cut fell; None if no unit could go.

    Args:
        coupling: of the model as it came.
        scores: for each group's name a score for each unit.
        gone: a flag for each channel id that is removed.
        budget: what was solved for; None with ratios by layer.
        constraints: what had to stay.
        per_cost: whether scores were divided by what a unit costs, under a budget.
        bound: on the latency of the model as it came, whose costs they were divided by.
    """
    per_cost = per_cost and budget is not None
    worth = ranking(coupling, scores, cost_model(coupling), budget if per_cost else None, bound)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # solve has told of patterns that match nothing
        ids = {g.name: coupling.units[g.units] for g in free_groups(coupling, constraints)}
    ids = {name: units for name, units in ids.items() if len(units) and not (worth[units] == STAYS).all()}
    if not ids:
        return None
    every = np.concatenate(list(ids.values()))
    edges, log = _edges(worth[every])
    overall = budget is not None
    cut = _cut(worth[every], gone[every]) if overall else None
    groups = []
    for name, units in ids.items():
        values, out = worth[units], gone[units]
        own = None if overall else _cut(values, out)
        groups.append(GroupScores(name, _count(values[~out], edges), _count(values[out], edges), own))
    values, out = worth[every], gone[every]
    astray = (0, 0) if cut is None else (int((values[~out] < cut).sum()), int((values[out] > cut).sum()))
    cost = "parameter" if budget is not None and budget.params is not None else "MAC"
    unit = f"score per {cost if bound is None else 'millisecond'}" if per_cost else "score"
    return ScoreSummary(unit, tuple(edges.tolist()), log, cut, astray, tuple(groups))


def _edges(values: Floats) -> tuple[Floats, bool]:
    """Returns the borders of the bins, and whether they are even in the logarithm."""
    low, high = float(values.min()), float(values.max())
    log = low >= 0 and high > 0 and high > _WIDE * float(np.median(values))
    if low > 0 and high > _WIDE * low:
        log = True
    if log:
        low = max(float(values[values > 0].min()), high * _REACH)
    rounding = _ROUNDING * max(abs(low), abs(high), _TINY)
    if high - low <= rounding:
        log, margin = False, max(0.5, rounding)
        low, high = low - margin, high + margin
    edges = np.geomspace(low, high, BINS + 1) if log else np.linspace(low, high, BINS + 1)
    short = np.array([float(f"{edge:.6g}") for edge in edges])
    return (short if (np.diff(short) > 0).all() else edges), log


def _count(values: Floats, edges: Floats) -> Counts:
    inside = np.searchsorted(edges[1:-1], values, side="right")
    return tuple(np.bincount(inside, minlength=len(edges) - 1).tolist())


def _cut(values: Floats, gone: Mask) -> float | None:
    """Returns the value with the fewest units on the wrong side of it; None if nothing goes, or all."""
    if not gone.any() or gone.all():
        return None
    order = np.argsort(values, kind="stable")
    values, gone = values[order], gone[order]
    wrong = np.cumsum(~gone)[:-1] + (gone.sum() - np.cumsum(gone)[:-1])  # cut after the i-th
    apart = values[:-1] < values[1:]
    if not apart.any():
        return float(values[0])
    at = int(np.where(apart, wrong, len(values) + 1).argmin())
    low, high = float(values[at]), float(values[at + 1])
    return (low * high) ** 0.5 if low > 0 else (low + high) / 2


def _packed(counts: Counts) -> str:
    """Returns counts as text, without the zeros at the end."""
    filled = max((i for i, count in enumerate(counts) if count), default=-1) + 1
    return " ".join(map(str, counts[:filled]))


def _read_group(value: Any, where: str, bins: int) -> GroupScores:
    counts = partial(_read_counts, bins=bins)
    name, cut, kept, removed = untrusted.row_of(value, where, untrusted.string, _read_cut, counts, counts)
    return GroupScores(name, kept, removed, cut)


def _read_counts(value: Any, where: str, bins: int) -> Counts:
    parts = untrusted.string(value, where).split()
    good = len(parts) <= bins and all(part.isascii() and part.isdigit() and len(part) < 19 for part in parts)
    if not good:
        raise untrusted.refusal(value, where, f"at most {bins} counts")
    return tuple(map(int, parts)) + (0,) * (bins - len(parts))


_read_cut = untrusted.maybe(untrusted.real)

_READERS: dict[str, untrusted.Reader[Any]] = {
    "unit": untrusted.string,
    "edges": partial(untrusted.sequence_of, read=untrusted.real),
    "log": untrusted.boolean,
    "cut": _read_cut,
    "astray": lambda value, where: untrusted.row_of(value, where, untrusted.integer, untrusted.integer),
    "groups": untrusted.sequence,
}


def score_summary(
    coupling: Coupling, solution: Solution, scores: Mapping[str, Tensor], budget: Budget | None, *,
    constraints: Constraints, per_cost: bool = True, bound: Bound | None = None,
) -> ScoreSummary | None:  # fmt: skip
    """Returns how the units of the model as it came rank, and where the cut fell (see `summarize`)."""
    left, gone = solution.selection.coupling, gone_with(solution.selection)
    flags = {group.name: gone[left.units[group.units]] for group in left.groups}
    removed = np.zeros(len(coupling.channels), bool)
    for group in coupling.groups:  # a bridged group is not among those that are left
        mine = flags.get(group.name)
        removed[coupling.units[group.units]] = mine if mine is not None and len(mine) == len(group.units) else True
    return summarize(coupling, scores, removed, budget, constraints=constraints, per_cost=per_cost, bound=bound)
