"""Solutions for random scores, and what could still be given back."""

from __future__ import annotations

from typing import Any

from fxprune.algebra.channels import Mask
from fxprune.budget.budget import as_budget
from fxprune.budget.constraints import Constraints
from fxprune.budget.cost import CostModel
from fxprune.budget.solver import Solution, solve
from fxprune.coupling.coupling import Coupling
from tests.support.pruning import random_scores

BUDGETS = [0.95 - 0.05 * i for i in range(19)] + [0.05]


def solved(coupling: Coupling, budget: Any, seed: int = 0, **options: Any) -> Solution:
    constraints = Constraints(**{k: options.pop(k) for k in list(options) if k in Constraints.__slots__})
    scores = random_scores(coupling, seed)
    return solve(coupling, scores, as_budget(budget), constraints=constraints, **options)


def restorable(coupling: Coupling, model: CostModel, removed: Mask, limits: dict[int, int]) -> list[int]:
    """Returns the removed units of which any could come back, alone, within the limits."""
    found = []
    for unit in coupling.units_of(removed):
        back = removed.copy()
        back[coupling.units[unit]] = False
        if all(model.of(back)[i] <= limit for i, limit in limits.items()):
            found.append(int(unit))
    return found
