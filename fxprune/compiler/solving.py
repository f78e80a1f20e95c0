"""Solving: what goes of a coupled and scored model, so that its budget is met."""

from __future__ import annotations

import warnings

from fxprune._base.errors import IgnoredPatternWarning
from fxprune.bridging.bridge import Bridged
from fxprune.budget.depth import Solver
from fxprune.budget.solver import Solution
from fxprune.compiler.state import State


def solved(state: State) -> tuple[Bridged, Solution]:
    """Returns what bridges leave of the model, and what goes of that."""
    solver = Solver(
        state.coupling,
        state.scores,
        state.constraints,
        per_cost=state.per_cost,
        bridges=state.recovery is not None and state.recovery.anew,
        seed=state.options.seed,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", IgnoredPatternWarning)  # `couple` has told of them
        if state.search is None:
            return solver(state.bounds, ratios=state.options.ratios)
        return state.search.solve(solver)
