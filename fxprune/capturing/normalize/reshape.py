"""Every view is one operator: ``reshape`` with explicit sizes."""

from __future__ import annotations

from typing import Any

from torch import fx

from fxprune.capturing.normalize.edit import SizeNodes, aten, fake, insert, is_op, replace, same_sizes
from fxprune.capturing.sizes import Sizes

_VIEWS = (
    aten.view.default,
    aten._unsafe_view.default,
    aten.reshape.default,
    aten._reshape_alias.default,
    aten.flatten.using_ints,
    aten.unflatten.int,
    aten.view_as.default,
    aten.reshape_as.default,
)
_SIZED = {aten.view.default, aten._unsafe_view.default, aten.reshape.default, aten._reshape_alias.default}


def unify_reshapes(graph: fx.Graph, sizes: Sizes) -> None:
    """Turn view, flatten, unflatten and their like into ``reshape(x, sizes)``; drop those that keep the shape.

    Sizes are numbers where static, nodes where dynamic, and -1 for a dynamic size that has no node.

    Before: ``flatten(x, 1)`` of [s, 64, 7, 7]. After: ``reshape(x, [sym_size(x, 0), 3136])``.
    """
    nodes = SizeNodes(graph, sizes)
    for node in list(graph.nodes):
        nodes.see(node)
        before, after = fake(node.args[0]) if node.args else None, fake(node)
        if not is_op(node, *_VIEWS) or before is None or after is None:
            continue
        source = node.args[0]
        assert isinstance(source, fx.Node)
        if same_sizes(before.shape, after.shape):
            replace(graph, node, source)
        else:
            new = insert(graph, node, aten.reshape.default, (source, _explicit(node, nodes)), after)
            replace(graph, node, new)


def _explicit(node: fx.Node, nodes: SizeNodes) -> list[int | fx.Node]:
    """Return the sizes of a view: known ones, those given, those of its input, and at most one -1."""
    value = fake(node)
    assert value is not None
    result: list[Any] = [nodes.know(size) for size in value.shape]
    if node.target in _SIZED:
        given: Any = node.args[1]
        result = [g if r is None and g != -1 else r for r, g in zip(result, given, strict=True)]
    if result.count(None) > 1:
        result = _from_operands(node, nodes, result)
    return [-1 if size is None else size for size in result]


def _from_operands(node: fx.Node, nodes: SizeNodes, result: list[Any]) -> list[Any]:
    """Fill in sizes that an operand has under the same expression."""
    value = fake(node)
    assert value is not None
    for operand in node.all_input_nodes:
        if fake(operand) is not None:
            nodes.shape(operand, node)
    filled = [
        nodes.know(size) if size_given is None else size_given
        for size, size_given in zip(value.shape, result, strict=True)
    ]
    assert filled.count(None) <= 1, f"{node.format_node()}: more than one size that no operand has"
    return filled
