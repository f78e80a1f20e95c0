"""Reductions, scans and choices: a statistic over an axis that may shrink, or an axis that stays.

A softmax, a scan and the positions that a choice returns fix their axis, unless a linear layer makes it: a router's
outputs, one for each expert. Those may go, and the softmax is then over the experts that stay.
"""

from __future__ import annotations

import math
import operator
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, fx

from fxprune.algebra import axes as ax
from fxprune.algebra.axes import Axes, Axis, is_labelled, size_of
from fxprune.capturing.normalize.layout import dims_of
from fxprune.ops.constants import Constants
from fxprune.ops.registry import register_rule
from fxprune.ops.rule import Rule, twice
from fxprune.ops.slicer import Slicer
from fxprune.ops.tracer import Tracer
from fxprune.ops.twin import Twin


def _dims(a: SimpleNamespace, rank: int) -> list[int]:
    dim = getattr(a, "dim", None)
    return dims_of(dim if isinstance(dim, int) else dim or None, rank)


def _over(s: Slicer, node: fx.Node, a: SimpleNamespace) -> list[tuple[int, Axis]]:
    """Returns the (dim, axis) pairs that an op works along."""
    axes = s.axes(a.self, node)
    return [(d, axes[d]) for d in _dims(a, len(axes))]


def _reduce(t: Tracer, node: fx.Node, a: SimpleNamespace) -> Axes:
    """Before: x[b, n, c] over n.  After: [b, c]; what goes from n is not counted."""
    x = t.axes(a.self, node)
    shrinking = [d for d in _dims(a, len(x)) if is_labelled(x[d])] if x else []
    if shrinking:
        t.statistic(node)
        for d in shrinking:
            t.experts(x[d])
    return _left(t, node, a)


def _left(t: Tracer, node: fx.Node, a: SimpleNamespace) -> Axes:
    """Returns the axes that a reduction leaves."""
    x = t.axes(a.self, node)
    dims = _dims(a, len(x)) if x else []
    if getattr(a, "keepdim", False):
        return tuple(() if d in dims else axis for d, axis in enumerate(x))
    return tuple(axis for d, axis in enumerate(x) if d not in dims)


def _twin_reduce(t: Twin, node: fx.Node, a: SimpleNamespace) -> Any:
    return t.run(node, **t.given(a, self=_over(t, node, a)))


def _share(s: Slicer, node: fx.Node, a: SimpleNamespace) -> float:
    """Returns the share of what a reduction runs over that stays: a mean divides by all of it."""
    axes = s.axes(a.self, node)
    return math.prod(s.count(axes[d]) / size_of(axes[d]) for d in _dims(a, len(axes)) if s.changed(axes[d]))


def _twin_zeros(t: Twin, node: fx.Node, a: SimpleNamespace) -> Any:
    """The statistic of all, zeros where something goes."""
    over = _over(t, node, a)
    masked = t.scatter(t.gather(t.value(a.self), over), over)
    return t.run(node, **t.given(a) | {"self": masked})


def _arg_reduce(t: Tracer, node: fx.Node, a: SimpleNamespace, result: int | None = None) -> Axes:
    """A choice among outputs, whose positions are a result (of several, that one), or an axis that stays."""
    x = t.axes(a.self, node)
    if not (x and isinstance(a.dim, int) and _choose(t, node, x[a.dim], 1, result)):
        chosen = ax.joined(x[d] for d in _dims(a, len(x))) if x else ()
        t.freeze(node, chosen, "an axis whose positions are returned")
    return _left(t, node, a)


def _indexing_reduce(t: Tracer, node: fx.Node, a: SimpleNamespace) -> list[Axes]:
    """A reduction like any other where nobody reads the positions; otherwise a choice among outputs, or all stay."""
    unread = all(user.target is operator.getitem and user.args[1] == 0 for user in node.users)
    axes = _reduce(t, node, a) if unread else _arg_reduce(t, node, a, result=1)
    return [axes, axes]


def _choose(t: Tracer, node: fx.Node, axis: Axis, k: int, result: int | None) -> bool:
    """Before: x[b, e], e made by a router.  After: the best k of what stays of e, and where they are.

    Returns whether e may shrink: k of them stay, in one factor, and whoever reads the positions knows what they are.
    """
    widest = max((factor.size for factor in axis if factor.labels is not None), default=0)
    if not t.within(axis, t.made) or k > widest or k >= ax.size_of(axis):
        return False
    t.point(node, axis, result)
    if not t.within(axis, t.made):
        return False
    t.statistic(node)
    t.keep_least(axis, k)
    t.route(axis)
    if result is None or any(user.args[1] == result for user in node.users):
        ax.mark(t.channels, axis, "expert")
    return True


def _twin_choose(t: Twin, node: fx.Node, a: SimpleNamespace) -> Any:
    """Chooses among what stays, and says where that is in the whole; what is not there is not a number."""
    over = _over(t, node, a)
    kept = t.kept(over[0][1], t.value(a.self).device) if len(over) == 1 else None
    arguments = t.given(a, self=over)
    missing = max(getattr(a, "k", 0) - len(kept), 0) if kept is not None else 0
    if missing:  # a score asks for it, the solver never does
        arguments["k"] -= missing
    found = t.run(node, **arguments)
    if kept is None:
        return found
    if isinstance(found, Tensor):
        return kept[found]
    values, where = found
    if missing:
        shape = list(values.shape)
        shape[a.dim] = missing
        values = torch.cat([values, values.new_full(shape, math.nan)], a.dim)
        where = torch.cat([where, where.narrow(a.dim, 0, 1).expand(shape)], a.dim)
    return values, kept[where]


def _scan(t: Tracer, node: fx.Node, a: SimpleNamespace) -> Axes:
    """Softmax, cumulative sums: every position depends on all others, so all stay unless a linear layer makes them."""
    x = list(t.axes(a.self, node))
    if x and t.within(x[a.dim], t.made):
        t.statistic(node)
        t.route(x[a.dim])
    elif x:
        t.freeze(node, x[a.dim], "the normalised or scanned axis")
    return tuple(x)


def _twin_scan(t: Twin, node: fx.Node, a: SimpleNamespace) -> Tensor:
    over = _over(t, node, a)
    return t.scatter(t.run(node, **t.given(a, self=over)), over)


def _argsort(t: Tracer, node: fx.Node, a: SimpleNamespace) -> Axes:
    x = list(t.axes(a.self, node))
    if x:
        t.freeze(node, x[a.dim], "the sorted axis")
    return tuple(x)


def _sorted(t: Tracer, node: fx.Node, a: SimpleNamespace) -> list[Axes]:
    """Everything in order: the axis stays; positions of another axis keep their order as that one shrinks."""
    axes = t.fix(node, t.axes(a.self, node), [a.dim], "the sorted axis")
    if (pointed := t.pointed(a.self)) is not None:
        t.point(node, pointed, 0)
    return [axes, axes]


def _topk(t: Tracer, node: fx.Node, a: SimpleNamespace) -> list[Axes]:
    """Before: x[b, e].  After: [b, k] and where they were; e goes as `_choose` says."""
    x = list(t.axes(a.self, node))
    if not isinstance(a.k, int) or not _choose(t, node, x[a.dim], a.k, result=1):
        t.freeze(node, x[a.dim], "the sorted axis")
    x[a.dim] = ax.fixed(t.shape(node)[a.dim])
    return [tuple(x), tuple(x)]


def _of_others(c: Constants, node: fx.Node, a: SimpleNamespace) -> int | None:
    """Over the channels, their dimension kept; or over nothing but others, which changes no constant."""
    dim = c.only(node, a.self)
    over = _dims(a, c.rank(a.self))
    if dim is None or a.keepdim:
        return dim
    return None if dim in over else dim - sum(d < dim for d in over)


def _of_channels(c: Constants, node: fx.Node, a: SimpleNamespace) -> int | None:
    """Over the channels alone: along another dimension a sum counts the values."""
    dim = c.only(node, a.self)
    return dim if a.keepdim and a.dim and _dims(a, c.rank(a.self)) == [dim] else None


_REDUCE = Rule(_reduce, twin=_twin_reduce, statistic=True)
_CHOICE = Rule(_indexing_reduce, twin=_twin_choose, statistic=True)

_MEAN = replace(_REDUCE, twin=_twin_zeros, factor=_share)
_VARIANCE = replace(_REDUCE, twin=_twin_zeros, zeros=_over)

register_rule("mean.dim", replace(_MEAN, constant=_of_others))
register_rule("mean.default", _MEAN)
register_rule("amax.default amin.default", replace(_REDUCE, constant=_of_others))
register_rule("sum.dim_IntList linalg_vector_norm.default", replace(_REDUCE, constant=_of_channels))
register_rule("var.correction", replace(_VARIANCE, constant=_of_channels))
register_rule("var.dim var.default std.correction std.dim std.default", _VARIANCE)
register_rule(
    "var_mean.correction var_mean.dim var_mean.default std_mean.correction std_mean.dim std_mean.default",
    replace(_VARIANCE, couple=twice(_reduce)),
)
register_rule("aminmax.default", replace(_REDUCE, couple=twice(_reduce)))
register_rule(
    "sum.default prod.dim_int logsumexp.default any.dim all.dim "
    "norm.ScalarOpt_dim nansum.default any.default all.default",
    _REDUCE,
)
register_rule("max.dim min.dim", replace(_CHOICE, constant=_of_others))
register_rule("median.dim mode.default", _CHOICE)
register_rule("argmax.default argmin.default", Rule(_arg_reduce, twin=_twin_choose, statistic=True))
_SCAN = Rule(_scan, twin=_twin_scan, statistic=True)
register_rule("softmax.int _softmax.default", replace(_SCAN, kind="softmax"))
register_rule("log_softmax.int _log_softmax.default cumsum.default cumprod.default logcumsumexp.default", _SCAN)
register_rule("argsort.default argsort.stable", Rule(_argsort, positions=("self",)))
register_rule("sort.default sort.stable", Rule(_sorted, positions=("self",)))
register_rule("topk.default", Rule(_topk, twin=_twin_choose, statistic=True))
