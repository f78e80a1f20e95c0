"""``chunk`` and ``split`` become ``split_with_sizes``; ``unbind`` becomes ``select``."""

from __future__ import annotations

import operator
from typing import Any

from torch import Tensor, fx

from fxprune.capturing.normalize.edit import aten, fake, insert, is_op, replace, schema_args
from fxprune.capturing.sizes import static

_SPLITS = (aten.chunk, aten.split, aten.tensor_split, aten.unsafe_chunk, aten.unsafe_split, aten.hsplit, aten.vsplit)


def unify_splits(graph: fx.Graph) -> None:
    """Give every split its sizes in full, and every unbound slice its own ``select``.

    Before: ``chunk(x, 3, -1)`` of 96. After: ``split_with_sizes(x, [32, 32, 32], -1)``.
    """
    for node in list(graph.nodes):
        if is_op(node, *_SPLITS):
            _split(graph, node)
        elif is_op(node, aten.unbind):
            _unbind(graph, node)


def _split(graph: fx.Graph, node: fx.Node) -> None:
    pieces = node.meta.get("val")
    source = node.args[0]
    before = fake(source)
    if before is None or not isinstance(pieces, (list, tuple)):
        return
    dim: Any = schema_args(node).get("dim", 0)
    lengths = [static(piece.shape[dim]) if isinstance(piece, Tensor) else None for piece in pieces]
    if None in lengths:
        return
    replace(graph, node, insert(graph, node, aten.split_with_sizes.default, (source, lengths, dim), pieces))


def _unbind(graph: fx.Graph, node: fx.Node) -> None:
    dim = schema_args(node)["dim"]
    if any(user.target is not operator.getitem for user in node.users):
        return
    for user in list(node.users):
        replace(
            graph, user, insert(graph, user, aten.select.int, (node.args[0], dim, user.args[1]), user.meta.get("val"))
        )
    graph.erase_node(node)
