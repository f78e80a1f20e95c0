"""Drop what does nothing: aliases, copies, and slices, pads, expands, permutes that keep everything."""

from __future__ import annotations

from functools import partial
from typing import Any

from torch import fx

from fxprune.capturing.normalize.edit import (
    aten,
    fake,
    is_op,
    named,
    rewrite,
    same_sizes,
    schema_args,
    storage,
    written,
)

_ALIASES = named("alias lift_fresh_copy lift_fresh lift alias_copy")


def drop_noops(graph: fx.Graph) -> None:
    """Erase every node whose value is its first operand, whatever the dynamic sizes are."""
    rewrite(graph, partial(_operand, written(graph)))


def _operand(overwritten: set[int], node: fx.Node) -> fx.Node | None:
    """Return the operand that ``node`` merely repeats, or None."""
    if node.op != "call_function" or not node.args:
        return None
    source: Any = node.args[0]
    if is_op(node, *_ALIASES):
        return source if isinstance(source, fx.Node) else None
    if is_op(node, aten.clone, aten.contiguous):
        return None if {storage(node), storage(source)} & overwritten else source
    if is_op(node, aten.cat) and isinstance(source, (list, tuple)) and len(source) == 1:
        return source[0] if isinstance(source[0], fx.Node) else None
    before, after = fake(source), fake(node)
    if before is None or after is None or before.dtype != after.dtype or not same_sizes(before.shape, after.shape):
        return None
    return source if _keeps_all(node) else None


def _keeps_all(node: fx.Node) -> bool:
    """Say whether an operator that keeps the shape keeps the values as well."""
    numbers: Any = node.args[1] if len(node.args) > 1 else ()
    if is_op(node, aten.slice.Tensor):
        return bool(schema_args(node)["step"] == 1)
    for neutral, targets in ((0, (aten.pad, aten.constant_pad_nd)), (1, (aten.repeat,))):
        if is_op(node, *targets):
            return all(isinstance(number, int) and number == neutral for number in numbers)
    if is_op(node, aten.permute):
        return list(numbers) == list(range(len(numbers)))
    return is_op(node, aten.expand, aten.expand_as)
