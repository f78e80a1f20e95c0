"""Couple: which coordinates of which tensors must go together, and why some never can.

An abstract interpretation of the captured graph: every value's axes are labelled with channels by the rules of
`fxprune.ops`, and what is left of the labels on the parameters is what can be pruned.
"""

from __future__ import annotations

import operator
from typing import Any

import numpy as np
import torch
from torch import fx

from fxprune._base.errors import RuleError, UnsupportedOpError
from fxprune._base.names import fetch
from fxprune.algebra import axes as ax
from fxprune.algebra.axes import Axes
from fxprune.capturing.captured import Captured, TensorInfo
from fxprune.capturing.normalize.edit import writes
from fxprune.coupling.coupling import Coupling
from fxprune.coupling.units import ParameterAxis, form_groups
from fxprune.ops.counted import with_dead_counted
from fxprune.ops.registry import bind, blamed, is_kind, may_alias, rule_of, waiting_near
from fxprune.ops.tracer import Tracer


def couple(captured: Captured, *, strict: bool = False) -> Coupling:
    """Finds which coordinates of the parameters must go together.

    Args:
        captured: what `fxprune.capture` returned.
        strict: raise where an op has no rule, instead of freezing what it touches.

    Raises:
        UnsupportedOpError: under ``strict``, an op without a rule; names op, module and source line.
    """
    return couple_counted(with_dead_counted(captured), strict=strict)


def couple_counted(captured: Captured, *, strict: bool = False) -> Coupling:
    """Finds the same in a graph as it stands: norms over channels that are dead already have been written out, or need not be."""
    tracer = Tracer(captured)
    unsupported: list[tuple[str, str]] = []
    for node in captured.module.graph.nodes:
        _visit(tracer, node, strict, unsupported)
    _hold(tracer)
    for axis in _parameter_axes(tracer):
        everywhere = [c for c in axis.labels[0] if c and (axis.labels == c).any(axis=1).all()]
        tracer.channels.freeze(np.array([everywhere], np.int64), f"all of {axis.tensor}[{axis.dim}] would go with it")
    axes = _parameter_axes(tracer)
    units, groups = form_groups(tracer.channels, axes)
    return Coupling(
        captured,
        tracer.channels,
        tracer.values,
        tracer.edges,
        tracer.notes,
        tuple(tracer.contractions),
        frozenset(tracer.statistics),
        tuple(tracer.least),
        axes,
        units,
        groups,
        tuple(unsupported),
    )


def _hold(t: Tracer) -> None:
    """Freezes the tensors that must stay whole."""
    for node, axes in t.values.items():
        if node.op == "get_attr" and (why := t.captured.held.get(str(node.target))) is not None:
            ax.freeze(t.channels, ax.joined(axes or ()), why)


def _visit(t: Tracer, node: fx.Node, strict: bool, unsupported: list[tuple[str, str]]) -> None:
    info = t.captured.info.get(node)
    if any(source in t.bound for source in node.all_input_nodes) and info is not None and not isinstance(info, int):
        t.bound.add(node)
    if node.op == "output":
        for value in node.all_input_nodes:
            if t.is_tensor(value):
                t.freeze(node, ax.joined(t.values[value]), "the result")
    elif node.op == "placeholder":
        t.values[node] = tuple(map(ax.fixed, info.shape)) if isinstance(info, TensorInfo) else None
    elif node.op == "get_attr":
        t.values[node] = _attribute(t, node) if isinstance(info, TensorInfo) else None
    elif info is None or isinstance(info, int):
        t.values[node] = None
        if node.op == "call_function" and isinstance(node.target, torch._ops.OpOverload) and info is None:
            _freeze_unknown(t, node, strict, unsupported)
    elif node.target is operator.getitem:
        t.values[node] = t.values[node.all_input_nodes[0]][node.args[1]]
    else:
        if writes(node):
            _freeze_memory(t, node)
        axes = None
        if (rule := rule_of(node.target)) is not None:
            arguments = bind(node)
            with blamed(node, "couple", arguments):
                axes = rule.couple(t, node, arguments)
        if axes is not None:
            _check(t, node, axes, info)
        t.values[node] = _freeze_unknown(t, node, strict, unsupported) if axes is None else axes


def _check(t: Tracer, node: fx.Node, axes: Any, info: Any) -> None:
    """Makes sure that a rule gave axes for every dimension of every result.

    Raises:
        RuleError: it did not; names the op.
    """
    several = isinstance(axes, list)
    got = [None if one is None else tuple(map(ax.size_of, one)) for one in (axes if several else [axes])]
    parts = info if isinstance(info, (list, tuple)) else [info]
    expected = [part.shape if isinstance(part, TensorInfo) else None for part in parts]
    if got != expected or several != isinstance(info, (list, tuple)):
        wanted, came = ([each and tuple(map(t.shown, each)) for each in sizes] for sizes in (expected, got))
        raise RuleError(f"{node.target}: couple: expected axes of sizes {wanted}, got {came} for {node.format_node()}")


def _attribute(t: Tracer, node: fx.Node) -> Axes:
    """Parameters and persistent buffers start with fresh channels; constants are free."""
    info: TensorInfo = t.captured.info[node]
    if node.target not in t.captured.persistent:
        return tuple(map(ax.free, info.shape))
    if not (info.dtype.is_floating_point or info.dtype.is_complex):
        return tuple(map(ax.free if _zero_points(node) else ax.fixed, info.shape))
    t.bound.add(node)
    return tuple(ax.labelled(t.channels.fresh(size)) if size > 1 else ax.fixed(size) for size in info.shape)


def _zero_points(node: fx.Node) -> bool:
    """Whether whole numbers are nothing but what scales go with, one for each channel: no positions of anything."""
    return bool(node.users) and all(is_kind(user, "quantise") for user in node.users)


def _freeze_unknown(t: Tracer, node: fx.Node, strict: bool, unsupported: list[tuple[str, str]]) -> Any:
    """Freezes everything that an op without a rule touches; what it makes of free values is free as well."""
    touched, known = False, rule_of(node.target) is not None
    waiting = waiting_near(node.target)
    misspelt = f" (one waits for {waiting}, which there is not: is that this op?)" if waiting else ""
    reason = "a call to which the rule does not apply," if known else f"an op without a rule{misspelt},"
    pure = isinstance(node.target, torch._ops.OpOverload) and not node.target._schema.is_mutable
    make = ax.free if pure and node not in t.bound and _made_of_literals(t, node) else ax.fixed
    for source in node.all_input_nodes:
        values = t.values.get(source)
        for axes in values if isinstance(values, list) else [values]:
            whole = ax.joined(axes or ())
            touched |= ax.is_labelled(whole)
            t.freeze(node, whole, reason)
    if touched:
        unsupported.append((str(node.target), str(node.meta.get("module", ""))))
        if strict:
            lines = [line.strip() for line in (node.meta.get("stack_trace") or "").splitlines() if "File" in line]
            raise UnsupportedOpError(
                f"{node.target} in module {node.meta.get('module', '?')!r} ({lines[-1] if lines else 'no source line'})"
                f" has no coupling rule{' for this call' if known else misspelt}; without strict=True everything it touches is kept as it is"
            )
    info = t.captured.info.get(node)
    if isinstance(info, TensorInfo):
        return tuple(map(make, info.shape))
    if isinstance(info, (list, tuple)):
        return [tuple(map(make, i.shape)) if isinstance(i, TensorInfo) else None for i in info]
    return None


def _freeze_memory(t: Tracer, node: fx.Node) -> None:
    """Freezes what a write that capture has left in place may reach: the target, and all that it is a view of."""
    source: Any = node.args[0]
    while isinstance(source, fx.Node) and t.is_tensor(source):
        t.freeze(node, ax.joined(t.values[source]), "an in-place write")
        views = source.op == "call_function" and (source.target is operator.getitem or may_alias(source.target))
        source = source.args[0] if views else None


def _made_of_literals(t: Tracer, node: fx.Node) -> bool:
    """Whether all operands are free in every dimension, sizes of one aside."""
    info = t.captured.info
    tensors = [source for source in node.all_input_nodes if not isinstance(info.get(source), int)]
    known = [t.values.get(source) for source in tensors if info.get(source) is not None]
    return all(isinstance(axes, tuple) and all(not a or ax.is_free(a) for a in axes) for axes in known)


def _parameter_axes(t: Tracer) -> tuple[ParameterAxis, ...]:
    read = {(c.weight, c.weight_dim) for c in t.contractions if c.axis}
    found = []
    for node, axes in t.values.items():
        if node.op != "get_attr" or node not in t.bound:
            continue
        name = str(node.target)
        is_parameter = isinstance(fetch(t.captured.module, name), torch.nn.Parameter)
        for dim, axis in enumerate(axes):
            reads = (node, dim) in read
            makes = is_parameter and len(axes) > 1 and not reads
            found += [
                ParameterAxis(name, dim, t.channels.resolve(labels), is_parameter, reads, makes)
                for labels in ax.labels_of(axis)
            ]
    return tuple(found)
