"""Reading and writing at positions of one axis, as graphs and masks do: that axis stays, all others pass."""

from __future__ import annotations

import operator
from types import SimpleNamespace

import torch
from torch import fx

from fxprune.algebra import axes as ax
from fxprune.algebra.axes import Axes, Axis
from fxprune.capturing.normalize.layout import dims_of
from fxprune.ops.families.join import indices_of
from fxprune.ops.families.positions import beside_dim
from fxprune.ops.registry import bind, register_rule, rule_at
from fxprune.ops.rule import Rule
from fxprune.ops.tracer import Tracer


def _add_at(t: Tracer, node: fx.Node, a: SimpleNamespace) -> Axes | None:
    """Before: x[n, c], positions[e] of n, source[e, c].  After: [n, c]; n stays, and so does e."""
    if len(t.shape(a.source)) != len(t.shape(a.self)):
        return None
    dim = a.dim % len(t.shape(a.self))
    result = beside_dim(t, node, (a.self, a.source), dim)
    t.freeze(node, ax.joined(t.axes(x, node)[dim] for x in (a.self, a.source)), "an indexed axis")
    return tuple(result)


def _along(t: Tracer, node: fx.Node, a: SimpleNamespace) -> Axes:
    """One dimension is filled, turned or scanned, and all others are alike."""
    x = t.axes(a.self, node)
    return t.fix(node, x, dims_of(a.dims if hasattr(a, "dims") else a.dim, len(x)), "an indexed axis")


def _diff(t: Tracer, node: fx.Node, a: SimpleNamespace) -> Axes | None:
    return _along(t, node, a) if a.prepend is None and a.append is None else None


def _write(t: Tracer, node: fx.Node, a: SimpleNamespace) -> Axes | None:
    """Before: x[b, n, c], positions [i, j] of b and n, values[i, j, c].  After: [b, n, c]; b and n stay."""
    x, indices = list(t.axes(a.self, node)), indices_of(t, a)
    indexed = [d for d, index in enumerate(indices) if index is not None]
    if not indexed:
        return None
    given = list(dict.fromkeys(index for index in indices if index is not None))
    count = max(1 if _is_mask(t, index) else len(t.shape(index)) for index in given)
    at = indexed[0] if indexed == list(range(indexed[0], indexed[-1] + 1)) else 0
    rest = [d for d in range(len(x)) if d not in indexed]
    target: list[int | None] = [*rest[:at], *[None] * count, *rest[at:]]
    values = t.axes(a.values, node)
    if len(values) > len(target):
        return None
    for index in given:
        t.freeze(node, ax.joined(t.axes(index, node)), "an index")
    for dim, value in zip(target[len(target) - len(values) :], values, strict=True):
        if dim is None or ax.size_of(value) == 1:
            t.freeze(node, value, "what is written at positions")
        else:
            x[dim] = t.relate(node, x[dim], value)
    return t.fix(node, x, indexed, "an indexed axis")


def _is_mask(t: Tracer, index: fx.Node) -> bool:
    return bool(t.captured.info[index].dtype is torch.bool)


def _masked_scatter(t: Tracer, node: fx.Node, a: SimpleNamespace) -> Axes | None:
    """Before: x[b, n, c], mask[b, n, 1], source[k, c], whose rows are written in order.  After: [b, n, c]."""
    if not _alike(t, a.mask) or t.shape(a.source)[-1:] != t.shape(a.self)[-1:]:
        return None
    *lead, last = t.axes(a.self, node)
    *_, mask = t.axes(a.mask, node)
    rows = ax.joined((*t.axes(a.source, node)[:-1], *t.axes(a.mask, node)[:-1]))
    t.freeze(node, (*ax.joined(lead), *rows), "the rows that are written")
    last = t.relate(node, last, t.axes(a.source, node)[-1])
    return (*map(ax.fixed, t.shape(node)[:-1]), last if ax.size_of(mask) == 1 else t.relate(node, last, mask))


def _alike(t: Tracer, mask: fx.Node) -> bool:
    """Whether a mask is the same for all coordinates of the last dimension."""
    while t.shape(mask) and t.shape(mask)[-1] != 1:
        rule = rule_at(mask)
        if rule is None or not (rule.moves is not None and mask.target in _EXPANSIONS):
            return False
        mask = next(iter(vars(bind(mask)).values()))
    return bool(t.shape(mask))


_EXPANSIONS = (torch.ops.aten.expand.default, torch.ops.aten.expand_as.default, torch.ops.aten.clone.default)


def _triangle(t: Tracer, node: fx.Node, a: SimpleNamespace) -> Axes:
    """Before: x[b, n, m].  After: the same; n and m stay, unless all of it is made of literals."""
    x = t.axes(a.self, node)
    return x if all(not axis or ax.is_free(axis) for axis in x) else t.fix(node, x, (-2, -1), "the triangle")


def _segments(t: Tracer, node: fx.Node, a: SimpleNamespace) -> Axes:
    """Before: x[n, c], lengths[s].  After: [s, c]; n stays."""
    x = t.axes(a.data, node)
    for operand in (a.lengths, a.indices, a.offsets):
        if operand is not None:
            t.freeze(node, ax.joined(t.axes(operand, node)), "the segments")
    return t.fix(node, x, range(a.axis % len(x) + 1), "the segments")


def _bags(t: Tracer, node: fx.Node, a: SimpleNamespace) -> list[Axes] | None:
    """Before: weight[v, c], indices[n] in bags[s].  After: [s, c], a sum or mean of rows; all rows stay."""
    if any(user.target is not operator.getitem or user.args[1] != 0 for user in node.users):
        return None
    rows, columns = t.axes(a.weight, node)
    held: list[Axis] = [
        axis for x in (a.indices, a.offsets, a.per_sample_weights) if x is not None for axis in t.axes(x, node)
    ]
    t.freeze(node, ax.joined((rows, *held)), "the rows")
    first, *others = t.parts(node)
    return [(ax.fixed(first.shape[0]), columns), *(tuple(map(ax.fixed, part.shape)) for part in others)]


def _put_part(t: Tracer, node: fx.Node, a: SimpleNamespace) -> Axes:
    """Before: x[b, n, c], what is put at some of n.  After: [b, n, c]; n stays."""
    x, part = t.axes(a.self, node), list(t.axes(a.src, node))
    dim = a.dim % len(x)
    if len(part) == len(x):
        t.freeze(node, part.pop(dim), "an indexed axis")
    part.insert(dim, ())
    t.freeze(node, x[dim], "an indexed axis")
    result = [
        t.relate(node, *pair) if d != dim else ax.fixed(t.shape(node)[d])
        for d, pair in enumerate(zip(x, part, strict=True))
    ]
    return tuple(result)


register_rule("index_add.default index_copy.default index_reduce.default", Rule(_add_at))
register_rule("index_fill.int_Scalar index_fill.int_Tensor rot90.default", Rule(_along))
register_rule("diff.default", Rule(_diff))
register_rule("index_put.default _unsafe_index_put.default", Rule(_write))
register_rule("masked_scatter.default", Rule(_masked_scatter))
register_rule("tril.default triu.default", Rule(_triangle))
register_rule("segment_reduce.default", Rule(_segments))
register_rule("embedding_bag.default embedding_bag.padding_idx", Rule(_bags))
register_rule("slice_scatter.default select_scatter.default", Rule(_put_part))
