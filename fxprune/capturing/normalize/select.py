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

from fxprune.capturing.normalize.edit import SizeNodes, aten, fake, insert, is_op, storage, written
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
    nodes = SizeNodes(graph, sizes)
    overwritten = written(graph)
    for node in list(graph.nodes):
        nodes.see(node)
        if not is_op(node, aten.select.int) or not isinstance(node.args[2], int):
            continue
        split = _trace(node, sizes)
        if split is None or any(storage(step) in overwritten for step in _memory(split)):
            continue
        new = _rebuild(graph, node, split, nodes)
        new.meta["val"] = node.meta["val"]
        node.replace_all_uses_with(new)
        graph.erase_node(node)


def _trace(node: fx.Node, sizes: Sizes) -> _Split | None:
    """Follow the selected dimension up through layout operators to the reshape that made it."""
    current: Any = node.args[0]
    value = fake(current)
    if value is None:
        return None
    dim = int(node.args[1]) % value.ndim  # type: ignore[arg-type]
    steps: list[tuple[fx.Node, int]] = []
    while isinstance(current, fx.Node):
        if is_op(current, aten.reshape.default):
            groups = _groups_at(current, dim, sizes)
            if groups is None:
                return None
            ins, outs = groups
            if len(outs) > 1:
                return _split(current, ins[0], outs, dim, tuple(reversed(steps)))
            origin: int | None = ins[0]
        else:
            axes = axes_of(current)
            origin = None if axes is None else axes[dim]
        if origin is None:
            return None
        steps.append((current, dim))
        current, dim = current.args[0], origin
    return None


def _groups_at(reshape: fx.Node, dim: int, sizes: Sizes) -> tuple[list[int], list[int]] | None:
    """Return the one input axis and the output dimensions that ``dim`` belongs with, or None."""
    before, after = fake(reshape.args[0]), fake(reshape)
    if before is None or after is None:
        return None
    for ins, outs in axis_groups(sizes.shape(before.shape), sizes.shape(after.shape)):
        if dim in outs:
            return (ins, outs) if len(ins) == 1 else None
    return None


def axis_groups(before: tuple[int, ...], after: tuple[int, ...]) -> list[tuple[list[int], list[int]]]:
    """Pair the axes of a reshape's input and output into the smallest groups of equal products.

    ``(10, 12)`` to ``(2, 5, 12)`` gives ``[([0], [0, 1]), ([1], [2])]``.
    """
    groups: list[tuple[list[int], list[int]]] = []
    i = j = 0
    if 0 in before:
        return groups
    while i < len(before) and j < len(after):
        ins, outs = [i], [j]
        left, right = before[i], after[j]
        while left != right:
            if left < right:
                i += 1
                left *= before[i]
                ins.append(i)
            else:
                j += 1
                right *= after[j]
                outs.append(j)
        groups.append((ins, outs))
        i, j = i + 1, j + 1
    if groups:
        groups[-1][0].extend(range(i, len(before)))
        groups[-1][1].extend(range(j, len(after)))
    return groups


def _split(reshape: fx.Node, axis: int, outs: list[int], dim: int, steps: Any) -> _Split | None:
    value = fake(reshape)
    assert value is not None
    lengths = [static(value.shape[out]) for out in outs]
    if any(length is None for length in lengths):
        return None
    numbers = [length for length in lengths if length is not None]
    at = outs.index(dim)
    return _Split(reshape, axis, dim, prod(numbers[:at]), numbers[at], prod(numbers[at + 1 :]), steps)


def _rebuild(graph: fx.Graph, select: fx.Node, split: _Split, nodes: SizeNodes) -> fx.Node:
    """Build, before ``select``, what it selects, without ever making the selected dimension."""
    source = split.reshape.args[0]
    value, result = fake(source), fake(split.reshape)
    assert isinstance(source, fx.Node)
    assert value is not None
    assert result is not None
    axis, index = split.axis, int(select.args[2]) % split.count  # type: ignore[arg-type]
    shape: list[Any] = list(value.shape)
    current = source
    if split.before != 1:
        full: list[Any] = nodes.shape(source, select)
        full[axis : axis + 1] = [split.before, split.count * split.after]
        current = insert(graph, select, aten.reshape.default, (current, full))
        axis += 1
        shape[split.axis : axis + 1] = [split.before, split.count * split.after]
    bounds = (index * split.after, (index + 1) * split.after)
    current = insert(graph, select, aten.slice.Tensor, (current, axis, *bounds))
    shape[axis] = split.after
    target = _without(result.shape, split.dim)
    if _expressions(shape) != _expressions(target):
        sizes = _without(split.reshape.args[1], split.dim)
        current = insert(graph, select, aten.reshape.default, (current, sizes))
    return _relayout(graph, select, current, split, result.ndim)


def _relayout(graph: fx.Graph, at: fx.Node, current: fx.Node, split: _Split, ndim: int) -> fx.Node:
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
        value = fake(step)
        assert value is not None
        current = _move(graph, at, current, order, missing, ndim)
        current = insert(graph, at, aten.reshape.default, (current, _without(step.args[1], dim)))
        missing, ndim = dim, value.ndim
        order = list(range(ndim))
    return _move(graph, at, current, order, missing, ndim)


def _move(graph: fx.Graph, at: fx.Node, current: fx.Node, order: list[int | None], missing: int, ndim: int) -> fx.Node:
    """Squeeze, permute and unsqueeze ``current``, which has all of ``ndim`` dimensions but one, into ``order``."""
    axes = [axis if axis is None else axis - (axis > missing) for axis in order if axis != missing]
    kept = [axis for axis in axes if axis is not None]
    gone = [axis for axis in range(ndim - 1) if axis not in kept]
    if gone:
        current = insert(graph, at, aten.squeeze.dims, (current, gone))
    permutation = [sorted(kept).index(axis) for axis in kept]
    if permutation != sorted(permutation):
        current = insert(graph, at, aten.permute.default, (current, permutation))
    for position, axis in enumerate(axes):
        if axis is None:
            current = insert(graph, at, aten.unsqueeze.default, (current, position))
    return current


def _memory(split: _Split) -> list[Any]:
    return [split.reshape.args[0], split.reshape, *(step for step, _ in split.steps)]


def _without(items: Any, position: int) -> list[Any]:
    return [item for i, item in enumerate(items) if i != position]


def _expressions(shape: list[Any]) -> list[Any]:
    return [size if isinstance(size, int) else size.node.expr for size in shape]
