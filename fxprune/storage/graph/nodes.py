"""The nodes of a stored graph: a row each of op, name, target, arguments and named arguments."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import fx, nn

from fxprune._base import untrusted
from fxprune._base.errors import PlanError
from fxprune.capturing.call import CallSpec
from fxprune.storage.graph import targets
from fxprune.storage.graph.convention import identifier, keyword_name
from fxprune.storage.graph.tree import tensors_of
from fxprune.storage.graph.values import Unstorable, from_json, to_json

_OPS = ("placeholder", "get_attr", "call_function", "call_module", "output")

#: More nodes than any model has.
_MOST_NODES = 500_000


def describe_nodes(graph: fx.Graph) -> list[list[Any]]:
    """Returns a row for each node, in order.

    Raises:
        Unstorable: a node that a file may not hold.
    """
    return [_write_node(node) for node in graph.nodes]


def build_graph(rows: Any, root: nn.Module, call: CallSpec, where: str) -> fx.Graph:
    """Returns the graph of the rows, once every one is found to be sound.

    Args:
        rows: what ``describe_nodes`` returned; anybody may have changed it.
        root: the modules and tensors that nodes may name.
        call: the inputs and the number of outputs.
        where: where the rows stand, for messages.

    Raises:
        PlanError: a row is damaged, or names what is not there.
    """
    found = untrusted.sequence(rows, where)
    if len(found) > _MOST_NODES:
        raise PlanError(f"{where}: expected at most {_MOST_NODES}, got {len(found)}")
    tensors = {name for name, _, _ in tensors_of(root)}
    modules = {name for name, _ in root.named_modules(remove_duplicate=False)}
    graph = fx.Graph()
    nodes: dict[str, fx.Node] = {}
    for index, row in enumerate(found):
        here = f"{where}[{index}]"
        op, name, target, args, kwargs = _read_row(row, nodes, here)
        if _is_over(graph):
            raise PlanError(f"{here}: a node after the output")
        function: Any = target
        if op == "call_function":
            function = targets.find(target, here)
            targets.check_call(function, args, kwargs, here)
        else:
            _CHECKS[op](target, args, kwargs, tensors if op == "get_attr" else modules, here)
        with untrusted.reading(here):
            nodes[name] = graph.create_node(op, function, args, kwargs, name)
        if nodes[name].name != name:
            raise PlanError(f"{here}: {name!r:.80} is not free as a name")
    _check_ends(graph, call, where)
    return graph


def _write_node(node: fx.Node) -> list[Any]:
    if node.op not in _OPS:
        raise Unstorable(f"the graph has a {node.op} node")
    target = targets.name_of(node.target) if node.op == "call_function" else str(node.target)
    kwargs = {name: to_json(value) for name, value in node.kwargs.items()}
    return [node.op, node.name, target, [to_json(value) for value in node.args], kwargs]


def _is_over(graph: fx.Graph) -> bool:
    """Returns whether the last node is an output."""
    last = next(iter(reversed(graph.nodes)), None)
    return last is not None and last.op == "output"


def _read_row(
    row: Any, nodes: Mapping[str, fx.Node], where: str
) -> tuple[str, str, str, tuple[Any, ...], dict[str, Any]]:
    entries = untrusted.sequence(row, where)
    if len(entries) != 5:
        raise untrusted.refusal(row, where, "op, name, target, arguments and named arguments")
    op = untrusted.string(entries[0], where)
    if op not in _OPS:
        raise untrusted.refusal(op, where, f"one of {', '.join(_OPS)}")
    name = identifier(entries[1], where)
    where = f"{where} {name!r:.80}"
    args = tuple(from_json(entry, where, nodes) for entry in untrusted.sequence(entries[3], where))
    kwargs = untrusted.mapping(entries[4], where)
    return (
        op,
        name,
        untrusted.string(entries[2], where),
        args,
        {keyword_name(key, where): from_json(entry, where, nodes) for key, entry in kwargs.items()},
    )


def _check_placeholder(target: str, args: tuple[Any, ...], kwargs: Any, _: set[str], where: str) -> None:
    identifier(target, where)
    if args or kwargs:
        raise PlanError(f"{where}: an input has no arguments")


def _check_get_attr(target: str, args: Any, kwargs: Any, tensors: set[str], where: str) -> None:
    if target not in tensors or args or kwargs:
        raise PlanError(f"{where}: there is no tensor {target!r:.80}")


def _check_module(target: str, _: Any, __: Any, modules: set[str], where: str) -> None:
    if not target or target not in modules:
        raise PlanError(f"{where}: there is no module {target!r:.80}")


def _check_output(target: str, args: tuple[Any, ...], kwargs: Any, _: set[str], where: str) -> None:
    if target != "output" or kwargs or len(args) != 1 or not isinstance(args[0], (list, tuple)):
        raise PlanError(f"{where}: expected one tuple of outputs")


_CHECKS: dict[str, Callable[..., None]] = {
    "placeholder": _check_placeholder,
    "get_attr": _check_get_attr,
    "call_module": _check_module,
    "output": _check_output,
}


def _check_ends(graph: fx.Graph, call: CallSpec, where: str) -> None:
    """The inputs and outputs must be those of the call."""
    if not _is_over(graph):
        raise PlanError(f"{where}: expected an output at the end")
    inputs = [node.target for node in graph.nodes if node.op == "placeholder"]
    if inputs != [name for name in call.placeholders if name is not None]:
        raise PlanError(f"{where}: the inputs are not those of the call")
    outputs: Any = next(iter(reversed(graph.nodes))).args[0]
    if len(outputs) != call.out_spec.num_leaves:
        raise PlanError(f"{where}: expected {call.out_spec.num_leaves} outputs, got {len(outputs)}")
