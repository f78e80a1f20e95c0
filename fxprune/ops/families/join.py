"""Cat, stack, split, slice, select, index, pad, roll: labels are concatenated, cut and picked."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from functools import partial
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import fx, nn

from fxprune.algebra import axes as ax
from fxprune.algebra.axes import Axes, Axis
from fxprune.ops.constants import Constants, beside
from fxprune.ops.modules import Layer, Site
from fxprune.ops.registry import register_rule
from fxprune.ops.rule import Rule
from fxprune.ops.slicer import Edit, Slicer
from fxprune.ops.tracer import Tracer


def _cat(t: Tracer, node: fx.Node, a: SimpleNamespace) -> Axes:
    """Before: x[b, c], y[b, d].  After: [b, c + d], each with its own channels."""
    operands = [x for x in a.tensors if t.shape(x) != (0,)]  # the legacy empty tensor
    rank = len(t.shape(node))
    dim = a.dim % rank
    if _partly_free(t.values[x][dim] for x in operands):
        t.bound.add(node)  # one part for all readers: what is fixed beside it holds no more than itself
    axes = [t.axes(x, node) for x in operands]
    result: list[Axis] = []
    for d in range(rank):
        column = [x[d] for x in axes]
        joined = ax.concat if d == dim else ax.broadcast
        if d == dim and any(t.dynamic(x, d) for x in operands):
            t.freeze(node, ax.joined(column), "a dynamic axis")
            result.append(ax.fixed(t.shape(node)[d]))
        else:
            result.append(joined(t.channels, column, t.where(node)))
    return tuple(result)


def _partly_free(parts: Iterable[Axis]) -> bool:
    """Whether some parts of a concatenation are free, and others stay: an input beside a state that starts at zero."""
    free = [ax.is_free(part) for part in parts if ax.size_of(part)]
    return any(free) and not all(free)


def _stack(t: Tracer, node: fx.Node, a: SimpleNamespace) -> Axes:
    """Before: n times x[b, c].  After: [n, b, c]; n stays."""
    dim = a.dim % len(t.shape(node))
    x = t.broadcast(node, *(t.axes(operand, node) for operand in a.tensors))
    return (*x[:dim], ax.fixed(len(a.tensors)), *x[dim:])


def _split(t: Tracer, node: fx.Node, a: SimpleNamespace) -> list[Axes]:
    """Before: x[b, c].  After: [b, c0], [b, c1], ..., each with the channels of its part."""
    if not all(isinstance(size, int) for size in a.split_sizes):
        return _pieces(t, node, a)
    x = t.axes(a.self, node)
    dim = a.dim % len(x)
    parts, start = [], 0
    for size in a.split_sizes:
        part = ax.take(t.channels, x[dim], start, start + size, 1, t.where(node))
        parts.append((*x[:dim], part, *x[dim + 1 :]))
        start += size
    return parts


def _pieces(t: Tracer, node: fx.Node, a: SimpleNamespace) -> list[Axes]:
    """Before: x[b, c], b known only at run time.  After: [b / 2, c], [b / 2, c]; what is cut stays."""
    x = t.axes(a.self, node)
    dim = a.dim % len(x)
    t.freeze(node, x[dim], "a part known only at run time")
    return [(*x[:dim], ax.fixed(part.shape[dim]), *x[dim + 1 :]) for part in t.parts(node)]


def _slice_split(s: Slicer, node: fx.Node, a: SimpleNamespace) -> Edit:
    parts = zip(a.split_sizes, s.axes(node), strict=True)
    return Edit({"split_sizes": [s.resize(size, part[a.dim]) for size, part in parts]})


def _bounds(a: SimpleNamespace, size: int) -> tuple[int, int, int] | None:
    """Returns static (start, stop, step) within the size, or None if they are known only at run time."""
    ends = (0 if a.start is None else a.start, sys.maxsize if a.end is None else a.end)
    if not all(isinstance(end, int) for end in (*ends, a.step)):
        return None
    return slice(*ends, a.step).indices(size)


def _slice(t: Tracer, node: fx.Node, a: SimpleNamespace) -> Axes:
    """Before: x[b, c].  After: [b, c[start:end:step]], with the channels of that part."""
    x = t.axes(a.self, node)
    dim = a.dim % len(x)
    bounds = None if t.dynamic(a.self, dim) else _bounds(a, t.shape(a.self)[dim])
    if bounds is None:
        return t.fix(node, x, [dim], "a part known only at run time")
    return (*x[:dim], ax.take(t.channels, x[dim], *bounds, t.where(node)), *x[dim + 1 :])


def _slice_slice(s: Slicer, node: fx.Node, a: SimpleNamespace) -> Edit:
    axis = s.axes(a.self, node)[a.dim]
    bounds = _bounds(a, ax.size_of(axis)) if s.changed(axis) else None
    if bounds is None:
        return Edit()
    start, stop, step = bounds
    before = s.kept_before(axis, start)
    if step == 1:
        return Edit({"start": before, "end": s.kept_before(axis, stop)})
    wanted = np.zeros(ax.size_of(axis), bool)
    wanted[start:stop:step] = True
    positions = np.flatnonzero(wanted[s.index(axis)])
    return Edit({"self": a.self, "dim": a.dim, "index": positions}, torch.ops.aten.index_select.default)


def _select(t: Tracer, node: fx.Node, a: SimpleNamespace) -> Axes:
    """Before: x[b, n, c], n = 0.  After: [b, c]; coordinate 0 of n stays, the others are free to go."""
    x = t.axes(a.self, node)
    dim = a.dim % len(x)
    picked = x[dim]
    if ax.is_labelled(picked):
        if t.dynamic(a.self, dim) or not isinstance(a.index, int):
            t.freeze(node, picked, "a selected axis")
        else:
            index = a.index % ax.size_of(picked)
            part = ax.take(t.channels, picked, index, index + 1, 1, t.where(node))
            t.freeze(node, part, "the selected coordinate")
    return (*x[:dim], *x[dim + 1 :])


def _slice_select(s: Slicer, node: fx.Node, a: SimpleNamespace) -> Edit:
    axis = s.axes(a.self, node)[a.dim]
    return Edit({"index": s.kept_before(axis, a.index % ax.size_of(axis))} if s.changed(axis) else {})


def indices_of(t: Tracer, a: SimpleNamespace) -> list[fx.Node | None]:
    """Returns the index of each dimension, None where there is none; a mask stands for as many as it has itself."""
    found: list[fx.Node | None] = []
    for index in a.indices:
        masks = index is not None and t.captured.info[index].dtype in (torch.bool, torch.uint8)
        found += [index] * (len(t.shape(index)) if masks else 1)
    return [*found, *[None] * (len(t.shape(a.self)) - len(found))]


def _index(t: Tracer, node: fx.Node, a: SimpleNamespace) -> Axes | None:
    """Before: table[n, c] at positions [i, j].  After: [i, j, c]; rows that are indexed stay."""
    x = t.axes(a.self, node)
    indices = indices_of(t, a)
    indexed = [d for d, index in enumerate(indices) if index is not None]
    if len(indices) != len(x) or not indexed:
        for positions in (a.self, *a.indices):
            t.follow(node, (), positions, "an indexed axis")
        return None
    if (pointed := t.pointed(a.self)) is not None:
        t.point(node, pointed)
    for dim, index in enumerate(indices):
        if index is not None:
            t.follow(node, x[dim], index, "an indexed axis")
            t.freeze(node, ax.joined(t.axes(index, node)), "an index")
    count = len(t.shape(node)) - (len(x) - len(indexed))
    adjacent = indexed == list(range(indexed[0], indexed[-1] + 1))
    at = indexed[0] if adjacent else 0
    rest = [axis for d, axis in enumerate(x) if d not in indexed]
    picked = [ax.fixed(size) for size in t.shape(node)[at : at + count]]
    return (*rest[:at], *picked, *rest[at:])


def _along(t: Tracer, node: fx.Node, a: SimpleNamespace, what: str) -> Axes:
    """Data moves along some dimensions, and all others are alike."""
    x = t.axes(a.self, node)
    return t.fix(node, x, a.dims or range(len(x)), what)


def _embedding(t: Tracer, node: fx.Node, a: SimpleNamespace) -> Axes:
    """Before: weight[v, c], indices[b, n].  After: [b, n, c]; rows stay unless the indices follow them."""
    rows, columns = t.axes(a.weight, node)
    t.follow(node, rows, a.indices, "the rows")
    lead = [t.freeze(node, axis, "an index") for axis in t.axes(a.indices, node)]
    return (*lead, columns)


def _sides(pad: Sequence[Any], rank: int) -> list[tuple[int, Any, Any]]:
    """Returns what is padded as (dim, before, after), the last dimension first."""
    return [(rank - 1 - i // 2, pad[i], pad[i + 1]) for i in range(0, len(pad), 2)]


def _pad(t: Tracer, node: fx.Node, a: SimpleNamespace) -> Axes:
    """Before: x[b, c], 2 zeros on each side of c.  After: [b, 2 + c + 2]; the zeros are channels of their own."""
    x = list(t.axes(a.self, node))
    for dim, before, after in _sides(a.pad, len(x)):
        if before == 0 and after == 0:
            continue
        static = all(isinstance(n, int) and n >= 0 for n in (before, after)) and not t.dynamic(a.self, dim)
        if not ax.is_labelled(x[dim]) or not static or getattr(a, "mode", "constant") != "constant":
            x = list(t.fix(node, x, [dim], "a padded axis"))
            continue
        sides = [t.new_axis(node, n, dynamic=n < 2) if n else () for n in (before, after)]
        parts = [part for part, n in ((sides[0], before), (x[dim], 1), (sides[1], after)) if n]
        t.note(node, **{f"before{dim}": sides[0], f"after{dim}": sides[1]})
        x[dim] = ax.concat(t.channels, parts, t.where(node))
    return tuple(x)


def _slice_pad(s: Slicer, node: fx.Node, a: SimpleNamespace) -> Edit:
    axes, pad = s.axes(node), []
    for dim, *sides in _sides(a.pad, len(axes)):
        if s.changed(axes[dim]):
            sides = [
                s.count(s.noted(node, f"{side}{dim}")) if n else 0
                for side, n in zip(("before", "after"), sides, strict=True)
            ]
        pad += sides
    return Edit({"pad": pad})


def _beside_indexed(c: Constants, node: fx.Node, a: SimpleNamespace) -> int | None:
    """Before: x[b, n, c] at positions of n.  After: c is still the last."""
    dim = c.first(node, a)
    if any(index is not None and c.info[index].dtype in (torch.bool, torch.uint8) for index in a.indices):
        return None
    indexed = [d for d, index in enumerate(a.indices) if index is not None]
    behind = bool(indexed) and dim > indexed[-1] and indexed[-1] - indexed[0] == len(indexed) - 1
    return dim + c.rank(node) - c.rank(a.self) if behind else None


def _selected(c: Constants, node: fx.Node, a: SimpleNamespace) -> int | None:
    dim, gone = c.first(node, a), a.dim % c.rank(a.self)
    return None if dim == gone else dim - (gone < dim)


def _padded(c: Constants, node: fx.Node, a: SimpleNamespace) -> int | None:
    """What is padded with values from beside stays constant."""
    dim, rank = c.first(node, a), c.rank(node)
    touched = {d for d, *sides in _sides(a.pad, rank) if sides != [0, 0]}
    return dim if getattr(a, "mode", "constant") != "constant" and dim not in touched else None


def _of_embedding(site: Site) -> nn.Module | None:
    if getattr(site.owner, "max_norm", None) is not None:  # the graph renormalises the rows by an op of its own
        return None
    rows, columns = site.tensors["weight"].shape
    padding = site.values["padding_idx"]
    return nn.Embedding(
        rows,
        columns,
        padding_idx=None if padding < 0 else padding,
        scale_grad_by_freq=site.values["scale_grad_by_freq"],
        sparse=site.values["sparse"],
        device="meta",
    )


_EMBEDDING = Layer(
    (nn.Embedding,),
    _of_embedding,
    {"weight": "weight"},
    ("indices",),
    agree=("padding_idx", "scale_grad_by_freq", "sparse"),
)

register_rule("cat.default concat.default", Rule(_cat))
register_rule("stack.default", Rule(_stack))
register_rule("split_with_sizes.default", Rule(_split, slice=_slice_split, literals=("split_sizes",), moves=beside))
register_rule("chunk.default split.Tensor", Rule(_pieces, moves=beside))
register_rule("slice.Tensor", Rule(_slice, slice=_slice_slice, literals=("start", "end"), carries=True, moves=beside))
register_rule("select.int", Rule(_select, slice=_slice_select, literals=("index",), carries=True, moves=_selected))
register_rule("index.Tensor", Rule(_index, positions=("self", "indices"), moves=_beside_indexed))
register_rule("roll.default", Rule(partial(_along, what="the rolled axis"), moves=beside))
register_rule("flip.default", Rule(partial(_along, what="the flipped axis"), moves=beside))
register_rule("embedding.default", Rule(_embedding, positions=("indices",), kind="embedding", module=_EMBEDDING))
register_rule("pad.default constant_pad_nd.default", Rule(_pad, slice=_slice_pad, literals=("pad",), moves=_padded))
