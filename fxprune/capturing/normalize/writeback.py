"""What a tensor is after a view of it was overwritten: the inverse of every view operator."""

from __future__ import annotations

import sys
from typing import Any

from torch import fx

from fxprune.capturing.normalize.edit import aten, fake, insert, is_op, same_sizes, schema_args
from fxprune.capturing.normalize.layout import axes_of
from fxprune.capturing.sizes import static

_RESHAPES = (
    aten.view.default,
    aten._unsafe_view,
    aten.reshape,
    aten._reshape_alias,
    aten.flatten.using_ints,
    aten.unflatten.int,
    aten.view_as,
    aten.reshape_as,
    aten.unsqueeze,
    aten.squeeze,
)


def write_back(graph: fx.Graph, at: fx.Node, view: fx.Node, value: fx.Node) -> fx.Node | None:
    """Return, inserted before ``at``, what ``view``'s base is once ``value`` was written to ``view``.

    Returns None for a view that has no inverse, such as an overlapping or strided one.

    Example: for ``view = slice(x, 1, 2, 5)`` it is ``cat([slice(x, 1, 0, 2), value, slice(x, 1, 5)], 1)``.
    """
    base: Any = view.args[0]
    before, after = fake(base), fake(view)
    if before is None or after is None:
        return None
    if is_op(view, aten.slice.Tensor):
        return _fill_slice(graph, at, view, value)
    if is_op(view, aten.select.int):
        return _fill_select(graph, at, view, value)
    if is_op(view, *_RESHAPES):
        return insert(graph, at, aten.reshape_as.default, (value, base), before)
    axes = axes_of(view)
    if axes is not None and None not in axes and len(axes) == before.ndim:
        inverse = [axes.index(axis) for axis in range(before.ndim)]
        return insert(graph, at, aten.permute.default, (value, inverse), before)
    return value if is_op(view, aten.alias, aten.detach) and same_sizes(before.shape, after.shape) else None


def _fill_slice(graph: fx.Graph, at: fx.Node, view: fx.Node, value: fx.Node) -> fx.Node | None:
    given = schema_args(view)
    dim, start, end = given["dim"], given["start"] or 0, given["end"]
    if given["step"] != 1:
        return None
    size = static(fake(view.args[0]).shape[dim])  # type: ignore[union-attr]
    if isinstance(end, int) and end >= (sys.maxsize if size is None else size):
        end = None
    return _fill(graph, at, view.args[0], dim, start, end, value)


def _fill_select(graph: fx.Graph, at: fx.Node, view: fx.Node, value: fx.Node) -> fx.Node:
    dim, index = schema_args(view)["dim"], schema_args(view)["index"]
    base = fake(view.args[0])
    assert base is not None
    dim %= base.ndim
    whole = insert(graph, at, aten.unsqueeze.default, (value, dim))
    last = index == -1 or index + 1 == static(base.shape[dim])
    return _fill(graph, at, view.args[0], dim, index, None if last else index + 1, whole)


def _fill(graph: fx.Graph, at: fx.Node, base: Any, dim: int, start: Any, end: Any, value: fx.Node) -> fx.Node:
    pieces = [value]
    if start != 0:
        pieces.insert(0, insert(graph, at, aten.slice.Tensor, (base, dim, 0, start)))
    if end is not None:
        pieces.append(insert(graph, at, aten.slice.Tensor, (base, dim, end, sys.maxsize)))
    return insert(graph, at, aten.cat.default, (pieces, dim), base.meta["val"])
