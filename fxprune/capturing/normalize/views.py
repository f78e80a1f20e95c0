"""Every view is ``reshape`` with explicit sizes, every split ``split_with_sizes``, and ``unbind`` is ``select``."""

from __future__ import annotations

import operator
from typing import Any

from torch import Tensor, fx

from fxprune.capturing.normalize.edit import (
    SizeNodes,
    aten,
    fake,
    first,
    insert,
    is_op,
    named,
    replace,
    rewrite,
    same_sizes,
    schema_args,
)
from fxprune.capturing.sizes import static

_SIZED = named("view.default _unsafe_view.default reshape.default _reshape_alias.default")
_VIEWS = (*_SIZED, *named("flatten.using_ints unflatten.int view_as.default reshape_as.default"))
_SPLITS = named("chunk split tensor_split unsafe_chunk unsafe_split hsplit vsplit")


def unify_reshapes(graph: fx.Graph) -> None:
    """Turn view, flatten, unflatten and their like into ``reshape(x, sizes)``; drop those that keep the shape.

    Sizes are numbers where static, nodes where dynamic, and -1 for a dynamic size that has no node.

    Before: ``flatten(x, 1)`` of [s, 64, 7, 7]. After: ``reshape(x, [sym_size(x, 0), 3136])``.
    """
    nodes = SizeNodes()

    def reshaped(node: fx.Node) -> fx.Node | None:
        nodes.see(node)
        before, after = fake(node.args[0]) if node.args else None, fake(node)
        if not is_op(node, *_VIEWS) or before is None or after is None:
            return None
        if same_sizes(before.shape, after.shape):
            return first(node)
        sizes = _explicit(node, nodes)
        return None if sizes is None else insert(node, aten.reshape.default, (node.args[0], sizes), after)

    rewrite(graph, reshaped)


def _explicit(node: fx.Node, nodes: SizeNodes) -> list[int | fx.Node] | None:
    """Return the sizes of a view: known ones, those given, those of its input, and at most one -1; None if more are open."""
    shape = node.meta["val"].shape
    given = _given(node, len(shape))
    result: list[Any] = [nodes.know(size) for size in shape]
    result = [g if r is None and g != -1 else r for r, g in zip(result, given, strict=True)]
    if result.count(None) > 1:  # those that an operand has under the same expression
        for operand in node.all_input_nodes:
            if fake(operand) is not None:
                nodes.shape(operand, node)
        result = [nodes.know(size) if r is None else r for r, size in zip(result, shape, strict=True)]
        if result.count(None) > 1:
            return None
    return [-1 if size is None else size for size in result]


def _given(node: fx.Node, rank: int) -> list[Any]:
    """Return the sizes that a view is called with, -1 for those that it is not: an expression may hide what is plain here."""
    if node.target in _SIZED:
        return list(node.args[1])  # type: ignore[arg-type]
    if node.target is aten.unflatten.int:
        _, dim, sizes = node.args
        before = dim % (rank - len(sizes) + 1)  # type: ignore[arg-type, operator]
        return [*[-1] * before, *sizes, *[-1] * (rank - before - len(sizes))]  # type: ignore[arg-type, misc]
    return [-1] * rank


def unify_splits(graph: fx.Graph) -> None:
    """Give every split its sizes in full, and every unbound slice its own ``select``.

    Before: ``chunk(x, 3, -1)`` of 96. After: ``split_with_sizes(x, [32, 32, 32], -1)``.
    """
    rewrite(graph, _split)
    for node in list(graph.nodes):
        if is_op(node, aten.unbind) and all(user.target is operator.getitem for user in node.users):
            for user in list(node.users):
                selected = (node.args[0], schema_args(node)["dim"], user.args[1])
                replace(user, insert(user, aten.select.int, selected, user.meta.get("val")))
            graph.erase_node(node)


def _split(node: fx.Node) -> fx.Node | None:
    pieces = node.meta.get("val")
    if not is_op(node, *_SPLITS) or fake(node.args[0]) is None or not isinstance(pieces, (list, tuple)):
        return None
    dim: Any = schema_args(node).get("dim", 0)
    lengths = [static(piece.shape[dim]) if isinstance(piece, Tensor) else None for piece in pieces]
    if None in lengths:
        return None
    return insert(node, aten.split_with_sizes.default, (node.args[0], lengths, dim), pieces)
