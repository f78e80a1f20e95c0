"""What a budget counts: the whole model, or what its patterns cover."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from fxprune._base.errors import BudgetError
from fxprune.budget.budget import Budget
from fxprune.budget.cost import CostModel, cost_model
from fxprune.budget.patterns import matches, names_of_layers, nearest, spellings
from fxprune.coupling.coupling import Coupling
from fxprune.coupling.selection import Selection


def counted_by(
    coupling: Coupling, budget: Budget | None, vanishing: Mapping[str, frozenset[str]] | None = None
) -> CostModel:
    """Returns the cost that a budget bounds: of what its patterns cover, if it has any."""
    if budget is None or not budget.of:
        return cost_model(coupling, vanishing)
    return cost_model(coupling, vanishing, _covered(coupling, budget.of).__contains__)


def check_scope(coupling: Coupling, budget: Budget | None) -> None:
    """Makes sure that what a budget bounds is there.

    Raises:
        BudgetError: a pattern means nothing, or nothing that it means has parameters, or multiplications.
    """
    if budget is None or not budget.of:
        return
    known = set[str]().union(*names_of_layers(coupling).values())
    for pattern in budget.of:
        if not matches(known, pattern):
            raise BudgetError(f"of={pattern!r} matches no layer{nearest(pattern, known)}")
    whole = counted_by(coupling, budget).of(np.zeros(len(coupling.channels), bool))
    for i in budget.limits(whole):
        if not whole[i]:
            what = "parameters" if i == 0 else "multiplications"
            raise BudgetError(f"of={', '.join(budget.of)!r}: what it means has no {what}, which the budget bounds")


def scope_note(before: Coupling, after: Selection, budget: Budget | None) -> tuple[str, ...]:
    """Returns in words what is left of what a budget counts, if that is not the whole model.

    Args:
        before: of the model as it came.
        after: what goes, of the model or of what bridges left of it.
        budget: that was met.
    """
    if budget is None or not budget.of:
        return ()
    whole = counted_by(before, budget).of(np.zeros(len(before.channels), bool))
    left = counted_by(after.coupling, budget).of(after.removed)
    shares = [
        f"{a:,} of {b:,} {what} ({100 * a / max(b, 1):.1f} %)"
        for a, b, what in ((left.params, whole.params, "parameters"), (left.macs, whole.macs, "MACs"))
    ]
    return (f"the budget counts {', '.join(budget.of)}: {' and '.join(shares)} are left there",)


def _covered(coupling: Coupling, patterns: Sequence[str]) -> set[str]:
    """Returns the tensors that are meant by one of some patterns."""
    tensors = {str(node.target) for node in coupling.values if node.op == "get_attr"}
    return {name for name in tensors if any(matches(spellings(coupling, name), pattern) for pattern in patterns)}
