"""Sizes that are known become numbers."""

from __future__ import annotations

from torch import SymInt, fx

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
        number = static(size)
        if number is None:
            continue
        for user in list(node.users):
            values: dict[fx.Node, int | fx.Node] = {source: source for source in user.all_input_nodes}
            values[node] = number
            user.args = fx.map_arg(user.args, values.__getitem__)
            user.kwargs = fx.map_arg(user.kwargs, values.__getitem__)
        graph.erase_node(node)
