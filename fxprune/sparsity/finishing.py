"""The end of a schedule: the units that are zero are removed, exactly, by the compiler's own stages."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, cast

import numpy as np
from torch import nn

from fxprune._base.errors import FxpruneWarning, NothingToPruneError, VerificationError
from fxprune._base.modes import plain_modes, random_states_kept
from fxprune.algebra.channels import Mask
from fxprune.bridging.bridge import Bridged
from fxprune.budget.constraints import Constraints, free_groups
from fxprune.budget.cost import cost_model
from fxprune.budget.ranking import pools_of
from fxprune.budget.scope import scope_note
from fxprune.budget.solver import Solution
from fxprune.compiler.homecoming import home
from fxprune.compiler.options import MODULE
from fxprune.compiler.stages import capture, prepare, record, rewrite, score, through, to_coupled, verify
from fxprune.compiler.state import State
from fxprune.coupling.coupling import Coupling
from fxprune.coupling.selection import Selection
from fxprune.rewriting.pruned import PrunedModule
from fxprune.rewriting.slicing import keep_indices
from fxprune.sparsity.rehearsal import exact, found_again


def removable(
    coupling: Coupling, constraints: Constraints, zero: Mask, sizes: np.ndarray[tuple[int], np.dtype[np.float64]]
) -> Mask:
    """Returns which of the channels that are zero may go, ``[channels]`` flags: each group keeps what the constraints say.

    Args:
        coupling: of the model.
        constraints: what must stay, in what multiples, and what goes in step.
        zero: flags of those that are zero, ``[channels]``.
        sizes: the norm of each, ``[channels]``: of those that must stay after all, the largest do.
    """
    pools = pools_of(coupling, sizes, free_groups(coupling, constraints), constraints, frozenset())
    among = np.zeros_like(zero)
    among[np.concatenate([np.zeros(0, np.int64), *(pool.order for pool in pools)])] = True
    removed = zero & among
    for pool in pools:
        removed[pool.lacking(removed)] = False
    return removed


@random_states_kept()
@plain_modes()
def finished(state: State, removed: Mask, model: nn.Module, data: Any, notes: Sequence[str]) -> PrunedModule:
    """Returns a trained model without the channels that are zero in it.

    Args:
        state: what is known of it from before the training.
        removed: the channels, ``[channels]`` flags.
        model: a plain copy of it, with zeros there.
        data: the calibration data, as they were given.
        notes: for the report.

    Raises:
        NothingToPruneError: no unit is zero.
        VerificationError: the model computes something else without them.
        RestoreError: under ``form="module"``, its class cannot say it.
    """
    if not removed.any():
        raise NothingToPruneError(
            "no unit is zero yet: call step() after each step of the optimizer, as many times as steps= says, before finish()"
        )
    keep = keep_indices(Selection(state.coupling, removed))
    with warnings.catch_warnings():
        warnings.simplefilter(
            "ignore", FxpruneWarning
        )  # they have been told when the schedule was made, and are in the report
        again = prepare(model, data, state.budget, replace(state.options, progress=False))
        again = to_coupled(through(again, capture))
    selection = found_again(again.coupling, keep)
    if selection is None:
        raise VerificationError(
            "the trained model is coupled in another way than the one that the schedule was made with, and what is zero does not go "
            "together in it. This is a bug of fxprune: please report the model."
        )
    costs = cost_model(again.coupling)
    before, after = (costs.of(one.removed) for one in (Selection.nothing(again.coupling), selection))
    again = replace(
        through(again, score),
        selection=selection,
        solution=Solution(selection, before, after),
        bridged=Bridged(again.coupling.captured, again.coupling),
    )
    told = _told(again)
    again = replace(again, notes=(*again.notes, *notes, told, *scope_note(again.coupling, selection, again.budget)))
    again = record(through(again, rewrite, verify))
    again = through(again, home) if again.options.form == MODULE else again
    return cast("PrunedModule", again.pruned)


def _told(state: State) -> str:
    """Returns in words that the trained model computes the same without what is zero.

    Raises:
        VerificationError: it does not.
    """
    found = exact(state.selection, (state.first.args, state.first.kwargs))
    if found.verified is False:
        raise VerificationError(
            f"the trained model computes something else without its zero units: error {found.max_error:.2e} in float64, tolerance "
            f"{found.tolerance:.0e}: {found.note}. This is a bug of fxprune: please report the model."
        )
    return f"trained to zero: on the first batch the dense model's outputs in float64 are {found.max_error:.1e} from those without the zero units"
