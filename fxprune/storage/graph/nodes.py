"""The nodes of a stored graph: a row each of op, name, target, arguments and named arguments."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import fx, nn

from fxprune._base import untrusted
from fxprune._base.errors import PlanError
from fxprune.capturing.call import CallSpec
from fxprune.capturing.regions import are_closed
from fxprune.storage.graph import targets
from fxprune.storage.graph.conditions import check_conditions
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
    last: fx.Node | None = None
    for index, row in enumerate(found):
        here = f"{where}[{index}]"
        op, name, target, args, kwargs = _read_row(row, nodes, here)
        if last is not None and last.op == "output":
            raise PlanError(f"{here}: a node after the output")
        function: Any = target
        if op == "call_function":
            function = targets.find(target, here)
            targets.check_call(function, args, kwargs, here)
        else:
            _check(op, target, args, kwargs, tensors if op == "get_attr" else modules, here)
        with untrusted.reading(here):
            last = nodes[name] = graph.create_node(op, function, args, kwargs, name)
        if nodes[name].name != name:
            raise PlanError(f"{here}: {name!r:.80} is not free as a name")
    if last is None or last.op != "output":
        raise PlanError(f"{where}: expected an output at the end")
    _check_ends(graph, last, call, where)
    if not are_closed(graph):
        raise PlanError(f"{where}: expected each autocast to be entered and left in turn")
    check_conditions(graph, where)
    return graph


def _write_node(node: fx.Node) -> list[Any]:
    if node.op not in _OPS:
        raise Unstorable(f"the graph has a {node.op} node")
    target = targets.name_of(node.target) if node.op == "call_function" else str(node.target)
    kwargs = {name: to_json(value) for name, value in node.kwargs.items()}
    return [node.op, node.name, target, [to_json(value) for value in node.args], kwargs]


def _read_row(
    row: Any, nodes: Mapping[str, fx.Node], where: str
) -> tuple[str, str, str, tuple[Any, ...], dict[str, Any]]:
    op, name, target, args, kwargs = untrusted.exactly(5, row, where, "op, name, target, arguments and named arguments")
    op, name = untrusted.one_of(_OPS, op, where), identifier(name, where)
    where = f"{where} {name!r:.80}"
    args = tuple(from_json(entry, where, nodes) for entry in untrusted.sequence(args, where))
    pairs = untrusted.mapping(kwargs, where).items()
    kwargs = {keyword_name(key, where): from_json(entry, where, nodes) for key, entry in pairs}
    return op, name, untrusted.string(target, where), args, kwargs


def _check(op: str, target: str, args: tuple[Any, ...], kwargs: Any, names: set[str], where: str) -> None:
    """Makes sure that a node that calls no function is sound; ``names`` are the tensors, or modules, that it may name."""
    given = bool(args or kwargs)
    if op == "placeholder" and identifier(target, where) and given:
        raise PlanError(f"{where}: an input has no arguments")
    if op == "get_attr" and (target not in names or given):
        raise PlanError(f"{where}: there is no tensor {target!r:.80}")
    if op == "call_module" and (not target or target not in names):
        raise PlanError(f"{where}: there is no module {target!r:.80}")
    one = len(args) == 1 and isinstance(args[0], (list, tuple))
    if op == "output" and (target != "output" or kwargs or not one):
        raise PlanError(f"{where}: expected one tuple of outputs")


def _check_ends(graph: fx.Graph, last: fx.Node, call: CallSpec, where: str) -> None:
    """The inputs and outputs must be those of the call."""
    inputs = [node.target for node in graph.nodes if node.op == "placeholder"]
    if inputs != [name for name in call.placeholders if name is not None]:
        raise PlanError(f"{where}: the inputs are not those of the call")
    outputs: Any = last.args[0]
    if len(outputs) != call.out_spec.num_leaves:
        raise PlanError(f"{where}: expected {call.out_spec.num_leaves} outputs, got {len(outputs)}")
