"""Positions of an axis that shrinks: what a router chose, and how it is looked up, counted and spread out again.

Among fewer experts a position is another number, in the same order. The masked twin keeps the numbers of the whole.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx

from fxprune._base.names import fetch
from fxprune.algebra import axes as ax
from fxprune.algebra.axes import Axes, Axis
from fxprune.capturing.normalize.edit import is_op, named
from fxprune.ops.constants import beside, elementwise
from fxprune.ops.families.elementwise import pointwise
from fxprune.ops.registry import bind, register_rule
from fxprune.ops.rule import Rule
from fxprune.ops.slicer import Edit, Slicer, noted_sizes
from fxprune.ops.tracer import Tracer


def beside_dim(t: Tracer, node: fx.Node, operands: Sequence[Any], dim: int) -> list[Axis]:
    """Relates the axes of some operands in all dimensions but one; where the sizes differ, they stay."""
    shapes = [t.shape(x) for x in operands]
    columns = list(zip(*(t.axes(x, node) for x in operands), strict=True))
    result = []
    for d, column in enumerate(columns):
        if d != dim and len({shape[d] for shape in shapes}) == 1:
            result.append(ax.broadcast(t.channels, column, t.where(node)))
            continue
        t.freeze(node, ax.joined(column) if d != dim else (), "a part")
        result.append(ax.fixed(t.shape(node)[d]))
    return result


def _gather(t: Tracer, node: fx.Node, a: SimpleNamespace) -> Axes:
    """Before: x[b, e, c], positions[b, k, c] of e.  After: [b, k, c]; e goes if the positions follow it."""
    index = a.index if hasattr(a, "index") else a.indices
    x, at = t.axes(a.self, node), t.axes(index, node)
    if a.dim is None:
        t.freeze(node, ax.joined((*x, *at)), "a gathered axis")
        t.follow(node, (), index, "a gathered axis")
        return tuple(ax.fixed(size) for size in t.shape(node))
    dim = a.dim % len(x)
    if hasattr(a, "indices"):  # all other dimensions are broadcast
        result = [axis if d == dim else t.relate(node, axis, x[d]) for d, axis in enumerate(at)]
    else:
        result = beside_dim(t, node, (a.self, index), dim)
    t.follow(node, x[dim], index, "a gathered axis")
    result[dim] = at[dim] if t.pointed(index) is not None else t.freeze(node, at[dim], "a gathered axis")
    return tuple(result)


def _scatter(t: Tracer, node: fx.Node, a: SimpleNamespace) -> Axes:
    """Before: x[b, e, c], positions[b, k, c] of e, source[b, k, c].  After: [b, e, c]; e goes if the positions follow it."""
    sources = [a.src] if hasattr(a, "src") else []
    x = t.axes(a.self, node)
    dim = a.dim % len(x)
    result = beside_dim(t, node, (a.self, a.index, *sources), dim)
    t.freeze(node, ax.joined(t.axes(operand, node)[dim] for operand in (a.index, *sources)), "what is spread out")
    result[dim] = t.follow(node, x[dim], a.index, "the axis that is written to")
    return tuple(result)


def _index_select(t: Tracer, node: fx.Node, a: SimpleNamespace) -> Axes:
    """Before: table[n, c] at positions [i].  After: [i, c]; n stays unless the positions follow it."""
    x = list(t.axes(a.self, node))
    t.follow(node, x[a.dim], a.index, "an indexed axis")
    x[a.dim] = ax.fixed(t.shape(node)[a.dim])
    return tuple(x)


def _one_hot(t: Tracer, node: fx.Node, a: SimpleNamespace) -> Axes | None:
    """Before: chosen[b, k] positions of e.  After: [b, k, e]."""
    pointed = t.pointed(a.self)
    if pointed is None or ax.size_of(pointed) != a.num_classes:
        t.follow(node, (), a.self, "other positions")
        return None
    t.note(node, num_classes=pointed)
    return (*t.axes(a.self, node), pointed)


def _histc(t: Tracer, node: fx.Node, a: SimpleNamespace) -> Axes | None:
    """Before: positions[n] of e, a bin for each of e.  After: [e]."""
    pointed = t.pointed(a.self)
    if pointed is None or (ax.size_of(pointed), 0) != (a.bins, a.min) or a.max not in (a.bins, a.bins - 1):
        t.follow(node, (), a.self, "other bins")
        return None
    t.freeze(node, ax.joined(t.axes(a.self, node)), "what is counted")
    return (pointed,)


def _slice_histc(s: Slicer, node: fx.Node, a: SimpleNamespace) -> Edit:
    (axis,) = s.axes(node)
    if not s.changed(axis):
        return Edit()
    return Edit({"bins": s.count(axis), "max": s.count(axis) + a.max - a.bins})


def _compare(t: Tracer, node: fx.Node, a: SimpleNamespace) -> Axes:
    """Before: chosen[b, k, 1] positions of e, 0, 1, ... [e].  After: [b, k, e]."""
    for positions, numbers in ((a.self, a.other), (a.other, a.self)):
        if t.pointed(positions) is not None:
            dim = _numbered(t, numbers)
            axis = t.axes(numbers, node)[dim] if dim is not None else ()
            if dim is not None and dim >= -len(t.shape(positions)) and t.shape(positions)[dim] != 1:
                axis = ()
            t.follow(node, axis, positions, "a comparison")
            t.note(node, numbers=axis)
    return pointwise(t, node, a)


def _numbered(t: Tracer, node: fx.Node) -> int | None:
    """Returns the dimension (from the end) along which a value made of literals counts 0, 1, 2 ..., if it does."""
    shape = t.shape(node)
    long = [d - len(shape) for d, size in enumerate(shape) if size != 1]
    if node in t.bound or len(long) != 1 or any(t.dynamic(node, d) for d in range(len(shape))):
        return None
    source: Any = node
    while is_op(source, *_MOVES):
        source = source.args[0]
    if source.op == "get_attr":
        value = fetch(t.captured.module, str(source.target))
        counted = isinstance(value, Tensor) and value.tolist() == list(range(shape[long[0]]))
        return long[0] if counted else None
    a = bind(source) if is_op(source, torch.ops.aten.arange) else None
    return long[0] if a is not None and getattr(a, "start", 0) == 0 and getattr(a, "step", 1) == 1 else None


_MOVES = named("unsqueeze.default view.default reshape.default to.dtype expand.default")


def _slice_compare(s: Slicer, node: fx.Node, a: SimpleNamespace) -> Edit:
    """Before: chosen == [0, 1, 2, 3].  After: chosen == [0, 1, 2], when one is gone."""
    axis = s.notes.get(node, {}).get("numbers", ())
    if not s.changed(axis):
        return Edit()
    operands = {name: s.axes(getattr(a, name), node) for name in ("self", "other")}
    name = next(name for name, axes in operands.items() if any(f is axis[0] for x in axes for f in x))
    return Edit({name: np.arange(s.count(axis)).reshape([-1 if x else 1 for x in operands[name]])})


register_rule("gather.default", Rule(_gather, positions=("index",)))
register_rule("take_along_dim.default", Rule(_gather, positions=("indices",)))
register_rule(
    "scatter.src scatter.value scatter.reduce scatter.value_reduce scatter_add.default scatter_reduce.two",
    Rule(_scatter, positions=("index",)),
)
register_rule("index_select.default", Rule(_index_select, positions=("index",), moves=beside))
register_rule("one_hot.default", Rule(_one_hot, slice=noted_sizes, literals=("num_classes",), positions=("self",)))
register_rule("histc.default", Rule(_histc, slice=_slice_histc, literals=("bins", "max"), positions=("self",)))
register_rule(
    "eq.Tensor ne.Tensor",
    Rule(_compare, slice=_slice_compare, literals=("self", "other"), positions=("self", "other"), constant=elementwise),
)
