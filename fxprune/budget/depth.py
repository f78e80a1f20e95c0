"""Solve with depth: layers on the only path go one by one as their last unit's turn comes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

import numpy as np
from torch import Tensor

from fxprune._base.errors import BudgetError
from fxprune.bridging.bridge import Bridged, bridge
from fxprune.budget.budget import Budget
from fxprune.budget.constraints import Constraints, free_groups
from fxprune.budget.cost import cost_model
from fxprune.budget.solver import Bound, Floats, Solution, ranking, solve
from fxprune.coupling.branches import vanishing_groups
from fxprune.coupling.coupling import Coupling


def solve_with_bridges(
    coupling: Coupling,
    scores: Mapping[str, Tensor],
    budget: Budget | None,
    *,
    ratios: float | Mapping[str, float] | None = None,
    constraints: Constraints,
    per_cost: bool = True,
    bridges: bool = True,
    seed: int = 0,
    latency: Callable[[Coupling], Bound] | None = None,
) -> tuple[Bridged, Solution]:
    """Chooses the units to remove, and the groups that go altogether, in the order of the ranking (SPvR, section 3.3).

    The budget is solved for with at least one unit a group. Where the ranking would have taken a group's last unit before
    another that it did take, or where the budget is out of reach, the group whose last unit comes first is bridged, and
    the model that is left is solved anew. ``Solution.before`` is the cost of the model as it came.

    Args:
        coupling: of the captured model.
        scores: for each group's name a score for each unit; low goes first.
        budget: upper bounds, or None with ``ratios``, which bridge nothing.
        ratios: as `solve` takes them.
        constraints: what must stay; nothing is bridged unless ``min_keep`` is 0.
        per_cost: as `solve` takes it.
        bridges: whether anything may be bridged.
        seed: of new weights.
        latency: makes the bound on the latency, of the model and of what bridges leave of it.

    Raises:
        BudgetError: the budget is out of reach even so.
    """
    before = cost_model(coupling).of(np.zeros(len(coupling.channels), bool))
    absolute = None if budget is None else budget.absolute(before)
    found = Bridged(coupling.captured, coupling)
    fixed: set[str] = set()  # groups that cannot be bridged
    while True:
        here = {group.name: scores[group.name] for group in found.coupling.groups}
        vanishing = may_vanish(found.coupling, constraints)
        model = cost_model(found.coupling, vanishing)
        bound = None if latency is None else latency(found.coupling)
        result: Solution | BudgetError
        try:
            result = solve(
                found.coupling,
                here,
                absolute,
                ratios=ratios,
                constraints=constraints,
                vanishing=vanishing,
                model=model,
                per_cost=per_cost,
                bound=bound,
            )
        except BudgetError as error:
            result = error
        longer = None
        if bridges and absolute is not None and constraints.min_keep == 0:
            worth = ranking(found.coupling, here, model, absolute if per_cost else None, bound)
            for group in _due(found.coupling, constraints, worth, result, fixed | set(vanishing)):
                longer = bridge(coupling, (*found.groups, group), seed)
                if longer is not None:
                    break
                fixed.add(group)
        if longer is not None:
            found = longer
        elif isinstance(result, BudgetError):
            raise result
        else:
            return found, replace(result, before=before)


def may_vanish(coupling: Coupling, constraints: Constraints) -> dict[str, frozenset[str]]:
    """Returns the groups that may lose all their units: blocks, and with ``min_keep=0`` any that its branch allows."""
    groups = [g for g in coupling.groups if constraints.min_keep == 0 or g.kind == "block"]
    return vanishing_groups(coupling, groups)


def _due(
    coupling: Coupling, constraints: Constraints, worth: Floats, result: Solution | BudgetError, fixed: set[str]
) -> list[str]:
    """Returns the groups whose last unit's turn has come, lowest first: all of them while the budget is out of reach."""
    gone = result.removed if isinstance(result, Solution) else np.ones(len(coupling.channels), bool)
    removed = worth[coupling.units][gone[coupling.units]]
    cut = removed.max(initial=-np.inf) if isinstance(result, Solution) else np.inf
    last = {}
    for group in free_groups(coupling, constraints):
        ids = coupling.units[group.units]
        if group.name not in fixed and (~gone[ids]).sum() <= 1:
            last[group.name] = float(worth[ids].max())
    return sorted((name for name, value in last.items() if value < cut), key=last.__getitem__)
