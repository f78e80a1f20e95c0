"""Solve: which units go, so that the budget is met, never exceeded, and nothing could be given back.

Every choice starts from the smallest model that the constraints allow and gives units back in one fixed order, best
score per cost first; a unit that does not fit is passed over. Costs only grow along that order, so the result is
within the budget and nothing that was passed over fits any more. Two budgets choose alike up to the first unit that
fits only the larger one, and that choice alone costs more than the smaller budget allows: a smaller budget never
gives a larger model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch

from fxprune._base.errors import BudgetError, NothingToPruneError
from fxprune.algebra.channels import Ids, Mask
from fxprune.budget.budget import Budget, as_budget
from fxprune.budget.constraints import Constraints, free_groups
from fxprune.budget.cost import Cost, CostModel, cost_model
from fxprune.budget.patterns import check_patterns, names_of_layers, reaching
from fxprune.budget.ranking import Pool, pools_of
from fxprune.budget.refusal import unreachable
from fxprune.budget.scope import check_scope, counted_by
from fxprune.coupling.coupling import Coupling
from fxprune.coupling.selection import Selection
from fxprune.coupling.unit_scores import STAYS, unit_scores
from fxprune.coupling.units import Group

Floats = npt.NDArray[np.float64]
Scores = Mapping[str, torch.Tensor]


@dataclass(frozen=True, slots=True, eq=False)
class Solution:
    """The channels to remove, with the cost before and after.

    Attributes:
        selection: what goes, of which coupled model.
        before: cost of the model as captured.
        after: cost once the units are gone.
    """

    selection: Selection
    before: Cost
    after: Cost

    @property
    def removed(self) -> Mask:
        """A flag for each channel id, ``[channels]``."""
        return self.selection.removed

    @property
    def units(self) -> Ids:
        """The numbers of the removed units, ``[gone]``."""
        return self.selection.units


class Bound(Protocol):
    """Another upper bound, on something that is no sum of units: a latency. Its figure never grows with what is removed."""

    def fits(self, removed: Mask) -> bool:
        """Returns whether the model without the flagged channels, ``[channels]``, is within the bound."""
        ...

    def costs(self) -> Floats:
        """Returns what each channel id costs in the full model, ``[channels]``, for the ranking; above 0 for every unit."""
        ...

    def refusal(self, smallest: Mask) -> str:
        """Returns why the bound is out of reach: the smallest model, without the flagged ``[channels]``, exceeds it."""
        ...


def solve(
    coupling: Coupling,
    scores: Scores,
    budget: float | Budget | None = None,
    *,
    ratios: float | Mapping[str, float] | None = None,
    constraints: Constraints | None = None,
    vanishing: Mapping[str, frozenset[str]] | None = None,
    per_cost: bool = True,
    bound: Bound | None = None,
) -> Solution:
    """Chooses the units to remove, by one global ranking under a budget or by a ratio for each layer.

    Args:
        coupling: what may go.
        scores: for each group's name a score for each of its units, ``[len(group.units)]``; low goes first.
        budget: upper bounds, or a share of parameters; give either this or ``ratios``.
        ratios: the share of units removed, for all groups or by pattern; a group falls under its own name, or else under the
            first pattern that reaches it (`fxprune.budget.patterns`), or under ``default`` (0 if absent).
        constraints: what must stay.
        vanishing: the groups that may lose all their units, i.e. blocks, and others under ``min_keep=0``, each with the names
            of the tensors that are then gone (`fxprune.coupling.branches.vanishing_groups`).
        per_cost: divide scores by what a unit costs before units of different groups are ranked together.
        bound: holds besides the budget's bounds on parameters and MACs; its costs are those that scores are divided by. It is
            not filled up to the last unit.

    Raises:
        BudgetError: the budget cannot be reached; says the smallest that can and what holds it.
        NothingToPruneError: no unit may go.
        ScorerError: scores are missing, of the wrong length or not finite.
    """
    constraints, vanishing = constraints or Constraints(), vanishing or {}
    if (budget is None) == (ratios is None):
        raise BudgetError("give either a budget or ratios (the share removed from each layer), not both or neither")
    budget = None if budget is None else as_budget(budget)
    if budget is not None and budget.bounds_latency and bound is None:
        raise BudgetError("a latency must be measured to be met: fxprune.compile does, solve alone cannot")
    check_patterns(coupling, constraints.ignore, [p for p in ratio_table(ratios or {}) if p != "default"])
    values = channel_scores(coupling, scores)
    free = _free(coupling, constraints, values)
    may_vanish = frozenset(vanishing)
    if constraints.min_keep:
        may_vanish &= {group.name for group in coupling.groups if group.kind == "block"}
    pools = pools_of(coupling, values, free, constraints, may_vanish)
    model = cost_model(coupling, vanishing)
    counted = counted_by(coupling, budget, vanishing) if budget is not None and budget.of else model
    before = model.of(np.zeros(len(coupling.channels), bool))
    if ratios is not None:
        removed = _rescue(coupling, model, values, _by_ratio(coupling, free, pools, ratios), pools, may_vanish)
        return Solution(Selection(coupling, removed), before, model.of(removed))
    assert budget is not None
    if any(
        isinstance(bound, float) for bound in (budget.params, budget.macs)
    ):  # absolute ones may be met by bridging all of it
        check_scope(coupling, budget)
    whole = counted.of(np.zeros(len(coupling.channels), bool))
    limits = budget.limits(whole)
    smallest = _rescue(coupling, model, values, _least(coupling, pools), pools, may_vanish)
    if not _fits(counted.of(smallest), limits):
        raise BudgetError(unreachable(coupling, counted, values, smallest, limits, whole, constraints.ties))
    if bound is not None and not bound.fits(smallest):
        raise BudgetError(bound.refusal(smallest))
    density = ranking(coupling, scores, counted, budget if per_cost else None, bound)
    steps = _in_order(coupling, model, density, [step for pool in pools for step in pool.steps(smallest)])
    removed = _filled(counted, smallest, steps, limits, bound, _blocks(coupling))
    return Solution(Selection(coupling, removed), before, model.of(removed))


def channel_scores(coupling: Coupling, scores: Scores) -> Floats:
    """Returns the score of each channel id, ``[channels]``: 0 for those of no unit."""
    values = np.zeros(len(coupling.channels))
    values[coupling.units] = unit_scores(coupling, scores)
    return values


def _free(coupling: Coupling, constraints: Constraints, values: Floats) -> list[Group]:
    """Returns the groups that may lose units.

    Raises:
        NothingToPruneError: there is none.
    """
    groups = free_groups(coupling, constraints)
    free = [group for group in groups if not (values[coupling.units[group.units]] == STAYS).all()]
    if not free:
        held = sorted({f.reason for f in coupling.frozen()})[:3]
        raise NothingToPruneError(
            f"no channel of this model can be removed: {len(coupling.groups)} groups, of which ignore={constraints.ignore} "
            f"units={constraints.kinds} and the method leave none; fixed parts: {'; '.join(held) or 'everything'}"
        )
    return free


def ranking(
    coupling: Coupling, scores: Scores, model: CostModel, budget: Budget | None, bound: Bound | None = None
) -> Floats:
    """Returns what each channel id of a unit is ranked by, ``[channels]``: its score, by cost if a budget is given."""
    values = channel_scores(coupling, scores)
    if budget is None:
        return values
    cost = 0 if budget.params is not None else 1
    costs = _channel_costs(coupling, model, cost) if bound is None else bound.costs()
    density: Floats = values / np.maximum(costs, 1e-12)
    return density


def _by_ratio(
    coupling: Coupling, free: Sequence[Group], pools: Sequence[Pool], ratios: float | Mapping[str, float]
) -> Mask:
    """Flags the channels that go when each group loses its own share, rounded down."""
    table, names = ratio_table(ratios), names_of_layers(coupling)
    patterns = [pattern for pattern in table if pattern != "default"]
    found = {group.name: reaching(coupling, group, patterns, names) for group in free}
    removed = np.zeros(len(coupling.channels), bool)
    for pool in pools:
        share = min(table.get(found[name] or "default", 0.0) for name in pool.groups)
        keep = len(pool.order) - int(len(pool.order) * share + 1e-9)
        removed[pool.order[pool.rounded(keep) :]] = True
    return removed


def ratio_table(ratios: Any) -> dict[str, float]:
    """Returns ratios by pattern.

    Raises:
        BudgetError: they are no shares in [0, 1], or a pattern is no text.
    """
    table = dict(ratios) if isinstance(ratios, Mapping) else {"default": ratios}
    if strange := [pattern for pattern in table if not isinstance(pattern, str)]:
        raise BudgetError(f"ratios: expected patterns of layer names as keys, got {strange[0]!r:.80}")
    if bad := {
        k: v for k, v in table.items() if isinstance(v, bool) or not isinstance(v, Real) or not 0 <= float(v) <= 1
    }:
        raise BudgetError(f"a ratio is the share removed and lies in [0, 1], got {bad}")
    return {pattern: float(ratio) for pattern, ratio in table.items()}


def _channel_costs(coupling: Coupling, model: CostModel, cost: int) -> Floats:
    """Returns what each channel costs in the full model."""
    slopes = model.slopes(model.sizes, cost).astype(np.float64)
    costs = np.zeros(len(coupling.channels))
    for j in range(model.rows.shape[1]):
        np.add.at(costs, model.rows[:, j], slopes[model.factor_of])
    return costs


def _rescue(
    coupling: Coupling,
    model: CostModel,
    values: Floats,
    removed: Mask,
    pools: Sequence[Pool],
    may_vanish: frozenset[str],
) -> Mask:
    """Gives back the best channels of every factor that is left with too few, and what their multiples then lack.

    What lies in a removed block is given back to be enough once the block comes back; the block is not.
    """
    blocks, vanish = _blocks(coupling), np.zeros(len(coupling.channels), bool)
    for group in coupling.groups:
        vanish[coupling.units[group.units]] = group.name in may_vanish and group.kind != "block"
    removed = removed.copy()
    while True:
        inside = removed & ~blocks
        few = np.flatnonzero(model.counts(inside)[:-1] < model.least)
        short = [f for f in few if model.least[f] > 1 or not vanish[model.rows[model.factor_of == f]].any()]
        if not short:
            break
        for factor in short:
            rows = model.rows[model.factor_of == factor]
            inside = removed & ~blocks
            gone = inside[rows].any(axis=1)
            if len(rows) - gone.sum() >= model.least[factor]:
                continue  # what an earlier factor got back has filled this one
            worth = np.where(inside[rows], values[rows], 0.0).sum(axis=1)
            back = rows[int(np.where(gone, worth, -np.inf).argmax())]
            removed[back[~blocks[back]]] = False
    for pool in pools:
        removed[pool.lacking(removed)] = False
    return removed


def _least(coupling: Coupling, pools: Sequence[Pool]) -> Mask:
    """Flags all that may go."""
    removed = np.zeros(len(coupling.channels), bool)
    for pool in pools:
        removed[pool.order[pool.least :]] = True
    return removed


def _filled(
    model: CostModel, smallest: Mask, steps: Sequence[Ids], limits: Mapping[int, int], bound: Bound | None, blocks: Mask
) -> Mask:
    """Gives back the longest prefix of the steps that fits, found by bisection, and what fits of the others."""
    low, high = 0, len(steps)
    while low < high:
        middle = (low + high + 1) // 2
        tried = _give(smallest, steps[:middle])
        fits = _fits(model.of(tried), limits) and (bound is None or bound.fits(tried))
        low, high = (middle, high) if fits else (low, middle - 1)
    longest = _give(smallest, steps[:low])
    if low < len(steps) and _fits(model.of(_give(longest, [steps[low]])), limits):
        return longest  # the other bound is what holds the next step: it is not filled to the last unit
    filled = _give_rest(model, longest, steps[low:], limits, blocks)
    return filled if bound is None or bound.fits(filled) else longest


def _in_order(coupling: Coupling, model: CostModel, density: Floats, steps: Sequence[Ids]) -> list[Ids]:
    """Returns the steps, best first; of equals a block comes first.

    A unit of a block comes back after the block (the best, if it has several) and not with it: else a block would weigh all
    that rank above it, and a budget between the block with little and the block with all could not be used.
    """
    blocks, ceiling = _blocks(coupling), np.full(len(density), np.inf)
    rows = model.rows[blocks[model.rows].any(axis=1)]
    if len(rows):
        inside = np.where(blocks[rows], density[rows], np.inf).min(axis=1)
        ceiling[np.unique(rows)] = -np.inf
        np.maximum.at(ceiling, rows, inside[:, None])
        ceiling[0] = np.inf
    worth = [min(float(density[step].sum()) / len(step), float(ceiling[step].max())) for step in steps]
    later = np.array([not blocks[step].any() for step in steps], bool)
    return [steps[i] for i in np.lexsort((later, -np.array(worth)))]


def _blocks(coupling: Coupling) -> Mask:
    """Flags the channels that stand for a block."""
    blocks = np.zeros(len(coupling.channels), bool)
    for group in coupling.groups:
        blocks[coupling.units[group.units]] = group.kind == "block"
    return blocks


def _give(removed: Mask, steps: Sequence[Ids]) -> Mask:
    removed = removed.copy()
    if steps:
        removed[np.concatenate(steps)] = False
    return removed


def _fits(cost: Cost, limits: Mapping[int, int]) -> bool:
    return all(cost[i] <= limit for i, limit in limits.items())


def _give_rest(model: CostModel, removed: Mask, rest: Sequence[Ids], limits: Mapping[int, int], blocks: Mask) -> Mask:
    """Gives back, in order, every later step that still fits; but nothing that lies in removed blocks alone.

    A lower bound of each step's cost rules most of them out at once: costs only grow as more is kept.
    """
    waiting = np.arange(len(rest))
    step_of = np.full(len(removed), -1, np.int64)
    for i, step in enumerate(rest):
        step_of[step] = i
    while len(waiting):
        cost, counts = model.of(removed), model.counts(removed)
        missing = removed[model.rows]
        alone = missing.sum(axis=1) == 1  # rows that come back with one step
        which = step_of[np.where(alone, (model.rows * missing).sum(axis=1), 0)]
        possible = np.ones(len(waiting), bool)
        for i, limit in limits.items():
            slopes = model.slopes(counts, i)
            gain = np.zeros(len(rest), np.int64)
            live = alone & (which >= 0)
            np.add.at(gain, which[live], slopes[model.factor_of[live]])
            possible &= cost[i] + gain[waiting] <= limit
        waiting = waiting[possible]
        there = np.zeros(len(removed), bool)
        there[model.rows[~(removed & blocks)[model.rows].any(axis=1)]] = True
        there |= blocks
        taken = None
        for at, i in enumerate(waiting.tolist()):
            if not there[rest[i]].any():
                continue
            tried = _give(removed, [rest[i]])
            if _fits(model.of(tried), limits):
                removed, taken = tried, at
                break
        if taken is None:
            return removed
        waiting = waiting[taken + 1 :]
    return removed
