"""What the passes share: look at a node's value, replace a node, name a dynamic size."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor, fx
from torch.multiprocessing.reductions import StorageWeakRef

from fxprune.capturing.regions import AUTOCAST, GRAD
from fxprune.capturing.sizes import static

aten = torch.ops.aten
_COPIED = ("nn_module_stack", "stack_trace", "module", AUTOCAST, GRAD)


def named(names: str) -> tuple[Any, ...]:
    """Return ATen operators by name, ``"view.default chunk"``; those without an overload are packets."""
    return tuple(attrgetter(name)(aten) for name in names.split())


def fake(node: Any) -> Tensor | None:
    """Return the fake tensor of a node, ``[...]``, or None if its value is something else."""
    value = node.meta.get("val") if isinstance(node, fx.Node) else None
    return value if isinstance(value, Tensor) else None


def first(node: fx.Node) -> fx.Node:
    """Return the first operand of a node, which must be a node."""
    operand = node.args[0]
    assert isinstance(operand, fx.Node), node.format_node()
    return operand


def is_op(node: Any, *targets: Any) -> bool:
    """Say whether ``node`` calls one of the given operators (packets stand for all their overloads)."""
    if not isinstance(node, fx.Node) or node.op != "call_function":
        return False
    packet = getattr(node.target, "overloadpacket", None)
    return any(node.target is target or packet is target for target in targets)


def schema_args(node: fx.Node) -> dict[str, Any]:
    """Return a node's arguments by the names of its operator's schema, defaults filled in."""
    given = dict(enumerate(node.args))
    return {
        name: node.kwargs.get(name, default) if kwarg_only else given.get(position, node.kwargs.get(name, default))
        for position, (name, default, kwarg_only) in enumerate(_schema(node.target))
    }


@functools.lru_cache(maxsize=4096)
def _schema(target: Any) -> list[tuple[str, Any, bool]]:
    """Return the name of each argument, its default (None if it has none), and whether it goes by name only."""
    arguments = target._schema.arguments
    return [(a.name, a.default_value if a.has_default_value() else None, a.kwarg_only) for a in arguments]


def writes(node: fx.Node) -> bool:
    """Say whether a node writes to one of its operands."""
    schema = getattr(node.target, "_schema", None)
    return node.op == "call_function" and schema is not None and bool(schema.is_mutable)


def storage(node: Any) -> int | None:
    """Return a key of the memory that a node's value lives in, or None if it is no tensor."""
    value = fake(node)
    return None if value is None else StorageWeakRef(value.untyped_storage()).cdata


def written(graph: fx.Graph) -> set[int]:
    """Return the memory (keys of `storage`) that some node of the graph overwrites."""
    keys = {storage(node.args[0]) for node in graph.nodes if writes(node)}
    return {key for key in keys if key is not None}


def insert(at: fx.Node, target: Any, args: tuple[Any, ...], val: Any = None) -> fx.Node:
    """Insert a call before ``at``, as belonging to the same place in the model."""
    with at.graph.inserting_before(at):
        node = at.graph.create_node("call_function", target, args, name=str(target).split(".")[1])
    node.meta = {key: at.meta[key] for key in _COPIED if key in at.meta}
    if val is not None:
        node.meta["val"] = val
    return node


def replace(node: fx.Node, new: fx.Node) -> None:
    """Let ``new`` take the place of ``node`` everywhere."""
    node.replace_all_uses_with(new)
    node.graph.erase_node(node)


def rewrite(graph: fx.Graph, rule: Callable[[fx.Node], fx.Node | None]) -> None:
    """Let what ``rule`` returns for a node take its place, front to back; a node for which it is None stays."""
    for node in list(graph.nodes):
        if (new := rule(node)) is not None:
            replace(node, new)


class SizeNodes:
    """Finds or makes the node that computes a dynamic size, in one walk along the graph."""

    def __init__(self) -> None:
        self._known: dict[Any, fx.Node] = {}

    def see(self, node: fx.Node) -> None:
        """Remember a size that the graph computes itself."""
        value = node.meta.get("val")
        if isinstance(value, torch.SymInt):
            self._known.setdefault(value.node.expr, node)

    def know(self, size: int | torch.SymInt) -> int | fx.Node | None:
        """Return the size as a number or as a node seen before, else None."""
        number = static(size)
        return self._known.get(_expr(size)) if number is None else number

    def shape(self, node: fx.Node, at: fx.Node) -> list[int | fx.Node]:
        """Return all sizes of ``node``, as numbers or as nodes standing before ``at``."""
        return [self._size(node, dim, size, at) for dim, size in enumerate(node.meta["val"].shape)]

    def _size(self, node: fx.Node, dim: int, size: int | torch.SymInt, at: fx.Node) -> int | fx.Node:
        known = self.know(size)
        if known is None:
            self.see(known := insert(at, aten.sym_size.int, (node, dim), size))
        return known


def same_sizes(a: Sequence[int | torch.SymInt], b: Sequence[int | torch.SymInt]) -> bool:
    """Say whether two shapes are the same whatever the dynamic sizes are."""
    return len(a) == len(b) and all(_expr(x) == _expr(y) for x, y in zip(a, b, strict=True))


def _expr(size: int | torch.SymInt) -> Any:
    return size if isinstance(size, int) else size.node.expr
