"""A plan applied to another instance of the architecture that it was made for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.utils import _pytree as pytree

from fxprune._base.errors import PlanError
from fxprune._base.modes import plain_modes
from fxprune.bridging.bridge import bridge
from fxprune.budget.cost import Cost
from fxprune.budget.solver import Solution
from fxprune.capturing.normalize.dtypes import main_dtype
from fxprune.capturing.source import runnable, unwrapped
from fxprune.compiler.freeing import freely_captured
from fxprune.compiler.islands import Islands, of_parts
from fxprune.compiler.reassembly import put_back
from fxprune.coupling.coupling import Coupling
from fxprune.coupling.interpreter import couple
from fxprune.data.calls import Call
from fxprune.data.checks import device_of
from fxprune.reporting.building import make_report
from fxprune.results.attached import attach
from fxprune.results.plan import Plan, check_fits
from fxprune.rewriting.emission import emitted
from fxprune.rewriting.planning import selection_of, shapes_of, without_sources
from fxprune.rewriting.pruned import PrunedModule


@dataclass(frozen=True, slots=True, eq=False)
class Selected:
    """What a plan removes of a model.

    Attributes:
        whole: the model.
        coupling: of what was captured of it.
        solution: what goes, and what it costs before and after.
        plan: the plan, for this model.
        call: that it was captured with.
    """

    whole: nn.Module
    coupling: Coupling
    solution: Solution
    plan: Plan
    call: Call


@plain_modes()
def selected(model: nn.Module | ExportedProgram, plan: Plan) -> Selected:
    """Returns what a plan removes of a model.

    Raises:
        PlanError: the plan does not fit this model.
    """
    if not isinstance(plan, Plan):
        raise PlanError(f"expected a fxprune.Plan, got {type(plan).__name__}; fxprune.report(pruned).plan is one")
    if plan.basis:
        raise PlanError(
            f"the plan is of a model that was given in another basis first (basis={plan.basis!r}): what it removes of this one would be "
            "something else. Save the pruned model, or compile fxprune.rotate(model, data), whose plan applies to that"
        )
    whole = unwrapped(runnable(model))
    check_fits(plan, whole)
    module = Islands(whole, plan.islands) if plan.islands else whole
    example, grown = (_at_dtype(plan.example.call(module, device_of(module), grow=grow), module) for grow in (0, 1))
    args, kwargs = example
    captured = of_parts(freely_captured(module if plan.islands else model, args, kwargs, batches=[grown]))
    coupling, plan = couple(captured), without_sources(plan, captured)
    check_fits(plan, shapes_of(captured))
    bridged = bridge(coupling, plan.bridged, plan.seed)
    if bridged is None:
        raise PlanError(f"the plan bridges {', '.join(plan.bridged)}, which this model does not allow")
    solution = Solution(selection_of(bridged.coupling, plan), Cost(**plan.before), Cost(**plan.after))
    return Selected(whole, coupling, solution, plan, example)


def apply_to_model(model: nn.Module | ExportedProgram, plan: Plan) -> PrunedModule:
    """Returns the pruned model; weights are sliced, not recovered.

    Raises:
        PlanError: the plan does not fit this model.
    """
    return without_selected(selected(model, plan))


@plain_modes()
def without_selected(found: Selected) -> PrunedModule:
    """Returns the pruned model; weights are sliced, not recovered."""
    pruned: nn.Module = emitted(found.solution.selection)
    if found.plan.islands:
        pruned, _ = put_back(found.whole, found.plan, pruned, found.call[0][0])
    return attach(cast("PrunedModule", pruned), make_report(found.coupling, found.solution, found.plan))


def _at_dtype(call: Any, model: nn.Module) -> Any:
    """Returns a call with floating tensors of the model's dtype: it may have moved since the plan was made."""
    dtype = main_dtype(model.parameters())
    return pytree.tree_map_only(
        Tensor, lambda x: x.to(dtype) if dtype is not None and x.is_floating_point() else x, call
    )
