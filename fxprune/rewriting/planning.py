"""From a selection to its plan, and back."""

from __future__ import annotations

import platform
from collections.abc import Callable, Mapping
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from typing import TypeAlias

import numpy as np
import torch
from torch.utils import _pytree as pytree

from fxprune._base.errors import PlanError
from fxprune._base.names import fetch, layer_of
from fxprune.algebra.axes import keep_mask
from fxprune.algebra.channels import Ids, Mask
from fxprune.bridging.bridge import Bridged
from fxprune.budget.budget import Budget
from fxprune.budget.solver import Solution
from fxprune.capturing.captured import Captured
from fxprune.capturing.shapes import TensorInfo
from fxprune.coupling.blocks import has_blocks, with_blocks
from fxprune.coupling.coupling import Coupling
from fxprune.coupling.selection import Selection
from fxprune.coupling.units import ParameterAxis
from fxprune.data.example import ExampleSpec
from fxprune.results.plan import Plan
from fxprune.rewriting.slicing import keep_indices

_Axes: TypeAlias = "dict[int, tuple[int, ...]]"


def make_plan(
    coupling: Coupling, bridged: Bridged, solution: Solution, budget: Budget | None, method: str, seed: int
) -> Plan:
    """Returns the plan of a solution: kept indices for each parameter axis, and all it takes to apply them again."""
    captured = coupling.captured
    return Plan(
        keep=_in_plan(captured, _as_tuples(keep_indices(solution.selection))),
        shapes=shapes_of(captured),
        collapsed=(*_spanned(coupling, bridged), *_collapsed(solution.selection)),
        bridged=bridged.groups,
        remade=bridged.remade,
        scaled={plan_name(captured, name): f for name, f in solution.selection.factors.items() if f != 1.0},
        computed=tuple(sorted(plan_name(captured, name) for name in captured.folded)),
        before=solution.before._asdict(),
        after=solution.after._asdict(),
        budget=None
        if budget is None
        else {k: v for k in ("params", "macs", "latency_ms", "latency") if (v := getattr(budget, k)) is not None},
        method=method,
        seed=seed,
        example=_example_spec(captured),
        versions={"fxprune": _version(), "torch": torch.__version__, "python": platform.python_version()},
    )


def shapes_of(captured: Captured) -> dict[str, tuple[int, ...]]:
    """Returns the shape of every parameter and persistent buffer of the model that the graph uses."""
    return {
        plan_name(captured, str(n.target)): tuple(fetch(captured.module, str(n.target)).shape)
        for n in captured.module.graph.nodes
        if n.op == "get_attr" and n.target in captured.persistent
    }


def plan_name(captured: Captured, name: str) -> str:
    """Returns the name that a plan has for a tensor of the graph: the model's own tensor of the same shape, if there is one."""
    source = next(iter(captured.folded.get(name, ())), None)
    return source if source is not None and _alike(captured, name, source) else name


def without_sources(plan: Plan, captured: Captured) -> Plan:
    """Returns a plan without what weights of the model are computed from besides; plans of 0.1 have that as well."""
    sources = {source for found in captured.folded.values() for source in found}
    beside = sources - {plan_name(captured, name) for name in captured.folded}
    if beside.isdisjoint(plan.shapes):
        return plan
    keep = {name: axes for name, axes in plan.keep.items() if name not in beside}
    return replace(plan, keep=keep, shapes={name: s for name, s in plan.shapes.items() if name not in beside})


def _alike(captured: Captured, name: str, source: str) -> bool:
    plain, own = fetch(captured.module, name), fetch(captured.model, source)
    return bool(plain.shape == own.shape)


def _in_plan(captured: Captured, kept: Mapping[str, _Axes]) -> dict[str, _Axes]:
    return {plan_name(captured, name): axes for name, axes in kept.items()}


def selection_of(coupling: Coupling, plan: Plan) -> Selection:
    """Returns what a plan removes: the channels whose every coordinate is gone; in terms of blocks where only those tell.

    Raises:
        PlanError: the plan removes coordinates that do not go together in this model.
    """
    try:
        return _selection_of(coupling, plan)
    except PlanError:
        if has_blocks(coupling):
            raise
        return _selection_of(with_blocks(coupling), plan)


def in_blocks(selection: Selection, plan: Plan) -> Selection:
    """Returns what a plan removes in terms of blocks, where it removes all of some residual branch; else the selection as it is."""
    coupling, removed = selection.coupling, selection.removed
    if has_blocks(coupling) or not any(removed[coupling.units[group.units]].all() for group in coupling.groups):
        return selection
    return _selection_of(with_blocks(coupling), plan)


def _selection_of(coupling: Coupling, plan: Plan) -> Selection:
    def kept(axis: ParameterAxis) -> Mask:
        every = range(len(axis.labels))
        name = plan_name(coupling.captured, axis.tensor)
        return np.isin(every, plan.keep.get(name, {}).get(axis.dim, every))

    selection = Selection(coupling, nowhere(coupling, kept))
    found = _in_plan(coupling.captured, _as_tuples(keep_indices(selection)))
    wanted = {name: {d: tuple(i) for d, i in axes.items()} for name, axes in plan.keep.items()}
    if found != wanted:
        wrong = sorted(name for name in {*found, *wanted} if found.get(name) != wanted.get(name))
        raise PlanError(f"the plan keeps coordinates that do not go together in this model: {', '.join(wrong[:5])}")
    return selection


def _as_tuples(kept: Mapping[str, Mapping[int, Ids]]) -> dict[str, dict[int, tuple[int, ...]]]:
    return {name: {dim: tuple(index.tolist()) for dim, index in axes.items()} for name, axes in kept.items()}


def gone_with(selection: Selection) -> Mask:
    """Flags what is removed, and what goes with it since nothing of it is left, ``[channels]``."""
    removed = selection.removed
    return removed | nowhere(selection.coupling, lambda axis: keep_mask(axis.labels, removed))


def nowhere(coupling: Coupling, kept: Callable[[ParameterAxis], Mask]) -> Mask:
    """Flags the channels all of whose coordinates are gone, ``[channels]``, given which of each axis, ``[size]``, are kept."""
    here, gone = (np.zeros(len(coupling.channels), bool) for _ in range(2))
    for axis in coupling.axes:
        mask = kept(axis)
        here[axis.labels[mask]] = True
        gone[axis.labels[~mask]] = True
    gone &= ~here
    gone[0] = False
    return gone


def _example_spec(captured: Captured) -> ExampleSpec:
    call, leaves, dynamic = captured.call, [], []
    nodes = (node for node in captured.module.graph.nodes if node.op == "placeholder")
    given = zip(nodes, captured.example, strict=True)
    for name, literal in zip(call.placeholders, call.literals, strict=True):
        node, leaf = next(given) if name is not None else (None, literal)
        info = captured.info[node] if node is not None else None
        pairs = enumerate(zip(info.shape, info.example, strict=True)) if isinstance(info, TensorInfo) else ()
        leaves.append(leaf)
        dynamic.append([d for d, (prime, size) in pairs if prime != size])
    return ExampleSpec.of(pytree.tree_unflatten(leaves, call.in_spec), dynamic)


def _version() -> str:
    try:
        return version("fxprune")
    except PackageNotFoundError:
        return "unknown"


def _spanned(coupling: Coupling, bridged: Bridged) -> tuple[str, ...]:
    """Returns the layers that lie under a bridge."""
    before, after = (
        dict.fromkeys(layer_of(name) for name in shapes_of(one)) for one in (coupling.captured, bridged.captured)
    )
    return tuple(layer for layer in before if layer not in after)


def _collapsed(selection: Selection) -> tuple[str, ...]:
    """Returns the layers of which no weight is left."""
    coupling, slicer = selection.coupling, selection.slicer
    stored = [(n, axes) for n, axes in coupling.values.items() if n.op == "get_attr"]
    empty = [str(n.target) for n, axes in stored if any(slicer.count(axis) == 0 for axis in axes or ())]
    return tuple(dict.fromkeys(layer_of(name) for name in empty if name in coupling.captured.persistent))
