"""From a selection to its plan, and back."""

from __future__ import annotations

import platform
from collections.abc import Callable, Mapping
from importlib.metadata import PackageNotFoundError, version

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
from fxprune.coupling.coupling import Coupling
from fxprune.coupling.selection import Selection
from fxprune.coupling.units import ParameterAxis
from fxprune.data.example import ExampleSpec
from fxprune.results.plan import Plan
from fxprune.rewriting.slicing import keep_indices


def make_plan(
    coupling: Coupling, bridged: Bridged, solution: Solution, budget: Budget | None, method: str, seed: int
) -> Plan:
    """Returns the plan of a solution: kept indices for each parameter axis, and all it takes to apply them again."""
    captured = coupling.captured
    return Plan(
        keep=_as_tuples(keep_indices(solution.selection)),
        shapes=shapes_of(captured),
        collapsed=(*_spanned(coupling, bridged), *_collapsed(solution.selection)),
        bridged=bridged.groups,
        remade=bridged.remade,
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
    """Returns the shape of every parameter and persistent buffer that the graph uses."""
    return {
        str(n.target): tuple(fetch(captured.module, str(n.target)).shape)
        for n in captured.module.graph.nodes
        if n.op == "get_attr" and n.target in captured.persistent
    }


def selection_of(coupling: Coupling, plan: Plan) -> Selection:
    """Returns what a plan removes: the channels whose every coordinate is gone.

    Raises:
        PlanError: the plan removes coordinates that do not go together in this model.
    """

    def kept(axis: ParameterAxis) -> Mask:
        every = range(len(axis.labels))
        return np.isin(every, plan.keep.get(axis.tensor, {}).get(axis.dim, every))

    selection = Selection(coupling, nowhere(coupling, kept))
    found = _as_tuples(keep_indices(selection))
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
