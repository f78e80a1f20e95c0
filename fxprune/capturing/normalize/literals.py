"""What is known becomes a number: static sizes, and the scale of attention."""

from __future__ import annotations

import math

from torch import SymInt, fx

from fxprune.capturing.normalize.edit import aten, fake, is_op, schema_args
from fxprune.capturing.sizes import static


def fold_sizes(graph: fx.Graph) -> None:
    """Replace every node that computes a static size by its value.

    Export leaves them where it takes a size for dynamic at first and learns better later on; they would keep
    alive what they look at, and with it the ties that its reshapes make.

    Before: ``arange(sym_size(x, 1))`` of [s, 6, 8]. After: ``arange(6)``.
    """
    for node in reversed(graph.nodes):
        size = node.meta.get("val")
        if node.op != "call_function" or isinstance(size, bool) or not isinstance(size, (int, SymInt)):
            continue
        if (number := static(size)) is not None:
            for user in list(node.users):
                values: dict[fx.Node, int | fx.Node] = {**{s: s for s in user.all_input_nodes}, node: number}
                user.args, user.kwargs = fx.map_arg((user.args, user.kwargs), values.__getitem__)
            graph.erase_node(node)


def pin_attention_scale(graph: fx.Graph) -> None:
    """Write the default scale of attention, one over the square root of the head dimension: heads may get narrower."""
    for node in graph.nodes:
        if is_op(node, aten.scaled_dot_product_attention.default):
            query = fake(node.args[0])
            width = None if query is None else static(query.shape[-1])
            if schema_args(node)["scale"] is None and width:
                node.kwargs = {**node.kwargs, "scale": 1 / math.sqrt(width)}
