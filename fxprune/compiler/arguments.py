"""What `fxprune.compile` is asked for, checked before any work begins."""

from __future__ import annotations

import operator
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn
from torch.export import ExportedProgram

from fxprune._base.errors import BudgetError
from fxprune.algebra.channels import KINDS
from fxprune.budget.budget import Budget, as_budget
from fxprune.budget.constraints import Constraints
from fxprune.budget.solver import ratio_table

__all__ = ["check_steps", "check_types", "constraints_of", "target_of"]


def target_of(budget: Any, ratios: Any) -> Budget | None:
    """Returns the budget, or None where ratios are given instead.

    Raises:
        BudgetError: both, neither, or a malformed one.
    """
    if (budget is None) == (ratios is None):
        got = "neither" if budget is None else "both"
        raise BudgetError(
            f"give either a budget, such as 0.5 to keep half of the parameters, or ratios by layer; got {got}"
        )
    if ratios is not None:
        ratio_table(ratios)
        return None
    return as_budget(budget)


def constraints_of(
    units: str | Iterable[str], ignore: str | Iterable[str], round_to: int | str, min_keep: int
) -> Constraints:
    """Returns the constraints; a single kind or pattern need not stand in a tuple, and ``round_to="auto"`` is 1 for now.

    Raises:
        ValueError: an unknown kind, or a number that is too small.
    """
    kinds, patterns = ((one,) if isinstance(one, str) else tuple(one) for one in (units, ignore))
    if unknown := [kind for kind in kinds if kind not in KINDS] or not kinds:
        raise ValueError(f"units must be among {', '.join(KINDS)}, got {unknown if kinds else units!r}")
    if strange := [pattern for pattern in patterns if not isinstance(pattern, str)]:
        raise ValueError(f"ignore takes patterns of layer names, got {strange[0]!r}")
    multiple = 1 if round_to == "auto" else round_to
    for name, value, least in (("round_to", multiple, 1), ("min_keep", min_keep, 0)):
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise ValueError(f"{name} must be an int of at least {least}, got {value!r}")
    assert isinstance(multiple, int)
    return Constraints(kinds, patterns, multiple, min_keep)


def check_steps(steps: Any, budget: Budget | None, recover: str | None) -> None:
    """Makes sure that a compilation in so many steps makes sense.

    Raises:
        ValueError: no whole number from 1, or more than one with ratios or with ``recover="reinit"``.
    """
    if isinstance(steps, bool) or not isinstance(steps, int) or steps < 1:
        raise ValueError(f"steps must be an int of at least 1, got {steps!r}")
    if steps > 1 and budget is None:
        raise ValueError("steps needs a budget to approach; ratios are reached in one step")
    if steps > 1 and recover == "reinit":
        raise ValueError("steps score what the step before recovered; with recover='reinit' there is nothing to score")


def check_types(model: Any, forward_args: Any, verify_dtype: Any, seed: Any) -> None:
    """Makes sure that the other arguments are of their kinds.

    Raises:
        TypeError: one is not; says which, what was expected and what came.
    """
    if not isinstance(model, (nn.Module, ExportedProgram)):
        raise TypeError(f"model: expected a torch.nn.Module or an ExportedProgram, got {model!r:.80}")
    if forward_args is not None and not callable(forward_args):
        raise TypeError(f"forward_args: expected a function of a batch, got {forward_args!r:.80}")
    if verify_dtype is not None and not (isinstance(verify_dtype, torch.dtype) and verify_dtype.is_floating_point):
        raise TypeError(f"verify_dtype: expected a floating-point torch.dtype, got {verify_dtype!r}")
    try:
        operator.index(seed)
    except TypeError:
        raise TypeError(f"seed: expected an int, got {seed!r}") from None
