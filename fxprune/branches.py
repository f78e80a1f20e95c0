"""Branches: which groups may lose every channel, because what is left of their branch is a constant.

A layer none of whose input channels is left gives its bias wherever it is asked. Elementwise work and evaluation-mode
batch norm keep that a constant for each channel. Where the constant meets a skip connection in an addition, the branch
can go: the addition stays, with the constant. Anywhere else the group must keep a channel.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from fxprune.axes import size_of
from fxprune.capture import TensorInfo
from fxprune.channels import Mask
from fxprune.coupling import Coupling
from fxprune.grouping import Group
from fxprune.paths import fetch
from fxprune.rules.registry import bind, mutates
from fxprune.rules.slicing import Slicer

_ADD = torch.ops.aten.add.Tensor
_KEEPING = {torch.ops.aten.dropout.default, torch.ops.aten.clone.default, torch.ops.aten.contiguous.default,
            torch.ops.aten.to.dtype, torch.ops.fxprune.mark.default}  # fmt: skip


@dataclass(frozen=True, slots=True, eq=False)
class Collapse:
    """What becomes of the graph when some contractions have nothing left to sum.

    Attributes:
        constant: nodes whose value is one constant for each channel.
        frontier: the constant nodes that a live node reads.
        live: nodes that the result still needs, constants excluded.
        legal: whether every constant meets a skip connection, and nothing that is live is empty.
    """

    constant: frozenset[fx.Node]
    frontier: tuple[fx.Node, ...]
    live: frozenset[fx.Node]
    legal: bool


def collapse_of(coupling: Coupling, slicer: Slicer) -> Collapse:
    """Returns what a removal leaves constant, and whether that can be emitted."""
    graph = coupling.captured.module.graph
    starts = {
        c.node for c in coupling.contractions
        if c.weight is not None and size_of(c.axis) and not slicer.count(c.axis)
    }  # fmt: skip
    constant: set[fx.Node] = set()
    if starts:
        for node in graph.nodes:
            if node in starts or (_keeps_constant(node) and _reads_constant(coupling, node, constant)):
                constant.add(node)
    live, frontier = _reach(graph, constant)
    legal = all(
        _meets_skip(coupling, node, user, live) for node in frontier for user in node.users if user in live
    )
    legal &= all(_filled(coupling, slicer, node) for node in live)
    return Collapse(frozenset(constant), frontier, live, legal)


def _keeps_constant(node: fx.Node) -> bool:
    if node.op != "call_function" or not isinstance(node.target, torch._ops.OpOverload):
        return False
    if node.target is torch.ops.aten.batch_norm.default:
        return not bind(node).training
    return node.target in _KEEPING or torch.Tag.pointwise in node.target.tags


def _reads_constant(coupling: Coupling, node: fx.Node, constant: set[fx.Node]) -> bool:
    """Whether a constant goes in, and beside it nothing but parameters."""
    tensors = [s for s in node.all_input_nodes if isinstance(coupling.captured.info.get(s), TensorInfo)]
    return any(s in constant for s in tensors) and all(s in constant or s.op == "get_attr" for s in tensors)


def _reach(graph: fx.Graph, constant: set[fx.Node]) -> tuple[frozenset[fx.Node], tuple[fx.Node, ...]]:
    """Returns what the result or a mutation needs, and the constants that are met first on the way back."""
    waiting = [node for node in graph.nodes if node.op == "output" or mutates(node)]
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
    if user.target is not _ADD:
        return False
    a = bind(user)
    other = a.other if a.self is node else a.self
    info = coupling.captured.info
    return isinstance(other, fx.Node) and other in live and info[other].shape == info[user].shape


def _filled(coupling: Coupling, slicer: Slicer, node: fx.Node) -> bool:
    values = coupling.values.get(node)
    for axes in values if isinstance(values, list) else [values]:
        for axis in axes or ():
            if size_of(axis) and not slicer.count(axis):
                return False
    return True


def vanishing_groups(coupling: Coupling, groups: Iterable[Group]) -> dict[str, frozenset[str]]:
    """Returns the groups that may vanish, each with the parameters and buffers that are gone when it does."""
    found = {}
    for group in groups:
        slicer = coupling.slicer(coupling.removed_mask(group.units))
        result = collapse_of(coupling, slicer)
        if result.constant and result.legal:
            hosts = {host for node in result.frontier if (host := host_of(coupling, result, node))}
            needed = {str(n.target) for n in result.live if n.op == "get_attr"} | hosts
            every = {str(n.target) for n in coupling.values if n.op == "get_attr"}
            found[group.name] = frozenset(every - needed)
    return found


def host_of(coupling: Coupling, collapse: Collapse, node: fx.Node) -> str | None:
    """Returns the parameter that takes the constant: the last bias of the branch, or what else is added elementwise."""
    channels = coupling.captured.info[node].shape[channel_dim(coupling, node)]
    waiting, seen = [node], set()
    while waiting:
        current = waiting.pop(0)
        arguments = bind(current)
        for source in [arguments.bias] if hasattr(arguments, "bias") else current.all_input_nodes:
            if source is not None and source.op == "get_attr" and _is_home(coupling, source, channels):
                return str(source.target)
        for source in current.all_input_nodes:
            if source in collapse.constant and source not in seen:
                seen.add(source)
                waiting.append(source)
    return None


def _is_home(coupling: Coupling, node: fx.Node, channels: int) -> bool:
    """Whether a tensor is a parameter of this branch alone, with one value for each channel."""
    if coupling.captured.info[node].shape != (channels,) or len(node.users) != 1:
        return False
    return isinstance(fetch(coupling.captured.module, str(node.target)), torch.nn.Parameter)


def channel_dim(coupling: Coupling, node: fx.Node) -> int:
    """Returns the dimension along which a constant branch varies: that of the contraction it starts at."""
    while True:
        start = next((c for c in coupling.contractions if c.node is node), None)
        if start is not None:
            rank = len(coupling.captured.info[node].shape)
            weight = coupling.captured.info[start.weight] if start.weight is not None else None
            spatial = len(weight.shape) - 2 if weight is not None else 0
            return rank - 1 - spatial
        node = next(
            s
            for s in node.all_input_nodes
            if s.op != "get_attr" and coupling.captured.info.get(s) is not None
        )


def constant_value(
    coupling: Coupling,
    collapse: Collapse,
    node: fx.Node,
    tensors: Mapping[str, Tensor],
    memo: dict[fx.Node, Any],
) -> Tensor:
    """Returns a constant node's value, every dimension of size one but the channels'."""
    if node in memo:
        value: Tensor = memo[node]
        return value
    if node.op == "get_attr":
        memo[node] = tensors.get(str(node.target), fetch(coupling.captured.module, str(node.target))).detach()
    elif any(c.node is node for c in coupling.contractions):
        info: TensorInfo = coupling.captured.info[node]
        dim = channel_dim(coupling, node)
        a = bind(node)
        added = getattr(a, "bias", None)
        weight = constant_value(coupling, collapse, a.weight, tensors, memo)
        vector = weight.new_zeros(info.shape[dim])
        if added is not None:
            vector = constant_value(coupling, collapse, added, tensors, memo)
        memo[node] = vector.reshape([-1 if d == dim else 1 for d in range(len(info.shape))])
    else:

        def get(n: fx.Node) -> Any:
            return constant_value(coupling, collapse, n, tensors, memo)

        assert callable(node.target)
        memo[node] = node.target(*fx.node.map_arg(node.args, get), **fx.node.map_arg(node.kwargs, get))
    result: Tensor = memo[node]
    return result


def removed_collapse(coupling: Coupling, removed: Mask) -> Collapse:
    """Returns the collapse that a removal brings about, which the solver has made sure is legal."""
    collapse = collapse_of(coupling, coupling.slicer(removed))
    assert collapse.legal, "a group that must keep a channel has lost all of them"
    return collapse
