"""What can be told of any graph."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import fx

from fxprune._base.pages import touched


class Reading(fx.Interpreter):
    """Runs a graph, and says of tensors that are mapped from files when they are about to be read."""

    def run_node(self, n: fx.Node) -> Any:
        """Runs a node."""
        for source in n.all_input_nodes:
            touched(self.env.get(source))
        return super().run_node(n)


def quantizes(graph: fx.Graph) -> bool:
    """Returns whether some operator makes integers of numbers, or numbers of integers: not one that only rounds as these would."""
    names = (str(node.target) for node in graph.nodes if node.op == "call_function")
    return any("quantize" in name and "fake_quantize" not in name for name in names)


def by_first_use(nodes: Sequence[fx.Node]) -> list[fx.Node]:
    """Returns nodes in their order, but for tensors that stand at names: each right before the first node that reads it."""
    found: dict[fx.Node, None] = {}
    for node in nodes:
        if node.op != "get_attr" or not node.users:
            found.update(dict.fromkeys((*(x for x in node.all_input_nodes if x.op == "get_attr"), node)))
    return list(found)


def last_uses(nodes: Sequence[fx.Node]) -> dict[fx.Node, list[fx.Node]]:
    """Returns for each node the operands that none of the nodes after it reads."""
    reader = {source: node for node in nodes for source in node.all_input_nodes}  # the last one stays
    last: dict[fx.Node, list[fx.Node]] = {}
    for source, node in reader.items():
        last.setdefault(node, []).append(source)
    return last
