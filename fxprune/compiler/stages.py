"""The stages of a compilation, in their order; each takes the state and returns it with what it found."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.export import ExportedProgram

from fxprune._base.errors import (
    BudgetError,
    FxpruneWarning,
    GradientWarning,
    TrainingWarning,
    VerificationError,
    outside,
)
from fxprune._base.sharded import gathered, holds_shards
from fxprune.budget.budget import as_budget
from fxprune.budget.constraints import free_groups
from fxprune.budget.cost import cost_model
from fxprune.budget.patterns import check_patterns
from fxprune.budget.scope import check_scope, scope_note
from fxprune.budget.solver import ratio_table
from fxprune.budget.taken import check_taken
from fxprune.capturing.inputs import CalibrationInputs
from fxprune.capturing.normalize.dtypes import main_dtype
from fxprune.capturing.shapes import REFUSALS
from fxprune.capturing.source import check_is_python, runnable, unwrapped
from fxprune.compiler.allocation import allocate
from fxprune.compiler.basis import turn
from fxprune.compiler.biases import give_biases
from fxprune.compiler.clock import Clock
from fxprune.compiler.homecoming import check_has_class, check_in_parts, home, of_class, tie, with_costs
from fxprune.compiler.islands import capture_or_parts
from fxprune.compiler.options import AUTO, MEASURE, MODULE, Options
from fxprune.compiler.secondly import other_call
from fxprune.compiler.solving import solved
from fxprune.compiler.state import State
from fxprune.coupling.blocks import with_blocks
from fxprune.coupling.branches import folded_constants, frozen_norms
from fxprune.coupling.interpreter import couple as couple_graph
from fxprune.coupling.selection import Selection
from fxprune.data.batches import Batches
from fxprune.data.calls import Call
from fxprune.data.checks import check_plain, check_weights, device_of, probe, without_values
from fxprune.data.holdout import Part, split_of
from fxprune.latency.search import search_of
from fxprune.latency.widths import liked_widths, usual_widths
from fxprune.recovery.protocol import RecoveryContext, finished, fits, recovered, recovery_of
from fxprune.reporting.building import make_report
from fxprune.reporting.distribution import score_summary
from fxprune.results.attached import attach
from fxprune.results.certificate import Certificate
from fxprune.rewriting.emission import emitted
from fxprune.rewriting.planning import make_plan
from fxprune.scoring.causal import causal_loss, is_causal, own_shift, telling
from fxprune.scoring.loss import default_loss
from fxprune.scoring.scorer import Context, Scorer, scored, scorer_of
from fxprune.twin.certificate import certify, settled
from fxprune.twin.interpreter import Run


def prepare(model: nn.Module | ExportedProgram, calib_data: Any, budget: Any, options: Options) -> State:
    """Checks what a compilation is asked for, and that the model and the data work together.

    Raises:
        CaptureError: the model is of TorchScript.
        BudgetError: both a budget and ratios, neither, or a malformed one.
        CalibrationError: the data or the weights are unusable.
        ScorerError: an unknown method.
        RecoveryError: an unknown recovery.
        TypeError, ValueError: another argument is malformed.
    """
    scorer = scorer_of(options.method)
    if (budget is None) == (options.ratios is None):
        got = "neither" if budget is None else "both"
        raise BudgetError(
            f"give either a budget, such as 0.5 to keep half of the parameters, or ratios by layer; got {got}"
        )
    if options.ratios is not None:
        ratio_table(options.ratios)
    wanted = None if budget is None else as_budget(budget)
    chosen = options.resolve(scorer)
    recovery = recovery_of(chosen.recover)
    if not isinstance(model, (nn.Module, ExportedProgram)):
        raise TypeError(f"model: expected a torch.nn.Module or an ExportedProgram, got {model!r:.80}")
    check_is_python(model)
    if isinstance(model, nn.Module) and holds_shards(inner := unwrapped(model)):
        model = gathered(inner)
    if chosen.steps > 1 and wanted is None:
        raise ValueError("steps needs a budget to approach; ratios are reached in one step")
    if chosen.steps > 1 and recovery is not None and recovery.anew:
        raise ValueError(
            f"steps score what the step before recovered; with recover={recovery.name!r} there is nothing to score"
        )
    clock, shifts, loss = Clock(chosen.progress), None, None
    with clock("check"):
        module = runnable(model)
        check_plain(module)
        batches = Batches(calib_data, device=device_of(module), forward_args=chosen.forward_args)
        first = batches.first()
        if not without_values(module, scorer.needs, None if recovery is None else recovery.name, chosen.verify):
            check_weights(module)
            probe(module, first)
            if chosen.loss is None:
                asked = telling(batches, first)
                shifts = own_shift(module, asked)
                loss = causal_loss if is_causal(module, asked, shifts) else None
        if wanted is not None and wanted.bounds_latency:
            wanted.setting(device_of(module))
    return State(
        source=model,
        module=module,
        options=chosen,
        scorer=scorer,
        recovery=recovery,
        batches=batches,
        first=first,
        split=split_of(batches, chosen.holdout, fits=fits(recovery)),
        constraints=chosen.constraints(),
        budget=wanted,
        shifts=shifts,
        loss=loss,
        clock=clock,
    )


def with_method(state: State, options: Options, scorer: Scorer) -> State:
    """Returns the state for another criterion, which may prefer other options."""
    chosen = options.resolve(scorer)
    recovery = recovery_of(chosen.recover)
    return replace(
        state,
        options=chosen,
        scorer=scorer,
        recovery=recovery,
        constraints=replace(chosen.constraints(), ties=state.constraints.ties),
        clock=Clock(False),
    )


def capture(state: State) -> State:
    """Finds the graph, of an equal model if that is asked for, or the parts that can be captured where the whole cannot."""
    options = state.options
    if options.form == MODULE:
        check_has_class(state.source)
    captured, parts = capture_or_parts(state.source, state.batches, options.dynamic_shapes, options.strict)
    if captured is None:
        check_in_parts(options)
        return replace(state, parts=parts)
    captured = replace(captured, held={**state.held, **captured.held})
    captured = of_class(captured) if options.form == MODULE else captured
    state = replace(state, captured=captured, inputs=CalibrationInputs(captured, state.batches))
    if options.allow_bias and (with_biases := give_biases(state, couple_graph(captured))) is not None:
        return capture(with_biases)
    if options.basis is not None:
        return capture(turn(state, couple_graph(captured)))
    for warning in captured.warned:
        warnings.warn(warning, stacklevel=outside())
    return state


def couple(state: State) -> State:
    """Finds what goes together, and in what units; warns of patterns that reach nothing before anything takes long."""
    assert state.captured is not None
    coupling = couple_graph(state.captured, strict=state.options.strict)
    coupling = with_blocks(coupling) if "block" in state.constraints.kinds else coupling
    table = ratio_table(state.options.ratios or {})
    check_scope(coupling, state.budget)
    check_patterns(coupling, state.constraints.ignore, [pattern for pattern in table if pattern != "default"])
    return replace(state, coupling=coupling)


def widths(state: State) -> State:
    """Looks up, or measures, which multiple of channels the hardware likes; shares of groups are taken as they are."""
    if state.options.round_to == MEASURE:
        constraints, notes = liked_widths(state.module, state.coupling, state.budget, state.constraints)
        return replace(state, constraints=constraints, notes=(*state.notes, *notes))
    if state.options.round_to != AUTO or state.budget is None:
        return state
    return replace(state, constraints=usual_widths(state.module, state.budget, state.constraints))


def latency_search(state: State) -> State:
    """Makes ready what meets a bound on the latency, if there is one."""
    search = search_of(
        state.module,
        state.coupling.captured,
        state.bounds,
        state.constraints,
        cache_dir=state.options.cache_dir,
        progress=state.options.progress,
    )
    return replace(state, search=search)


def score(state: State) -> State:
    """Gives every unit a score."""
    options = state.options
    context = Context(
        state.coupling,
        state.inputs,
        options.seed,
        options.loss or state.loss or default_loss,
        options.memory_limit,
        options.progress,
        None if options.cache_dir is None else Path(options.cache_dir),
        {group.name for group in free_groups(state.coupling, state.constraints)},
    )
    return replace(state, scores=scored(context, state.scorer), per_cost=state.scorer.per_cost)


def solve(state: State) -> State:
    """Chooses what goes, so that the budget is met."""
    bridged, solution = solved(state)
    if (ratios := state.options.ratios) is not None and solution.selection.coupling is state.coupling:
        check_taken(state.coupling, state.constraints, state.scores, ratio_table(ratios), solution.removed)
    notes = (*state.notes, *scope_note(state.original, solution.selection, state.budget))
    return with_costs(replace(state, bridged=bridged, solution=solution, selection=solution.selection, notes=notes))


def recover(state: State) -> State:
    """Gives what is kept new values."""
    options = state.options
    context = RecoveryContext(
        state.selection,
        state.inputs if (fitted := state.split.fitted) is None else Part(state.inputs, 0, fitted),
        options.damping,
        options.memory_limit,
        options.seed,
        tuned=options.ridge == AUTO,
        shelves=state.shelves,
    )
    found = recovered(state.recovery, context)
    return replace(state, selection=state.selection.with_tensors(found.tensors), skipped=found.skipped)


def rewrite(state: State) -> State:
    """Slices the graph and emits a module; warns of what is constant in it, and would train in another way."""
    told = _constants_told(state.selection)
    for warning in told:
        warnings.warn(warning, stacklevel=outside())
    shelf = None if state.shelves is None else state.shelves("model")
    return replace(state, pruned=emitted(state.selection, shelf), notes=(*state.notes, *map(str, told)))


def _constants_told(selection: Selection) -> list[FxpruneWarning]:
    coupling, collapse = selection.coupling, selection.collapse
    told: list[FxpruneWarning] = []
    if norms := frozen_norms(coupling.captured, collapse):
        told.append(
            TrainingWarning(
                "branches that lost all their channels are constants, as in evaluation mode; in training "
                f"{', '.join(norms)} would normalise by the batch, and leave others"
            )
        )
    if hosts := folded_constants(coupling, collapse):
        told.append(
            GradientWarning(
                f"branches that lost all their channels are constants: {', '.join(hosts)} hold what the branch made of them, "
                "and have its gradients"
            )
        )
    return told


def verify(state: State) -> State:
    """Compares the module with the masked twin, on the first batch and, where sizes are free, at others of them.

    Raises:
        VerificationError: they differ.
    """
    if not state.options.verify:
        return state
    dtype = state.options.verify_dtype
    first = _settled(state, (state.first.args, state.first.kwargs), dtype)
    if first.dtype == str(torch.float64) and main_dtype(state.module.parameters()) is not torch.float64:
        dtype = torch.float64  # where less left doubt it will again
    for batch_alone in (False, True):  # a size that the graph allows may be one that the model itself does not take
        call, where = other_call(state.coupling.captured, str(device_of(state.module)), batch_alone=batch_alone)
        other = _settled_there(state, call, dtype) if where else None
        if other is not None:
            # samples may be the same ones again: it is the first batch that proves, in the other no output may differ
            worst = max(first.max_error, other.max_error) if other.dtype == first.dtype else first.max_error
            compared = (*first.compared, *(f"{line}, at {where}" for line in other.compared))
            return replace(state, certificate=replace(first, max_error=worst, compared=compared))
    return replace(state, certificate=first)


def _settled_there(state: State, call: Call, dtype: torch.dtype | None) -> Certificate | None:
    """Returns what the comparison finds on a made-up call, None where the original does not take it.

    Raises:
        VerificationError: the pruned model alone does not.
    """
    try:
        return _settled(state, call, dtype)
    except REFUSALS as error:
        if _takes(state, call):
            text = f"the pruned model fails where the original does not, at another batch size or another size: {error}"
            raise VerificationError(f"{text}. This is a bug of fxprune: please report the model.") from error
        return None


def _settled(state: State, call: Call, dtype: torch.dtype | None) -> Certificate:
    def certified(dtype: torch.dtype | None) -> Certificate:
        return certify(state.selection, state.pruned, call, dtype=dtype)

    return settled(certified, dtype)


def _takes(state: State, call: Call) -> bool:
    """Returns whether the original takes a call: it may insist on its batch size, or on even ones."""
    try:
        with torch.no_grad():
            Run(Selection.nothing(state.coupling))(state.coupling.captured.call.flatten(*call))
    except REFUSALS:
        return False
    return True


def finish(state: State) -> State:
    """Lets the recovery change the module once it is verified, and measures it if its latency is bounded."""
    if state.recovery is None:
        return state
    left = finished(state.recovery, state.pruned, state.options.seed)
    return replace(state, skipped=(*state.skipped, *left))


def record(state: State) -> State:
    """Writes plan and report, and attaches them to the module."""
    bound = None if state.search is None else state.search.bound(state.coupling)
    summary = score_summary(
        state.coupling,
        state.solution,
        state.scores,
        state.budget,
        constraints=state.constraints,
        per_cost=state.per_cost,
        bound=bound,
    )
    latency = None
    if state.search is not None:
        with state.clock("latency"):
            latency = state.search.measured(state.pruned)
    solution = state.solution
    if state.before is not None:
        solution = replace(solution, before=cost_model(state.before).of(Selection.nothing(state.before).removed))
    plan = make_plan(state.coupling, state.bridged, solution, state.budget, state.scorer.name, state.options.seed)
    plan = replace(plan, basis=state.basis or "")
    found = state.coupling, solution, plan, state.certificate
    report = make_report(*found, skipped=state.skipped, notes=state.notes)
    report = replace(
        report,
        seconds=dict(state.clock.seconds),
        scores=summary,
        latency=latency,
        recover=_recovery(state),
        form=state.options.form,
        shifts=state.shifts,
    )
    return replace(state, report=report, pruned=attach(state.pruned, report))


def _recovery(state: State) -> str:
    return "" if state.recovery is None else state.recovery.name


def to_coupled(state: State) -> State:
    """Returns the state once the graph is coupled, and what measures is ready."""
    state = through(state, couple)
    if state.options.form == MODULE:
        state = through(state, tie)
    return latency_search(through(state, widths))


def from_scored(state: State) -> State:
    """Returns the state at the end, from scores on."""
    state = record(finish(through(state, allocate, solve, recover, rewrite, verify)))
    return through(state, home) if state.options.form == MODULE else state


def through(state: State, *stages: Callable[[State], State]) -> State:
    """Goes through some stages, each timed under its name."""
    for stage in stages:
        with state.clock(stage.__name__):
            state = stage(state)
    return state
