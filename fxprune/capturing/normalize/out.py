"""Operators that write into a tensor that they are given become a value, and a copy of it there."""

from __future__ import annotations

import functools
from typing import Any

from torch import fx

from fxprune.capturing.normalize.edit import aten, fake, insert, replace, same_sizes


def without_out(graph: fx.Graph) -> None:
    """Let results be values, written to ``out=`` by a copy; an operator with several such tensors stays.

    Before: ``r = add(x, y, out=o)``. After: ``v = add(x, y); r = copy_(o, v)``.
    """
    for node in list(graph.nodes):
        name, functional = _functional(node.target) if node.op == "call_function" else (None, None)
        out: Any = node.kwargs.get(name) if name else None
        if functional is None or fake(out) is None:
            continue
        kwargs = {key: value for key, value in node.kwargs.items() if key != name}
        args, given = fx.map_arg((node.args, kwargs), lambda n: n.meta["val"])
        value = insert(node, functional, node.args, functional(*args, **given))
        value.kwargs = kwargs
        if same_sizes(value.meta["val"].shape, out.meta["val"].shape):
            replace(node, insert(node, aten.copy_.default, (out, value), out.meta["val"]))
        else:  # what was empty has taken the size of the result
            replace(node, value)
            _read_after(value, out)


def _read_after(value: fx.Node, out: fx.Node) -> None:
    order = {node: place for place, node in enumerate(value.graph.nodes)}
    out.replace_all_uses_with(value, lambda user: order[user] > order[value])


@functools.lru_cache(maxsize=1024)
def _functional(target: Any) -> tuple[str | None, Any]:
    """Return the name of an operator's only ``out`` argument, and the overload that does the same without it."""
    arguments = getattr(getattr(target, "_schema", None), "arguments", ())
    named = [argument.name for argument in arguments if argument.is_out]
    if len(named) != 1:
        return None, None
    packet = target.overloadpacket
    wanted = _signature(argument for argument in arguments if not argument.is_out)
    for overload in packet.overloads():
        found = getattr(packet, overload)._schema
        if not found.is_mutable and _signature(found.arguments) == wanted:
            return named[0], getattr(packet, overload)
    return None, None


def _signature(arguments: Any) -> list[tuple[str, str]]:
    return [(argument.name, str(argument.type)) for argument in arguments]
