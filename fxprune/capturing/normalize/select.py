"""Fused projections: a part selected after a splitting view is sliced out before it.

A fused qkv projection is viewed as [..., 3, heads, dim], its axes are moved about, and q, k and v are selected.
In that joint view the heads of q are tied to those of k and v. Cut out of the projection's own axis they are three
ordinary slices.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Any

from torch import fx

from fxprune.capturing.normalize.edit import (
    SizeNodes,
    aten,
    fake,
    first,
    insert,
    is_op,
    rewrite,
    same_sizes,
    storage,
    written,
)
from fxprune.capturing.normalize.layout import axes_of
from fxprune.capturing.sizes import Sizes, static


@dataclass(frozen=True, slots=True)
class _Split:
    """A reshape that splits one axis into (before, count, after), of which ``count`` is selected from later.

    Attributes:
        reshape: The reshape node.
        axis: The axis of its input that is split.
        dim: The dimension of its output that holds ``count``.
        before: Product of the sizes that the axis is split into, left of ``dim``.
        count: Size of ``dim``.
        after: Product of the sizes right of ``dim``.
        steps: The operators from the reshape to the select, in order, without both, and at which dimension of
            its output each carries ``count``.
    """

    reshape: fx.Node
    axis: int
    dim: int
    before: int
    count: int
    after: int
    steps: tuple[tuple[fx.Node, int], ...]


def push_down_selects(graph: fx.Graph, sizes: Sizes) -> None:
    """Replace ``select`` of a split-off dimension by a ``slice`` of the axis that was split.

    Before: ``select(permute(reshape(x, [B, N, 3, H, D]), [2, 0, 3, 1, 4]), 0, 1)``.
    After: ``permute(reshape(slice(x, 2, H * D, 2 * H * D), [B, N, H, D]), [0, 2, 1, 3])``.

    Only selects are replaced: other users of the view keep it.
    """
    nodes = SizeNodes()
    overwritten = written(graph)

    def cut(node: fx.Node) -> fx.Node | None:
        nodes.see(node)
        split = _trace(node, sizes) if is_op(node, aten.select.int) and isinstance(node.args[2], int) else None
        if split is None or any(storage(step) in overwritten for step in _memory(split)):
            return None
        new = _rebuild(node, split, nodes)
        new.meta["val"] = node.meta["val"]
        return new

    rewrite(graph, cut)


def _trace(node: fx.Node, sizes: Sizes) -> _Split | None:
    """Follow the selected dimension up through layout operators to the reshape that made it."""
    current: Any = node.args[0]
    if fake(current) is None:
        return None
    dim = int(node.args[1]) % current.meta["val"].ndim  # type: ignore[arg-type]
    steps: list[tuple[fx.Node, int]] = []
    while isinstance(current, fx.Node):
        if is_op(current, aten.reshape.default):
            ins, outs = _groups_at(current, dim, sizes)
            if len(outs) > 1:
                return _split(current, ins[0], outs, dim, tuple(reversed(steps)))
            origin: int | None = ins[0] if ins else None
        else:
            axes = axes_of(current)
            origin = None if axes is None else axes[dim]
        if origin is None:
            return None
        steps.append((current, dim))
        current, dim = current.args[0], origin
    return None


def _groups_at(reshape: fx.Node, dim: int, sizes: Sizes) -> tuple[list[int], list[int]]:
    """Return the one input axis and the output dimensions that ``dim`` belongs with; nothing if there is none."""
    before, after = fake(reshape.args[0]), fake(reshape)
    if before is not None and after is not None:
        for ins, outs in axis_groups(sizes.shape(before.shape), sizes.shape(after.shape)):
            if dim in outs and len(ins) == 1:
                return ins, outs
    return [], []


def axis_groups(before: tuple[int, ...], after: tuple[int, ...]) -> list[tuple[list[int], list[int]]]:
    """Pair the axes of a reshape's input and output into the smallest groups of equal products.

    ``(10, 12)`` to ``(2, 5, 12)`` gives ``[([0], [0, 1]), ([1], [2])]``; there are none where free sizes that must divide each
    other stand for numbers that do not.
    """
    groups: list[tuple[list[int], list[int]]] = []
    i = j = 0
    while 0 not in before and prod(before) == prod(after) and i < len(before) and j < len(after):
        ins, outs = [i], [j]
        while (left := prod(before[d] for d in ins)) != (right := prod(after[d] for d in outs)):
            if left < right:
                ins.append(i := i + 1)
            else:
                outs.append(j := j + 1)
        groups.append((ins, outs))
        i, j = i + 1, j + 1
    if groups:
        groups[-1][0].extend(range(i, len(before)))
        groups[-1][1].extend(range(j, len(after)))
    return groups


def _split(reshape: fx.Node, axis: int, outs: list[int], dim: int, steps: Any) -> _Split | None:
    lengths: list[Any] = [static(reshape.meta["val"].shape[out]) for out in outs]
    if None in lengths:
        return None
    at = outs.index(dim)
    return _Split(reshape, axis, dim, prod(lengths[:at]), lengths[at], prod(lengths[at + 1 :]), steps)


def _rebuild(select: fx.Node, split: _Split, nodes: SizeNodes) -> fx.Node:
    """Build, before ``select``, what it selects, without ever making the selected dimension."""
    current, result = first(split.reshape), split.reshape.meta["val"].shape
    axis, index = split.axis, int(select.args[2]) % split.count  # type: ignore[arg-type]
    shape: list[Any] = list(current.meta["val"].shape)
    if split.before != 1:
        full: list[Any] = nodes.shape(current, select)
        full[axis : axis + 1] = shape[axis : axis + 1] = [split.before, split.count * split.after]
        current = insert(select, aten.reshape.default, (current, full))
        axis += 1
    bounds = (index * split.after, (index + 1) * split.after)
    current = insert(select, aten.slice.Tensor, (current, axis, *bounds))
    shape[axis] = split.after
    if not same_sizes(shape, _without(result, split.dim)):
        sizes = _without(split.reshape.args[1], split.dim)
        current = insert(select, aten.reshape.default, (current, sizes))
    return _relayout(select, current, split, len(result))


def _relayout(at: fx.Node, current: fx.Node, split: _Split, ndim: int) -> fx.Node:
    """Apply the layout steps to a tensor that lacks the dimension they carried along.

    Steps are composed first and then made at once: ``order`` says for each dimension which one of ``current``
    it is, the missing one still counted, and None for a new one of size 1.
    """
    missing, order = split.dim, list[int | None](range(ndim))
    for step, dim in split.steps:
        axes = axes_of(step)
        if axes is not None:
            order = [None if axis is None else order[axis] for axis in axes]
            continue
        current = _move(at, current, order, missing, ndim)
        current = insert(at, aten.reshape.default, (current, _without(step.args[1], dim)))
        missing, ndim = dim, step.meta["val"].ndim
        order = list(range(ndim))
    return _move(at, current, order, missing, ndim)


def _move(at: fx.Node, current: fx.Node, order: list[int | None], missing: int, ndim: int) -> fx.Node:
    """Squeeze, permute and unsqueeze ``current``, which has all of ``ndim`` dimensions but one, into ``order``."""
    axes = [axis if axis is None else axis - (axis > missing) for axis in order if axis != missing]
    kept = [axis for axis in axes if axis is not None]
    gone = [axis for axis in range(ndim - 1) if axis not in kept]
    if gone:
        current = insert(at, aten.squeeze.dims, (current, gone))
    permutation = [sorted(kept).index(axis) for axis in kept]
    if permutation != sorted(permutation):
        current = insert(at, aten.permute.default, (current, permutation))
    for position, axis in enumerate(axes):
        if axis is None:
            current = insert(at, aten.unsqueeze.default, (current, position))
    return current


def _memory(split: _Split) -> list[Any]:
    return [split.reshape.args[0], split.reshape, *(step for step, _ in split.steps)]


def _without(items: Any, position: int) -> list[Any]:
    return [item for i, item in enumerate(items) if i != position]
