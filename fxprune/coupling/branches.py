"""Branches: which groups may lose every channel, because what is left of their branch is a constant.

A layer none of whose input channels is left gives its bias wherever it is asked. Elementwise work, evaluation-mode
batch norm and what moves dimensions about keep that a constant for each channel (`fxprune.coupling.constants`). Where the constant
meets a skip connection in an addition, the branch can go: the addition stays, with the constant. Anywhere else the group
must keep a channel.
"""

from __future__ import annotations

import operator
from collections.abc import Container, Iterable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import fx

from fxprune._base.names import fetch
from fxprune.algebra.axes import size_of
from fxprune.capturing.captured import Captured
from fxprune.capturing.normalize.edit import writes
from fxprune.coupling.constants import channel_dims
from fxprune.coupling.coupling import Coupling
from fxprune.coupling.units import Group
from fxprune.ops.registry import bind, is_kind, rule_of
from fxprune.ops.slicer import Slicer


@dataclass(frozen=True, slots=True, eq=False)
class Collapse:
    """What becomes of the graph when some contractions have nothing left to sum.

    Attributes:
        constant: nodes whose value is one constant for each channel, with the channels' dimension.
        frontier: the constant nodes that a live node reads.
        live: nodes that the result still needs, constants excluded.
        legal: whether every constant meets a skip connection, nothing that is live is empty, and what is held is live.
    """

    constant: Mapping[fx.Node, int]
    frontier: tuple[fx.Node, ...]
    live: frozenset[fx.Node]
    legal: bool


def collapse_of(coupling: Coupling, slicer: Slicer, emptied: Iterable[fx.Node] = ()) -> Collapse:
    """Returns what a removal leaves constant, as if layers in ``emptied`` read nothing, and whether that can be emitted."""
    graph = coupling.captured.module.graph
    constant = channel_dims(coupling, slicer, emptied)
    live, frontier = _reach(graph, constant)
    legal = all(_meets_skip(coupling, node, user, live) for node in frontier for user in node.users if user in live)
    legal = legal and all(_filled(coupling, slicer, node) for node in live)
    held = (node for node in graph.find_nodes(op="get_attr") if node.target in coupling.captured.held)
    legal = legal and all(node in live for node in held)
    return Collapse(constant, frontier, live, legal)


def _reach(graph: fx.Graph, constant: Container[fx.Node]) -> tuple[frozenset[fx.Node], tuple[fx.Node, ...]]:
    """Returns what the result or a mutation needs, and the constants that are met first on the way back."""
    waiting = [node for node in graph.nodes if node.op == "output" or writes(node)]
    live: set[fx.Node] = set(waiting)
    frontier: dict[fx.Node, None] = {}
    while waiting:
        for source in waiting.pop().all_input_nodes:
            if source in constant:
                frontier[source] = None
            elif source not in live:
                live.add(source)
                waiting.append(source)
    return frozenset(live), tuple(frontier)


def _meets_skip(coupling: Coupling, node: fx.Node, user: fx.Node, live: frozenset[fx.Node]) -> bool:
    if not is_kind(user, "addition"):
        return False
    a = bind(user)
    other = a.other if a.self is node else a.self
    info = coupling.captured.info
    return isinstance(other, fx.Node) and other in live and info[other].shape == info[user].shape


def _filled(coupling: Coupling, slicer: Slicer, node: fx.Node) -> bool:
    values = coupling.values.get(node)
    every = [axis for axes in (values if isinstance(values, list) else [values]) for axis in axes or ()]
    return all(slicer.count(axis) or not size_of(axis) for axis in every)


def vanishing_groups(coupling: Coupling, groups: Iterable[Group]) -> dict[str, frozenset[str]]:
    """Returns the groups that may vanish, each with the parameters and buffers that are gone when it does."""
    every = {str(n.target) for n in coupling.values if n.op == "get_attr"}
    found = {}
    for name, result in collapses(coupling, groups).items():
        hosts = {host for node in result.frontier if (host := host_of(coupling, result, node))}
        needed = {str(n.target) for n in result.live if n.op == "get_attr"} | hosts
        found[name] = frozenset(every - needed)
    return found


def collapses(coupling: Coupling, groups: Iterable[Group]) -> dict[str, Collapse]:
    """Returns the groups that may vanish, each with what becomes of the graph when it alone does."""
    found = {group.name: collapse_of(coupling, coupling.slicer(coupling.removed_mask(group.units))) for group in groups}
    return {name: result for name, result in found.items() if result.constant and result.legal}


def frozen_norms(captured: Captured, collapse: Collapse) -> tuple[str, ...]:
    """Returns the batch norms of branches that are constants, by module: in training they would be other ones."""
    norms = [node for node in collapse.constant if _trains(captured, node)]
    return tuple(sorted({node.meta.get("module") or node.name for node in norms}))


def _trains(captured: Captured, node: fx.Node) -> bool:
    return is_kind(node, "batch_norm") and node.meta.get("module") not in captured.resting


def folded_constants(coupling: Coupling, collapse: Collapse) -> tuple[str, ...]:
    """Returns the parameters that take a constant which other ops than such norms made of another: they have its gradient."""
    found = set[str]()
    for node in collapse.frontier:
        path = list(_back_from(collapse, node))
        host = host_of(coupling, collapse, node)
        alone = not any(_trains(coupling.captured, source) for source in path)
        if host and alone and any(_computes(collapse, source) for source in path):
            found.add(host)
    return tuple(sorted(found))


def _back_from(collapse: Collapse, node: fx.Node) -> Iterator[fx.Node]:
    """Yields the constants that one is made of, itself included."""
    waiting = [node]
    for current in waiting:  # the list grows
        yield current
        waiting += [s for s in current.all_input_nodes if s in collapse.constant and s not in waiting]


def _computes(collapse: Collapse, node: fx.Node) -> bool:
    rule = rule_of(node.target)
    begins = not any(source in collapse.constant for source in node.all_input_nodes)
    return not (begins or rule is None or rule.moves is not None or rule.conducts)


def skips_of(collapse: Collapse) -> Iterator[fx.Node]:
    """Yields what the constants of a legal collapse are added to."""
    for node in collapse.frontier:
        for user in collapse.live.intersection(node.users):
            a = bind(user)
            yield a.other if a.self is node else a.self


def host_of(coupling: Coupling, collapse: Collapse, node: fx.Node) -> str | None:
    """Returns the parameter that takes the constant: the last bias of the branch, or what else is added elementwise."""
    channels = coupling.captured.info[node].shape[collapse.constant[node]]
    for current in _back_from(collapse, node):
        arguments = vars(bind(current)) if current.target is not operator.getitem else {}
        for source in [arguments["bias"]] if "bias" in arguments else current.all_input_nodes:
            if source is not None and source.op == "get_attr" and _is_home(coupling, source, channels):
                return str(source.target)
    return None


def _is_home(coupling: Coupling, node: fx.Node, channels: int) -> bool:
    """Whether a tensor is a parameter of this branch alone, with one value for each channel."""
    if coupling.captured.info[node].shape != (channels,) or len(node.users) != 1:
        return False
    return isinstance(fetch(coupling.captured.module, str(node.target)), torch.nn.Parameter)
