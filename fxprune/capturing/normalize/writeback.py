"""What a tensor is after a view of it was overwritten: the inverse of every view operator."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

from torch import fx

from fxprune.capturing.normalize.edit import aten, fake, insert, is_op, named, same_sizes, schema_args
from fxprune.capturing.normalize.layout import axes_of
from fxprune.capturing.sizes import static

_RESHAPES = named(
    "view.default _unsafe_view reshape _reshape_alias flatten.using_ints unflatten.int view_as reshape_as "
    "unsqueeze squeeze"
)


def write_back(at: fx.Node, view: fx.Node, value: fx.Node) -> fx.Node | None:
    """Return, inserted before ``at``, what ``view``'s base is once ``value`` was written to ``view``.

    Returns None for a view that has no inverse, such as an overlapping or strided one.

    Example: for ``view = slice(x, 1, 2, 5)`` it is ``cat([slice(x, 1, 0, 2), value, slice(x, 1, 5)], 1)``.
    """
    base: Any = view.args[0]
    before, after = fake(base), fake(view)
    if before is None or after is None:
        return None
    if is_op(view, aten.slice.Tensor):
        return _fill_slice(at, base, schema_args(view), value)
    if is_op(view, aten.select.int):
        return _fill_select(at, base, schema_args(view), value)
    if is_op(view, *_RESHAPES):
        return insert(at, aten.reshape_as.default, (value, base), before)
    axes = axes_of(view)
    if axes is not None and None not in axes and len(axes) == before.ndim:
        inverse = [axes.index(axis) for axis in range(before.ndim)]
        return insert(at, aten.permute.default, (value, inverse), before)
    return value if is_op(view, aten.alias, aten.detach) and same_sizes(before.shape, after.shape) else None


def _fill_slice(at: fx.Node, base: Any, given: Mapping[str, Any], value: fx.Node) -> fx.Node | None:
    dim, end = given["dim"], given["end"]
    if given["step"] != 1:
        return None
    size = static(base.meta["val"].shape[dim])
    if isinstance(end, int) and end >= (sys.maxsize if size is None else size):
        end = None
    return _fill(at, base, dim, (given["start"] or 0, end), value)


def _fill_select(at: fx.Node, base: Any, given: Mapping[str, Any], value: fx.Node) -> fx.Node:
    index, shape = given["index"], base.meta["val"].shape
    dim = given["dim"] % len(shape)
    end = None if index == -1 or index + 1 == static(shape[dim]) else index + 1
    return _fill(at, base, dim, (index, end), insert(at, aten.unsqueeze.default, (value, dim)))


def _fill(at: fx.Node, base: Any, dim: int, ends: tuple[Any, Any], value: fx.Node) -> fx.Node:
    start, end = ends
    before = [insert(at, aten.slice.Tensor, (base, dim, 0, start))] if start != 0 else []
    after = [insert(at, aten.slice.Tensor, (base, dim, end, sys.maxsize))] if end is not None else []
    return insert(at, aten.cat.default, ([*before, value, *after], dim), base.meta["val"])
