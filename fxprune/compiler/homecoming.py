"""The original's class back: what it cannot say is tied before units are chosen, and the result is proven to be the graph."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn
from torch.export import ExportedProgram

from fxprune._base.errors import GradientWarning, PlanError, RestoreError, RotationError, TrainingWarning
from fxprune._base.modes import plain_modes, random_states_kept
from fxprune.budget.constraints import Constraints, free_groups
from fxprune.budget.solver import channel_scores
from fxprune.budget.ties import Ties, bundles_of, tie_costs
from fxprune.capturing.captured import COMPUTED_WEIGHTS, Captured, example_call
from fxprune.capturing.source import unwrapped
from fxprune.compiler.application import Selected, selected
from fxprune.compiler.islands import Islands, islands_of
from fxprune.compiler.options import MODULE, Options
from fxprune.compiler.reassembly import put_in_place, side_by_side
from fxprune.compiler.secondly import other_call
from fxprune.compiler.state import State
from fxprune.coupling.coupling import Coupling
from fxprune.coupling.selection import Selection
from fxprune.data.calls import Call
from fxprune.data.checks import device_of
from fxprune.homing.lists import moved
from fxprune.homing.restoring import Way, restored, way_home
from fxprune.homing.stale import unread_widths
from fxprune.homing.terms import Key
from fxprune.homing.whole import gone
from fxprune.ops.registry import is_kind
from fxprune.results.attached import attach, report
from fxprune.results.tables import few
from fxprune.rewriting.planning import in_blocks

#: The share of a group's score that going in step may cost without a word.
_WORTH_SAYING = 5e-4


def check_in_parts(options: Options) -> None:
    """Makes sure that nothing is asked of a model that is captured in parts that takes the whole of it.

    Raises:
        RestoreError, RotationError: something is.
    """
    asked = [name for name in ("also", "uniform", "allow_bias") if getattr(options, name)]
    if options.basis is not None:
        raise RotationError(
            "a basis is changed in a whole model, of which only parts can be captured: rotate one of these"
        )
    if asked:
        raise RestoreError(
            f"{asked[0]}= is about the whole model, of which only parts can be captured: leave it out, or compile a part"
        )


def check_has_class(model: nn.Module | ExportedProgram) -> None:
    """Makes sure that a model has a class that can come back, and values to find out by where its sizes come from.

    Raises:
        RestoreError: it has not.
    """
    if isinstance(model, ExportedProgram):
        raise RestoreError(
            "an exported program has no class to come back to, only a graph: leave out form='module', or give the model that was exported"
        )
    if any(tensor.is_meta for tensor in (*model.parameters(), *model.buffers())):
        raise RestoreError(
            "form='module' runs the original to see where its sizes come from, and it has tensors on the meta device: give it values "
            "(model.to_empty(device='cpu'), then load or draw them), or leave out form='module'"
        )


def of_class(captured: Captured) -> Captured:
    """Returns a captured model without what is said of a graph that trains in its place: the class trains as it does."""
    lost = {str(warning) for warning in captured.warned if isinstance(warning, (GradientWarning, TrainingWarning))}
    kept = tuple(warning for warning in captured.warned if str(warning) not in lost)
    notes = tuple(note for note in captured.notes if note not in lost and not note.startswith(COMPUTED_WEIGHTS))
    return replace(captured, warned=kept, notes=notes)


def tie(state: State) -> State:
    """Has what the class can only say together go together, and what it cannot say otherwise stay."""
    way = way_home(state.coupling, state.options.also, uniform=state.options.uniform)
    ties = ties_in(state.coupling, way, state.constraints)
    constraints = replace(state.constraints, ties=ties)
    return replace(state, way=way, constraints=constraints, notes=(*state.notes, *way.notes))


def ties_in(coupling: Coupling, way: Way, constraints: Constraints) -> Ties:
    """Returns what must go in step, or stay, of what the constraints let go.

    Query heads that share a key and value head stay: how many there are of each is a number that a class may keep for ways that
    the captured call does not take, such as a cache's.
    """
    free, held = (np.zeros(len(coupling.channels), bool) for _ in range(2))
    shared = {index for group in coupling.groups if group.kind == "kv_group" for index, _ in group.axes}
    for group in free_groups(coupling, constraints):
        channels = coupling.units[group.units]
        held[channels] = group.kind == "head" and any(index in shared for index, _ in group.axes)
        free[channels] = len(channels) > 1  # of one there is always one left
    found = way.ties(coupling, free & ~held)
    return replace(found, held=found.held | held)


def in_step(
    coupling: Coupling, constraints: Constraints
) -> tuple[tuple[tuple[tuple[str, ...], int], ...], tuple[tuple[str, int], ...]]:
    """Returns what goes at once, as (names of groups, units), and of which groups how many units stay, if a class is to come back."""
    ties, groups = ties_in(coupling, way_home(coupling), constraints), free_groups(coupling, constraints)
    bundles, bound = bundles_of(coupling, ties, np.zeros(len(coupling.channels)), groups)
    going = np.zeros(len(bound), bool)
    for one in bundles:
        going[one.rows] = True
    stay = bound & ~going
    tied = tuple((one.groups, sum(one.each)) for one in bundles if sum(one.each) > 1)
    kept = ((group.name, int(stay[coupling.units[group.units]].sum())) for group in groups)
    return tied, tuple((name, units) for name, units in kept if units)


def with_costs(state: State) -> State:
    """Notes what it has cost that channels go in step, or stay."""
    ties, removed = state.constraints.ties, state.solution.removed
    if ties is None:
        return state
    groups = free_groups(state.coupling, state.constraints)
    values = channel_scores(state.coupling, state.scores)
    notes = []
    costs = [c for c in tie_costs(state.coupling, ties, values, groups, removed) if c.share >= _WORTH_SAYING]
    if costs:
        dearest = [f"{' with '.join(cost.groups[:3])} ({100 * cost.share:.1f} %)" for cost in costs]
        notes.append(
            "channels go in step so that the class can say how many are left; beside as many of each group's own choice that "
            f"costs of their score: {few(dearest, 4)}"
        )
    held = sum(int(ties.held[state.coupling.units[group.units]].sum()) for group in groups)
    if held:
        whole = sum(len(group.units) for group in groups)
        notes.append(f"{held} of {whole} units stay, of which the class cannot say how many there are")
    return replace(state, notes=(*state.notes, *notes))


def home(state: State) -> State:
    """Puts what is left back into the original's class.

    Raises:
        RestoreError: the class cannot say it; the error has the graph as ``pruned``.
    """
    first = state.first.args, state.first.kwargs
    calls = [first, *further_calls(state.coupling.captured, str(device_of(state.module)))]
    try:
        found = restored(state.selection, state.pruned, state.way, calls)
    except RestoreError as error:
        text = f"{error}. form='graph' can have it; ignore= or other units= leave alone what this is about"
        told = RestoreError(text)
        told.pruned = attach(state.pruned, state.report)
        raise told from error
    notes = (*state.report.notes, *stale_notes(state.selection, found, state.way))
    report = replace(state.report, notes=notes)
    return replace(state, graph=state.pruned, pruned=attach(found, report), report=report)


def stale_notes(selection: Selection, found: nn.Module, way: Way) -> list[str]:
    """Returns what to say of integers that may be wrong now, as no call has read them."""
    captured = selection.coupling.captured
    model, stay = captured.model, dict[str, set[int]]()
    there = moved(model, [layer.path for layer in gone(way.layers, selection.removed)])
    if isinstance(model, Islands):  # what lies outside, the whole reads, and what parts take and give stays
        stay = dict.fromkeys(islands_of(model), _taken_and_given(captured))
        there = {
            path: now for path, now in there.items() if path in stay or path.startswith(tuple(f"{p}." for p in stay))
        }
    names = unread_widths(model, found, way.readings, there, stay)
    if not names:
        return []
    text = "no call has read these integers, which were widths and may be wrong for what is left"
    hint = "" if isinstance(model, Islands) else "; name a call that reads them with also="
    return [f"{text}: {few(names, 12)}{hint}"]


def _taken_and_given(captured: Captured) -> set[int]:
    """Returns the sizes of a graph's inputs and outputs."""
    graph = captured.module.graph
    ends = [*graph.find_nodes(op="placeholder"), *graph.output_node().all_input_nodes]
    return {size for node in ends for size in getattr(captured.at_example[node], "shape", ())}


@random_states_kept()
@plain_modes()
def restore(pruned: nn.Module, model: nn.Module, also: Sequence[Callable[..., Any]] = ()) -> Any:
    """Returns a pruned model in the class of the original: a copy of ``model`` with the tensors and sizes of ``pruned``.

    Leaf modules stay of their kind and say their new sizes, and attributes of modules and their config objects are changed
    where the forward's sizes come from them. The result is compared with ``pruned`` on made-up inputs, at two batch sizes and,
    where sizes are free, at a second one. Training mode, hooks, methods and buffers are the class's own.

    Args:
        pruned: a graph, or a model with graphs in it, that ``fxprune.compile``, ``fxprune.apply`` or ``fxprune.load`` returned,
            trained further or not.
        model: the original, or another instance of its architecture; it stays as it is.
        also: other ways to the same outputs, ``way(model, *args, **kwargs)``, whose sizes are to follow as well: such as one that
            switches to another attention, or to the methods that an exporter takes. Each gets a copy of the model.

    Raises:
        RestoreError: the class cannot say it, as where two halves of a ``chunk`` have lost unequal numbers of channels; names
            module and line. ``fxprune.compile(..., form="module")`` chooses what the class can say.
        PlanError: the plan does not fit this model.
        FxpruneError: fxprune did not make ``pruned``.
    """
    return home_again(pruned, model, also, {})


def home_again(
    pruned: nn.Module,
    model: nn.Module,
    also: Sequence[Callable[..., Any]],
    numbers: Mapping[Key, float],
    known: Selected | None = None,
) -> Any:
    """Returns what `restore` does; numbers of modules are what they were once before (see `restored`), what the plan removes may be known."""
    found = report(pruned)
    if found.plan is None or found.form == MODULE:
        raise PlanError(
            "restore: expected a graph with a plan; of a model in its own class fxprune.apply(model, pruned.plan) is the graph"
        )
    model, islands = unwrapped(model), found.plan.islands
    _check_alike(pruned, model)
    if islands and also:
        raise RestoreError("restore: also= is about the whole model, of which only parts were captured: leave it out")
    selection = in_blocks((known or selected(model, found.plan)).solution.selection, found.plan)
    graph = side_by_side(pruned, selection, islands) if islands else pruned
    captured = selection.coupling.captured
    untrue = set(captured.notes) - set(of_class(captured).notes)
    captured = drawn(captured)
    selection = replace(selection, coupling=replace(selection.coupling, captured=captured))
    calls = [example_call(captured), *further_calls(captured, str(device_of(model)))]
    way = way_home(selection.coupling, also)
    try:
        home = restored(selection, graph, way, calls, numbers)
    except RestoreError as error:
        text = f"{error}. fxprune.compile(..., form='module') chooses what the class can say; the graph stays as it is"
        raise RestoreError(text) from error
    notes = (*(note for note in found.notes if note not in untrue), *stale_notes(selection, home, way))
    whole = put_in_place(home, pruned, islands) if isinstance(home, Islands) else home
    return attach(whole, replace(found, form=MODULE, notes=notes))


def _check_alike(pruned: nn.Module, model: nn.Module) -> None:
    """Makes sure that a graph and its original are of one dtype, and have values.

    Raises:
        RestoreError: they are not, or have none.
    """
    if any(tensor.is_meta for net in (pruned, model) for tensor in (*net.parameters(), *net.buffers())):
        raise RestoreError("restore: a tensor lies on the meta device: both models must have values, to be compared")
    ours, theirs = ({p.dtype for p in net.parameters() if p.is_floating_point()} for net in (pruned, model))
    if not ours <= theirs:
        raise RestoreError(
            f"restore: the graph is of {few(sorted(map(str, ours)))}, the model of {few(sorted(map(str, theirs)))}: convert one of them, "
            "as by model.to(dtype)"
        )


def further_calls(captured: Captured, device: str) -> Iterator[Call]:
    """Yields calls at other sizes: all that are free, or of the batch alone."""
    for batch_alone in (False, True):
        call, where = other_call(captured, device, batch_alone=batch_alone)
        if where:
            yield call


def drawn(captured: Captured) -> Captured:
    """Returns a captured model whose example, of zeros so far, is drawn: numbers, and places in the tables that it looks up."""
    generator = torch.Generator().manual_seed(0)
    nodes: Sequence[fx.Node] = captured.module.graph.find_nodes(op="placeholder")
    pairs = zip(nodes, captured.example, strict=True)
    return replace(captured, example=tuple(_drawn(captured, node, tensor, generator) for node, tensor in pairs))


def _drawn(captured: Captured, node: fx.Node, tensor: Tensor, generator: torch.Generator) -> Tensor:
    if tensor.is_floating_point():
        return torch.randn(tensor.shape, generator=generator).to(tensor)
    tables = [user.args[0] for user in node.users if is_kind(user, "embedding")]
    sizes = [captured.info[table].shape[0] for table in tables if isinstance(table, fx.Node)]
    if not sizes:  # most often a mask
        return torch.ones_like(tensor)
    return torch.randint(0, min(sizes), tensor.shape, generator=generator).to(tensor)
