"""From a selection to its plan, and back."""

from __future__ import annotations

import platform
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version

import numpy as np
import torch
from torch.utils import _pytree as pytree

from fxprune._base.errors import PlanError
from fxprune._base.names import fetch, layer_of
from fxprune.algebra.axes import keep_mask
from fxprune.algebra.channels import Mask
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
    keep = keep_indices(solution.selection)
    return Plan(
        keep={name: {d: tuple(i.tolist()) for d, i in axes.items()} for name, axes in keep.items()},
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
        mask = np.ones(len(axis.labels), bool)
        if (indices := plan.keep.get(axis.tensor, {}).get(axis.dim)) is not None:
            mask[:] = False
            mask[list(indices)] = True
        return mask

    selection = Selection(coupling, nowhere(coupling, kept))
    found = {n: {d: tuple(i.tolist()) for d, i in axes.items()} for n, axes in keep_indices(selection).items()}
    wanted = {name: {d: tuple(i) for d, i in axes.items()} for name, axes in plan.keep.items()}
    if found != wanted:
        wrong = sorted(name for name in {*found, *wanted} if found.get(name) != wanted.get(name))
        raise PlanError(f"the plan keeps coordinates that do not go together in this model: {', '.join(wrong[:5])}")
    return selection


def gone_with(selection: Selection) -> Mask:
    """Flags what is removed, and what goes with it since nothing of it is left."""
    removed = selection.removed
    return removed | nowhere(selection.coupling, lambda axis: keep_mask(axis.labels, removed))


def nowhere(coupling: Coupling, kept: Callable[[ParameterAxis], Mask]) -> Mask:
    """Flags the channels all of whose coordinates are gone, given which coordinates of each axis are kept."""
    here, gone = (np.zeros(len(coupling.channels), bool) for _ in range(2))
    for axis in coupling.axes:
        mask = kept(axis)
        here[axis.labels[mask]] = True
        gone[axis.labels[~mask]] = True
    gone &= ~here
    gone[0] = False
    return gone


def _example_spec(captured: Captured) -> ExampleSpec:
    call = captured.call
    tensors = iter(captured.example)
    nodes = iter([n for n in captured.module.graph.nodes if n.op == "placeholder"])
    leaves, dynamic = [], []
    for name, literal in zip(call.placeholders, call.literals, strict=True):
        info = captured.info.get(next(nodes)) if name is not None else None
        leaves.append(literal if name is None else next(tensors))
        pairs = enumerate(zip(info.shape, info.example, strict=True)) if isinstance(info, TensorInfo) else ()
        dynamic.append([d for d, (prime, size) in pairs if prime != size])
    arguments = pytree.tree_unflatten(leaves, call.in_spec)
    return ExampleSpec.of(arguments, dynamic)


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
    gone: dict[str, bool] = {}
    for node, axes in coupling.values.items():
        if node.op == "get_attr" and node.target in coupling.captured.persistent and axes:
            layer = layer_of(str(node.target))
            gone[layer] = gone.get(layer, False) or any(slicer.count(axis) == 0 for axis in axes)
    return tuple(layer for layer, empty in gone.items() if empty)
