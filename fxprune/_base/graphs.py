"""What can be told of any graph."""

from __future__ import annotations

from collections.abc import Sequence

from torch import fx


def last_uses(nodes: Sequence[fx.Node]) -> dict[fx.Node, list[fx.Node]]:
    """Returns for each node the operands that none of the nodes after it reads."""
    reader = {source: node for node in nodes for source in node.all_input_nodes}  # the last one stays
    last: dict[fx.Node, list[fx.Node]] = {}
    for source, node in reader.items():
        last.setdefault(node, []).append(source)
    return last
