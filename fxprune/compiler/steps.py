"""Iterative compilation: score, prune a little, recover, and score what is left again."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import torch

from fxprune.bridging.bridge import Bridged
from fxprune.budget.budget import Budget
from fxprune.budget.cost import Cost, cost_model
from fxprune.budget.scope import counted_by, scope_note
from fxprune.budget.solver import Solution
from fxprune.capturing.captured import Captured
from fxprune.capturing.source import unwrapped
from fxprune.compiler.stages import verify
from fxprune.compiler.state import LATER, State
from fxprune.coupling.selection import Selection
from fxprune.reporting.building import make_report
from fxprune.results.attached import attach
from fxprune.results.certificate import Certificate
from fxprune.results.plan import Kept, Plan
from fxprune.rewriting.planning import plan_name, selection_of
from fxprune.rewriting.slicing import at_full_size


def in_steps(state: State, straight: Callable[[State], State]) -> State:
    """Returns the state of a model pruned in several compilations, each on what the one before left.

    After step i of n a bound stands at ``full * share^(i / n)``: every step removes the same share of what is there.
    Plan, report and certificate are those of the whole way.

    Args:
        state: with the coupling of the original.
        straight: compiles a model in one step.
    """
    assert state.budget is not None
    nothing = Selection.nothing(state.original).removed
    before, whole = (
        model.of(nothing) for model in (cost_model(state.original), counted_by(state.original, state.budget))
    )
    dense_ms = None if state.search is None else state.search.original_ms()
    model = unwrapped(state.module)
    held, done = state.coupling.captured.held, list[State]()
    for number in range(1, state.options.steps + 1):
        budget = schedule(state.budget, whole, number / state.options.steps, dense_ms)
        done.append(
            straight(replace(state, source=model, module=model, budget=budget, captured=None, notes=(), held=held))
        )
        model = done[-1].pruned
    return _whole(state, done, before, dense_ms)


def _whole(state: State, done: Sequence[State], before: Cost, dense_ms: float | None) -> State:
    """Returns the state at the end of the last step, with what is said of the whole way."""
    first, *others = [_plan(step) for step in done]
    plan, last = combined([first, *(_renamed(other, state.coupling.captured) for other in others)]), done[-1]
    selection = selection_of(state.coupling, plan)
    state = replace(
        state,
        pruned=last.pruned,
        graph=last.graph,
        skipped=last.skipped,
        bridged=Bridged(state.coupling.captured, state.coupling),
        solution=Solution(selection, before, Cost(**plan.after)),
    )
    if plan.collapsed or last.graph is not LATER:
        # a collapsed branch leaves its constant in a tensor that the twin reads, and a class takes what its norms count into its
        # weights: step by step, then
        certificate = together([step.certificate for step in done])
    else:
        whole = replace(state, selection=selection.with_tensors(at_full_size(selection, last.pruned)))
        certificate = verify(replace(whole, options=replace(state.options, verify_dtype=torch.float64))).certificate
    of_steps = [
        note
        for step in done
        for note in step.notes
        if note not in scope_note(step.original, step.selection, step.budget)
    ]
    notes = (*dict.fromkeys((*state.notes, *of_steps)), *scope_note(state.original, selection, state.budget))
    latency = last.report.latency and replace(last.report.latency, dense_ms=dense_ms or last.report.latency.dense_ms)
    report = make_report(state.coupling, state.solution, plan, certificate, skipped=last.skipped, notes=notes)
    seconds, recover, form = dict(last.report.seconds), last.report.recover, last.report.form
    report = replace(report, seconds=seconds, latency=latency, recover=recover, form=form, shifts=state.shifts)
    return replace(state, certificate=certificate, report=report, pruned=attach(last.pruned, report))


def _renamed(plan: Plan, captured: Captured) -> Plan:
    """Returns the plan of a later step under the original's names: what the original computes is plain by then."""
    return replace(plan, keep={plan_name(captured, name): axes for name, axes in plan.keep.items()})


def _plan(state: State) -> Plan:
    assert state.report.plan is not None
    return state.report.plan


def together(certificates: Sequence[Certificate | None]) -> Certificate | None:
    """Returns what certificates of steps say of the whole way: it is verified if every step is."""
    found = [certificate for certificate in certificates if certificate is not None]
    if not found or len(found) < len(certificates):
        return None
    doubtful = next((c for c in found if c.verified is not True), None)
    worst = max(found, key=lambda c: c.max_error / c.tolerance)
    compared = tuple(dict.fromkeys(line for each in found for line in each.compared))
    verdict = doubtful or worst
    return replace(worst, verified=verdict.verified, note=verdict.note, compared=compared)


def schedule(budget: Budget, before: Cost, progress: float, dense_ms: float | None = None) -> Budget:
    """Returns the absolute bounds at a point of the way, 0 at the start and 1 at the end; the last is exact."""
    limits = {
        "params": (budget.limits(before).get(0), before.params),
        "macs": (budget.limits(before).get(1), before.macs),
    }
    counts = {
        name: limit if progress >= 1 else max(limit, math.floor(full * (limit / full) ** progress))
        for name, (limit, full) in limits.items()
        if limit is not None
    }
    here = replace(budget, params=counts.get("params"), macs=counts.get("macs"))
    if dense_ms is None:
        return here
    last = budget.latency_ms or (budget.latency or 1.0) * dense_ms
    ms = max(last, dense_ms * (last / dense_ms) ** progress) if progress < 1 else last
    return replace(here, latency=None, latency_ms=ms)


def combined(plans: Sequence[Plan]) -> Plan:
    """Returns one plan that does what several do one after another."""
    first, last = plans[0], plans[-1]
    keep: Kept = first.keep
    for plan in plans[1:]:
        keep = _after(keep, plan.keep, first.shapes)
    collapsed = tuple(dict.fromkeys(layer for plan in plans for layer in plan.collapsed))
    scaled: dict[str, float] = {}
    for plan in plans:
        scaled |= {name: scaled.get(name, 1.0) * factor for name, factor in plan.scaled.items()}
    whole = replace(last, shapes=first.shapes, before=first.before, example=first.example, computed=first.computed)
    return replace(whole, keep=keep, collapsed=collapsed, scaled=scaled)


def _after(keep: Kept, then: Kept, shapes: Mapping[str, tuple[int, ...]]) -> Kept:
    result = {name: dict(axes) for name, axes in keep.items()}
    for name, axes in then.items():
        for axis, kept in axes.items():
            held = result.setdefault(name, {}).get(axis, tuple(range(shapes[name][axis])))
            result[name][axis] = tuple(held[index] for index in kept)
    return result
