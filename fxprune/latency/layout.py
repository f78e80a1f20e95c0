"""Layout: what a captured model computes, as operations whose widths are told by labels."""

from __future__ import annotations

import math
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree

from fxprune._base.errors import BudgetError
from fxprune.algebra.axes import Axes, Axis, labels_of
from fxprune.algebra.channels import Ids, Mask
from fxprune.capturing.captured import Captured, TensorInfo
from fxprune.coupling.branches import collapse_of
from fxprune.coupling.coupling import Coupling
from fxprune.coupling.selection import Selection
from fxprune.data.calls import Call, bound_call
from fxprune.latency.operation import Operand, Operation, Size, literal
from fxprune.ops.registry import bind, rule_of
from fxprune.runtimes.sizes import repeated


class _UnmeasuredError(Exception):
    """An argument that an operation cannot be run alone with."""


@dataclass(frozen=True, slots=True)
class Step:
    """One node that works.

    Attributes:
        node: of the captured graph.
        operation: what it computes.
        factors: for each of the operation's widths, the number of the factor that counts it.
    """

    node: fx.Node
    operation: Operation
    factors: tuple[int, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Layout:
    """The steps of a model at a batch size.

    Attributes:
        coupling: of the captured model.
        steps: front to back, without views and what is done at no cost.
        factors: the labels that each width counts, resolved, ``[size, k]``.
    """

    coupling: Coupling
    steps: tuple[Step, ...]
    factors: tuple[Ids, ...]

    def counts(self, removed: Mask) -> list[int]:
        """Returns how many coordinates of each factor are kept without the flagged channels, ``[channels]``."""
        return [int((~removed[labels].any(axis=1)).sum()) for labels in self.factors]

    def live(self, removed: Mask) -> list[Step]:
        """Returns the steps that are left once the flagged channels, ``[channels]``, are gone."""
        slicer = self.coupling.slicer(removed)
        if all(slicer.count(c.axis) for c in self.coupling.contractions):
            return list(self.steps)
        live = collapse_of(self.coupling, slicer).live
        return [step for step in self.steps if step.node in live]


def layout_of(coupling: Coupling, batch_size: int, *, fused: bool = False) -> Layout:
    """Returns what a captured model computes at a batch size.

    Args:
        coupling: of the captured model.
        batch_size: samples a call.
        fused: leave out all but the contractions: the runtime fuses what lies between them.

    Raises:
        BudgetError: the batch of the captured call is fixed at another size.
    """
    check_batch(coupling.captured, batch_size)
    reader = _Reader(coupling, batch_size)
    contracting = {c.node for c in coupling.contractions if c.macs}
    steps = []
    for node in coupling.captured.module.graph.nodes:
        if _works(node) and (not fused or node in contracting):
            with suppress(_UnmeasuredError):  # the calibration against whole models makes up for it
                steps.append(reader.step(node, node in contracting))
    return Layout(coupling, tuple(steps), tuple(reader.factors))


def check_batch(captured: Captured, batch_size: int) -> None:
    """Makes sure that a captured model can be called with so many samples.

    Raises:
        BudgetError: its batch is fixed at another size.
    """
    prime, size = captured.batch
    fixed = next((len(leaf) for leaf in captured.example if leaf.ndim), batch_size)
    if prime == size and fixed != batch_size:
        raise BudgetError(
            f"batch_size: the model takes batches of {fixed} only (its batch is not dynamic), got {batch_size}"
        )


def example_call(captured: Captured, batch_size: int, device: str) -> Call:
    """Returns (args, kwargs) of the captured call at a batch size, its samples repeated or left out."""
    check_batch(captured, batch_size)
    nodes, call = captured.module.graph.find_nodes(op="placeholder"), captured.call
    infos = [captured.info.get(node) for node in nodes]
    tensors = (_resized(x, i, captured.batch, batch_size) for x, i in zip(captured.example, infos, strict=True))
    given = zip(call.placeholders, call.literals, strict=True)
    leaves = [value if name is None else next(tensors).to(device) for name, value in given]
    return bound_call(call.signature, pytree.tree_unflatten(leaves, call.in_spec))


def _resized(leaf: Tensor, info: Any, batch: tuple[int, int], batch_size: int) -> Tensor:
    if isinstance(info, TensorInfo):
        for dim in range(leaf.ndim):
            leaf = repeated(leaf, dim, _size(info, dim, batch, batch_size))
    return leaf


def _size(info: TensorInfo, dim: int, batch: tuple[int, int], batch_size: int) -> int:
    prime, size = batch
    large, small = info.shape[dim], info.example[dim]
    return small * batch_size // size if large != small and large % prime == 0 else small


def _works(node: fx.Node) -> bool:
    """Whether a node computes: it is an operator, and does not merely return a view."""
    target = node.target
    if node.op != "call_function" or not isinstance(target, torch._ops.OpOverload):
        return False
    rule = rule_of(target)
    return not (rule is not None and rule.idle) and not any(result.alias_info for result in target._schema.returns)


class _Reader:
    """Reads operations off a graph, and numbers the factors that their sizes depend on."""

    def __init__(self, coupling: Coupling, batch_size: int) -> None:
        self._coupling = coupling
        self._batch_size = batch_size
        self._slicer = Selection.nothing(coupling).slicer
        self._numbers: dict[tuple[tuple[int, ...], bytes], int] = {}
        self._known: dict[int, tuple[Ids, int | None]] = {}  # holds the array: its id must stay its own
        self.factors: list[Ids] = []

    def step(self, node: fx.Node, contracts: bool) -> Step:
        used: list[int] = []  # numbers of factors, by position among the widths

        def size(axis: Axis, total: int) -> Size:
            numbers = [n for labels in labels_of(axis) if (n := self._number(labels)) is not None]
            used.extend(n for n in dict.fromkeys(numbers) if n not in used)
            whole = math.prod(len(self.factors[n]) for n in numbers)
            return Size(total // whole, tuple(map(used.index, numbers)))

        def operand(axes: Axes | None, info: Any) -> Operand:
            if not isinstance(info, TensorInfo) or axes is None:
                raise _UnmeasuredError
            batch = self._coupling.captured.batch
            sizes = [size(axis, _size(info, d, batch, self._batch_size)) for d, axis in enumerate(axes)]
            return Operand(tuple(sizes), info.dtype)

        def leaf(value: Any) -> Any:
            if not isinstance(value, fx.Node):
                return value.type if isinstance(value, torch.device) else value
            info = self._coupling.captured.info.get(value)
            return operand(self._slicer.axes(value, node) if isinstance(info, TensorInfo) else None, info)

        arguments = {name: literal(value, leaf) for name, value in vars(bind(node)).items()}
        for name, axis in self._coupling.notes.get(node, {}).items():
            if isinstance(arguments.get(name), int) and arguments[name] > 1:  # conv2d's groups
                arguments[name] = size(axis, arguments[name])
        axes = self._coupling.values[node]
        if "normalized_shape" in arguments:
            shape = arguments["normalized_shape"]
            arguments["normalized_shape"] = tuple(map(size, axes[len(axes) - len(shape) :], shape))
        info: Any = self._coupling.captured.info.get(node)
        several = isinstance(info, (list, tuple))
        found = zip(axes, info, strict=True) if several else [(axes, info)]
        results = tuple(operand(a, i) for a, i in found if isinstance(i, TensorInfo) or not several)
        widths = tuple(len(self.factors[n]) for n in used)
        operation = Operation(str(node.target), tuple(arguments.items()), results, widths, contracts)
        return Step(node, operation, tuple(used))

    def _number(self, labels: Ids) -> int | None:
        """Returns the number of a factor, or None if none of its coordinates can go."""
        if id(labels) not in self._known:
            self._known[id(labels)] = (labels, self._new(self._coupling.channels.resolve(labels)))
        return self._known[id(labels)][1]

    def _new(self, resolved: Ids) -> int | None:
        if not resolved.shape[1]:
            return None
        resolved = _once(resolved)
        key = (resolved.shape, resolved.tobytes())
        if key not in self._numbers:
            self._numbers[key] = len(self.factors)
            self.factors.append(resolved)
        return self._numbers[key]


def _once(labels: Ids) -> Ids:
    """Returns each label once where all occur equally often, as behind a flatten: they go together, and so count as one."""
    rows, first, times = np.unique(labels, axis=0, return_index=True, return_counts=True)
    once: Ids = labels[np.sort(first)] if len(rows) and (times == times[0]).all() else labels
    return once
