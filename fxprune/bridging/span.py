"""Span: what lies between the value before some layers and the layers that read what they make, from the graph alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import fx

from fxprune.algebra.axes import Axis, labels_of
from fxprune.capturing.captured import TensorInfo
from fxprune.coupling.coupling import Coupling
from fxprune.coupling.units import Group
from fxprune.ops.registry import bind, is_kind, rule_of
from fxprune.ops.tracer import Contraction

if TYPE_CHECKING:
    import networkx as nx


@dataclass(frozen=True, slots=True, eq=False)
class Span:
    """What a bridge spans.

    Attributes:
        entry: the value before the lost layers.
        exit: the last value that they make.
        readers: the contractions that read the lost units from outside.
        reshapes: reshapes on the way to the readers, whose literals hold the number of units.
    """

    entry: fx.Node
    exit: fx.Node
    readers: tuple[Contraction, ...]
    reshapes: tuple[fx.Node, ...]


def find_span(coupling: Coupling, group: Group) -> Span | None:
    """Returns what has to be spanned for a group to go; None if it is not on an only path."""
    import networkx as nx

    ids = coupling.units[group.units]
    graph = coupling.captured.module.graph
    inside = [n for n in graph.nodes if n.op == "call_function" and _carries(coupling, n, ids)]
    if not inside:
        return None
    flow: nx.DiGraph[fx.Node] = nx.DiGraph()
    for node in graph.nodes:
        if isinstance(coupling.captured.info.get(node), TensorInfo) or node.op == "output":
            for source in _data(coupling, node):
                flow.add_edge(source, node)
    held = set(inside)
    readers = tuple(
        c
        for c in coupling.contractions
        if _reads(coupling, c, ids) and c.node not in held and not held & nx.descendants(flow, c.node)
    )
    if not readers or any(c.weight is None or getattr(bind(c.node), "groups", 1) != 1 for c in readers):
        return None
    start = "start"
    flow.add_edges_from((start, n) for n in graph.nodes if n.op == "placeholder" and n in flow)
    above = nx.immediate_dominators(flow, start)
    entry = _common(above, [n for n in inside if n in above])
    while entry in held:
        entry = above[entry]
    spent = [n for n in inside if _needs_parameters(n) or sum(s in held for s in n.all_input_nodes) > 1]
    last = _exit(flow, inside, readers, spent)
    if last is None or not isinstance(entry, fx.Node) or entry not in nx.ancestors(flow, last):
        return None
    way = nx.descendants(flow, last) & held
    odd = [n for n in way if not is_kind(n, "reshape") and _has_sizes(n)]
    return None if odd else Span(entry, last, readers, tuple(n for n in inside if n in way and _has_sizes(n)))


def _carries(coupling: Coupling, node: fx.Node, ids: Any) -> bool:
    axes = coupling.values.get(node)
    return isinstance(axes, tuple) and any(carries(coupling, axis, ids) for axis in axes)


def carries(coupling: Coupling, axis: Axis, ids: Any) -> bool:
    """Returns whether an axis carries any of some channels."""
    return any(bool(np.isin(coupling.channels.resolve(labels), ids).any()) for labels in labels_of(axis))


def _reads(coupling: Coupling, contraction: Contraction, ids: Any) -> bool:
    return carries(coupling, contraction.axis, ids)


def _data(coupling: Coupling, node: fx.Node) -> list[fx.Node]:
    return [
        s for s in node.all_input_nodes if s.op != "get_attr" and isinstance(coupling.captured.info.get(s), TensorInfo)
    ]


def _needs_parameters(node: fx.Node) -> bool:
    return any(source.op == "get_attr" for source in node.all_input_nodes)


def _has_sizes(node: fx.Node) -> bool:
    """Whether an op's arguments say how many channels there are."""
    rule = rule_of(node.target)
    return rule is not None and rule.slice is not None


def _common(above: Mapping[Any, Any], nodes: Sequence[fx.Node]) -> Any:
    """Returns the nearest value that all of some nodes come from."""
    chains = [_chain(above, node) for node in nodes]
    return next(one for one in chains[0] if all(one in chain for chain in chains))


def _chain(above: Mapping[Any, Any], node: Any) -> list[Any]:
    chain = [node]
    while above.get(chain[-1], chain[-1]) not in (chain[-1], None):
        chain.append(above[chain[-1]])
    return chain


def _exit(
    flow: nx.DiGraph[fx.Node], inside: Sequence[fx.Node], readers: Sequence[Contraction], spent: Sequence[fx.Node]
) -> fx.Node | None:
    """Returns the first value after all that needs parameters, through which all that is read outside comes."""
    import networkx as nx

    held = set(inside)
    for node in inside:
        if any(node is not one and node not in nx.descendants(flow, one) for one in spent):
            continue
        rest = flow.subgraph(set(flow) - {node})
        first = next(n for n in inside if n in flow)
        if node is not first and any(c.node in nx.descendants(rest, first) for c in readers):
            continue
        users = list(node.users)
        while len(users) == 1 and users[0] in held and is_pointwise(users[0]):
            node, users = users[0], list(users[0].users)
        return node
    return None


def is_pointwise(node: fx.Node) -> bool:
    """Returns whether a node works on one value, element by element."""
    return is_kind(node, "elementwise", "addition") and len(node.all_input_nodes) == 1
