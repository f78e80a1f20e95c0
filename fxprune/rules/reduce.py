"""Reductions and scans: a statistic over an axis that may shrink, or an axis that stays."""

from __future__ import annotations

import math
import operator
from types import SimpleNamespace
from typing import Any

from torch import fx

from fxprune import axes as ax
from fxprune.axes import Axes, is_labelled
from fxprune.rules.registry import register
from fxprune.rules.tracing import Tracer
from fxprune.rules.twinning import Twin


def _dims(a: SimpleNamespace, rank: int) -> list[int]:
    dim = getattr(a, "dim", None)
    dims = [dim] if isinstance(dim, int) else list(dim) if dim else list(range(rank))
    return [d % rank for d in dims]


def _reduce(t: Tracer, node: fx.Node, a: SimpleNamespace) -> Axes:
    """Before: x[b, n, c] over n.  After: [b, c]; what goes from n is not counted."""
    x = t.axes(a.self, node)
    shrinking = [d for d in _dims(a, len(x)) if is_labelled(x[d])] if x else []
    if shrinking:
        t.statistic(node)
        stay = math.prod(t.example(a.self)[d] for d in _dims(a, len(x)) if d not in shrinking)
        for d in shrinking:
            t.keep_least(x[d], math.floor(_correction(a) / stay) + 1)
    return _left(t, node, a)


def _correction(a: SimpleNamespace) -> float:
    """Returns what a variance takes from the count that it divides by; 0 for other reductions."""
    if hasattr(a, "unbiased"):
        return float(a.unbiased)
    correction = getattr(a, "correction", 0)
    return 1.0 if correction is None else float(correction)


def _left(t: Tracer, node: fx.Node, a: SimpleNamespace) -> Axes:
    """Returns the axes that a reduction leaves."""
    x = t.axes(a.self, node)
    dims = _dims(a, len(x)) if x else []
    if getattr(a, "keepdim", False):
        return tuple(() if d in dims else axis for d, axis in enumerate(x))
    return tuple(axis for d, axis in enumerate(x) if d not in dims)


def _twin_reduce(t: Twin, node: fx.Node, a: SimpleNamespace) -> Any:
    axes = t.axes(a.self, node)
    arguments = {name: t.value(value) for name, value in vars(a).items()}
    over = [(d, axes[d]) for d in _dims(a, len(axes))]
    return t.run(node, **(arguments | {"self": t.gather(arguments["self"], over)}))


def _reduce_pair(t: Tracer, node: fx.Node, a: SimpleNamespace) -> list[Axes]:
    """As a reduction, with a second result: indices, or the mean beside the variance."""
    axes = _reduce(t, node, a)
    return [axes, axes]


def _indexing_reduce(t: Tracer, node: fx.Node, a: SimpleNamespace) -> list[Axes]:
    """A reduction like any other where nobody reads the positions; otherwise they must stay valid."""
    if all(user.target is operator.getitem and user.args[1] == 0 for user in node.users):
        return _reduce_pair(t, node, a)
    x = t.axes(a.self, node)
    for d in _dims(a, len(x)):
        t.freeze(node, x[d], "an axis whose positions are returned")
    axes = _left(t, node, a)
    return [axes, axes]


def _arg_reduce(t: Tracer, node: fx.Node, a: SimpleNamespace) -> Axes:
    return _indexing_reduce(t, node, a)[0]


def _scan(t: Tracer, node: fx.Node, a: SimpleNamespace) -> Axes:
    """Softmax, cumulative sums: every position along ``dim`` depends on all others, so all of them stay."""
    x = list(t.axes(a.self, node))
    if x:
        t.freeze(node, x[a.dim], "the normalised or scanned axis")
    return tuple(x)


def _sorted(t: Tracer, node: fx.Node, a: SimpleNamespace) -> list[Axes]:
    x = list(t.axes(a.self, node))
    t.freeze(node, x[a.dim], "the sorted axis")
    x[a.dim] = ax.fixed(t.shape(a.self)[a.dim] if not hasattr(a, "k") else a.k)
    return [tuple(x), tuple(x)]


register(
    [
        "mean.default", "mean.dim", "sum.default", "sum.dim_IntList", "amax.default", "amin.default", "prod.dim_int",
        "var.correction", "var.dim", "std.correction", "std.dim", "logsumexp.default", "any.dim", "all.dim",
        "norm.ScalarOpt_dim", "nansum.default", "any.default", "all.default", "linalg_vector_norm.default",
    ],
    _reduce,
    twin=_twin_reduce,
)  # fmt: skip
register(
    ["var_mean.correction", "var_mean.dim", "std_mean.correction", "aminmax.default"],
    _reduce_pair,
    twin=_twin_reduce,
)
register(["max.dim", "min.dim", "median.dim", "mode.default"], _indexing_reduce, twin=_twin_reduce)
register(["argmax.default", "argmin.default"], _arg_reduce)
register(
    ["softmax.int", "_softmax.default", "log_softmax.int", "_log_softmax.default", "cumsum.default", "cumprod.default",
     "logcumsumexp.default", "argsort.default", "argsort.stable"],
    _scan,
)  # fmt: skip
register(["sort.default", "sort.stable", "topk.default"], _sorted)
