"""Solve with depth: layers on the only path go one by one as their last unit's turn comes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from torch import Tensor

from fxprune._base.errors import BudgetError
from fxprune.bridging.bridge import Bridged, bridge
from fxprune.budget.budget import Budget
from fxprune.budget.constraints import Constraints, free_groups
from fxprune.budget.cost import cost_model
from fxprune.budget.scope import counted_by
from fxprune.budget.solver import Bound, Solution, ranking, solve
from fxprune.coupling.branches import vanishing_groups
from fxprune.coupling.coupling import Coupling


@dataclass(frozen=True, slots=True, eq=False)
class Solver:
    """Chooses the units to remove, and the groups that go altogether, in the order of the ranking (SPvR, section 3.3).

    The budget is solved for with at least one unit a group. Where the ranking would have taken a group's last unit before
    another that it did take, or where the budget is out of reach, the group whose last unit comes first is bridged, and
    the model that is left is solved anew. ``Solution.before`` is the cost of the model as it came.

    Attributes:
        coupling: of the captured model.
        scores: for each group's name a score for each unit, ``[units]``; low goes first.
        constraints: what must stay; nothing is bridged unless ``min_keep`` is 0.
        per_cost: as `solve` takes it.
        bridges: whether anything may be bridged.
        seed: of new weights.
    """

    coupling: Coupling
    scores: Mapping[str, Tensor]
    constraints: Constraints
    per_cost: bool = True
    bridges: bool = True
    seed: int = 0

    def __call__(
        self,
        budget: Budget | None,
        *,
        ratios: float | Mapping[str, float] | None = None,
        latency: Callable[[Coupling], Bound] | None = None,
    ) -> tuple[Bridged, Solution]:
        """Returns what bridges leave of the model, and what goes of that.

        Args:
            budget: upper bounds, or None with ``ratios``, which bridge nothing.
            ratios: as `solve` takes them.
            latency: makes the bound on the latency, of the model and of what bridges leave of it.

        Raises:
            BudgetError: the budget is out of reach even so.
        """
        before = cost_model(self.coupling).of(np.zeros(len(self.coupling.channels), bool))
        whole = counted_by(self.coupling, budget).of(np.zeros(len(self.coupling.channels), bool))
        absolute = None if budget is None else budget.absolute(whole)
        found = Bridged(self.coupling.captured, self.coupling)
        fixed: set[str] = set()  # groups that cannot be bridged
        while True:
            bound = None if latency is None else latency(found.coupling)
            result = self._solved(found.coupling, absolute, ratios, bound)
            due = self._due(found.coupling, absolute, bound, result) if self.bridges and absolute is not None else []
            longer = self._longer(found, [group for group in due if group not in fixed], fixed)
            if longer is not None:
                found = longer
            elif isinstance(result, BudgetError):
                raise result
            else:
                return found, replace(result, before=before)

    def _here(self, coupling: Coupling) -> dict[str, Tensor]:
        return {group.name: self.scores[group.name] for group in coupling.groups}

    def _solved(
        self, coupling: Coupling, budget: Budget | None, ratios: float | Mapping[str, float] | None, bound: Bound | None
    ) -> Solution | BudgetError:
        try:
            return solve(
                coupling,
                self._here(coupling),
                budget,
                ratios=ratios,
                constraints=self.constraints,
                vanishing=may_vanish(coupling, self.constraints),
                per_cost=self.per_cost,
                bound=bound,
            )
        except BudgetError as error:
            return error

    def _longer(self, found: Bridged, due: Sequence[str], fixed: set[str]) -> Bridged | None:
        """Bridges the first group that can be, besides those that are; notes those that cannot."""
        for group in due:
            longer = bridge(self.coupling, (*found.groups, group), self.seed)
            if longer is not None:
                return longer
            fixed.add(group)
        return None

    def _due(
        self, coupling: Coupling, budget: Budget, bound: Bound | None, result: Solution | BudgetError
    ) -> list[str]:
        """Returns the groups whose last unit's turn has come, lowest first: all of them while the budget is out of reach."""
        if self.constraints.min_keep:
            return []
        model, vanishing = counted_by(coupling, budget), may_vanish(coupling, self.constraints)
        worth = ranking(coupling, self._here(coupling), model, budget if self.per_cost else None, bound)
        gone = result.removed if isinstance(result, Solution) else np.ones(len(coupling.channels), bool)
        removed = worth[coupling.units][gone[coupling.units]]
        cut = removed.max(initial=-np.inf) if isinstance(result, Solution) else np.inf
        last = {}
        for group in free_groups(coupling, self.constraints):
            ids = coupling.units[group.units]
            if group.name not in vanishing and (~gone[ids]).sum() <= 1:
                last[group.name] = float(worth[ids].max())
        return sorted((name for name, value in last.items() if value < cut), key=last.__getitem__)


def may_vanish(coupling: Coupling, constraints: Constraints) -> dict[str, frozenset[str]]:
    """Returns the groups that may lose all their units: blocks, and with ``min_keep=0`` any that its branch allows."""
    groups = [g for g in coupling.groups if constraints.min_keep == 0 or g.kind == "block"]
    return vanishing_groups(coupling, groups)
