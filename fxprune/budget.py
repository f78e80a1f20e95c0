"""Budgets: what the pruned model may cost."""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction

from fxprune.cost import Cost
from fxprune.errors import BudgetError


@dataclass(frozen=True, slots=True)
class Budget:
    """Upper bounds on the pruned model; a float is a share of the original, an int is absolute.

    Attributes:
        params: parameters.
        macs: multiply-accumulates of one sample at the example's sizes.

    Raises:
        BudgetError: no bound is given, a share lies outside (0, 1], or an absolute bound is not positive.
    """

    params: float | int | None = None
    macs: float | int | None = None

    def __post_init__(self) -> None:
        """Checks the bounds."""
        if self.params is None and self.macs is None:
            raise BudgetError("a budget bounds params, macs or both; got neither. Try Budget(params=0.5).")
        for name in ("params", "macs"):
            value = getattr(self, name)
            if value is None:
                continue
            if isinstance(value, bool) or not isinstance(value, (int, float)):
                raise BudgetError(f"{name} must be a float (share) or an int (absolute), got {value!r}")
            if isinstance(value, float) and not 0 < value <= 1:
                raise BudgetError(
                    f"a share of {name} must lie in (0, 1], got {value}; an absolute bound is an int"
                )
            if isinstance(value, int) and value <= 0:
                raise BudgetError(f"an absolute bound on {name} must be positive, got {value}")

    def limits(self, before: Cost) -> dict[int, int]:
        """Returns the bounds as absolute numbers, by index into `Cost`."""
        bounds = {0: (self.params, before.params), 1: (self.macs, before.macs)}
        return {
            i: math.floor(Fraction(str(v)) * full) if isinstance(v, float) else v
            for i, (v, full) in bounds.items()
            if v is not None
        }

    def absolute(self, before: Cost) -> Budget:
        """Returns the same bounds as absolute numbers."""
        limits = self.limits(before)
        return Budget(params=limits.get(0), macs=limits.get(1))


def as_budget(budget: float | Budget) -> Budget:
    """Returns a budget; a bare float is a share of parameters.

    Raises:
        BudgetError: the value is neither a float in (0, 1] nor a Budget.
    """
    if isinstance(budget, Budget):
        return budget
    if isinstance(budget, bool) or not isinstance(budget, (int, float)):
        raise BudgetError(f"budget must be a share such as 0.5 or a fxprune.Budget, got {budget!r}")
    if not 0 < budget <= 1:
        raise BudgetError(
            f"budget must lie in (0, 1] as a share of parameters, got {budget}; for absolute numbers use Budget(params=...)"
        )
    return Budget(params=float(budget))
