"""The distribution of scores: how the units rank, by group, and where the cut fell. Counts only."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
from torch import Tensor

from fxprune.algebra.channels import Mask
from fxprune.budget.budget import Budget
from fxprune.budget.constraints import Constraints, free_groups
from fxprune.budget.scope import counted_by
from fxprune.budget.solver import Bound, Solution, ranking
from fxprune.coupling.coupling import Coupling
from fxprune.coupling.unit_scores import STAYS
from fxprune.results.scores import BINS, Counts, GroupScores, ScoreSummary
from fxprune.rewriting.planning import gone_with

#: From this ratio of the largest to the median value on, the bins are even in the logarithm.
_WIDE = 20.0

#: Logarithmic bins reach down to this share of the largest value; the first holds all that lies below.
_REACH = 1e-8

#: Values as close together as this share of the largest are taken to be equal.
_ROUNDING = 1e-9

#: Below this numbers lose their digits.
_TINY = 1e-300

Floats = npt.NDArray[np.float64]


def score_summary(
    coupling: Coupling,
    solution: Solution,
    scores: Mapping[str, Tensor],
    budget: Budget | None,
    *,
    constraints: Constraints,
    per_cost: bool = True,
    bound: Bound | None = None,
) -> ScoreSummary | None:
    """Returns how the units of the model as it came rank, and where the cut fell; None if no unit could go.

    Args:
        coupling: of the model as it came.
        solution: what goes of it, or of what bridges have left of it.
        scores: for each group's name a score for each unit, ``[units]``.
        budget: what was solved for; None with ratios by layer.
        constraints: what had to stay.
        per_cost: whether scores were divided by what a unit costs, under a budget.
        bound: on the latency of the model as it came, whose costs they were divided by.
    """
    per_cost = per_cost and budget is not None
    worth = ranking(coupling, scores, counted_by(coupling, budget), budget if per_cost else None, bound)
    ids = {g.name: coupling.units[g.units] for g in free_groups(coupling, constraints)}
    ids = {name: units for name, units in ids.items() if len(units) and not (worth[units] == STAYS).all()}
    if not ids:
        return None
    gone, every = _gone(coupling, solution), np.concatenate(list(ids.values()))
    edges, log = _edges(worth[every])
    cut = None if budget is None else _cut(worth[every], gone[every])
    groups = []
    for name, units in ids.items():
        values, out = worth[units], gone[units]
        kept, removed = _count(values[~out], edges), _count(values[out], edges)
        groups.append(GroupScores(name, kept, removed, _cut(values, out) if budget is None else None))
    values, out = worth[every], gone[every]
    astray = (0, 0) if cut is None else (int((values[~out] < cut).sum()), int((values[out] > cut).sum()))
    cost = "parameter" if budget is not None and budget.params is not None else "MAC"
    unit = f"score per {cost if bound is None else 'millisecond'}" if per_cost else "score"
    return ScoreSummary(unit, tuple(edges.tolist()), log, cut, astray, tuple(groups))


def _gone(coupling: Coupling, solution: Solution) -> Mask:
    """Returns which channels of the model as it came are removed."""
    left, gone = solution.selection.coupling, gone_with(solution.selection)
    flags = {group.name: gone[left.units[group.units]] for group in left.groups}
    removed = np.zeros(len(coupling.channels), bool)
    for group in coupling.groups:  # a bridged group is not among those that are left
        mine = flags.get(group.name)
        removed[coupling.units[group.units]] = mine if mine is not None and len(mine) == len(group.units) else True
    return removed


def _edges(values: Floats) -> tuple[Floats, bool]:
    """Returns the borders of the bins, and whether they are even in the logarithm."""
    low, high = float(values.min()), float(values.max())
    log = (low > 0 and high > _WIDE * low) or (low >= 0 and high > max(0.0, _WIDE * float(np.median(values))))
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
    return tuple(np.bincount(np.searchsorted(edges[1:-1], values, side="right"), minlength=len(edges) - 1).tolist())


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
