"""Where gradients stop: `detach` stands in the graph for itself, and at the end of each region under ``no_grad``."""

from __future__ import annotations

from collections.abc import Set
from functools import partial
from typing import Any

from torch import Tensor, fx

from fxprune._base.errors import GradientWarning
from fxprune.capturing.normalize.edit import aten, insert, is_op, rewrite, storage, writes
from fxprune.capturing.regions import GRAD


def stop_gradients(graph: fx.Graph, parameters: Set[str]) -> list[GradientWarning]:
    """Detach what leaves a region under ``no_grad`` and would have a gradient otherwise.

    Before: ``with no_grad: y = f(x)``, then ``g(y)``. After: ``y = f(x); g(detach(y))``.

    Returns:
        What to warn of: gradients that the graph does not keep.
    """
    notes: dict[str, GradientWarning] = {}
    depends = _dependents(graph, parameters)
    held = {storage(node) for node in learning(graph, parameters)} if any(map(writes, graph.nodes)) else set()
    for node in list(graph.nodes):
        if node.meta.get(GRAD, True) or node not in depends:
            continue
        if writes(node) and storage(node.args[0]) in held:
            note = (
                f"module {node.meta['module']!r} changes a value in place under no_grad: the gradients of the result go "
                "through that change, those of the original pass it by"
            )
            notes[note] = GradientWarning(note)
        after = [user for user in node.users if user.meta.get(GRAD, True)]
        if after and isinstance(node.meta.get("val"), Tensor):
            stop = insert(node.next, aten.detach.default, (node,), node.meta["val"])
            stop.meta["module"] = node.meta["module"]
            node.replace_all_uses_with(stop, lambda user, after=after: user in after)
    return list(notes.values())


def drop_idle_stops(graph: fx.Graph, parameters: Set[str]) -> None:
    """Erase every `detach` of what has no gradient."""
    depends = _dependents(graph, parameters)
    rewrite(graph, partial(_idle, depends))


def _idle(depends: Set[fx.Node], node: fx.Node) -> fx.Node | None:
    source: Any = node.args[0] if is_op(node, aten.detach, aten.detach_) else None
    return source if isinstance(source, fx.Node) and source not in depends else None


def _dependents(graph: fx.Graph, parameters: Set[str]) -> set[fx.Node]:
    """Return the nodes that have a gradient by an input or a parameter where both require one."""
    found: set[fx.Node] = set()
    for node in graph.nodes:
        given = node.op == "placeholder" or (node.op == "get_attr" and str(node.target) in parameters)
        made = node.op == "call_function" and not is_op(node, aten.detach, aten.detach_)
        if (given or (made and not found.isdisjoint(node.all_input_nodes))) and _is_real(node.meta.get("val")):
            found.add(node)
    return found


def learning(graph: fx.Graph, parameters: Set[str]) -> set[fx.Node]:
    """Return the nodes that have a gradient where inputs and parameters require one, and it is recorded."""
    found: set[fx.Node] = set()
    for node in graph.nodes:
        given = node.op == "placeholder" or (node.op == "get_attr" and str(node.target) in parameters)
        made = node.op == "call_function" and not is_op(node, aten.detach, aten.detach_)
        recorded = node.all_input_nodes if node.meta.get(GRAD, True) else node.args[:1] if writes(node) else ()
        if (given or (made and not found.isdisjoint(recorded))) and _is_real(node.meta.get("val")):
            found.add(node)
    return found


def _is_real(value: Any) -> bool:
    """Say whether a value can have a gradient."""
    if isinstance(value, (list, tuple)):
        return any(map(_is_real, value))
    return isinstance(value, Tensor) and (value.is_floating_point() or value.is_complex())
